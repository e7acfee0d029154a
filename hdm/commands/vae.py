"""`hdm vae`: autoencoders fine-tuned, and measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.markup import escape
from rich.table import Column, Table

from hdm import values
from hdm.errors import ConfigError, InputError
from hdm.messages import Terminal
from hdm.options import number
from hdm.progress import show_log
from hdm.vae.settings import VaeSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Autoencoders: fine-tune with equivariance, train from scratch, measure.",
)
LENGTH, LOSS, START = "How long and on what", "What is made small", "What it starts from"

SOURCE = typer.Option(
    help='A folder of pictures, WebDataset tars, a data set on this machine, or "scenes".'
)
AUTOENCODER = typer.Option(
    metavar="NAME", help="Folder or hub name of a diffusers autoencoder.", rich_help_panel=START
)
SCRATCH = typer.Option(
    "--scratch", help="Start from a new small AutoencoderKL, 8 × downscale.", rich_help_panel=START
)
CHANNELS = number(values.Few, help="Of a latent, with --scratch.", rich_help_panel=START)
IMAGES = number(values.Count, help="Images seen, repetitions counted.", rich_help_panel=LENGTH)
MINUTES = number(
    values.Minutes, help="About how long to train, instead of --images.", rich_help_panel=LENGTH
)
SIZE = number(values.Side, help="Side of the square crops.", rich_help_panel=LENGTH)
BATCH = number(values.Batch, help="Images a step.", rich_help_panel=LENGTH)
MAX_PICTURES = number(
    values.Count,
    help="Take only the first so many; they are held in memory.",
    rich_help_panel=LENGTH,
)
EQUIVARIANCE = number(
    values.Weight,
    help="Weight of EQ-VAE's term: a latent scaled and turned has to decode to the picture scaled and turned; 0 is plain.",
    rich_help_panel=LOSS,
)
PERCEPTUAL = number(
    values.Weight,
    help="Weight of LPIPS; needs torchmetrics, and VGG16's weights on this machine.",
    rich_help_panel=LOSS,
)
KL = number(values.Weight, help="Weight of the posterior's divergence.", rich_help_panel=LOSS)
OPTIMIZER = typer.Option(
    help="adamw; or muon, for convolutions and matrices: sooner there from scratch.",
    rich_help_panel=LOSS,
)
RATE = number(
    values.LearningRate,
    help="Of AdamW; a cosine leads down to a hundredth of it.",
    rich_help_panel=LOSS,
)
MUON_RATE = number(values.LearningRate, help="Of Muon.", rich_help_panel=LOSS)
EMA = number(
    values.Rate,
    help="Keep an average of the weights with this decay; 0 keeps the last.",
    rich_help_panel=LOSS,
)
MATTE = typer.Option(help="Colour behind transparent pixels.")
CONTRASTIVE = typer.Option(
    metavar="DIR", help="Folder of `hdm bootstrap` whose model the Fréchet distance is measured in."
)
DEVICE = typer.Option(help="auto, cpu or cuda.")


@app.command()
def finetune(
    source: Annotated[str, SOURCE],
    out: Annotated[
        Path, typer.Option(help="A new folder; components.autoencoder of a pipeline names it.")
    ],
    autoencoder: Annotated[str | None, AUTOENCODER] = None,
    scratch: Annotated[bool, SCRATCH] = False,
    channels: Annotated[int, CHANNELS] = 8,
    images: Annotated[int, IMAGES] = 24_000,
    minutes: Annotated[float | None, MINUTES] = None,
    size_px: Annotated[int, SIZE] = 64,
    batch_size: Annotated[int, BATCH] = 8,
    max_pictures: Annotated[int | None, MAX_PICTURES] = None,
    equivariance: Annotated[float, EQUIVARIANCE] = 1.0,
    perceptual: Annotated[float, PERCEPTUAL] = 0.0,
    kl: Annotated[float, KL] = 1e-4,
    optimizer: Annotated[str, OPTIMIZER] = "adamw",
    learning_rate: Annotated[float, RATE] = 1e-4,
    muon_learning_rate: Annotated[float, MUON_RATE] = 0.01,
    ema: Annotated[float, EMA] = 0.0,
    seed: Annotated[int, number(values.Seed, help="Of new weights, crops and draws.")] = 0,
    matte: Annotated[str, MATTE] = "#ffffff",
    contrastive: Annotated[str, CONTRASTIVE] = "demo",
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Fine-tune an autoencoder so that its latents are scaled and turned as pictures are (EQ-VAE, arXiv 2502.09509).

    Latents without that property are harder for a denoiser to learn. Any of diffusers' AutoencoderKL, AutoencoderKLFlux2, AutoencoderDC
    and AutoencoderTiny will do, or a folder with a tiny autoencoder's two .pth files; or --scratch, where there is none.

    A twentieth of the pictures is kept out of training. On these, reconstruction (PSNR, SSIM, a Fréchet distance) and equivariance are
    measured before and after. The folder is one that diffusers loads, with the latents' statistics measured anew, and finetune.json tells
    what was done. Stopped by Ctrl-C or killed, the same command goes on, on the CPU to the same bytes.

    Examples:

    hdm vae finetune --source PICTURES --autoencoder models/mine/autoencoder --out models/smooth --minutes 20

    hdm vae finetune --source scenes --scratch --out models/plain --equivariance 0 --optimizer muon --learning-rate 0.002 --images 48000
    """
    from hdm.vae_sources import finetune_from

    if scratch == (autoencoder is not None):
        raise InputError(
            "what to start from is not clear",
            do="give --autoencoder NAME or --scratch, one of them",
        )
    show_log()
    usual = VaeSettings().optimizer.model_dump()
    rates = {
        **usual,
        "kind": optimizer,
        "learning_rate": learning_rate,
        "muon_learning_rate": muon_learning_rate,
    }
    settings = _settings(
        scratch=scratch, channels=channels, num_images=images, batch_size=batch_size, size_px=size_px, perceptual_weight=perceptual,
        kl_weight=kl, equivariance_weight=equivariance, optimizer=rates, ema_decay=ema, seed=seed, device=device,
    )  # fmt: skip
    record = finetune_from(
        source,
        out,
        autoencoder,
        settings,
        minutes=minutes,
        max_pictures=max_pictures,
        matte=matte,
        contrastive=contrastive,
    )
    _tell(record["quality"])
    Terminal().print(f"use it: components: {{autoencoder: {escape(str(out))}}}", soft_wrap=True)


def _settings(**values: Any) -> VaeSettings:
    try:
        return VaeSettings.model_validate(values)
    except ValidationError as error:
        told = (
            f"{'.'.join(map(str, problem['loc']))} = {problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigError("; ".join(told), do="see hdm vae finetune --help") from error


@app.command()
def measure(
    source: Annotated[str, SOURCE],
    autoencoder: Annotated[str, AUTOENCODER],
    size_px: Annotated[
        int, number(values.Side, help="Side of the squares that are measured: pictures' middles.")
    ] = 64,
    images: Annotated[int, number(values.Count, help="The first so many pictures.")] = 256,
    matte: Annotated[str, MATTE] = "#ffffff",
    contrastive: Annotated[str, CONTRASTIVE] = "demo",
    device: Annotated[str, DEVICE] = "auto",
) -> None:
    """Measure reconstruction and equivariance of an autoencoder on pictures.

    Example: hdm vae measure --source PICTURES --autoencoder models/mine/autoencoder --size-px 128
    """
    from hdm.vae_sources import measure_from

    show_log()
    found = measure_from(
        source,
        autoencoder,
        size_px=size_px,
        num_images=images,
        matte=matte,
        contrastive=contrastive,
        device=device,
    )
    _tell({"before": None, "after": found})


ROWS = {
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "frechet_distance": "Fréchet distance of embeddings",
    "reconstructed": "error of pictures that come back",
    "equivariance_decoded": "… of transformed latents, decoded",
    "equivariance_latent": "error of transformed latents, relative",
}


def _tell(quality: Mapping[str, Any]) -> None:
    before, after = quality["before"], quality["after"]
    titles = ("before", "after") if before else ("",)
    table = Table(
        "", *(Column(title, justify="right") for title in titles), box=None, padding=(0, 2, 0, 0)
    )
    for name, title in ROWS.items():
        if name in after:
            table.add_row(title, *(f"{values[name]:.4g}" for values in (before, after) if values))
    Terminal().print(table)
