"""Kill workers of a Dask cluster, and the run that uses them, at seeded moments: `python -m
tests.faults.kill_workers --kills 50`.

Four workers make 100 parts. Every run is disturbed until it has finished; then each file has to
hold what it holds where nobody disturbs it, and the manifest has to name each once.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from hdm import parts
from hdm.settings import ExecutionSettings
from hdm.store import Output, Store
from tests.squares import SQUARES, Squares

PARTS, WORKERS = 100, 4


def make(root: Path) -> Output:
    """The squares, made on a cluster that lives as long as this call."""
    execution = ExecutionSettings(executor="dask", processes=WORKERS)
    step = Squares(root / "log", PARTS, pause_sec=0.1)
    return parts.make_output(step, Store(root), SQUARES, execution)


def disturb(root: Path, chance: random.Random, kills: int) -> int:
    """Make the squares, killing at most so many times; how many kills there were."""
    killed = 0
    while True:
        words = [sys.executable, "-m", "tests.faults.kill_workers", "--make", str(root)]
        with subprocess.Popen(words, stderr=subprocess.DEVNULL) as run:
            while run.poll() is None:
                time.sleep(chance.uniform(0.2, 3.0))
                if killed < kills and run.poll() is None:
                    killed += _kill_something(run.pid, chance)
        if Store(root).find(SQUARES) is not None:
            return killed


def _kill_something(pid: int, chance: random.Random) -> int:
    """One of the run's workers, or in one of five cases the run itself."""
    with suppress(psutil.NoSuchProcess):
        workers = [
            one
            for one in psutil.Process(pid).children(recursive=True)
            if "spawn_main" in " ".join(one.cmdline())
        ]
        if workers and chance.random() < 0.8:
            os.kill(chance.choice(workers).pid, signal.SIGKILL)
            return 1
        if workers:
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0


def check(root: Path) -> None:
    """Every file holds its square, and the manifest names each once."""
    output = Store(root).find(SQUARES)
    assert output is not None
    names = [record.name for record in output.files]
    assert sorted(names) == sorted(f"{number}.json" for number in range(PARTS))
    for number in range(PARTS):
        assert (output.path / f"{number}.json").read_text() == f"{number**2}\n", number
    assert output.counts == {"numbers": PARTS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.make:
        make(asked.make)
        return 0
    chance = random.Random(asked.seed)
    left = asked.kills
    stores = 0
    while left > 0:
        with tempfile.TemporaryDirectory(prefix="hdm-workers-") as folder:
            left -= disturb(Path(folder), chance, min(left, 4))
            check(Path(folder))
        stores += 1
        print(f"{asked.kills - left} kills in {stores} stores: every file is right", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
