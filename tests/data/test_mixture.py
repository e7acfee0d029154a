"""Several data sets in one order: shares as the weights say, each set in its own order, the same on
any number of processes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hdm.data.loader import Loader
from hdm.data.mixture import Mixture, Shares
from hdm.errors import DamagedError, InputError
from tests.data.world import World, assert_same, make_world

WEIGHTS = [3.0, 1.0, 1.5]
SIZES = [61, 200, 37]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> list[World]:
    return [
        make_world(tmp_path_factory.mktemp("store"), size, seed=number)
        for number, size in enumerate(SIZES)
    ]


def loaders(worlds: Sequence[World], **settings: Any) -> list[Loader]:
    return [
        world.loader(**{"caption_dropout": 0.3, "seed": number, **settings})
        for number, world in enumerate(worlds)
    ]


def mixture(
    worlds: Sequence[World], weights: Sequence[float] = WEIGHTS, **settings: object
) -> Mixture:
    return Mixture(loaders(worlds, **settings), weights)


def set_of_each(shares: Shares, count: int) -> np.ndarray:
    numbers: np.ndarray = np.diff(shares.before(np.arange(count + 1))).argmax(0)
    return numbers


@pytest.mark.parametrize(
    "weights",
    [[1], [1, 1], [3, 1, 1.5], [0.01, 5], [5, 0.01], [1, 2, 3, 4, 5], [1 / 3, 2 / 3], [1e-4, 1]],
)
def test_in_every_stretch_shares_are_as_the_weights_say(weights: list[float]) -> None:
    count = 4000
    taken = np.diff(Shares(weights).before(np.arange(count + 1)))
    assert ((taken == 0) | (taken == 1)).all()
    assert (taken.sum(0) == 1).all()
    counts = np.concatenate([np.zeros((len(weights), 1), int), taken.cumsum(1)], 1)
    for number, weight in enumerate(weights):
        share = float(Fraction(weight) / sum(map(Fraction, weights)))
        off = counts[number] - share * np.arange(count + 1)
        # The count of a stretch is the difference of two counts from the start: its error is at
        # most the range of theirs.
        assert off.max() - off.min() < (1 if number == 0 else 2) + count * 2**-20


def test_shares_hold_far_into_a_run() -> None:
    start = 10**12
    taken = np.diff(Shares(WEIGHTS).before(np.arange(start, start + 5501))).sum(1)
    assert np.abs(taken - 1000 * np.array(WEIGHTS)).max() <= 2


def test_samples_are_those_of_each_sets_own_clock(worlds: list[World]) -> None:
    whole, alone = mixture(worlds), loaders(worlds, batch_size=1)
    order, clocks = set_of_each(Shares(WEIGHTS), 60 * 12), [0] * len(worlds)
    for step in range(60):
        batch = whole.batch(12 * step)
        assert len(batch) == 12
        for place in range(12):
            number = order[12 * step + place]
            expected = alone[number].batch(clocks[number])
            clocks[number] += 1
            sample = batch.part(place, place + 1)
            assert sample.keys == expected.keys
            for name in ("latent", "positions", "log_aspect"):
                assert torch.equal(getattr(sample, name), getattr(expected, name))
            assert sample.token_ids is not None
            assert expected.token_ids is not None
            assert torch.equal(
                sample.token_ids[sample.text_mask], expected.token_ids[expected.text_mask]
            )
        assert batch.text_mask.shape[1] == min(
            math.ceil(int(batch.text_mask.sum(1).max()) / 8) * 8, 20
        )


def test_every_set_goes_through_its_own_epochs(worlds: list[World]) -> None:
    whole = mixture(worlds)
    assert len(whole) == sum(
        sum(split == "train" for split in world.split.values()) for world in worlds
    )
    seen = Counter(key for step in range(200) for key in whole.batch(12 * step).keys)
    for world in worlds:
        counts = [seen[key] for key, split in world.split.items() if split == "train"]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("num_images_seen", [0, 12, 41, 12 * 1000])
def test_ranks_share_one_global_batch_and_any_position_can_be_asked_for(
    worlds: list[World], num_images_seen: int
) -> None:
    whole = mixture(worlds).batch(num_images_seen)
    for world_size in (2, 4, 5):
        assert_same(
            [
                mixture(worlds, rank=rank, world_size=world_size).batch(num_images_seen)
                for rank in range(world_size)
            ],
            [whole],
        )
    parts = [mixture(worlds, batch_size=4).batch(num_images_seen + place) for place in (0, 4, 8)]
    assert tuple(key for part in parts for key in part.keys) == whole.keys
    assert torch.equal(torch.cat([part.latent for part in parts]), whole.latent)


def test_a_set_that_no_batch_of_a_process_meets(worlds: list[World]) -> None:
    rare = mixture(worlds[:2], [1000, 1], batch_size=2)
    batches = [rare.batch(2 * step) for step in range(600)]
    own = set(worlds[1].latents)
    assert sum(key in own for batch in batches for key in batch.keys) == 1


def test_cached_text_is_woven_too(worlds: list[World]) -> None:
    whole = Mixture(
        [world.loader(cached=True, seed=number) for number, world in enumerate(worlds)], WEIGHTS
    ).batch(24)
    live = Mixture(
        [world.loader(seed=number) for number, world in enumerate(worlds)], WEIGHTS
    ).batch(24)
    assert whole.text is not None
    assert torch.equal(whole.text_mask, live.text_mask)
    assert whole.keys == live.keys
    assert not whole.text[~whole.text_mask].any()
    assert whole.text[whole.text_mask].any(-1).all()


def test_order_is_as_good_as_a_permutation(tmp_path: Path) -> None:
    """The order in each set is unrelated to its rows, and so is which pictures of two sets stand
    together.
    """
    pair = [make_world(tmp_path / str(number), 800, seed=number) for number in range(2)]
    whole = mixture(pair, [1, 1], batch_size=100)
    places = [{key: place for place, key in enumerate(world.latents)} for world in pair]
    keys = [key for step in range(14) for key in whole.batch(100 * step).keys]
    orders = [np.array([place[key] for key in keys if key in place]) for place in places]
    for first, second in (
        (np.arange(700), orders[0][:700]),
        (np.arange(700), orders[1][:700]),
        (orders[0][:700], orders[1][:700]),
    ):
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(700)


def test_what_cannot_stand_in_one_batch_is_refused(worlds: list[World], tmp_path: Path) -> None:
    other = make_world(tmp_path, 20, "bfloat16")
    with pytest.raises(InputError, match="dtype float16 in one, bfloat16 in the other"):
        mixture([worlds[0], other], [1, 1])
    with pytest.raises(InputError, match="text token ids in one, text embeddings in the other"):
        Mixture([worlds[0].loader(), worlds[1].loader(cached=True)], [1, 1])


def test_damage_in_one_set_is_named(tmp_path: Path) -> None:
    pair = [make_world(tmp_path / str(number), 61, seed=number) for number in range(2)]
    path = pair[1].outputs["encode.32px"].paths(".parquet")[0]
    content = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(3)
    content[chunk.data_page_offset + chunk.total_compressed_size - 3] ^= 16
    path.write_bytes(content)
    whole = mixture(pair, [1, 1])
    with pytest.raises(DamagedError) as caught:
        _ = [whole.batch(12 * step) for step in range(40)]
    assert caught.value.where == path
