"""The tables that stages exchange: their columns, and reading and writing them with page checksums.

Every table is divided like the download's shards: `scores-00003.parquet` describes the items in
`images-00003.tar`. All tables join on `key`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hdm.data.pages import damage_named
from hdm.keys import FIELD
from hdm.store import Folder, Output

SAMPLES = pa.schema(
    [
        FIELD,
        pa.field("source", pa.string(), nullable=False),  # the URL or relative path
        # "ok" or one word for what went wrong, e.g. "http_404".
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),  # a sentence with no time, address or port in it
        pa.field("captions", pa.list_(pa.string()), nullable=False),  # as given
        pa.field("licence", pa.string()),
        pa.field("sha256", pa.string()),  # of the original bytes; null unless ok, like the rest
        pa.field("format", pa.string()),  # Pillow's name: JPEG, PNG, WEBP, …
        pa.field("width", pa.int32()),  # upright, in pixels
        pa.field("height", pa.int32()),
        pa.field("offset", pa.int64()),  # of the original bytes in images-NNNNN.tar
        pa.field("bytes", pa.int64()),
    ]
)

MEASURES = pa.schema(
    [
        FIELD,
        pa.field("decoded", pa.string(), nullable=False),  # "ok", or why the pixels cannot be had
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("sharpness", pa.float32()),
        pa.field("noise", pa.float32()),
        pa.field("fingerprint", pa.binary()),  # hdm.curation.fingerprints.RECORD
        pa.field("sha256", pa.string()),  # of the decoded pixels: equal for re-wrapped copies
    ]
)

SIMILARITIES = pa.schema(
    [
        FIELD,
        pa.field("decoded", pa.string(), nullable=False),  # as in MEASURES
        pa.field("clip_similarity", pa.float32()),  # of the best given caption; null without
    ]
)

RATINGS = pa.schema(
    [
        FIELD,
        pa.field("aesthetic", pa.float32()),
    ]
)

# Criteria registered by others add a column each.
SCORES = pa.schema(
    [
        *(MEASURES.field(name) for name in MEASURES.names if name not in ("fingerprint", "sha256")),
        RATINGS.field("aesthetic"),
        SIMILARITIES.field("clip_similarity"),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("reason", pa.string()),  # null if kept: the check that refused it
        pa.field("detail", pa.string()),  # its numbers, or the key of the one it copies
        pa.field("split", pa.string()),  # "train", "validation", "held_out"; null unless kept
    ]
)

CAPTIONS = pa.schema(
    [
        FIELD,
        pa.field("index", pa.int16(), nullable=False),  # 0, 1, … within a picture
        pa.field("maker", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
    ]
)

TOKENS = pa.schema(
    [
        FIELD,
        pa.field("index", pa.int16(), nullable=False),
        pa.field("token_ids", pa.list_(pa.int32()), nullable=False),
    ]
)

_SCHEMAS = {
    "samples": SAMPLES,
    "measures": MEASURES,
    "contrastive": SIMILARITIES,
    "aesthetic": RATINGS,
    "scores": SCORES,
    "captions": CAPTIONS,
    "tokens": TOKENS,
}


def shard_name(kind: str, number: int, suffix: str = "parquet") -> str:
    """`scores`, 3 → `scores-00003.parquet`."""
    return f"{kind}-{number:05d}.{suffix}"


def write_table(
    folder: Folder,
    name: str,
    schema: pa.Schema,
    rows: Mapping[str, Sequence[Any]],
    counts: Mapping[str, int],
) -> None:
    """Write one table of a stage; `rows` maps each column to its values."""
    table = pa.table(
        {column: pa.array(rows[column], schema.field(column).type) for column in schema.names},
        schema=schema,
    )
    # Tables are read whole and never in place, so unlike latents they can be compressed.
    with folder.write(name) as file:
        pq.write_table(
            table, file.path, compression="zstd", write_page_checksum=True, store_schema=True
        )
        file.counts.update(counts)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table. Checks every page, and what no page's checksum covers: columns, their types,
    and the number of rows.

    Raises:
        DamagedError: it is not what was written.
    """
    with damage_named(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read(columns=list(columns) if columns else None)
        if len(table) != file.metadata.num_rows:
            raise ValueError(
                f"it has {len(table)} rows where {file.metadata.num_rows} are promised"
            )
        schema = _SCHEMAS.get(_kind(path), table.schema)
        for name in columns or table.column_names:
            if name not in schema.names:  # a column that a registered criterion added
                continue
            if table.schema.field(name).type != schema.field(name).type:
                raise ValueError(
                    f"column {name} is {table.schema.field(name).type}, not"
                    f" {schema.field(name).type}"
                )
        return table


def _kind(path: Path) -> str:
    return path.name.rsplit("-", 1)[0]


def read_tables(output: Output, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All tables `kind-*.parquet` of an output as one, in order of shards."""
    paths = [path for path in output.paths(".parquet") if _kind(path) == kind]
    return pa.concat_tables([read_table(path, columns) for path in paths])


def shard_files(number: int) -> tuple[str, str]:
    """The names of a shard of a download: its pictures, and its samples."""
    return shard_name("images", number, "tar"), shard_name("samples", number)


def num_shards(output: Output, kind: str) -> int:
    """The number of `kind-*.parquet` tables in an output."""
    return sum(_kind(path) == kind for path in output.paths(".parquet"))
