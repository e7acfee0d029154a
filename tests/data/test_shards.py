"""Tar shards: what is written is read back by place, from many threads, and what is missing is
said.
"""

import hashlib
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hdm.data import shards
from hdm.data.shards import ImageReader, TarShard
from hdm.errors import DamagedError
from hdm.store import Identity, Store


def filled(root: Path, num_shards: int, members: int = 5):
    """An output of tars, and what is in them: shard → [(offset, bytes)]."""
    places = {}
    with Store(root).draft(Identity("download", 1, {})) as draft:
        for number in range(num_shards):
            with draft.write(f"images-{number:05d}.tar") as file, TarShard(file.path) as tar:
                contents = [os.urandom(37 * (number + member)) for member in range(members)]
                places[number] = [
                    (tar.add(f"{member:016x}", "PNG", data), data)
                    for member, data in enumerate(contents)
                ]
        return draft.commit(), places


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)  # each example overwrites the file
@given(contents=st.lists(st.binary(max_size=1500), max_size=8))
def test_offsets_are_where_tarfile_finds_the_members(tmp_path, contents):
    path = tmp_path / "shard.tar"
    with TarShard(path) as tar:
        offsets = [
            tar.add(f"{number:016x}#1", "JPEG", data) for number, data in enumerate(contents)
        ]
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [member.offset_data for member in members] == offsets
        files = [tar.extractfile(member) for member in members]
        assert [file.read() for file in files if file] == contents
    data = path.read_bytes()
    assert [
        data[offset : offset + len(content)]
        for offset, content in zip(offsets, contents, strict=True)
    ] == contents


def test_equal_members_make_equal_bytes(tmp_path):
    for name in ("one.tar", "other.tar"):
        with TarShard(tmp_path / name) as tar:
            tar.add("00ff", "WEBP", b"picture")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "other.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert tar.getnames() == ["00ff.webp"]


def test_many_threads_read_more_shards_than_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_OPEN", 2)
    output, places = filled(tmp_path, num_shards=9)
    wanted = [
        (shard, offset, data)
        for _ in range(20)
        for shard, found in places.items()
        for offset, data in found
    ]
    with ImageReader(output) as reader, ThreadPoolExecutor(8) as pool:
        read = list(
            pool.map(
                lambda place: reader.read(place[0], place[1], len(place[2]), sha256(place[2])),
                wanted,
            )
        )
    assert read == [data for _, _, data in wanted]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_flipped_bit_is_damage(tmp_path):
    output, places = filled(tmp_path, num_shards=1)
    offset, data = places[0][-1]
    path = output.path / "images-00000.tar"
    tar = bytearray(path.read_bytes())
    tar[offset + len(data) // 2] ^= 1
    path.write_bytes(tar)
    with ImageReader(output) as reader, pytest.raises(DamagedError, match="not what was downl"):
        reader.read(0, offset, len(data), sha256(data))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_descriptors_are_given_back(tmp_path):
    output, places = filled(tmp_path, num_shards=3)
    before = open_files()
    with ImageReader(output) as reader:
        for shard, [(offset, data), *_] in places.items():
            reader.read(shard, offset, len(data), sha256(data))
        assert open_files() == before + 3
    assert open_files() == before


def test_a_short_or_missing_tar_is_damage(tmp_path):
    output, places = filled(tmp_path, num_shards=2)
    offset, data = places[0][-1]
    os.truncate(output.path / "images-00000.tar", offset + len(data) - 1)
    (output.path / "images-00001.tar").unlink()
    with ImageReader(output) as reader:
        with pytest.raises(DamagedError, match="shorter than it was") as error:
            reader.read(0, offset, len(data), sha256(data))
        assert "images-00000.tar" in str(error.value)
        with pytest.raises(DamagedError, match="missing"):
            reader.read(1, 512, 10, "")
