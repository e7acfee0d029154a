"""`hdm bootstrap`: trains small components on captioned pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hdm.acquisition.settings import DownloadSettings
from hdm.bootstrap.settings import BootstrapSettings
from hdm.messages import Terminal
from hdm.options import Options, Overrides, Shown, with_settings
from hdm.pictures.settings import ImageSettings
from hdm.progress import show_log

TRAINING = Options(
    BootstrapSettings,
    Shown("minutes"),
    Shown("seed"),
    Shown("size_px"),
    Shown("channels"),
    Shown("max_pictures"),
)
# Only options that are given: an option's default would override a value from --set.
SOURCE = Options(
    DownloadSettings,
    Shown("caption_column"),
    Shown("metadata"),
    Shown("max_lost_captions"),
    only_given=True,
)
PICTURES = Options(ImageSettings, Shown("matte"), only_given=True)


@with_settings(settings=TRAINING, download=SOURCE, images=PICTURES)
def bootstrap(
    source: Annotated[
        str,
        typer.Option(
            help=(
                "A folder of captioned pictures, WebDataset tars, a data set on this machine, or"
                ' "scenes".'
            )
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="A new folder; components.folder of a pipeline names it.")
    ],
    settings: BootstrapSettings,
    download: dict[str, Any],
    images: dict[str, Any],
    overrides: Overrides = [],  # noqa: B006
) -> None:
    """Train small components on captioned pictures: a whole pipeline without any hub.

    After Ctrl-C or a kill, the same command continues from the last checkpoint (one is written
    every half minute, and on Ctrl-C).

    --set takes the settings that `hdm run` takes for the source: fields of download and images.

    Example: hdm bootstrap --source PICTURES --out models/mine --set download.encoding=cp1251
    """
    begun = time.monotonic()  # first, because --minutes includes the import of torch
    from hdm.bootstrap_sources import bootstrap_from

    show_log()
    given = {f"download.{name}": value for name, value in download.items()}
    given |= {f"images.{name}": value for name, value in images.items()}
    record = bootstrap_from(source, out, settings, given, overrides=overrides, begun=begun)
    Terminal().print_json(data=record["measured"])
    Terminal().print(f"use them: components: {{folder: {escape(str(out))}}}", soft_wrap=True)
