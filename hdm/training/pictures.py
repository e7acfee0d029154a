"""Generated images at fixed prompts and seeds: what a phase has learnt, to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
from torch import Tensor

from hdm.data.captions import captions_by_key
from hdm.data.tables import read_tables
from hdm.errors import InputError
from hdm.files import written_aside
from hdm.generation.conditioning import Conditioning
from hdm.generation.pictures import png, sheet
from hdm.generation.text_to_image import TextToImage
from hdm.models.autoencoder import load_autoencoder
from hdm.models.devices import Batches
from hdm.models.xut import XUT
from hdm.store import Output
from hdm.training.job import Job

NUM_PICTURES, COLUMNS = 16, 4


def prompts_to_show(wanted: tuple[str, ...], captions: Output, filter: Output) -> list[str]:
    """The prompts of a grid: those that are wanted, else first captions of held-out pictures, of validation ones, of any.

    Raises:
        InputError: no kept picture has a caption.
    """
    if wanted:
        return list(wanted[:NUM_PICTURES])
    scores = read_tables(filter, "scores", ["key", "split"])
    for split in ("held_out", "validation", "train"):
        keys = sorted(scores.filter(pc.equal(scores.column("split"), split)).column("key").to_pylist())
        found = [texts[0] for texts in captions_by_key(captions, keys).values() if texts]
        if found:
            return found[:NUM_PICTURES]
    raise InputError("no kept picture has a caption", where=captions.path, do="name prompts in train.prompts")


class CutShort(Exception):  # noqa: N818  (nothing went wrong)
    """Pictures were given up for something more urgent."""


def show(path: Path, job: Job, model: XUT, conditioning: Conditioning, cut_short: Callable[[], bool] | None = None) -> list[str]:
    """Write a PNG of square pictures, one a prompt, four in a row, always of the same prompts and noise.

    Args:
        path: the file.
        job: names prompts, resolution, seed and the autoencoder that made the latents.
        model: in evaluation mode, on the conditioning's device.
        conditioning: of the prompts.
        cut_short: asked after each step of the sampler whether to give up.

    Returns:
        The prompts, in order.

    Raises:
        InputError: the autoencoder does not fit the model.
        CutShort: it was given up.
    """
    settings = job.settings.train
    prompts = prompts_to_show(settings.prompts, job.output("caption"), job.output("filter"))
    autoencoder = load_autoencoder(job.autoencoder, str(conditioning.device))
    text_to_image = TextToImage(model, conditioning, autoencoder, decode_batch=1)
    side = job.phase.resolution // text_to_image.unit_px * text_to_image.unit_px
    # The picture of a prompt depends on its place: seeds count up.
    seeds = range(settings.seed, settings.seed + len(prompts))

    def look(steps: int, latent: Tensor) -> None:
        if cut_short is not None and cut_short():
            raise CutShort

    batches = Batches(NUM_PICTURES, "train.device")
    pictures = text_to_image(prompts, width=side, height=side, seeds=seeds, batches=batches, on_step=look)
    with written_aside(path) as aside:
        aside.write_bytes(png(sheet(pictures, COLUMNS)))
    return prompts
