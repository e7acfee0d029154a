"""`hdm run --retry-failed` as a person uses it: a URL fails first and works later."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hdm import stages
from hdm.pipelines import load_pipeline
from hdm.retrying import retry_failed
from hdm.store import Store, read_output
from tests.acquisition.misbehaving import Site, http
from tests.flows.served import HDM, with_tables
from tests.steps import contents

PAGES = [f"/{number}.png" for number in range(12)]
PIPELINES = """
pipelines:
  own:  # our pictures
    download:
      # asked for in May
      source: {folder}/list.csv
      allow_loopback: true
      shard_items: 4
    threads: 1
"""


def picture(number: int) -> bytes:
    """Squares of random colours, which resemble no other picture's."""
    squares = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(squares).resize((48, 48), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as found:
        found.pages |= {page: http(picture(number)) for number, page in enumerate(PAGES)}
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def file(site: Site, tmp_path: Path) -> Path:
    rows = [f"http://127.0.0.1:{site.port}{page},text {page}" for page in PAGES]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *rows]))
    file = tmp_path / "pipelines.yaml"
    file.write_text(PIPELINES.format(folder=tmp_path))
    return file


def run(file: Path, store: Path, *words: str) -> tuple[dict[str, Any], str]:
    """The summary of `hdm run`, by output, and what it said."""
    command = [HDM, "run", "own", "--until", "caption", "--file", str(file), "--store", str(store)]
    done = subprocess.run(
        [*command, "--json", *words],
        env={**os.environ, "HDM_TRACKING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    return {stage["name"]: stage for stage in summary["stages"]}, done.stderr


def test_a_url_that_works_later_costs_its_own_shard(
    site: Site, file: Path, tmp_path: Path, prefect_tables: Path
) -> None:
    store = with_tables(tmp_path / "store", prefect_tables)
    site.pages[PAGES[5]] = http(b"", "404 Not Found")
    before = load_pipeline("own", (), file)
    for result in stages.run(before, Store(store), stop_after="caption"):
        if result.step.name == "download":
            assert result.output.counts["failed_http_404"] == 1

    site.pages[PAGES[5]] = http(picture(5))
    site.asked.clear()
    text = file.read_text()
    summary, said = run(file, store, "--retry-failed")
    made = {name: read_output(store / name / one["digest"]) for name, one in summary.items()}
    assert "1 URL is tried again (1 http_404)" in said
    assert site.asked == {PAGES[5]: 1}
    assert file.read_text() == text.replace("source:", "generation: 1\n      source:")
    assert made["caption"].counts["captions"] == 12
    # What did not change has a name in the outputs of both generations.
    for name, table in (("filter.measures", "measures"), ("caption", "captions")):
        again = [path.name for path in made[name].paths() if path.stat().st_nlink == 1]
        assert again == [f"{table}-00001.parquet"]
    alone = Store(tmp_path / "alone")
    for result in stages.run(load_pipeline("own", (), file), alone, stop_after="caption"):
        assert contents(result.output) == contents(made[result.step.name])

    text = file.read_text()
    assert "nothing failed" in retry_failed("own", [], file, Store(store))
    assert file.read_text() == text
