"""Cached features at a crop's tokens: planted ones that say where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hdm.data.feature_table import Crop, at_tokens
from hdm.data.latent_files import LatentFormat, LatentWriter, latent_file_name
from hdm.data.mixture import Mixture
from hdm.errors import InputError
from hdm.keys import Key
from hdm.store import Identity, Output, Store
from tests.data.world import PATCH, SIDE, World, make_world


def places(height: int, width: int) -> torch.Tensor:
    """(2, h, w): each cell's own centre as shares of the frame's sides, (y, x)."""
    y, x = ((torch.arange(count) + 0.5) / count for count in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def inside(at: float, count: int) -> float:
    return min(max(at, 0.5 / count), 1 - 0.5 / count)


def expected(crop: Crop, patch: int, grid: tuple[int, int]) -> list[tuple[float, float]]:
    """Where tokens lie, by counting; no nearer to the frame's border than the outermost
    features.
    """
    found = list[tuple[float, float]]()
    for row in range(crop.side // patch):
        for column in range(crop.side // patch):
            y, x = (
                (crop.top + patch * (row + 0.5)) / crop.height,
                (crop.left + patch * (column + 0.5)) / crop.width,
            )
            x = 1 - x if crop.mirrored else x
            found.append((inside(y, grid[0]), inside(x, grid[1])))
    return found


@pytest.mark.parametrize("grid", [(16, 16), (3, 5), (1, 2)])
@pytest.mark.parametrize(
    "crop",
    [
        Crop(8, 8, 0, 0, 8),
        Crop(8, 14, 0, 4, 8),
        Crop(20, 8, 12, 0, 8),
        Crop(8, 14, 0, 4, 8, mirrored=True),
    ],
)
def test_a_feature_that_is_its_own_place_comes_out_as_the_tokens_place(
    grid: tuple[int, int], crop: Crop
) -> None:
    torch.testing.assert_close(
        at_tokens(places(*grid), crop, 2),
        torch.tensor(expected(crop, 2, grid)),
        rtol=1e-5,
        atol=1e-6,
    )


def write_features(world: World, root: Path, keys: list[str]) -> Output:
    """Of each picture's shape: its places, and a number that is the picture's own. Two shards a
    shape, in another order than latents.
    """
    filter = world.outputs["filter"]
    with Store(root).draft(Identity("encode.features", 1, {}, {"filter": filter.digest})) as draft:
        shapes = sorted({tuple(world.latents[key].shape[1:]) for key in keys})
        for height, width in shapes:
            members = sorted(key for key in keys if world.latents[key].shape[1:] == (height, width))
            grid = places(2 * height, 2 * width)
            form = LatentFormat(
                3, 2 * height, 2 * width, "float16", 64, 8, {"class": "Vision", "weights": "0"}
            )
            for number in range(2):
                mine = members[number::2]
                name = latent_file_name(form.height, form.width, number, "features")
                numbers = [
                    torch.full_like(grid[:1], list(world.latents).index(key)) for key in mine
                ]
                with draft.write(name) as file, LatentWriter(file.path, form, len(mine)) as writer:
                    writer.add(
                        [Key(key) for key in mine],
                        torch.stack([torch.cat((grid, one)) for one in numbers]),
                        [(1, 1)] * len(mine),
                    )
        return draft.commit()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("mirror", [False, True])
def test_a_batch_holds_each_pictures_own_features_at_its_tokens(
    world: World, tmp_path: Path, mirror: bool
) -> None:
    features = write_features(world, tmp_path, list(world.latents))
    loader, plain = (world.loader(features=given, mirror=mirror) for given in (features, None))
    num_flipped = 0
    for step in range(5):
        batch = loader.batch(12 * step)
        assert batch.features is not None
        assert batch.features.shape == (12, (SIDE // PATCH) ** 2, 3)
        for key, found, positions in zip(
            batch.keys, batch.features.float(), batch.positions, strict=True
        ):
            height, width = world.latents[key].shape[1:]
            assert (found[:, 2] == list(world.latents).index(key)).all()
            # The loader's own positions have the longer side in [-1, 1], and 0 in the frame's
            # middle.
            centre = (
                positions.mean(0) * max(height, width) / torch.tensor([height, width]) / 2 + 0.5
            )
            steps = (
                torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]])
                * PATCH
                / torch.tensor([height, width])
                / 2
            )
            away = (found[:, :2] - centre - steps).abs().max()
            flipped = (
                (found[:, :2] * torch.tensor([1, -1]) + torch.tensor([0, 1]) - centre - steps)
                .abs()
                .max()
            )
            assert min(away, flipped if mirror else torch.inf) < 1e-3
            num_flipped += int(flipped < away)
        assert torch.equal(batch.raw, plain.batch(12 * step).raw)
        assert plain.batch(12 * step).features is None
    assert (num_flipped > 5) is mirror
    halves = [
        world.loader(features=features, mirror=mirror, rank=rank, world_size=2).batch(24).features
        for rank in range(2)
    ]
    whole = loader.batch(24).features
    assert whole is not None
    assert torch.equal(torch.cat([half for half in halves if half is not None]), whole)


def test_pictures_without_features_have_zeros(world: World, tmp_path: Path) -> None:
    lacking = list(world.latents)[5]
    batch = world.loader(
        features=write_features(world, tmp_path, [key for key in world.latents if key != lacking]),
        batch_size=55,
    ).batch(0)
    assert batch.features is not None
    zero = (batch.features == 0).flatten(1).all(1).numpy()
    assert np.array_equal(zero, np.array(batch.keys) == lacking)
    assert zero.sum() == 1


def test_mixed_data_sets_keep_their_own_features(world: World, tmp_path: Path) -> None:
    features = write_features(world, tmp_path, list(world.latents))
    batch = Mixture(
        [world.loader(features=features), world.loader(features=features, seed=9)], [1.0, 0.5]
    ).batch(36)
    assert batch.features is not None
    assert batch.features[:, 0, 2].tolist() == [
        list(world.latents).index(key) for key in batch.keys
    ]
    with pytest.raises(InputError, match="features"):
        Mixture([world.loader(features=features), world.loader()], [1.0, 0.5])


def test_features_of_other_pictures_are_refused(world: World, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match="no features of the pictures"):
        world.loader(features=write_features(other, tmp_path / "features", list(other.latents)))
