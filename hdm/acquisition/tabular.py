"""A few columns of Parquet, CSV, TSV, JSONL, JSON or text files, row by row.

Memory is bounded, except for JSON.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hdm.acquisition.texts import NOT_KNOWN, OTHERS, SHOWN_CHARS, decoded, mark_of, may_be_captions
from hdm.errors import InputError

TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl", ".txt")
FILE_NAME = "file_name"
BATCH_ROWS = 4096
CELL_CHARS = 1 << 24
WORDY_ROWS = 100
START_BYTES = 4096
LOOKED_AT = 100_000
"""Lines of JSON that are read to learn which fields there are."""
Row = tuple[Any, ...]
Line = tuple[int, Row | None]
"""Number of the line or row, from 1, and its values; None where it is damaged."""


def column_names(path: Path, text_column: str = "url", encoding: str | None = None) -> list[str]:
    """The columns of a table; a text file has one, called `text_column`; `encoding` as for
    `read_rows`.

    Raises:
        InputError: it is no table of the kind that its name says.
    """
    with _reading(path):
        match path.suffix.lower():
            case ".parquet":
                return list(pq.read_schema(path).names)
            case ".csv" | ".tsv":
                with _open_text(path, encoding) as file:
                    return next(_csv_reader(path, file), [])
            case ".jsonl":
                records = (record for _, record in islice(_json_lines(path, encoding), LOOKED_AT))
                known = _fields(record for record in records if record)
                if not known and (reason := in_other_encodings(path.read_bytes(), lines=True)):
                    raise ValueError(reason)
                return known
            case ".json":
                return _fields(_json_records(path, encoding))
            case _:
                return [text_column]


def read_rows(
    path: Path, columns: Sequence[str | None], encoding: str | None = None
) -> Iterator[Line]:
    """The values of `columns`, row by row; None where a row or the list of columns has none.

    Texts may come as their bytes.

    Args:
        path: the table.
        columns: names.
        encoding: of text that is not Unicode, as for `decoded`.

    Raises:
        InputError: the file is no table of the kind that its name says.
    """
    readers: dict[str, Callable[[Path, list[str], str | None], Iterator[Line]]] = {
        ".parquet": _parquet_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
    }
    named = [name for name in columns if name is not None]
    places = [None if name is None else named.index(name) for name in columns]
    rows_of = readers.get(path.suffix.lower(), _text_rows)
    with _reading(path):
        for number, row in rows_of(path, named, encoding):
            if row is None:
                yield number, None
            else:
                yield number, tuple(None if place is None else row[place] for place in places)


def wordy_columns(path: Path, columns: Sequence[str], encoding: str | None = None) -> list[str]:
    """Those columns whose first rows may be captions; `encoding` as for `read_rows`."""
    rows = [row for _, row in islice(read_rows(path, columns, encoding), WORDY_ROWS) if row]
    wordy = []
    for place, name in enumerate(columns):
        values = [row[place] for row in rows]
        if may_be_captions(name, values):
            wordy.append(name)
    return wordy


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, csv.Error, ValueError) as error:
        raise InputError(
            f"this is not a {path.suffix} table: {str(error).splitlines()[0]}", where=path
        ) from error


def _open_text(path: Path, encoding: str | None = None) -> IO[str]:
    """Text in the encoding of its mark, else UTF-8, whose damage is kept for `_restored`.

    Args:
        path: the file.
        encoding: of a text with zero bytes and no mark, which UTF-8 never has.

    Raises:
        ValueError: it is such a text, and no encoding is given.
    """
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    marked = mark_of(start)
    if marked is None and b"\0" in start:
        if encoding is None:
            little = start[1::2].count(0) >= start[0::2].count(0)
            raise ValueError(
                "it has zero bytes, which UTF-8 never has: save it as UTF-8; if it is UTF-16 "
                f"without its mark, --set download.encoding=utf-16-{'le' if little else 'be'}"
            )
        return path.open(encoding=encoding, newline="")
    if marked in (None, "utf-8-sig"):
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding=marked, newline="")


def _restored(cell: str) -> str | bytes:
    """A cell as it was: its bytes, where they are not UTF-8.

    Half a character that JSON spells out (`\\ud800`) never was bytes; it stays as it is.
    """
    try:
        cell.encode()
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):
            return cell.encode("utf-8", "surrogateescape")
    return cell


def _csv_reader(path: Path, file: IO[str]) -> Any:
    """Rows of a table as text; in a `.csv` the header shows whether commas, semicolons or tabs
    separate its columns, which is Excel's choice."""
    csv.field_size_limit(CELL_CHARS)
    start = file.tell()
    header = file.readline()
    file.seek(start)
    separator = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)
    return csv.reader(file, delimiter=separator)


def _csv_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    with _open_text(path, encoding) as file:
        rows = _csv_reader(path, file)
        header: list[str] = next(rows, [])
        places = [[at for at, known in enumerate(header) if known == name] for name in columns]
        for row in rows:
            if len(row) > len(header):
                raise csv.Error(
                    f"line {rows.line_num} has {len(row)} values under a header of {len(header)}"
                )
            if row:
                cells = [_restored(cell) for cell in row] + [""] * (len(header) - len(row))
                yield rows.line_num, tuple(_joined([cells[at] for at in same]) for same in places)


def _joined(values: list[Any]) -> Any:
    """The value of a column or field; a list of those of several that have the same name."""
    return values[0] if len(values) == 1 else values


def _parquet_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for row in zip(*(_values(batch.column(name)) for name in columns), strict=True):
                number += 1
                yield number, row


def _values(column: pa.Array) -> list[Any]:
    """Texts as bytes: one that is damaged must not end the table."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    return column.to_pylist()


def _jsonl_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    for number, record in _json_lines(path, encoding):
        yield number, None if record is None else tuple(record.get(name) for name in columns)


def _json_lines(
    path: Path, encoding: str | None = None
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    if _begins_with_list(path, encoding):
        yield from enumerate(_json_records(path, encoding), 1)
        return
    with _open_text(path, encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, json_object(_restored(line), encoding)


def _begins_with_list(path: Path, encoding: str | None) -> bool:
    """Whether a file of JSON lines is one list of records instead."""
    with _open_text(path, encoding) as file:
        return next(filter(None, map(str.strip, file)), "").startswith("[")


def _json_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    for number, record in enumerate(_json_records(path, encoding), 1):
        yield number, None if record is None else tuple(record.get(name) for name in columns)


def _json_records(path: Path, encoding: str | None = None) -> Iterator[dict[str, Any] | None]:
    """The records of a JSON file: a list of objects, or an object by file name."""
    value = _json_in(path.read_bytes(), encoding)
    if isinstance(value, dict):
        for name, said in value.items():
            yield {FILE_NAME: name, **(said if isinstance(said, dict) else {"caption": said})}
    elif isinstance(value, list):
        yield from (record if isinstance(record, dict) else None for record in value)
    else:
        raise ValueError("neither a list nor an object")


def json_value(text: str | bytes, encoding: str | None = None) -> Any:
    """What a JSON text says; None where it is no JSON. Texts in it that are not Unicode come as
    their bytes, unless `encoding` says how to read them."""
    try:
        return _json_in(text, encoding)
    except (ValueError, RecursionError):
        return None


def _json_in(text: str | bytes, encoding: str | None) -> Any:
    """As `json_value`, with a ValueError where it is no JSON."""
    data = text if isinstance(text, bytes) else b""
    if isinstance(text, bytes):
        read = decoded(text, encoding)
        # A guess at captions is made and counted where they are read.
        certain = read if read and (not read[1] or b"\0" in text) else None
        text = certain[0] if certain else text.decode("utf-8", "surrogateescape")
    try:
        return _all_restored(json.loads(text, object_pairs_hook=_with_repeated))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(in_other_encodings(data) or str(error)) from error


def in_other_encodings(data: bytes, *, lines: bool = False) -> str | None:
    """What to do about bytes that are no JSON as they are, and would be in another encoding; None
    if they would not.

    In Shift-JIS and others half a character may be the sign that escapes the next one in JSON.

    Args:
        lines: JSON is each line by itself.
    """
    with suppress(UnicodeDecodeError):
        if "\0" not in data.decode():
            return None
    readings = [reading for codec in OTHERS if (reading := _as_json(data, codec, lines))]
    if readings:
        return f"{NOT_KNOWN}: --set download.encoding names another, as {', '.join(readings)}"
    if any(_as_json(data, codec, lines) for codec in ("utf-16-le", "utf-16-be")):
        return "it is UTF-16 without the mark that says so: save it as UTF-8"
    return None


def _as_json(data: bytes, codec: str, lines: bool) -> str | None:
    """The codec with some of the text that it gives, if that is JSON."""
    try:
        text = data.decode(codec)
        for part in filter(str.strip, text.splitlines() if lines else [text]):
            json.loads(part)
    except (ValueError, RecursionError):
        return None
    foreign = "".join(re.findall(r"[^\x00-\x7f]+", text))[:SHOWN_CHARS]
    return f"{codec} ({foreign})" if foreign.isprintable() else None


def _all_restored(value: Any) -> Any:
    """A JSON value whose texts are restored, except the names of fields."""
    if isinstance(value, str):
        return _restored(value)
    if isinstance(value, list):
        return [_all_restored(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _all_restored(entry) for name, entry in value.items()}
    return value


def _with_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which the values of a repeated name are a list."""
    values: dict[str, list[Any]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: _joined(same) for name, same in values.items()}


def json_object(text: str | bytes, encoding: str | None = None) -> dict[str, Any] | None:
    """A JSON object; None where the text is none."""
    value = json_value(text, encoding)
    return value if isinstance(value, dict) else None


def _fields(records: Iterator[dict[str, Any] | None]) -> list[str]:
    return list({name: None for record in records if record for name in record})


def _text_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    with _open_text(path, encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield number, (_restored(line.strip()),)
