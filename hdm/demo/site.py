"""A local web site that serves the scenes as a real site would: mostly well, sometimes late, broken
or not at all.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hdm.acquisition.settings import Pipeline
from hdm.acquisition.sites import ServedSet, Site, register
from hdm.child import child_environment
from hdm.demo.faults import HOST, plan
from hdm.demo.server import LOOPBACK
from hdm.errors import HdmError

END_SEC = 5.0
SCENE_BYTES = 0.5  # a pixel, of an embedded scene


@contextmanager
def serve_scenes(pipeline: Pipeline) -> Iterator[Site]:
    """Serve the pipeline's scenes until the end of the block.

    The URL decides whether a first request fails, so a client that retries gets the same pictures
    in every run. The server is a separate process, because drawing would take the client's time; it
    ends with this process, however that ends.

    Args:
        pipeline: `download.scenes` says which; `download.url_column` and `caption_column` name the
            list's columns.

    Yields:
        The list of URLs, and the address of their host.

    Raises:
        HdmError: the server does not start.
    """
    command = [sys.executable, "-m", "hdm.demo.server"]
    with (
        tempfile.TemporaryDirectory(prefix="scenes-") as folder,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            # Settings over the pipe, and the port back over the other: no file and no fixed port.
            server.stdin.write(pipeline.download.scenes.model_dump_json() + "\n")
            server.stdin.flush()
            # While the server starts.
            urls = _write_list(pipeline, Path(folder))
            port = server.stdout.readline()
            if not port:
                raise HdmError(
                    "the site of the scenes does not start",
                    where=LOOPBACK,
                    do="its own message is above",
                )
            yield Site(str(urls), "urls", {HOST: (LOOPBACK, int(port))})
        finally:
            _stop(server)


def _write_list(pipeline: Pipeline, folder: Path) -> Path:
    settings = pipeline.download
    items = plan(settings.scenes)
    captions = pa.array([list(item.captions) for item in items], pa.list_(pa.string()))
    table = pa.table(
        {
            settings.url_column: pa.array([item.url for item in items]),
            settings.caption_column or "caption": captions,
        }
    )
    urls = folder / "scenes.parquet"
    pq.write_table(table, urls)
    return urls


def _stop(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(END_SEC)
    except subprocess.TimeoutExpired:
        server.kill()


def _count(pipeline: Pipeline) -> int:
    scenes = pipeline.download.scenes
    return round(scenes.count * (1 + scenes.faults))


def _picture_bytes(pipeline: Pipeline) -> float:
    return float(SCENE_BYTES * pipeline.download.scenes.size_px**2)


register("scenes", ServedSet(serve_scenes, _count, _picture_bytes))
