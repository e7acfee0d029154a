"""Generated images at fixed prompts and seeds: what a phase has learnt, to look at."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from torch import Tensor

from hdm.data.captions import captions_by_key
from hdm.data.tables import read_tables
from hdm.errors import InputError
from hdm.files import write_bytes
from hdm.generation.conditioning import Conditioning
from hdm.generation.picture_files import png, sheet
from hdm.generation.text_to_image import TextToImage
from hdm.models.autoencoder import load_autoencoder
from hdm.models.denoiser import Denoiser
from hdm.models.devices import Batches
from hdm.store import Output
from hdm.training.process.job import Job
from hdm.training.process.ranks import CutShort

NUM_PICTURES = 16  # at once, and in all where no prompts are set
COLUMNS = 4


def prompts_to_show(wanted: tuple[str, ...], captions: Output, filter: Output) -> list[str]:
    """The prompts of a grid: those that are wanted, else first captions of held-out pictures, of
    validation ones, of any.

    Raises:
        InputError: no kept picture has a caption.
    """
    if wanted:
        return list(wanted)
    scores = read_tables(filter, "scores", ["key", "split"])
    for split in ("held_out", "validation", "train"):
        # Sorted keys show captions of the same pictures in every phase.
        keys = sorted(
            scores.filter(pc.equal(scores.column("split"), split)).column("key").to_pylist()
        )
        prompts = [texts[0] for texts in captions_by_key(captions, keys).values() if texts]
        if prompts:
            return prompts[:NUM_PICTURES]
    raise InputError(
        "no kept picture has a caption", where=captions.path, do="name prompts in train.prompts"
    )


def generate_grid(
    path: Path | None,
    model: Denoiser,
    conditioning: Conditioning,
    autoencoder: str,
    prompts: list[str],
    resolution: int,
    seed: int,
    cut_short: Callable[[], bool] = lambda: False,
) -> None:
    """Write a PNG of square pictures, one a prompt, four in a row.

    Args:
        path: the file; None: another process, which calls the same sharded model, writes it.
        model: in evaluation mode, on the conditioning's device.
        conditioning: of the prompts.
        autoencoder: reference of the one that made the latents.
        prompts: in order; the picture of a prompt depends on its place.
        resolution: side of a picture in pixels, cut to what the model's patches allow.
        seed: of the first picture's noise; the others' count up from it.
        cut_short: asked after each step of the sampler whether to give up.

    Raises:
        InputError: the autoencoder does not fit the model.
        CutShort: it was given up; no file is written.
    """
    # The autoencoder is loaded for the pictures only: training steps do not need it.
    text_to_image = TextToImage(
        model, conditioning, load_autoencoder(autoencoder, str(conditioning.device)), decode_batch=1
    )
    # The resolution may not be a whole number of patches.
    side = resolution // text_to_image.unit_px * text_to_image.unit_px
    seeds = range(seed, seed + len(prompts))
    batches = Batches(NUM_PICTURES, "train.device")

    def look(steps: int, latent: Tensor) -> None:
        # After a signal, 20 s remain, and sampling may take longer.
        if cut_short():
            raise CutShort

    pictures = text_to_image(
        prompts, width=side, height=side, seeds=seeds, batches=batches, on_step=look
    )
    if path is not None:
        write_bytes(path, png(sheet(pictures, COLUMNS)))


@dataclass(frozen=True)
class Grid:
    """The pictures of a training: its prompts, at its seed.

    Args:
        job: says which.
        model: makes them; in evaluation mode.
        conditioning: of the prompts.
        autocast: the context of a forward pass.
    """

    job: Job
    model: Denoiser
    conditioning: Conditioning
    autocast: Callable[[], AbstractContextManager[Any]]

    def write(self, path: Path | None, cut_short: Callable[[], bool] = lambda: False) -> list[str]:
        """Generate them as `generate_grid` does; the prompts."""
        job = self.job
        settings = self.job.settings.train
        prompts = prompts_to_show(settings.prompts, job.output("caption"), job.output("filter"))
        with self.autocast():
            generate_grid(
                path,
                self.model,
                self.conditioning,
                job.autoencoder,
                prompts,
                job.phase.resolution,
                settings.seed,
                cut_short,
            )
        return prompts
