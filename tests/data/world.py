"""A small data set as the stages write it, for the loader's tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hdm.data.batch import Batch
from hdm.data.captions import EMPTY_TEXT, TEXT, text_metadata
from hdm.data.latent_files import LatentFormat, LatentWriter, latent_file_name
from hdm.data.loader import Loader
from hdm.data.pages import paged_writer
from hdm.data.tables import CAPTIONS, SCORES, TOKENS, shard_name, write_table
from hdm.keys import Key
from hdm.store import Draft, Identity, Output, Store

SHAPES = [(4, 4), (4, 8), (10, 4), (4, 6)]
AUTOENCODER = {
    "class": "AutoencoderKL",
    "scale": [0.5, 2.0, 0.25],
    "shift": [0.0, -1.0, 3.0],
    "weights": "cd" * 32,
}
EMPTY, PAD, WIDTH = [7], 99, 6
SIDE, PATCH = 4, 2


@dataclass
class World:
    """A small data set: what was stored, by key, and the outputs that hold it."""

    latents: dict[str, torch.Tensor]
    split: dict[str, str]
    token_ids: dict[str, list[list[int]]]
    outputs: dict[str, Output]

    def loader(self, cached: bool = False, **changes: Any) -> Loader:
        named = self.outputs
        text = named["encode.text"] if cached else None
        settings: dict[str, Any] = {"batch_size": 12, "patch_size": PATCH, "seed": 5, **changes}
        return Loader(
            named["encode.32px"],
            named["encode.tokens"],
            named["caption"],
            named["filter"],
            text,
            **settings,
        )

    def normalized(self, key: str) -> torch.Tensor:
        shift, scale = (
            torch.tensor(AUTOENCODER[name]).view(3, 1, 1) for name in ("shift", "scale")
        )
        return (self.latents[key].float() - shift) * scale


def text_embedding(token_ids: list[int]) -> np.ndarray:
    """What the text encoder of this world gives: any injective function will do."""
    rows = np.arange(len(token_ids))[:, None] + np.array(token_ids)[:, None] / 8
    return (rows + np.arange(WIDTH) * 100).astype(np.float16)


def caption(token_ids: list[int]) -> str:
    """Some speak of a side."""
    return " ".join(map(str, token_ids)) + (", seen from the LEFT" if token_ids[0] % 3 == 0 else "")


def make_world(root: Path, num_images: int = 61, dtype: str = "float16", seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    keys = [f"{number:016x}" for number in rng.integers(0, 2**64, num_images, np.uint64)]
    shapes = [SHAPES[number % len(SHAPES)] for number in range(num_images)]
    generator = torch.Generator().manual_seed(seed)
    latents = {
        key: torch.randn((3, *shape), generator=generator).to(getattr(torch, dtype))
        for key, shape in zip(keys, shapes, strict=True)
    }
    split = {key: "validation" if number % 10 == 3 else "train" for number, key in enumerate(keys)}
    token_ids = {
        key: [rng.integers(100, 200, rng.integers(1, 21)).tolist() for _ in range(number % 4)]
        for number, key in enumerate(keys)
    }
    world = World(latents, split, token_ids, {})
    store = Store(root)
    _write_scores(world, store)
    _write_captions(world, store)
    write_latents(world, store, dtype)
    return world


def _halves(keys: list[str]) -> list[list[str]]:
    return [keys[: len(keys) // 2], keys[len(keys) // 2 :]]


def _write_scores(world: World, store: Store) -> None:
    with store.draft(Identity("filter", 1, {})) as draft:
        for number, keys in enumerate(_halves(list(world.latents))):
            dropped = [f"{number:016x}"]
            rows: dict[str, list[Any]] = {
                **{name: [None] * (len(keys) + 1) for name in SCORES.names},
                "key": keys + dropped,
                "decoded": ["ok"] * (len(keys) + 1),
                "kept": [True] * len(keys) + [False],
                "split": [world.split[key] for key in keys] + [None],
            }
            write_table(draft, shard_name("scores", number), SCORES, rows, {})
        world.outputs["filter"] = draft.commit()


def _write_captions(world: World, store: Store) -> None:
    captions = Identity("caption", 1, {})
    tokens = Identity("encode.tokens", 1, {"max_tokens": 20}, {"caption": captions.digest})
    text = Identity("encode.text", 1, {}, {"encode.tokens": tokens.digest})
    with (
        store.draft(captions) as draft,
        store.draft(tokens) as token_draft,
        store.draft(text) as text_draft,
    ):
        for number, keys in enumerate(_halves(list(world.latents))):
            flat = [
                (key, index, ids) for key in keys for index, ids in enumerate(world.token_ids[key])
            ]
            columns: dict[str, list[Any]] = {
                "key": [key for key, _, _ in flat],
                "index": [index for _, index, _ in flat],
            }
            words = {
                "caption": [caption(ids) for _, _, ids in flat],
                "maker": ["given"] * len(flat),
            }
            write_table(draft, shard_name("captions", number), CAPTIONS, {**columns, **words}, {})
            write_table(
                token_draft,
                shard_name("tokens", number),
                TOKENS,
                {**columns, "token_ids": [ids for _, _, ids in flat]},
                {},
            )
            _write_text(
                text_draft,
                shard_name("text", number),
                {**columns, "token_ids": [ids for _, _, ids in flat]},
            )
        _write_text(text_draft, EMPTY_TEXT, {"key": [""], "index": [0], "token_ids": [EMPTY]})
        world.outputs["caption"] = draft.commit()
        world.outputs["encode.tokens"] = token_draft.commit({"empty": EMPTY, "pad_id": PAD})
        world.outputs["encode.text"] = text_draft.commit()


def _write_text(draft: Draft, name: str, rows: dict[str, list[Any]]) -> None:
    token_ids = rows["token_ids"]
    table = pa.table(
        {
            "key": rows["key"],
            "index": rows["index"],
            "length": [len(ids) for ids in token_ids],
            "embedding": [text_embedding(ids).tobytes() for ids in token_ids],
        }
    ).cast(TEXT)
    with (
        draft.write(name) as file,
        paged_writer(file.path, TEXT, text_metadata(WIDTH, {})) as writer,
    ):
        for start in range(0, len(table), 5):
            writer.write_table(table.slice(start, 5))


def write_latents(world: World, store: Store, dtype: str) -> None:
    inputs = {"filter": world.outputs["filter"].digest}
    with store.draft(Identity("encode.32px", 1, {}, inputs)) as draft:
        for height, width in SHAPES:
            members = [
                key for key, latent in world.latents.items() if latent.shape[1:] == (height, width)
            ]
            for number, keys in enumerate(_halves(members)):
                form = LatentFormat(3, height, width, dtype, 32, 8, AUTOENCODER)
                with (
                    draft.write(latent_file_name(height, width, number)) as file,
                    LatentWriter(file.path, form, len(keys)) as writer,
                ):
                    writer.add(
                        [Key(key) for key in keys],
                        torch.stack([world.latents[key] for key in keys]),
                        [(width * 8, height * 8)] * len(keys),
                    )
        world.outputs["encode.32px"] = draft.commit()


COMPARED = ("latent", "positions", "log_aspect", "text_mask", "token_ids")


def joined(parts: list[Batch]) -> dict[str, Any]:
    """What some batches hold, one after the other."""
    return {"keys": [key for part in parts for key in part.keys]} | {
        name: torch.cat([getattr(part, name) for part in parts]) for name in COMPARED
    }


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    found, expected = joined(first), joined(second)
    assert found["keys"] == expected["keys"]
    for name in COMPARED:
        assert torch.equal(found[name], expected[name]), name
