"""Read columns of Parquet, CSV, TSV, JSONL, JSON or text files, row by row.

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
# Python's own limit of 131,072 characters would refuse a whole table for one long caption.
CELL_CHARS = 1 << 24
WORDY_ROWS = 100
START_BYTES = 4096
LOOKED_AT = 100_000  # lines of JSON that are read to learn its fields
Row = tuple[Any, ...]
Line = tuple[int, Row | None]
"""Number of the line or row, from 1, and its values; None if it is damaged."""


def column_names(path: Path, text_column: str = "url", encoding: str | None = None) -> list[str]:
    """The columns of a table; a text file has one, called `text_column`; `encoding` as for
    `read_rows`.

    Raises:
        InputError: it is not a table of the kind that its name states.
    """
    with _reading(path):
        match path.suffix.lower():
            case ".parquet":
                return list(pq.read_schema(path).names)
            case ".csv" | ".tsv":
                with _open_text(path, encoding) as file:
                    return next(csv.reader(file, delimiter=_separator(path, file)), [])
            case ".jsonl":
                lines = islice(_json_lines(path, encoding), LOOKED_AT)
                # JSON has no header: a field counts if any of the first lines has it.
                known = _fields(record for _, record in lines)
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
    """The values of `columns`, row by row. Values that a row lacks, and those of columns that are
    None, are None. Texts may be bytes.

    Args:
        path: the table.
        columns: names.
        encoding: of text that is not Unicode, as for `decoded`.

    Raises:
        InputError: the file is not a table of the kind that its name states.
    """
    readers: dict[str, Callable[[Path, list[str], str | None], Iterator[Line]]] = {
        ".parquet": _parquet_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".jsonl": _jsonl_rows,
        ".json": _json_rows,
    }
    named = [name for name in columns if name is not None]
    positions = [None if name is None else named.index(name) for name in columns]
    rows_of = readers.get(path.suffix.lower(), _text_rows)
    with _reading(path):
        for number, row in rows_of(path, named, encoding):
            if row is None:
                yield number, None
            else:
                yield number, tuple(None if at is None else row[at] for at in positions)


def wordy_columns(path: Path, columns: Sequence[str], encoding: str | None = None) -> list[str]:
    """The columns whose first rows look like captions; `encoding` as for `read_rows`."""
    rows = [row for _, row in islice(read_rows(path, columns, encoding), WORDY_ROWS) if row]
    wordy = []
    for number, name in enumerate(columns):
        if may_be_captions(name, [row[number] for row in rows]):
            wordy.append(name)
    return wordy


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, csv.Error, ValueError, OSError) as error:
        # pyarrow raises an OSError without a number for a file that it cannot parse.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]
        raise InputError(f"this is not a {path.suffix} table: {reason}", where=path) from error


def _open_text(path: Path, encoding: str | None = None) -> IO[str]:
    """Open a text in the encoding of its byte-order mark, or else as UTF-8, with invalid bytes
    preserved for `_restored`.

    Args:
        path: the file.
        encoding: of a text with zero bytes and no mark, which cannot be UTF-8.

    Raises:
        ValueError: it is such a text, and no encoding is given.
    """
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    marked = mark_of(start)
    if marked is None and b"\0" in start:
        if encoding is None:
            # The high bytes of Latin letters are zero, and in little-endian order they come second.
            little = start[1::2].count(0) >= start[0::2].count(0)
            raise ValueError(
                "it has zero bytes, which UTF-8 never has: save it as UTF-8; if it is UTF-16 "
                f"without its mark, --set download.encoding=utf-16-{'le' if little else 'be'}"
            )
        # The csv module reads line ends itself, since quoted cells may hold some: hence newline="".
        return path.open(encoding=encoding, newline="")
    if marked in (None, "utf-8-sig"):
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    return path.open(encoding=marked, newline="")


def _restored(cell: str) -> str | bytes:
    """A cell as it was in the file: its bytes if they are not UTF-8.

    A lone surrogate that JSON spells out (`\\ud800`) was never bytes and stays as it is.
    """
    try:
        cell.encode()
    except UnicodeEncodeError:
        with suppress(UnicodeEncodeError):
            return cell.encode("utf-8", "surrogateescape")
    return cell


def _separator(path: Path, file: IO[str]) -> str:
    """What separates the columns of a table. In a `.csv` the header shows whether it is commas,
    semicolons or tabs; Excel writes any of these, depending on its language."""
    csv.field_size_limit(CELL_CHARS)
    start = file.tell()
    header = file.readline()
    file.seek(start)
    return "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=header.count)


class _Lines:
    """The lines of a file, and `taken`: those that a reader took since it was last emptied."""

    def __init__(self, file: IO[str]) -> None:
        self.file = file
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            self.taken.append(line)
            yield line


def _check_quotes(lines: list[str], separator: str, last: int) -> None:
    """Refuse a cell over several lines that does not end as quoted cells do: a quote that was
    opened by mistake would take the rows after it into the cell in silence.

    Args:
        lines: those of one row.
        last: number of the last one.
    """
    if len(lines) < 2:
        return
    try:
        list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        first = last - len(lines) + 1
        raise csv.Error(
            f"a quote that line {first} opens is not closed where its cell ends, up to line {last}"
        ) from error


def _csv_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    with _open_text(path, encoding) as file:
        separator = _separator(path, file)
        lines = _Lines(file)
        rows = csv.reader(lines, delimiter=separator)
        header: list[str] = next(rows, [])
        _check_quotes(lines.taken, separator, rows.line_num)
        lines.taken.clear()
        # A name may occur several times in the header.
        positions: dict[str, list[int]] = {name: [] for name in columns}
        for position, name in enumerate(header):
            if name in positions:
                positions[name].append(position)
        for row in rows:
            _check_quotes(lines.taken, separator, rows.line_num)
            lines.taken.clear()
            # An unquoted separator would shift the columns after it: a caption would lose its end
            # in silence.
            if len(row) > len(header):
                raise csv.Error(
                    f"line {rows.line_num} has {len(row)} values under a header of {len(header)}"
                )
            if row:
                cells = [*map(_restored, row), *[""] * (len(header) - len(row))]
                values = []
                for name in columns:
                    values.append(_one_or_all([cells[position] for position in positions[name]]))
                yield rows.line_num, tuple(values)


def _one_or_all(values: list[Any]) -> Any:
    """The value of a column or field, or the list of values if several have the same name."""
    return values[0] if len(values) == 1 else values


def _parquet_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    number = 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=columns):
            for row in zip(*(_column(batch, name) for name in columns), strict=True):
                number += 1
                yield number, row


def _column(batch: pa.RecordBatch, name: str) -> list[Any]:
    """The values of a column, or of all columns of that name, row by row."""
    same = [_values(batch.column(place)) for place in batch.schema.get_all_field_indices(name)]
    if len(same) == 1:
        return same[0]
    return [list(values) for values in zip(*same, strict=True)]


def _values(column: pa.Array) -> list[Any]:
    """The values of a column, with texts as bytes: a single damaged text must not end the table."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values


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
    """Whether a file named as JSON lines is a single list of records."""
    with _open_text(path, encoding) as file:
        for line in file:
            if line.strip():
                return line.strip().startswith("[")
    return False


def _json_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    for number, record in enumerate(_json_records(path, encoding), 1):
        yield number, None if record is None else tuple(record.get(name) for name in columns)


def _json_records(path: Path, encoding: str | None = None) -> Iterator[dict[str, Any] | None]:
    """The records of a JSON file: a list of objects, or an object with file names as keys."""
    value = _json_in(path.read_bytes(), encoding)
    if isinstance(value, dict):
        for name, entry in value.items():
            # kohya's form has an object of fields for each name; a bare text is its caption.
            fields = entry if isinstance(entry, dict) else {"caption": entry}
            yield {FILE_NAME: name, **fields}
    elif isinstance(value, list):
        for record in value:
            yield record if isinstance(record, dict) else None
    else:
        raise ValueError("neither a list nor an object")


def json_value(text: str | bytes, encoding: str | None = None) -> Any:
    """The value of a JSON text; None if it is not JSON. Texts in it that are not Unicode are bytes,
    unless `encoding` gives their encoding."""
    try:
        return _json_in(text, encoding)
    except (ValueError, RecursionError):
        return None


def _json_in(text: str | bytes, encoding: str | None) -> Any:
    """As `json_value`, but raises a ValueError if it is not JSON."""
    data = text if isinstance(text, bytes) else b""
    if isinstance(text, bytes):
        result = decoded(text, encoding)
        # An encoding is guessed only where captions are read, which counts the guess. UTF-16 is the
        # exception, since JSON cannot be parsed without decoding it.
        is_guess = result is not None and result[1] and b"\0" not in text
        text = text.decode("utf-8", "surrogateescape") if result is None or is_guess else result[0]
    try:
        return _all_restored(json.loads(text, object_pairs_hook=_with_repeated))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(in_other_encodings(data) or str(error)) from error


def in_other_encodings(data: bytes, *, lines: bool = False) -> str | None:
    """Advice for bytes that are JSON only in another encoding; None if they are not JSON in any.

    In Shift-JIS and others the second byte of a character may be a backslash, which escapes the
    next one in JSON.

    Args:
        lines: each line is a JSON text of its own.
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
    """The codec with a sample of the text that it gives, if that is JSON."""
    try:
        text = data.decode(codec)
        for part in text.splitlines() if lines else [text]:
            if part.strip():
                json.loads(part)
    except (ValueError, RecursionError):
        return None
    foreign = "".join(re.findall(r"[^\x00-\x7f]+", text))[:SHOWN_CHARS]
    return f"{codec} ({foreign})" if foreign.isprintable() else None


def _all_restored(value: Any) -> Any:
    """A JSON value with its texts restored, except the names of fields."""
    if isinstance(value, str):
        return _restored(value)
    if isinstance(value, list):
        return [_all_restored(entry) for entry in value]
    if isinstance(value, dict):
        return {name: _all_restored(entry) for name, entry in value.items()}
    return value


def _with_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which the values of a repeated name form a list."""
    values: dict[str, list[Any]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: _one_or_all(same) for name, same in values.items()}


def json_object(text: str | bytes, encoding: str | None = None) -> dict[str, Any] | None:
    """The JSON object of a text; None if the text is not one."""
    value = json_value(text, encoding)
    return value if isinstance(value, dict) else None


def _fields(records: Iterator[dict[str, Any] | None]) -> list[str]:
    """Names of all fields, in the order in which they first occur."""
    names: dict[str, None] = {}
    for record in records:
        names |= dict.fromkeys(record or ())
    return list(names)


def _text_rows(path: Path, columns: list[str], encoding: str | None) -> Iterator[Line]:
    with _open_text(path, encoding) as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield number, (_restored(line.strip()),)
