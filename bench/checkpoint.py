"""How long a training step waits for a checkpoint, which is written while the step waits or aside.

Written aside, the checkpoint comes from a copy in memory, and training goes on meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from machine import add_number, parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.architecture import XUTConfig
from hdm.files import TEMPORARY
from hdm.models.xut import XUT
from hdm.training.state import checkpoint
from hdm.training.state.checkpoint_writer import CheckpointWriter

EXPLANATION = """\
Weights, their average and Adam's two averages of a model a quarter of xut-base's size, or with
--whole of xut-base (343M parameters, 5.5 GB), on a memory disk, one checkpoint kept. By turns:
  waiting    checkpoint.save: the step waits until all is written, hashed and renamed
  aside      checkpoint_writer: the step waits for a copy in memory; that memory is made before

Examples:
  python bench/checkpoint.py                 # 6 GB of memory
  python bench/checkpoint.py --whole         # 23 GB
"""


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_whole(parser)
    add_number(parser, "--rounds", 5)
    parser.add_argument(
        "--disk",
        type=Path,
        default=Path("/dev/shm"),
        metavar="DIR",
        help="where to write (default %(default)s)",
    )
    given = parser.parse_args()
    model = XUT(base(given.whole))
    sets = {
        "weights": model.state_dict(),
        "ema": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": {
            f"{name}:{what}": torch.rand_like(value)
            for name, value in model.named_parameters()
            for what in ("exp_avg", "exp_avg_sq")
        },
    }
    size = sum(value.nbytes for values in sets.values() for value in values.values())
    count = sum(value.numel() for value in model.parameters())
    checkpoint.KEEP = 1
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=given.disk) as folder:
        waiting, aside = pauses(Path(folder), sets, given.rounds)
    print(
        f"{count / 1e6:.0f}M parameters, {size / 1e9:.2f} GB, torch {torch.__version__}, "
        f"medians of {given.rounds} rounds in turns\n"
    )
    print("| | waiting | aside | written aside after |\n|---|---|---|---|")
    pause, written = statistics.median(aside["pause"]), statistics.median(aside["written"])
    shown = f"{statistics.median(waiting):.2f} s | **{pause:.2f} s** | {written:.2f} s"
    print(f"| pause of a step | {shown} |")


def add_whole(parser: argparse.ArgumentParser) -> None:
    """The option by which `base` is asked for the whole model."""
    parser.add_argument(
        "--whole", action="store_true", help="xut-base itself instead of a model of half the width"
    )


def base(whole: bool) -> XUTConfig:
    """xut-base, or a model a quarter of its size."""
    config = XUTConfig.preset("base")
    half = replace(
        config,
        width=config.width // 2,
        num_heads=config.num_heads // 2,
        mlp_width=config.mlp_width // 2,
    )
    return config if whole else half


def nothing() -> None:
    """What follows a checkpoint here."""


def pauses(
    folder: Path, sets: dict[str, dict[str, torch.Tensor]], rounds: int
) -> tuple[list[float], dict[str, list[float]]]:
    writer = CheckpointWriter(folder)
    writer.make_ready(sets)  # while the first steps are made
    waiting, aside = list[float](), {"pause": list[float](), "written": list[float]()}
    for number in range(rounds + 1):
        begun = time.perf_counter()
        writer.write(2 * number, sets, b"", {}, nothing)
        aside["pause"].append(time.perf_counter() - begun)
        writer.wait()
        aside["written"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        checkpoint.save(folder, 2 * number + 1, sets, b"", {})
        waiting.append(time.perf_counter() - begun)
    writer.close()
    return waiting[1:], {name: values[1:] for name, values in aside.items()}


if __name__ == "__main__":
    main()
