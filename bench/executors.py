"""What it costs to have one worker make the parts instead of a plain loop."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import add_number, machine, parser_of

from hdm import parts
from hdm.parts import Folders, Part
from hdm.progress import Tracker
from hdm.settings import ExecutionSettings
from hdm.store import Store
from tests.squares import SQUARES, Squares

EXPLANATION = """\
Parts that sleep, so that nothing but the driver's own work is measured; its start and its end are
reported beside it.

Example:
  python bench/executors.py --parts 200 --seconds 1
"""
ROWS = {
    "one Dask worker": ExecutionSettings(executor="dask", processes=1),
    "a pool of one process": ExecutionSettings(processes=1),
}


@dataclass(frozen=True)
class Timed(Squares):
    """Writes down when each part begins and ends."""

    def make_part(self, part: Part[int], folders: Folders, tools: None, bar: Tracker) -> None:
        begun = time.time()
        super().make_part(part, folders, tools, bar)
        with self.log.with_name("moments").open("a") as moments:
            moments.write(f"{begun} {time.time()}\n")


def measured(count: int, seconds: float, execution: ExecutionSettings) -> tuple[float, float]:
    """Seconds from the first part's beginning to the last one's end, and all the others."""
    with tempfile.TemporaryDirectory(prefix="hdm-bench-") as folder:
        step = Timed(Path(folder) / "log", count, seconds)
        begun = time.time()
        parts.make_output(step, Store(Path(folder) / "store"), SQUARES, execution)
        whole = time.time() - begun
        lines = (Path(folder) / "moments").read_text().splitlines()
        moments = [[float(at) for at in line.split()] for line in lines]
        working = max(end for _, end in moments) - min(start for start, _ in moments)
        return working, whole - working


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_number(parser, "--parts", 200, "how many")
    add_number(parser, "--seconds", 1.0, "of a part")
    asked = parser.parse_args()
    print(machine())
    plain, _ = measured(asked.parts, asked.seconds, ExecutionSettings())
    for name, execution in ROWS.items():
        working, beside = measured(asked.parts, asked.seconds, execution)
        print(
            f"{name}: {working / plain:.4f} of a plain loop's time ({asked.parts} parts of"
            f" {asked.seconds:g} s), start and end {beside:.1f} s"
        )


if __name__ == "__main__":
    main()
