"""Fine-tune an autoencoder or train a new one, measure it before and after, and write it to a
folder in diffusers' format.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hdm.child import forget_launchers
from hdm.errors import InputError
from hdm.files import canonical_json, read_record, write_json
from hdm.models.autoencoder import CONFIG, load_autoencoder, of_model, raw_latent
from hdm.models.components import hushed
from hdm.models.devices import choose_device, cpu_threads, deterministic
from hdm.models.small_autoencoder import new_autoencoder
from hdm.store import Folder
from hdm.training.process.job import METRICS
from hdm.training.process.threads import keep_threads
from hdm.vae.finetune import Finetuning, Place, make_batch
from hdm.vae.normalization import write_statistics
from hdm.vae.reconstruction import Features, measure_quality
from hdm.vae.settings import VaeSettings

WEIGHTS = "diffusion_pytorch_model.safetensors"
RESULT = "result"
STATISTICS_IMAGES = 512  # at most, for the statistics of latents
FEWEST = 16  # training pictures
LATENT_SIDE = 4  # smallest side of a latent, so that a scaled one is still a picture


@dataclass(frozen=True)
class Pictures:
    """Pictures (H, W, 3) uint8 of any size, for training and for measuring."""

    train: Sequence[np.ndarray]
    held_out: Sequence[np.ndarray]

    def digest(self) -> str:
        """sha256 of all pixels in order, as 64 hex digits."""
        sha256 = hashlib.sha256()
        for picture in (*self.train, *self.held_out):
            sha256.update(canonical_json(picture.shape) + picture.tobytes())
        return sha256.hexdigest()


def run(
    reference: str | None,
    pictures: Pictures,
    settings: VaeSettings,
    place: Place,
    features: Features | None = None,
) -> dict[str, Any]:
    """Train, and write `config.json` and the weights to the folder `result` in the place's scratch.

    Args:
        reference: the autoencoder to start from; None: a new small one.
        pictures: for training and for measuring.
        settings: how to train.
        place: where to write; a run that was killed there is resumed.
        features: features for the Fréchet distance.

    Returns:
        Quality `before` (None from scratch) and `after`, from `measure_quality`.

    Raises:
        InputError: too few pictures, squares that do not fit the autoencoder, or no such
            autoencoder.
        SavedOnSignal: stopped by SIGTERM or Ctrl-C; run again to go on.
    """
    forget_launchers()
    device = choose_device(settings.device, "the autoencoder's training")
    check_counts(len(pictures.train), len(pictures.held_out))
    place.scratch.mkdir(parents=True, exist_ok=True)
    # `keep_threads` changes torch's number of threads, and leaving the block restores it.
    with deterministic(device == "cpu"), cpu_threads(None):
        if device == "cpu":
            keep_threads(place.scratch, None)
        before = _before(reference, pictures, settings, place, device, features)
        model = starting_model(reference, settings, device)
        Finetuning(model, pictures.train, settings, place).run()
        _normalize(model, pictures.train, settings)
        path = write_autoencoder(model, place.scratch / RESULT)
        # The result is measured as read from disk, statistics included, which is what later stages
        # use.
        after = measure_quality(
            load_autoencoder(str(path), device), pictures.held_out, settings.size_px, features
        )
    return {"before": before, "after": after}


def collect(folder: Folder, result: Path, settings: VaeSettings, inside: str = "") -> None:
    """Copy the result of `run` into an output: configuration and weights into its folder `inside`,
    and the metrics.
    """
    for name in (CONFIG, WEIGHTS):
        with folder.write(str(Path(inside, name)), copied=name == CONFIG) as file:
            shutil.copyfile(result / name, file.path)
    steps = -(-settings.num_images // settings.batch_size)
    with folder.write(METRICS, copied=True) as file:
        shutil.copyfile(folder.path / METRICS, file.path)
        file.counts.update(steps=steps, images_seen=steps * settings.batch_size)


def check_squares(size_px: int, downscale: int) -> None:
    """Raise an InputError if an autoencoder cannot train on squares of that side."""
    if size_px % downscale or size_px < LATENT_SIDE * downscale:
        raise InputError(
            f"squares of {size_px} px do not fit an autoencoder with downscale {downscale}",
            where="vae.size_px",
            do=f"use a multiple of {downscale}, at least {LATENT_SIDE * downscale}",
        )


def check_counts(num_train: int, num_held_out: int) -> None:
    """Raise an InputError if there are too few pictures to train or to measure on."""
    if num_train < FEWEST or not num_held_out:
        raise InputError(
            f"{num_train} pictures to learn from and {num_held_out} to measure on are too few: at"
            f" least {FEWEST} and 1 are needed",
            do="name a source with more",
        )


def starting_model(reference: str | None, settings: VaeSettings, device: str) -> Any:
    """The diffusers autoencoder to train.

    Raises:
        InputError: it cannot be loaded, or the squares do not fit it.
    """
    # The seed determines new weights, if there are any.
    torch.manual_seed(settings.seed)
    autoencoder = (
        of_model(new_autoencoder(settings.channels), "cpu")
        if reference is None
        else load_autoencoder(reference)
    )
    check_squares(settings.size_px, autoencoder.downscale)
    return autoencoder.model.to(device)


def _before(
    reference: str | None,
    pictures: Pictures,
    settings: VaeSettings,
    place: Place,
    device: str,
    features: Features | None,
) -> dict[str, float] | None:
    """Quality of the autoencoder to start from; a resumed run reads it from its file."""
    if reference is None:
        return None
    # The digest in the name tells this run's measurement from another's.
    file = place.scratch / f"before-{place.digest[:16]}.json"
    # A resumed run need not measure again.
    if not file.exists():
        model = starting_model(reference, settings, device)
        # Statistics measured in the same way as after training, so that both qualities compare.
        _normalize(model, pictures.train, settings)
        autoencoder = of_model(model, device)
        write_json(
            file, measure_quality(autoencoder, pictures.held_out, settings.size_px, features)
        )
    return read_record(file, dict[str, float], "remove it: it is then measured again")


@torch.no_grad()
def _normalize(model: Any, pictures: Sequence[np.ndarray], settings: VaeSettings) -> None:
    """Measure the latents' statistics on training batches and write them into the model."""
    device = next(model.parameters()).device
    num_batches = -(-min(STATISTICS_IMAGES, len(pictures)) // settings.batch_size)
    latents = []
    for step in range(num_batches):
        image = make_batch(pictures, settings, step).image.to(device)
        latents.append(raw_latent(model.encode(image), None).float())
    write_statistics(model, latents)


def write_autoencoder(model: Any, folder: Path) -> Path:
    """Write config.json and the weights in diffusers' format and return the folder. The bytes do
    not depend on where the model came from.
    """
    # A killed run may have left files there.
    shutil.rmtree(folder, ignore_errors=True)
    with hushed("diffusers"):
        model.to("cpu").save_pretrained(folder)
    config = json.loads((folder / CONFIG).read_bytes())
    config.pop("_name_or_path", None)  # where it came from: a path of this machine
    write_json(folder / CONFIG, config)
    return folder
