"""Gathering: the bytes of every run, wherever it lies, and never a payload of another size than was
promised.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hdm.data.gather import RowGroups, gather
from hdm.data.pages import PagedColumn, open_file, paged_writer
from hdm.errors import DamagedError

SCHEMA = pa.schema([pa.field("value", pa.binary(6), nullable=False)])


@pytest.mark.parametrize("run_bytes", [1, 6, 64, 4096, 10_000])
def test_runs_come_from_several_arrays_in_the_order_asked_for(run_bytes: int) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, size, np.uint8) for size in (run_bytes, 50_000, 20_001)]
    which = rng.integers(0, 3, (7, 5))
    starts = np.array(
        [[rng.integers(0, len(arrays[number]) - run_bytes + 1) for number in row] for row in which]
    )
    found = gather(np.array([array.ctypes.data for array in arrays])[which] + starts, run_bytes)
    assert found.shape == (7, 5, run_bytes)
    for place in np.ndindex(7, 5):
        assert np.array_equal(
            found[place], arrays[which[place]][starts[place] : starts[place] + run_bytes]
        )
    assert not any(np.shares_memory(found, array) for array in arrays)


def test_no_runs_give_no_bytes() -> None:
    assert gather(np.zeros((0, 4), np.int64), 8).shape == (0, 4, 8)
    assert gather(np.zeros(3, np.int64), 0).shape == (3, 0)


def column(path: Path, values: list[bytes], group: int) -> PagedColumn:
    with paged_writer(path, SCHEMA, {}) as writer:
        for start in range(0, len(values), group):
            writer.write_table(pa.table({"value": values[start : start + group]}, schema=SCHEMA))
    with open_file(path, SCHEMA) as file:
        return PagedColumn(file, path, "value")


def test_rows_are_numbered_over_all_files(tmp_path: Path) -> None:
    values = [bytes([number]) * 6 for number in range(30)]
    columns = [
        column(tmp_path / "a", values[:11], 4),
        column(tmp_path / "b", [], 4),
        column(tmp_path / "c", values[11:12], 4),
        column(tmp_path / "d", values[12:], 7),
    ]
    sizes = np.concatenate([np.diff(one.firsts) for one in columns]) * 6
    groups = RowGroups(columns, sizes)
    rows = np.random.default_rng(1).permutation(30)
    found = groups.find(rows)
    addresses = groups.addresses(found) + 6 * (rows - groups.firsts[found])
    assert [run.tobytes() for run in gather(addresses, 6)] == [values[row] for row in rows]
    with pytest.raises(DamagedError, match="not 30") as raised:
        RowGroups(columns, sizes + 6).addresses(np.array([0]))
    assert raised.value.where == tmp_path / "a"
