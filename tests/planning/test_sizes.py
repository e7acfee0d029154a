"""The storage arithmetic, held against shards as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hdm.data.captions import TEXT, text_metadata
from hdm.data.latent_files import LatentFormat, LatentWriter
from hdm.data.pages import paged_writer
from hdm.keys import key_text
from hdm.planning.sizes import latent_bytes, shard_bytes, text_bytes

AUTOENCODER = {
    "class": "AutoencoderKL",
    "scale": [1.0] * 4,
    "shift": [0.0] * 4,
    "weights": "ab" * 32,
}


@pytest.mark.parametrize(
    ("num_rows", "channels", "height", "width"),
    [(800, 4, 32, 32), (3000, 4, 32, 43), (100, 16, 64, 64), (40, 4, 128, 170), (90, 32, 96, 96)],
)
def test_a_shard_takes_what_was_reckoned(
    tmp_path: Path, num_rows: int, channels: int, height: int, width: int
) -> None:
    path = tmp_path / "a.parquet"
    autoencoder = {**AUTOENCODER, "scale": [1.0] * channels, "shift": [0.0] * channels}
    keys = [key_text(number) for number in range(num_rows)]
    with LatentWriter(
        path, LatentFormat(channels, height, width, "float16", 8 * height, 8, autoencoder), num_rows
    ) as writer:
        for start in range(0, num_rows, 50):
            part = keys[start : start + 50]
            writer.add(
                part,
                torch.randn(len(part), channels, height, width),
                [(8 * width, 8 * height)] * len(part),
            )
    found = path.stat().st_size
    assert shard_bytes(num_rows, channels, height, width) == pytest.approx(found, rel=1e-3)
    group, row = pq.read_metadata(path).row_group(0), latent_bytes(channels, height, width)
    assert row <= group.column(3).total_compressed_size / group.num_rows < row + 50
    # Headers and footers apart, within half of them.
    plain = num_rows * (latent_bytes(channels, height, width) + 28)
    assert found - plain == pytest.approx(
        shard_bytes(num_rows, channels, height, width) - plain, rel=0.5
    )


def test_a_text_takes_what_was_reckoned(tmp_path: Path) -> None:
    path, tokens, width, count = tmp_path / "text.parquet", 20, 64, 300
    rows = {
        "key": [f"{number:016x}" for number in range(count)],
        "index": [0] * count,
        "length": [tokens] * count,
    }
    table = pa.table(
        {**rows, "embedding": [np.zeros((tokens, width), np.float16).tobytes()] * count}
    ).cast(TEXT)
    with paged_writer(path, TEXT, text_metadata(width, {})) as writer:
        writer.write_table(table)
    assert count * text_bytes(tokens, width) == pytest.approx(path.stat().st_size, rel=5e-3)
