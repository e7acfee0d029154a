"""Odd, broken and hostile files as a whole data set, through the decoding processes and the stage:
nothing crashes, hangs or grows.
"""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdm.data.latent_files import open_latents
from hdm.data.shards import TarShard
from hdm.data.tables import SAMPLES, SCORES, shard_name, write_table
from hdm.encoding import latents
from hdm.encoding.frames import Framing
from hdm.encoding.pictures import FrameReader, Request, kept_pictures
from hdm.errors import DoesNotFitError, HdmError
from hdm.pictures.formats import sniff
from hdm.pictures.reading import BadImage, decode, inspect
from hdm.pictures.settings import ImageSettings
from hdm.store import Identity, Output, Store
from tests.encoding.test_latents import contents, encode, identify

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "robustness"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")


def files() -> Iterator[tuple[bytes, int, int]]:
    """Every file whose header can be read, and its size; as if its pixels had been found good."""
    for path in sorted(path for path in SHARED.rglob("*") if path.is_file()):
        data = path.read_bytes()
        try:
            header = inspect(data, ImageSettings())
        except BadImage:
            continue
        yield data, header.width, header.height


def as_inputs(root: Path) -> dict[str, Output]:
    rows = list(files())
    keys = [hashlib.sha256(data).hexdigest()[:16] for data, _, _ in rows]
    store, inputs = Store(root), {}
    table: dict[str, list[Any]]
    known: dict[str, list[Any]] = {
        "width": [width for _, width, _ in rows],
        "height": [height for _, _, height in rows],
    }
    with store.draft(Identity("download", 1, {})) as draft:
        with draft.write(shard_name("images", 0, "tar")) as file, TarShard(file.path) as tar:
            offsets = [
                tar.add(key, sniff(data) or "", data)
                for key, (data, _, _) in zip(keys, rows, strict=True)
            ]
        table = {name: [None] * len(keys) for name in SAMPLES.names} | known
        table |= {"key": keys, "source": keys, "status": ["ok"] * len(keys), "offset": offsets}
        table |= {
            "bytes": [len(data) for data, _, _ in rows],
            "sha256": [hashlib.sha256(data).hexdigest() for data, _, _ in rows],
        }
        write_table(draft, shard_name("samples", 0), SAMPLES, table, {})
        inputs["download"] = draft.commit()
    with store.draft(Identity("filter", 1, {})) as draft:
        table = {name: [None] * len(keys) for name in SCORES.names} | known
        table |= {
            "key": keys,
            "decoded": ["ok"] * len(keys),
            "kept": [True] * len(keys),
            "split": ["train"] * len(keys),
        }
        write_table(draft, shard_name("scores", 0), SCORES, table, {})
        inputs["filter"] = draft.commit()
    return inputs


def processes(reader: FrameReader) -> set[int]:
    return {one.process.pid for one in reader.decoders.processes if one.process}


@needs_data
def test_all_odd_files_pass_through_the_decoders_or_are_refused_by_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inputs, framing = as_inputs(tmp_path), Framing(16, 8, 2.0)
    pictures = kept_pictures(**inputs).to_pylist()
    asked = [Request(picture, [(framing, framing.size(picture))]) for picture in pictures]
    with FrameReader(inputs["download"], ImageSettings(), 8, count=2) as reader:
        found = list(reader.read(asked[:20]))
        started = processes(reader)
        found += reader.read(asked[20:])
        assert processes(reader) == started  # no file ended a process
    assert len(found) == len(asked) > 300
    path = inputs["download"].file("images-00000.tar").read_bytes()
    for picture, frames in zip(pictures, found, strict=True):
        try:
            decode(path[picture["offset"] : picture["offset"] + picture["bytes"]], ImageSettings())
            good = True
        except BadImage:
            good = False
            assert picture["key"] in caplog.text
        assert (frames is not None) == good


@needs_data
def test_the_stage_encodes_what_is_good_and_counts_the_rest(home, tmp_path: Path) -> None:
    inputs = as_inputs(tmp_path / "odd")
    identity = latents.identify(
        home.pipeline, {name: output.digest for name, output in inputs.items()}, 16
    )
    output = latents.make(home.pipeline, identity, inputs, home.store, 16)
    kept = pq.read_table(inputs["filter"].file("scores-00000.parquet")).num_rows
    assert output.counts["images"] + output.counts["failed"] + output.counts["not_finite"] == kept
    assert sum(len(file) for file in open_latents(output)) == output.counts["images"] > 300
    assert 0 < output.counts["failed"] < 0.1 * kept


def test_a_shard_that_cannot_grow_stops_the_stage_by_name_and_is_made_when_there_is_room(
    home, tmp_path: Path
) -> None:
    undisturbed = contents(encode(home).path)
    home.root = tmp_path / "small"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(HdmError, match=r"latents-\S+\.parquet"):
            encode(home)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert home.store.find(identify(home)) is None
    assert not list(home.root.rglob(".tmp-*"))
    assert contents(encode(home).path) == undisturbed


def test_a_full_disk_is_said_with_what_is_free(
    home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = contents(encode(home).path)
    home.root, write, written = tmp_path / "full", pq.ParquetWriter.write_table, []

    def full(self: pq.ParquetWriter, table: pa.Table, **options: object) -> None:
        if self not in written:
            written.append(self)
        if len(written) > 2:  # the third file
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, table, **options)

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(DoesNotFitError, match=r"MB free.*latents-") as error:
            encode(home)
    assert "make room" in str(error.value)
    kept = {
        path.name: path.read_bytes()
        for path in (home.store.folder(identify(home))).glob("latents-*")
    }
    assert kept  # what was finished stays
    assert contents(encode(home).path) == undisturbed
