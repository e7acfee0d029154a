"""Latent shards: what is written comes back, other readers agree, and no damage goes unseen."""

from __future__ import annotations

import contextlib
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from hdm.data import pages
from hdm.data.latent_files import LatentFile, LatentFormat, LatentWriter, latent_schema
from hdm.data.pages import METADATA, METADATA_CRC, group_rows, read_page_header
from hdm.errors import DamagedError, DoesNotFitError
from hdm.files import aside_of
from hdm.keys import key_text
from hdm.store import Identity, Store
from tests.damage import found_by_flipping

AUTOENCODER = {
    "class": "AutoencoderKL",
    "scale": [0.5, 2.0, 1.0],
    "shift": [0.0, -1.0, 3.0],
    "weights": "ab" * 32,
}
KEYS = [key_text(number * 0x9E3779B97F4A7C15 % 2**64) for number in range(400)]


def latent_format(height: int = 4, width: int = 6, dtype: str = "float16") -> LatentFormat:
    return LatentFormat(3, height, width, dtype, 32, 8, AUTOENCODER)


def random_latents(count: int, form: LatentFormat, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        (count, form.channels, form.height, form.width),
        generator=torch.Generator().manual_seed(seed),
    )


def write(path: Path, count: int, form: LatentFormat, batch: int = 5) -> torch.Tensor:
    latents = random_latents(count, form)
    with LatentWriter(path, form, count) as writer:
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            writer.add(
                KEYS[start:stop],
                latents[start:stop],
                [(100 + row, 50 + row) for row in range(start, stop)],
            )
    return latents


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 83])
def test_what_is_written_comes_back(tmp_path: Path, dtype: str, count: int) -> None:
    form = latent_format(dtype=dtype)
    latents = write(tmp_path / "a.parquet", count, form)
    file = LatentFile(tmp_path / "a.parquet")
    assert file.form == form
    assert (
        [key_text(key) for key in file.keys]
        == [file.key(row) for row in range(count)]
        == KEYS[:count]
    )
    rows = list(range(count))[::-1]
    assert torch.equal(file.latents(rows), latents[rows].to(getattr(torch, dtype)))
    assert file.table().column("image_width").to_pylist() == [100 + row for row in range(count)]


def test_rows_are_views_of_the_file_which_is_not_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, 20, latent_format())
    files = [LatentFile(path) for _ in range(20)]
    groups = [file.group(5) for file in files]
    opened = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the listing itself
            opened.append(link.readlink())
    assert path.resolve() not in opened
    assert not any(group.flags.writeable or group.flags.owndata for group in groups)
    assert np.shares_memory(files[0].group(5), files[0].group(5))


def test_row_groups_are_eight_or_more_and_one_page_each(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 83, latent_format())
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert metadata.num_row_groups >= 8
    chunk = metadata.row_group(0).column(3)
    assert (chunk.compression, chunk.has_dictionary_page, chunk.is_stats_set) == (
        "UNCOMPRESSED",
        False,
        False,
    )
    assert group_rows(10**6, 8192) * 8192 <= 64 << 20
    assert group_rows(10**6, 16) == 20_000


def test_any_other_reader_opens_them(tmp_path: Path) -> None:
    import datasets

    form = latent_format()
    latents = write(tmp_path / "a.parquet", 21, form)
    expected = [row.numpy().tobytes() for row in latents.half()]
    assert pq.read_table(tmp_path / "a.parquet").column("latent").to_pylist() == expected
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert frame["latent"].tolist() == expected
    assert frame["key"].tolist() == KEYS[:21]
    loaded = datasets.Dataset.from_parquet(
        str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert loaded[20]["latent"] == expected[20]


def test_the_page_header_is_read_as_parquet_defines_it(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 16, latent_format())
    chunk = pq.read_metadata(tmp_path / "a.parquet").row_group(0).column(3)
    data = (tmp_path / "a.parquet").read_bytes()[chunk.data_page_offset :][
        : chunk.total_compressed_size
    ]
    header, length = read_page_header(data)
    assert header[5][1] == 2
    assert header[2] == header[3] == len(data) - length == 2 * latent_format().row_bytes


def rewritten(path: Path, **options: object) -> None:
    """The same table, laid out as another writer would."""
    table, metadata = pq.read_table(path), pq.read_metadata(path).metadata
    schema = latent_schema(latent_format().row_bytes)
    with pq.ParquetWriter(path, schema, store_schema=False, **options) as writer:
        writer.write_table(table.cast(schema))
        writer.add_key_value_metadata(
            {METADATA: metadata[METADATA], METADATA_CRC: metadata[METADATA_CRC]}
        )


LAYOUTS: dict[str, dict[str, object]] = {
    "several pages": dict(
        compression="NONE", use_dictionary=False, data_page_size=64, write_batch_size=1
    ),
    "dictionary": dict(compression="NONE", use_dictionary=True),
    "compressed": dict(compression="zstd", use_dictionary=False),
    "pages of version 2": dict(compression="NONE", use_dictionary=False, data_page_version="2.0"),
    "no checksum": dict(compression="NONE", use_dictionary=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_layouts_are_read_through_pyarrow_and_it_is_said(
    tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture
) -> None:
    latents = write(tmp_path / "a.parquet", 30, latent_format())
    rewritten(tmp_path / "a.parquet", **LAYOUTS[layout])
    file = LatentFile(tmp_path / "a.parquet")
    assert torch.equal(file.latents(range(30)), latents.half())
    assert "through pyarrow" in caplog.text


def read_everything(path: Path) -> tuple[object, ...]:
    file = LatentFile(path)
    content = file.latents(range(len(file))).numpy().tobytes()
    return (
        file.form,
        file.keys.tolist(),
        content,
        file.table(["key", "image_width", "image_height"]).to_pydict(),
    )


def test_every_flipped_byte_of_a_page_is_found_and_none_elsewhere_changes_what_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "latents-2x2-00000.parquet"
    write(path, 8, latent_format(2, 2))
    whole, metadata = path.read_bytes(), pq.read_metadata(path)
    in_pages: set[int] = set()
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            end = chunk.data_page_offset + chunk.total_compressed_size
            length = read_page_header(whole[chunk.data_page_offset : end])[1]
            in_pages.update(range(chunk.data_page_offset + length, end))
    assert len(in_pages) == 8 * (latent_format(2, 2).row_bytes + 4 + 16 + 4 + 4)
    assert found_by_flipping(path, in_pages, read_everything) == in_pages
    # Headers and footer hold bytes that no reader uses, such as the writer's version.
    elsewhere = sorted(set(range(len(whole))) - in_pages)[::5]
    assert len(found_by_flipping(path, elsewhere, read_everything)) > len(elsewhere) / 2


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_file_cut_short_is_damaged(tmp_path: Path, kept: int) -> None:
    write(tmp_path / "a.parquet", 8, latent_format())
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:kept])
    with pytest.raises(DamagedError, match=r"a\.parquet"):
        LatentFile(tmp_path / "a.parquet")


def test_a_missing_file_is_missing_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        LatentFile(tmp_path / "none.parquet")


def test_a_footer_of_other_latents_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 8, latent_format())
    table = pq.read_table(tmp_path / "a.parquet")
    with pages.paged_writer(
        tmp_path / "b.parquet", table.schema, {**LatentFormat(**vars(latent_format(4, 4))).__dict__}
    ) as writer:
        writer.write_table(table)
    with pytest.raises(DamagedError, match="another size"):
        LatentFile(tmp_path / "b.parquet")


def test_each_row_group_is_checked_once_when_first_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.parquet", 16, latent_format())
    checked: list[int] = []
    crc32 = zlib.crc32
    file = LatentFile(tmp_path / "a.parquet")

    def counted(data: bytes) -> int:
        checked.append(len(data))
        return crc32(data)

    monkeypatch.setattr(zlib, "crc32", counted)
    file.latents([0, 1, 0, 5])
    file.latents([4, 5, 1])
    assert checked == [2 * latent_format().row_bytes] * 2


def test_a_full_disk_leaves_no_shard_and_the_next_run_writes_it(tmp_path: Path) -> None:
    name, identity, store = (
        "latents-4x6-00000.parquet",
        Identity("encode.32px", 1, {}),
        Store(tmp_path),
    )
    with store.draft(identity) as draft:
        full = aside_of(draft.path / name)
        full.symlink_to("/dev/full")
        with (
            pytest.raises(DoesNotFitError, match=r"no space left: [\d.]+ MB free") as caught,
            draft.write(name) as file,
        ):
            write(file.path, 83, latent_format())
        assert caught.value.where == draft.path / name
        assert not draft.has(name)
    assert not (draft.path / name).exists()
    assert store.find(identity) is None
    with store.draft(identity) as draft:
        with draft.write(name) as file:
            latents = write(file.path, 83, latent_format())
        output = draft.commit()
    assert torch.equal(LatentFile(output.file(name)).latents(range(83)), latents.half())
