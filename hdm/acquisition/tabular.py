"""A few columns of Parquet, CSV, TSV, JSONL or text files, row by row, with bounded memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from hdm.errors import InputError

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt")
BATCH_ROWS = 4096
BLOCK_BYTES = 1 << 24  # a row of a CSV has to fit in
Row = tuple[Any, ...]


def column_names(path: Path, text_column: str = "url") -> list[str]:
    """The columns of a table; a text file has one, called `text_column`.

    Raises:
        InputError: it is no table of the kind that its name says.
    """
    with _reading(path):
        match path.suffix.lower():
            case ".parquet":
                return list(pq.read_schema(path).names)
            case ".csv" | ".tsv":
                with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                    return next(csv.reader(file, delimiter=_delimiter(path)), [])
            case ".jsonl":
                return list(
                    {name: None for record in islice(_json_lines(path), 100) for name in record}
                )
            case _:
                return [text_column]


def read_rows(path: Path, columns: Sequence[str | None]) -> Iterator[Row]:
    """The values of `columns`, row by row; None where a row or the list of columns has none. A line that is not JSON has no values.

    Raises:
        InputError: the file is no table of the kind that its name says.
    """
    readers: dict[str, Callable[[Path, list[str]], Iterator[Row]]] = {
        ".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows,
    }  # fmt: skip
    named = [name for name in columns if name is not None]
    places = [None if name is None else named.index(name) for name in columns]
    with _reading(path):
        for row in readers.get(path.suffix.lower(), _text_rows)(path, named):
            yield tuple(None if place is None else row[place] for place in places)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, csv.Error, UnicodeError) as error:
        raise InputError(
            f"this is not a {path.suffix} table: {str(error).splitlines()[0]}", where=path
        ) from error


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _parquet_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _csv_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    # As bytes: one badly encoded caption must not end the list.
    convert = pa_csv.ConvertOptions(
        include_columns=columns, column_types={name: pa.binary() for name in columns}
    )
    parse = pa_csv.ParseOptions(delimiter=_delimiter(path), newlines_in_values=True)
    read = pa_csv.ReadOptions(block_size=BLOCK_BYTES)
    with pa_csv.open_csv(path, read, parse, convert) as reader:
        for batch in reader:
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def _jsonl_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    for record in _json_lines(path):
        yield tuple(record.get(name) for name in columns)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if line.strip():
                yield json_object(line)


def json_object(text: str | bytes) -> dict[str, Any]:
    """A JSON object; {} where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text_rows(path: Path, columns: list[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                yield (line.strip(),)
