"""How soon a stopped training ends, and how soon it goes on.

It ends with the last of its processes after the signal, and goes on with its first new step.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoint import add_whole, base
from machine import add_number, parser_of
from train import job_of

from hdm.config import Pipeline
from hdm.files import TEMPORARY
from hdm.pipelines import load_pipeline
from hdm.training.process.job import TIMING, Job
from hdm.training.process.launch import run_training

EXPLANATION = """\
A training of a model a quarter of xut-base's size, or with --whole of xut-base (343M parameters,
5.5 GB of weights, average and Adam's state a checkpoint), on made-up latents at 64 px, two images a
step. By turns, as the flow does it:
  stop    from SIGTERM to the end of all processes, with the checkpoint saved
  start   from the start of the flow's side to the first new step's end: processes, imports, checks,
          model and checkpoint loaded, the step
  step    the steps after it, for comparison

Examples:
  python bench/resume.py                 # 5 GB of memory, 4 GB of disk
  python bench/resume.py --whole         # 20 GB of memory, 17 GB of disk
"""
PATIENCE_SEC = 600.0


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_whole(parser)
    add_number(parser, "--rounds", 3)
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    parser.add_argument(
        "--disk",
        type=Path,
        metavar="DIR",
        help="where to write (default: the system's folder for temporary files)",
    )
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train is not None:
        run_training(Job.read(given.train))
        return
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=given.disk) as folder:
        job = job_of(pipeline_of(given.whole, given.device), Path(folder))
        job.write()
        found = [_round(job) for _ in range(given.rounds + 1)][
            1:
        ]  # the first one has no checkpoint to start from
        size = sum(
            path.stat().st_size for path in next(Path(job.scratch).glob("checkpoint-*")).iterdir()
        )
    print(
        f"checkpoint of {size / 1e9:.2f} GB, medians of {given.rounds} rounds (least to most)\n\n"
        "| start | step | stop |\n|---|---|---|"
    )
    print(
        "| "
        + " | ".join(_shown([times[name] for times in found]) for name in ("start", "step", "stop"))
        + " |"
    )


def pipeline_of(whole: bool, device: str) -> Pipeline:
    phase = {
        "resolution": 64,
        "num_images": 10**7,
        "batch_size": 2,
        "optimizer": {"kind": "adamw", "learning_rate": 1e-4},
    }
    settings = [
        f"train.model={json.dumps(base(whole).to_dict())}",
        f"train.phases=[{json.dumps(phase)}]",
        f"train.device={device}",
        "encode.max_tokens=8",
        "encode.text_embeddings=true",
    ]
    return load_pipeline("demo", settings, environment={})


def _round(job: Job) -> dict[str, float]:
    """Start, make three steps, stop."""
    before = len(_lines(job))
    command = [sys.executable, __file__, "--train", str(job.path)]
    begun = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        started = _when(job, before + 1, process) - begun
        steps = [_when(job, before + 1 + number, process) - begun for number in (1, 2)]
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        process.wait(PATIENCE_SEC)
    finally:
        process.kill()
    return {
        "start": started,
        "step": (steps[-1] - started) / len(steps),
        "stop": time.monotonic() - asked,
    }


def _when(job: Job, count: int, process: subprocess.Popen[bytes]) -> float:
    """The time at which so many steps were told of."""
    deadline = time.monotonic() + PATIENCE_SEC
    while len(_lines(job)) < count:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(
                f"the training made no step:\n{job.log.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.02)
    return time.monotonic()


def _lines(job: Job) -> list[str]:
    path = Path(job.folder) / TIMING
    return path.read_text().splitlines() if path.exists() else []


def _shown(seconds: list[float]) -> str:
    return f"**{statistics.median(seconds):.1f} s** ({min(seconds):.1f} to {max(seconds):.1f})"


if __name__ == "__main__":
    main()
