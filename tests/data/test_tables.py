"""Tables between stages: damage is found on reading and named, wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdm.data.pages import read_page_header
from hdm.data.tables import CAPTIONS, TOKENS, read_table, write_table
from hdm.store import Identity, Store
from tests.damage import found_by_flipping

KEYS: dict[str, list[Any]] = {"key": [f"{number:016x}" for number in range(12)], "index": [0] * 12}
TABLES: dict[str, tuple[pa.Schema, dict[str, list[Any]]]] = {
    "tokens-00000.parquet": (
        TOKENS,
        {**KEYS, "token_ids": [list(range(number + 1)) for number in range(12)]},
    ),
    "captions-00000.parquet": (
        CAPTIONS,
        {**KEYS, "caption": [f"a cat {number}" for number in range(12)], "maker": ["given"] * 12},
    ),
}


def page_headers(path: Path) -> set[int]:
    """Bytes of the pages' headers, which no checksum covers."""
    whole, group, found = path.read_bytes(), pq.read_metadata(path).row_group(0), set[int]()
    for number in range(group.num_columns):
        chunk = group.column(number)
        at = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        end = at + chunk.total_compressed_size
        while at < end:
            header, length = read_page_header(whole[at:end])
            found.update(range(at, at + length))
            at += length + header[3]
    return found


@pytest.mark.parametrize("name", TABLES)
def test_no_flipped_byte_of_a_table_changes_what_is_read_unseen(tmp_path: Path, name: str) -> None:
    schema, rows = TABLES[name]
    with Store(tmp_path).draft(Identity("made", 1, {})) as draft:
        write_table(draft, name, schema, rows, {})
    path = draft.path / name
    tried = sorted(set(range(path.stat().st_size)) - page_headers(path))
    found = found_by_flipping(path, tried, lambda path: read_table(path, schema.names))
    assert len(found) > len(tried) / 2


def test_a_missing_table_is_missing_not_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / "tokens-00000.parquet")
