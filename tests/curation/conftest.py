"""Real downloads made in the test: a tar of the original bytes and its table of samples."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from PIL import Image

from hdm.config import Pipeline
from hdm.data.tables import SAMPLES, shard_name, write_table
from hdm.store import Identity, Output, Outputs, Store

MakeDownload = Callable[..., Output]


class Step(Protocol):
    """An output's module, object or `OutputStep`."""

    def identify(self, pipeline: Pipeline, inputs: Mapping[str, str], /) -> Identity: ...
    def make(
        self, pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store, /
    ) -> Output: ...


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def make_download(store: Store) -> MakeDownload:
    """Items are (file bytes, given captions: one, several or None); None for bytes is an item that
    failed.
    """

    def make(*shards: Sequence[tuple[bytes | None, str | Sequence[str] | None]]) -> Output:
        identity = Identity("download", 1, {"items": [len(shard) for shard in shards]})
        with store.draft(identity) as draft:
            for number, items in enumerate(shards):
                rows = []
                with (
                    draft.write(shard_name("images", number, "tar")) as file,
                    tarfile.open(file.path, "w") as tar,
                ):
                    for place, (data, caption) in enumerate(items):
                        rows.append(_sample(tar, f"{number}/{place}.png", data, caption))
                write_table(
                    draft,
                    shard_name("samples", number),
                    SAMPLES,
                    {name: [row.get(name) for row in rows] for name in SAMPLES.names},
                    {"items": len(rows)},
                )
            return draft.commit()

    return make


def _sample(
    tar: tarfile.TarFile, source: str, data: bytes | None, given: str | Sequence[str] | None
) -> dict[str, Any]:
    key = hashlib.sha256(source.encode()).hexdigest()[:16]
    row = {
        "key": key,
        "source": source,
        "status": "http_404" if data is None else "ok",
        "captions": [given] if isinstance(given, str) else list(given or ()),
    }
    if data is None:
        return row
    member = tarfile.TarInfo(f"{key}.png")
    member.size = len(data)
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(data))
    return {
        **row,
        "sha256": hashlib.sha256(data).hexdigest(),
        "format": "PNG",
        "offset": offset,
        "bytes": len(data),
        "width": 64,  # as a header said; that of a broken file too
        "height": 64,
    }


def run(step: Step, pipeline: Pipeline, inputs: Outputs, store: Store) -> Output:
    identity = step.identify(pipeline, {name: output.digest for name, output in inputs.items()})
    return step.make(pipeline, identity, inputs, store)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
