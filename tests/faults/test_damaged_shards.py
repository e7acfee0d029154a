"""A byte that flips in what training reads: the run ends and names the file, and the same command
again mends it and goes on.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hdm.config import Pipeline
from hdm.data.latent_files import open_latents
from hdm.data.loader import Loader
from hdm.errors import DamagedError
from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Output, Store
from hdm.training import phase
from hdm.training.state.position import BLOCK_IMAGES
from tests.faults.kill_anywhere import contents
from tests.training.here import train_here

TRAIN, LATENTS = "train.48px", "encode.48px"
BATCH_SIZE = 4
# Training looks at the first BLOCK_IMAGES before its first step, and meets damage in others on the
# way.
NUM_IMAGES = BLOCK_IMAGES + 4 * BATCH_SIZE
NUM_STEPS = NUM_IMAGES // BATCH_SIZE
PHASE = f"resolution: 48, num_images: {NUM_IMAGES}, batch_size: {BATCH_SIZE}, tread_rate: 0"
SETTINGS = (
    "download.scenes.count=400",
    "download.scenes.faults=0",
    "download.shard_items=24",
    "download.timeout_sec=3",
    "filter.held_out=0.1",
    "filter.validation=0.1",
    "train.checkpoint_sec=0.001",
    "train.peak_tflops=0.1",
    "threads=1",
    "encode.text_embeddings=false",
    "train.model.width=32",
    "train.model.num_heads=2",
    "train.model.head_size=16",
    "train.model.mlp_width=64",
    f"train.phases=[{{{PHASE}}}]",
)


def last_touched(made: dict[str, Output]) -> tuple[Path, int]:
    """The latent shard and a byte of the row group that training comes to last."""
    loader = Loader(
        *(made[name] for name in (LATENTS, "encode.tokens", "caption", "filter")),
        batch_size=BATCH_SIZE,
        patch_size=2,
    )
    order = [key for step in range(NUM_STEPS) for key in loader.batch(BATCH_SIZE * step).keys]
    found = []
    for file in open_latents(made[LATENTS]):
        for group, first in enumerate(file.firsts[:-1].tolist()):
            keys = [file.key(row) for row in range(first, int(file.firsts[group + 1]))]
            seen = [order.index(key) for key in keys if key in order]
            chunk = pq.read_metadata(file.path).row_group(group).column(3)
            found.append(
                (
                    min(seen, default=-1),
                    file.path,
                    chunk.data_page_offset + chunk.total_compressed_size - 5,
                )
            )
    position, path, byte = max(found)
    assert position >= BLOCK_IMAGES, "some steps pass before it"
    return path, byte


def first_column(path: Path) -> tuple[Path, int]:
    """A table and the last byte of its first column, the keys."""
    chunk = pq.read_metadata(path).row_group(0).column(0)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return path, start + chunk.total_compressed_size - 1


def flip(path: Path, byte: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 4
    path.write_bytes(content)


def newest_step(store: Path) -> int:
    return max(
        (int(path.name[11:]) for path in store.glob(f"{TRAIN}/*/.scratch/checkpoint-????????")),
        default=0,
    )


def made_by(pipeline: Pipeline, store: Path) -> list[str]:
    """What a run makes; as with outputs larger than what is rehashed at the start, damage is found
    when first touched.
    """
    return [
        made.output.name
        for made in run(pipeline, Store(store, verify_bytes=0), stop_after=TRAIN)
        if not made.cached
    ]


def test_each_file_is_named_and_mended_and_training_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, whole, store = (
        load_pipeline("demo", SETTINGS),
        tmp_path / "undisturbed",
        tmp_path / "store",
    )
    monkeypatch.setattr(phase, "run_training", train_here)
    made = {one.output.name: one.output for one in run(pipeline, Store(whole), stop_after=TRAIN)}
    shutil.copytree(whole, store, ignore=shutil.ignore_patterns("train.*"))
    # Token ids are read before the first step, latents as they come up, captions for the pictures
    # that are shown after the last one.
    places = {
        "encode.tokens": first_column(made["encode.tokens"].file("tokens-00001.parquet")),
        LATENTS: last_touched(made),
        "caption": first_column(made["caption"].file("captions-00000.parquet")),
    }
    damaged = {name: store / path.relative_to(whole) for name, (path, _) in places.items()}
    for name, (_, byte) in places.items():
        flip(damaged[name], byte)
    files = {
        path: path.stat().st_ino
        for path in store.glob("*/*/*.parquet")
        if path not in damaged.values()
    }

    steps, mended = [], None
    for path in damaged.values():
        with pytest.raises(DamagedError) as caught:
            made_by(pipeline, store)
        assert str(caught.value.where) == str(path)
        assert path.with_name(path.name + ".damaged").exists()
        assert not path.exists()
        assert mended is None or mended.exists()
        steps.append(newest_step(store))
        mended = path
    assert steps[0] == 0 < steps[1] < steps[2] == NUM_STEPS, (
        "each run goes on from the checkpoint of the one before"
    )

    assert made_by(pipeline, store) == ["caption", TRAIN]
    assert {path: path.stat().st_ino for path in files} == files, (
        "the damaged shards alone were made anew"
    )
    found = {
        entry: digest for entry, digest in contents(store).items() if not entry.endswith(".damaged")
    }
    assert found == contents(whole)
