"""A small download with its filter's and captioner's outputs, and small models of the real
classes.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.data.shards import TarShard
from hdm.data.tables import (
    CAPTIONS,
    SAMPLES,
    SCORES,
    num_shards,
    read_table,
    shard_name,
    write_table,
)
from hdm.encoding.settings import EncodeSettings
from hdm.models.settings import Components
from hdm.store import Identity, Output, Store
from hdm.training.settings import TrainSettings
from tests.small_models import save_autoencoder, text_config
from tests.word_tokenizer import SPECIAL, WORDS, word_tokenizer

# Width and height of each picture: squares, long ones, longer than the aspect limit, and smaller
# than 16 px.
SIZES = [
    (40, 40),
    (64, 32),
    (32, 64),
    (100, 30),
    (21, 70),
    (40, 33),
    (12, 12),
    (10, 15),
    (16, 16),
    (57, 44),
] * 3


@dataclass
class Home:
    """A store with everything that the encode stage reads."""

    root: Path
    pipeline: Pipeline
    inputs: dict[str, Output] = field(default_factory=dict)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    captions: dict[str, list[str]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)

    @property
    def store(self) -> Store:
        return Store(self.root)

    @property
    def digests(self) -> dict[str, str]:
        return {name: output.digest for name, output in self.inputs.items()}

    @property
    def encoded(self) -> set[str]:
        """Keys of the pictures that must have a latent."""
        return set(self.pixels) - self.broken - self.rejected

    def lose(self, key: str) -> None:
        """Download a picture's shard again when the picture is gone."""
        nothing: dict[str, Any] = dict.fromkeys(SAMPLES.names)
        failed = {**nothing, "key": key, "source": "x", "status": "http_404", "captions": []}
        self.rewrite("download", "samples", {key: failed})

    def rewrite(self, name: str, kind: str, changed: dict[str, dict[str, Any] | None]) -> None:
        """Make an output's tables again with these rows; None: without the row."""
        old = self.inputs[name]
        with self.store.draft(Identity(name, 1, {})) as draft:
            for number in range(num_shards(old, kind)):
                table = read_table(old.file(shard_name(kind, number)))
                rows = [changed.get(row["key"], row) for row in table.to_pylist()]
                left = [row for row in rows if row is not None]
                columns = {column: [row[column] for row in left] for column in table.column_names}
                write_table(draft, shard_name(kind, number), table.schema, columns, {})
            self.inputs[name] = draft.commit()


def noisy_picture(width: int, height: int, seed: int) -> np.ndarray:
    """Soft colour fields with a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return (
        (np.asarray(coarse, np.int16) + rng.integers(-8, 9, (height, width, 3)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_autoencoder(
        tmp_path_factory.mktemp("autoencoder"),
        latent_channels=5,
        latents_mean=[0.1, -0.2, 0.0, 0.3, 1.0],
        latents_std=[1.0, 2.0, 0.5, 1.5, 0.7],
    )


@pytest.fixture(scope="session")
def text_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3Model

    words = [*SPECIAL, *WORDS]
    folder = tmp_path_factory.mktemp("text_encoder")
    word_tokenizer(words, padding_side="right").save_pretrained(folder)
    torch.manual_seed(1)
    Qwen3Model(text_config(max_position_embeddings=64)).save_pretrained(folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, autoencoder_folder: Path, text_encoder_folder: Path) -> Home:
    pipeline = Pipeline(
        threads=1,
        components=Components(
            autoencoder=str(autoencoder_folder), text_encoder=str(text_encoder_folder)
        ),
        encode=EncodeSettings(max_tokens=12, batch_size=4, device="cpu", text_embeddings=True),
        train=TrainSettings(model=XUTConfig(channels=5, patch_size=2, text_width=24)),
    )
    made = Home(tmp_path / "store", pipeline)
    rng = np.random.default_rng(3)
    for number, (width, height) in enumerate(SIZES):
        key = f"{int(rng.integers(0, 2**63)):016x}"
        made.pixels[key] = noisy_picture(width, height, number)
        made.captions[key] = [
            " ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(number % 3)
        ]
    keys = list(made.pixels)
    made.broken, made.rejected = {keys[7]}, {keys[2], keys[20]}
    shards = [keys[:17], keys[17:]]
    _write_download(made, shards)
    _write_filter(made, shards)
    _write_captions(made, shards)
    return made


def _write_download(home: Home, shards: list[list[str]]) -> None:
    with home.store.draft(Identity("download", 1, {})) as draft:
        for number, keys in enumerate(shards):
            rows: dict[str, list[Any]] = {name: [] for name in SAMPLES.names}
            with (
                draft.write(shard_name("images", number, "tar")) as file,
                TarShard(file.path) as tar,
            ):
                for key in keys:
                    data = png(home.pixels[key])
                    data = data[: len(data) // 2] if key in home.broken else data
                    height, width = home.pixels[key].shape[:2]
                    found = {
                        "key": key,
                        "source": f"{key}.png",
                        "status": "ok",
                        "format": "PNG",
                        "width": width,
                        "height": height,
                    }
                    found |= {
                        "offset": tar.add(key, "PNG", data),
                        "bytes": len(data),
                        "sha256": hashlib.sha256(data).hexdigest(),
                    }
                    for name, column in rows.items():
                        column.append(found.get(name))
            write_table(draft, shard_name("samples", number), SAMPLES, rows, {})
        home.inputs["download"] = draft.commit()


def _write_filter(home: Home, shards: list[list[str]]) -> None:
    with home.store.draft(Identity("filter", 1, {})) as draft:
        for number, keys in enumerate(shards):
            sizes = [home.pixels[key].shape for key in keys]
            kept = [key not in home.rejected for key in keys]
            rows: dict[str, list[Any]] = {
                **{name: [None] * len(keys) for name in SCORES.names},
                "key": keys,
                "decoded": ["ok"] * len(keys),
                "kept": kept,
                "split": ["train" if good else None for good in kept],
                "width": [width for _, width, _ in sizes],
                "height": [height for height, _, _ in sizes],
            }
            write_table(draft, shard_name("scores", number), SCORES, rows, {})
        home.inputs["filter"] = draft.commit()


def _write_captions(home: Home, shards: list[list[str]]) -> None:
    with home.store.draft(Identity("caption", 1, {})) as draft:
        for number, keys in enumerate(shards):
            flat = [
                (key, index, caption)
                for key in keys
                for index, caption in enumerate(home.captions[key])
            ]
            columns = ([row[place] for row in flat] for place in range(3))
            rows = dict(zip(("key", "index", "caption"), columns, strict=True))
            write_table(
                draft,
                shard_name("captions", number),
                CAPTIONS,
                {**rows, "maker": ["given"] * len(flat)},
                {},
            )
        home.inputs["caption"] = draft.commit()
