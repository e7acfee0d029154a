"""`hdm ema`: chooses the length of the weights' average after training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hdm import values
from hdm.errors import InputError, counted
from hdm.messages import Terminal
from hdm.options import number

ROUGH = 0.1  # share of a profile; the paper's own fits are far below


def ema(
    source: Annotated[
        Path,
        typer.Argument(
            help="Output of a training with train.ema_lengths (STORE/train.64px/DIGEST)."
        ),
    ],
    length: Annotated[
        float,
        number(
            values.EmaLength,
            help="σ_rel of the average, as a share of the phase: 0.05 is short, 0.2 long.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder, for hdm sample --weights DIR.")
    ],
) -> None:
    """Compute an average of the weights with another length from the snapshots of a training.

    The result is the linear combination of snapshots whose profile in time is closest to the
    requested one (EDM2, arXiv 2312.02696). The command prints how close it is.

    Example: hdm ema store/train.64px/b70a507ff6303281 --length 0.08 --out sharper
    """
    # Imported here because some of these modules import torch, which takes seconds.
    from hdm.files import written_aside
    from hdm.model_files.card import read_card
    from hdm.model_files.file_names import EMA
    from hdm.model_files.power_ema import find_snapshots, synthesize
    from hdm.model_files.tensors import read_tensors, save_tensors

    if out.exists():
        raise InputError("is there already", where=out, do="name another, or remove it first")
    card = read_card(source, do="name the folder of a finished training phase")
    if card.base is not None:
        raise InputError(
            "holds an adapter, of which no average is made afterwards",
            where=source,
            do="name the output of a phase that trains the whole model",
        )
    snapshots = find_snapshots(source)
    if not snapshots:
        raise InputError(
            "training wrote no snapshots of power-function averages here",
            where=source,
            do=(
                "train with train.ema_lengths: [0.05, 0.1]; a length cannot be chosen afterwards"
                " without them"
            ),
        )
    average, error = synthesize(snapshots, length)
    with written_aside(out / EMA) as aside:
        # Snapshots hold parameters only; buffers come from the finished weights.
        save_tensors(aside, {**read_tensors(source / EMA), **average})
    # The card last: a folder without one is no model.
    replace(card, ema_length=length).write(out)
    console = Terminal(soft_wrap=True, highlight=False)
    console.print(
        f"from {counted(len(snapshots), 'snapshot')}; the profile's error is {100 * error:.2g} %"
    )
    if error > ROUGH:
        console.print(
            "this is a rough fit: lengths between or near those of train.ema_lengths, and more"
            " snapshots, fit better"
        )
    console.print(f"wrote {escape(str(out))}")
