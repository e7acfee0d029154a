"""`hdm vae`: fine-tunes and measures autoencoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from hdm import values
from hdm.errors import InputError
from hdm.messages import Terminal
from hdm.options import Options, Shown, number, with_settings
from hdm.pictures.settings import ImageSettings
from hdm.progress import show_log
from hdm.vae.settings import VaeSettings

app = typer.Typer(
    no_args_is_help=True,
    help="Autoencoders: fine-tune with equivariance, train from scratch, measure.",
)
LENGTH = "Duration and data"
LOSS = "Loss and optimizer"
START = "Initial model"

SOURCE = typer.Option(
    help='A folder of pictures, WebDataset tars, a data set on this machine, or "scenes".'
)
AUTOENCODER = typer.Option(
    metavar="NAME", help="Folder or hub name of a diffusers autoencoder.", rich_help_panel=START
)
MINUTES = number(
    values.Minutes, help="About how long to train, instead of --images.", rich_help_panel=LENGTH
)
MAX_PICTURES = number(
    values.Count,
    help="Use only the first N pictures, which are held in memory; default: 20,000.",
    rich_help_panel=LENGTH,
)
TRAINING = Options(
    VaeSettings,
    Shown("scratch", panel=START),
    Shown("channels", panel=START, help="Channels of a latent, with --scratch."),
    Shown("num_images", "--images", LENGTH),
    Shown("size_px", panel=LENGTH),
    Shown("batch_size", panel=LENGTH),
    Shown("equivariance_weight", "--equivariance", LOSS),
    Shown("perceptual_weight", "--perceptual", LOSS),
    Shown("kl_weight", "--kl", LOSS),
    Shown(
        "optimizer.kind",
        "--optimizer",
        LOSS,
        help="adamw; or muon, for convolutions and matrices: faster from scratch.",
    ),
    Shown(
        "optimizer.learning_rate",
        "--learning-rate",
        LOSS,
        help="AdamW's initial rate; a cosine schedule decays it to a hundredth.",
    ),
    Shown("optimizer.muon_learning_rate", "--muon-learning-rate", LOSS),
    Shown("ema_decay", "--ema", LOSS),
    Shown("seed"),
    Shown("device"),
)
MEASURED = Options(
    VaeSettings,
    Shown("size_px", help="Side of the centre crops that are measured."),
    Shown("num_measured", "--images", help="Measure only the first N pictures."),
    Shown("device"),
)
PICTURES = Options(ImageSettings, Shown("matte"))
CONTRASTIVE = typer.Option(
    metavar="DIR", help="Folder of `hdm bootstrap` with the model for the Fréchet distance."
)


@app.command()
@with_settings(settings=TRAINING, images=PICTURES)
def finetune(
    *,
    source: Annotated[str, SOURCE],
    out: Annotated[
        Path, typer.Option(help="A new folder; components.autoencoder of a pipeline names it.")
    ],
    autoencoder: Annotated[str | None, AUTOENCODER] = None,
    minutes: Annotated[float | None, MINUTES] = None,
    max_pictures: Annotated[int | None, MAX_PICTURES] = None,
    settings: VaeSettings,
    images: ImageSettings,
    contrastive: Annotated[str, CONTRASTIVE] = "demo",
) -> None:
    """Fine-tune an autoencoder so that its latents scale and rotate as pictures do (EQ-VAE, arXiv
    2502.09509).

    Latents without that property are harder for a denoiser to learn. The initial model is any of
    diffusers' AutoencoderKL, AutoencoderKLFlux2, AutoencoderDC and AutoencoderTiny, or a folder
    with a tiny autoencoder's two .pth files; or use --scratch for a new one.

    A twentieth of the pictures is held out from training. On these, reconstruction (PSNR, SSIM, a
    Fréchet distance) and equivariance are measured before and after. diffusers loads the resulting
    folder; the latents' statistics in it are measured again, and finetune.json records the work.
    After Ctrl-C or a kill, the same command continues, on the CPU to the same bytes.

    Examples:

    hdm vae finetune --source PICTURES --autoencoder models/mine/autoencoder --out models/smooth
    --minutes 20

    hdm vae finetune --source scenes --scratch --out models/plain --equivariance 0 --optimizer muon
    --learning-rate 0.002 --images 48000
    """
    from hdm.vae_sources import finetune_from

    # Exactly one of the two has to be given.
    if settings.scratch == (autoencoder is not None):
        raise InputError(
            "what to start from is not clear",
            do="give --autoencoder NAME or --scratch, one of them",
        )
    show_log()
    record = finetune_from(
        source,
        out,
        autoencoder,
        settings,
        minutes=minutes,
        max_pictures=max_pictures,
        images=images,
        contrastive=contrastive,
    )
    _tell(record["quality"])
    Terminal().print(f"use it: components: {{autoencoder: {escape(str(out))}}}", soft_wrap=True)


@app.command()
@with_settings(settings=MEASURED, images=PICTURES)
def measure(
    source: Annotated[str, SOURCE],
    autoencoder: Annotated[str, AUTOENCODER],
    settings: VaeSettings,
    images: ImageSettings,
    contrastive: Annotated[str, CONTRASTIVE] = "demo",
) -> None:
    """Measure reconstruction and equivariance of an autoencoder on pictures.

    Example: hdm vae measure --source PICTURES --autoencoder models/mine/autoencoder --size-px 128
    """
    from hdm.vae_sources import measure_from

    show_log()
    found = measure_from(source, autoencoder, settings, images=images, contrastive=contrastive)
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
    before = quality["before"]
    after = quality["after"]
    titles = ("before", "after") if before else ("",)
    table = Table(
        "", *(Column(title, justify="right") for title in titles), box=None, padding=(0, 2, 0, 0)
    )
    for name, title in ROWS.items():
        if name in after:
            table.add_row(title, *(f"{values[name]:.4g}" for values in (before, after) if values))
    Terminal().print(table)
