"""Generated images at fixed prompts and seeds: what a phase has learnt, to look at."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc
import torch
from PIL import Image
from torch import Tensor

from hdm.data.captions import captions_by_key
from hdm.data.tables import read_tables
from hdm.diffusion.sampler import Sampling, generate
from hdm.errors import InputError
from hdm.models.autoencoder import load_autoencoder
from hdm.models.xut import XUT
from hdm.store import Output
from hdm.training.conditioning import Conditioning

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


def generate_grid(
    path: Path, model: XUT, conditioning: Conditioning, autoencoder: str, prompts: list[str], resolution: int, seed: int
) -> None:
    """Write a PNG of square pictures, one a prompt, four in a row.

    Args:
        path: the file.
        model: in evaluation mode, on the conditioning's device.
        conditioning: of the prompts.
        autoencoder: reference of the one that made the latents.
        prompts: in order; the picture of a prompt depends on its place.
        resolution: side of a picture in pixels.
        seed: of the first picture's noise; the others' count up from it.

    Raises:
        InputError: the autoencoder's channels are not the model's.
    """
    device = conditioning.device
    decoder = load_autoencoder(autoencoder, str(device))
    if decoder.channels != model.config.channels:
        raise InputError(f"the autoencoder has {decoder.channels} channels, the model {model.config.channels}", where=autoencoder)
    side = resolution // decoder.downscale
    # The empty prompt among the others, so that all are padded alike.
    text = conditioning.of_prompts([*prompts, ""])
    seeds = range(seed, seed + len(prompts))
    latent = generate(model, text.rows(slice(-1)), text.rows([-1]), height=side, width=side, seeds=seeds, sampling=Sampling())
    image = torch.cat([decoder.decode(decoder.denormalize(one[None])) for one in latent])
    grid(image).save(path)


def grid(image: Tensor) -> Image.Image:
    """Pictures (n, 3, H, W) in [-1, 1] side by side, in rows of four, on white."""
    count, _, height, width = image.shape
    pixels = ((image.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    sheet = Image.new("RGB", (min(count, COLUMNS) * width, -(-count // COLUMNS) * height), "white")
    for place, one in enumerate(pixels):
        sheet.paste(Image.fromarray(one), (place % COLUMNS * width, place // COLUMNS * height))
    return sheet
