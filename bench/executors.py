"""What it costs to have one worker make the parts instead of a plain loop."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import add_number, machine, parser_of

from hdm import parts
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.settings import ExecutionSettings
from hdm.store import Identity, Store

EXPLANATION = """\
Parts that sleep, so that nothing but the driver's own work is measured; its start and its end are
reported beside it.

Example:
  python bench/executors.py --parts 200 --seconds 1
"""
NAPS = Identity("naps", 1, {})
ROWS = {
    "one Dask worker": ExecutionSettings(executor="dask", processes=1),
    "a pool of one process": ExecutionSettings(processes=1),
}


@dataclass(frozen=True)
class Naps(Step[int, None]):
    """Parts that take so long each; the moments at which each begins and ends go to a file."""

    count: int
    seconds: float
    log: Path

    what = "naps"

    def plan(self) -> Iterator[Part[int]]:
        for number in range(self.count):
            yield Part(number, {"naps": (f"{number}.json",)})

    @contextmanager
    def open(self) -> Iterator[None]:
        yield

    def make_part(self, part: Part[int], folders: Folders, tools: None, bar: Tracker) -> None:
        begun = time.time()
        time.sleep(self.seconds)
        folders["naps"].write_json(f"{part.task}.json", part.task, {"numbers": 1})
        with self.log.open("a") as log:
            log.write(f"{begun} {time.time()}\n")


def measured(count: int, seconds: float, execution: ExecutionSettings) -> tuple[float, float]:
    """Seconds from the first part's beginning to the last one's end, and all the others."""
    with tempfile.TemporaryDirectory(prefix="hdm-bench-") as folder:
        step = Naps(count, seconds, Path(folder) / "log")
        begun = time.time()
        with Store(Path(folder) / "store").draft(NAPS) as draft:
            parts.make(step, [draft], execution)
        whole = time.time() - begun
        moments = [[float(at) for at in line.split()] for line in step.log.read_text().splitlines()]
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
