"""The loader: every sample is a crop, a place and a caption of its picture, and the order is a pure
function of the clock.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hdm.data.batch import Batch
from hdm.data.captions import captions_by_key
from hdm.errors import ConfigError, DamagedError, DoesNotFitError, InputError
from hdm.keys import Key
from hdm.positions import full_map, to_patch_grid
from hdm.store import Identity, Store
from tests.data.world import (
    EMPTY,
    PAD,
    PATCH,
    SHAPES,
    SIDE,
    World,
    assert_same,
    caption,
    make_world,
    text_embedding,
    write_latents,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("store"))


def crops_like(world: World, key: str, latent: torch.Tensor) -> list[tuple[int, int]]:
    """Every patch-aligned place where the picture's latent, cut by hand, is that crop."""
    whole = world.normalized(key)
    places = [
        (top, left)
        for top in range(0, whole.shape[1] - SIDE + 1, PATCH)
        for left in range(0, whole.shape[2] - SIDE + 1, PATCH)
    ]
    return [
        (top, left)
        for top, left in places
        if torch.equal(whole[:, top : top + SIDE, left : left + SIDE], latent)
    ]


def positions_of(world: World, key: str, top: int, left: int) -> torch.Tensor:
    _, height, width = world.latents[key].shape
    cut = full_map(height, width).view(height, width, 2)[top : top + SIDE, left : left + SIDE]
    return to_patch_grid(cut.reshape(-1, 2), SIDE, SIDE, PATCH)


@pytest.mark.parametrize("crop", ["shifted", "centre"])
def test_a_sample_is_a_crop_with_its_positions_and_aspect(world: World, crop: str) -> None:
    loader = world.loader(crop=crop)
    places: dict[tuple[int, int], Counter[tuple[int, int]]] = {shape: Counter() for shape in SHAPES}
    for step in range(60):
        batch = loader.batch(step * 12)
        assert batch.latent.shape == (12, 3, SIDE, SIDE)
        for number, key in enumerate(batch.keys):
            _, height, width = world.latents[key].shape
            [place] = crops_like(world, key, batch.latent[number])
            places[height, width][place] += 1
            assert torch.equal(batch.positions[number], positions_of(world, key, *place))
            assert batch.log_aspect[number].item() == pytest.approx(math.log(width / height))
    expected = {
        (4, 4): [(0, 0)],
        (4, 8): [(0, 0), (0, 2), (0, 4)],
        (10, 4): [(0, 0), (2, 0), (4, 0), (6, 0)],
        (4, 6): [(0, 0), (0, 2)],
    }
    centres = {(4, 4): (0, 0), (4, 8): (0, 2), (10, 4): (2, 0), (4, 6): (0, 0)}
    for shape, counts in places.items():
        if crop == "centre":
            assert set(counts) == {centres[shape]}
        else:
            assert set(counts) == set(expected[shape])
            assert min(counts.values()) > 0.6 * sum(counts.values()) / len(counts)


def test_half_of_the_pictures_without_a_side_in_any_caption_are_mirrored_with_their_positions(
    world: World,
) -> None:
    plain, mirrored = (
        world.loader(caption_dropout=0.3),
        world.loader(caption_dropout=0.3, mirror=True),
    )
    counts: dict[bool, Counter[bool]] = {True: Counter(), False: Counter()}
    for step in range(100):
        before, after = plain.batch(12 * step), mirrored.batch(12 * step)
        assert before.keys == after.keys
        assert before.token_ids is not None
        assert after.token_ids is not None
        assert torch.equal(before.token_ids, after.token_ids)
        for number, key in enumerate(after.keys):
            width = world.latents[key].shape[2]
            turned = torch.equal(after.latent[number], before.latent[number].flip(-1))
            assert turned or torch.equal(after.latent[number], before.latent[number])
            [(top, left)] = crops_like(world, key, before.latent[number])
            assert torch.equal(
                after.positions[number],
                positions_of(world, key, top, width - SIDE - left if turned else left),
            )
            counts[any(ids[0] % 3 == 0 for ids in world.token_ids[key])][turned] += 1
    assert not counts[True][True]
    drawn = sum(counts[False].values())
    assert abs(counts[False][True] - drawn / 2) < 4 * math.sqrt(drawn / 4)


def test_every_epoch_shows_every_picture_of_the_split_once(world: World) -> None:
    for split in ("train", "validation"):
        loader = world.loader(split=split, batch_size=7)
        members = sorted(key for key, its in world.split.items() if its == split)
        assert len(loader) == len(members)
        seen = [key for step in range(3 * len(members)) for key in loader.batch(7 * step).keys]
        epochs = [
            seen[start : start + len(members)] for start in range(0, 3 * len(members), len(members))
        ]
        assert all(sorted(epoch) == members for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_a_batch_larger_than_the_split_goes_through_it_again(world: World) -> None:
    loader = world.loader(split="validation", batch_size=40)
    counts = Counter(loader.batch(0).keys)
    assert set(counts.values()) <= {40 // len(loader), 40 // len(loader) + 1}


@pytest.mark.parametrize("num_images_seen", [0, 12, 41, 12 * 1000])
def test_ranks_share_one_global_batch(world: World, num_images_seen: int) -> None:
    settings: dict[str, Any] = {"caption_dropout": 0.3, "mirror": True}
    whole = world.loader(**settings).batch(num_images_seen)
    for world_size in (2, 4, 5):
        parts = [
            world.loader(**settings, rank=rank, world_size=world_size).batch(num_images_seen)
            for rank in range(world_size)
        ]
        assert_same(parts, [whole])


def test_going_on_anywhere_gives_the_same_batches(world: World) -> None:
    undisturbed = world.loader(caption_dropout=0.3)
    batches = [undisturbed.batch(12 * step) for step in range(12)]
    for step in (0, 4, 11):
        assert_same([world.loader(caption_dropout=0.3).batch(12 * step)], [batches[step]])
    # Another batch size shows the same samples in the same order, but for the padding.
    parts = [
        world.loader(caption_dropout=0.3, batch_size=4).batch(place) for place in range(0, 12, 4)
    ]
    assert tuple(key for part in parts for key in part.keys) == batches[0].keys
    assert torch.equal(torch.cat([part.latent for part in parts]), batches[0].latent)
    assert_same([batches[0].part(4, 8)], [batches[0].part(4, 6), batches[0].part(6, 8)])


def test_the_order_depends_on_the_seed_and_not_on_how_shards_are_cut(
    world: World, tmp_path: Path
) -> None:
    assert world.loader(seed=5).batch(0).keys != world.loader(seed=6).batch(0).keys
    recut = World(world.latents, world.split, world.token_ids, dict(world.outputs))
    backwards = World(
        dict(reversed(world.latents.items())), world.split, world.token_ids, dict(world.outputs)
    )
    write_latents(backwards, Store(tmp_path), "float16")
    recut.outputs = backwards.outputs
    assert_same([recut.loader().batch(24)], [world.loader().batch(24)])


def words(batch: Batch, number: int) -> list[int]:
    assert batch.token_ids is not None
    return batch.token_ids[number][batch.text_mask[number]].tolist()


def test_captions_are_the_pictures_own_each_in_turn_or_the_empty_one(world: World) -> None:
    loader, shown = world.loader(), Counter[tuple[str, tuple[int, ...]]]()
    for step in range(400):
        batch = loader.batch(12 * step)
        for number, key in enumerate(batch.keys):
            assert words(batch, number) in (world.token_ids[key] or [EMPTY])
            shown[key, tuple(words(batch, number))] += 1
    given = {
        (key, tuple(ids))
        for key, captions in world.token_ids.items()
        if world.split[key] == "train"
        for ids in captions or [EMPTY]
    }
    assert set(shown) == given


def test_dropout_gives_the_empty_caption_as_often_as_asked(world: World) -> None:
    loader = world.loader(caption_dropout=0.25, batch_size=500)
    batch = loader.batch(0)
    captioned = [number for number, key in enumerate(batch.keys) if world.token_ids[key]]
    empty = sum(words(batch, number) == EMPTY for number in captioned)
    assert abs(empty / len(captioned) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(captioned))


def test_texts_are_padded_to_few_lengths_and_cut(world: World) -> None:
    for step in range(20):
        batch = world.loader(batch_size=2).batch(2 * step)
        assert batch.token_ids is not None
        longest = int(batch.text_mask.sum(1).max())
        assert batch.token_ids.shape[1] == min(math.ceil(longest / 8) * 8, 20)
        assert (batch.token_ids[~batch.text_mask] == PAD).all()
    cut, whole = world.loader(max_tokens=5).batch(0), world.loader().batch(0)
    assert cut.text_mask.shape[1] == 5
    assert [words(cut, number) for number in range(12)] == [
        words(whole, number)[:5] for number in range(12)
    ]


def test_cached_text_is_the_embedding_of_the_same_captions(world: World) -> None:
    for step in range(10):
        live, cached = (
            world.loader(caption_dropout=0.2).batch(12 * step),
            world.loader(cached=True, caption_dropout=0.2).batch(12 * step),
        )
        assert cached.token_ids is None
        assert cached.text is not None
        assert torch.equal(live.text_mask, cached.text_mask)
        for number in range(12):
            expected = torch.from_numpy(text_embedding(words(live, number)).astype(np.float32))
            assert torch.equal(cached.text[number][cached.text_mask[number]], expected)
        assert (cached.text[~cached.text_mask] == 0).all()


def test_bfloat16_latents(tmp_path: Path) -> None:
    world = make_world(tmp_path, 13, "bfloat16")
    batch = world.loader().batch(0)
    assert batch.latent.dtype == torch.float32
    assert all(
        crops_like(world, key, latent) for key, latent in zip(batch.keys, batch.latent, strict=True)
    )


@pytest.mark.parametrize(("name", "cached"), [("encode.32px", False), ("encode.text", True)])
def test_a_flipped_byte_is_found_when_its_row_group_is_first_touched(
    tmp_path: Path, name: str, cached: bool
) -> None:
    world = make_world(tmp_path)
    path = max(world.outputs[name].paths(".parquet"), key=lambda path: path.stat().st_size)
    damaged = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(3)
    damaged[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    path.write_bytes(damaged)
    loader = world.loader(cached=cached)
    with pytest.raises(DamagedError, match=path.name):
        _ = [loader.batch(12 * step) for step in range(20)]


def test_what_does_not_belong_together_is_refused(world: World, tmp_path: Path) -> None:
    with Store(tmp_path).draft(Identity("filter", 2, {})) as draft:
        other = draft.commit()
    mixed = World(world.latents, world.split, world.token_ids, {**world.outputs, "filter": other})
    with pytest.raises(InputError, match=r"encode\.32px was not made from this filter"):
        mixed.loader()
    with pytest.raises(ConfigError, match="patches of 3"):
        world.loader(patch_size=3)
    with pytest.raises(InputError, match="no picture"):
        world.loader(split="held_out").batch(0)


def test_captions_by_key(world: World) -> None:
    keys = [Key(key) for key in list(world.latents)[:6]]
    found = captions_by_key(world.outputs["caption"], keys)
    assert found == {key: [caption(ids) for ids in world.token_ids[key]] for key in keys}


def test_a_batch_holds_what_was_stored_and_each_crops_positions_once(world: World) -> None:
    batch = world.loader(batch_size=40).batch(0)
    assert batch.raw.dtype == torch.float16
    assert (
        len(batch.crops)
        == len({tuple(map(tuple, positions.tolist())) for positions in batch.crops})
        < 40
    )
    part = batch.part(10, 17)
    assert part.keys == batch.keys[10:17]
    assert torch.equal(part.latent, batch.latent[10:17])
    assert torch.equal(part.positions, batch.positions[10:17])
    assert torch.equal(batch.to("cpu").latent, batch.latent)
    assert batch.latent is batch.latent  # computed once


def test_an_epoch_of_several_blocks_is_the_same_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [world.loader(caption_dropout=0.3).batch(12 * step) for step in range(20)]
    monkeypatch.setattr("hdm.data.loader.BLOCK", 7)
    loader = world.loader(caption_dropout=0.3)
    for step, expected in enumerate(whole):
        assert_same([loader.batch(12 * step)], [expected])


def test_nothing_of_a_loader_stays_behind(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gc.collect()
    shared, files = set(Path("/dev/shm").iterdir()), len(list(Path("/proc/self/fd").iterdir()))
    loader = world.loader()
    loader.batch(0)
    assert not list(tmp_path.iterdir())
    assert set(Path("/dev/shm").iterdir()) == shared
    del loader
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == files


def test_no_room_for_token_ids_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hdm.data.captions.TemporaryFile",
        lambda prefix: Path("/dev/full").open("r+b"),  # noqa: SIM115
    )
    with pytest.raises(DoesNotFitError, match=r"no space left: [\d.]+ MB free") as caught:
        world.loader()
    assert Path(str(caught.value.where)).parent == Path(gettempdir())
