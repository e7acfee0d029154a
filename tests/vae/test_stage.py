"""The stage in a pipeline: what it learns from, what it writes, and who uses that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hdm.data.tables import read_tables
from hdm.errors import DamagedError, InputError
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import weights_digest
from hdm.pictures.decoding import Decoders, pixels
from hdm.pipelines import load_pipeline
from hdm.stages import run, run_step
from hdm.store import Output, Store
from hdm.vae.kept import KeptPictures, held_out_pictures
from tests.store_as_of_old import as_of_old

SMALL = (
    "download.scenes.count=48",
    "download.shard_items=24",
    "download.timeout_sec=3",
    "filter.held_out=0.1",
    "filter.validation=0.1",
    "train.phases.0.resolution=32",
    "threads=1",
)
VAE = ("vae.num_images=32", "vae.size_px=32", "vae.device=cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = Store(tmp_path_factory.mktemp("store"))
    list(run(load_pipeline("demo", SMALL), found, stop_after="filter"))
    return found


def stage(store: Store, name: str) -> Output:
    return next(output for output in store.outputs() if output.name == name)


def test_no_picture_that_is_kept_out_is_learned_from(store: Store) -> None:
    download, filter = stage(store, "download"), stage(store, "filter")
    splits = read_tables(filter, "scores", ["split"])["split"].to_pylist()
    with Decoders(load_pipeline("demo").images, pixels) as decoders:
        training = KeptPictures(download, filter, "train", decoders)
        kept_out = held_out_pictures(download, filter, decoders, 100)
        assert len(training) == splits.count("train")
        assert len(kept_out) == splits.count("held_out")
        assert not {picture.tobytes() for picture in training} & {
            picture.tobytes() for picture in kept_out
        }
        assert {picture.dtype for picture in training} == {np.dtype(np.uint8)}


def test_latents_come_from_the_fine_tuned_autoencoder(store: Store) -> None:
    pipeline = load_pipeline("demo", [*SMALL, *VAE])
    vae, latents = (run_step(pipeline, store, name).output for name in ("vae", "encode.32px"))
    assert vae.counts == {"images_seen": 32, "steps": 4}
    quality = json.loads(vae.file("quality.json").read_bytes())
    assert quality["before"].keys() == quality["after"].keys()
    assert quality["before"] != quality["after"]
    assert latents.summary["autoencoder"]["weights"] == weights_digest(
        str(vae.path / "autoencoder")
    )
    assert latents.inputs["vae"] == vae.digest

    again = run_step(load_pipeline("demo", [*SMALL, *VAE]), Store(store.root), "vae")
    assert again.cached


@pytest.mark.parametrize(
    "name", ["autoencoder/config.json", "metrics.jsonl", "quality.json", "manifest.json"]
)
@pytest.mark.parametrize("old", [False, True])
def test_a_flipped_bit_beside_the_weights_costs_no_training(
    store: Store, tmp_path: Path, name: str, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline("demo", [*SMALL, *VAE])
    whole = run_step(pipeline, store, "vae").output
    shutil.copytree(store.root, tmp_path / "store")
    folder = tmp_path / "store" / "vae" / whole.digest
    if old:
        as_of_old(folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    if not old or name == "manifest.json":
        monkeypatch.setattr("hdm.vae.stage.run", None)  # not called: nothing is trained
    output = run_step(pipeline, Store(tmp_path / "store"), "vae").output
    assert output.summary == whole.summary
    for path in whole.paths():
        assert (folder / path.relative_to(whole.path)).read_bytes() == path.read_bytes()


def test_a_damaged_autoencoder_is_not_loaded(store: Store, tmp_path: Path) -> None:
    pipeline = load_pipeline("demo", [*SMALL, *VAE])
    whole = run_step(pipeline, store, "vae").output
    shutil.copytree(store.root, tmp_path / "store")
    path = tmp_path / "store" / "vae" / whole.digest / "autoencoder"
    data = bytearray((path / "diffusion_pytorch_model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "diffusion_pytorch_model.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="diffusion_pytorch_model"):
        load_autoencoder(str(path))


def test_too_few_pictures_to_learn_from(store: Store, tmp_path: Path) -> None:
    few = load_pipeline(
        "demo", ["download.scenes.count=12", "download.timeout_sec=3", "filter.held_out=0.1", *VAE]
    )
    with pytest.raises(InputError, match="are too few"):
        list(run(few, Store(tmp_path), stop_after="vae"))
