"""One driver for every step: parts that are killed, fail or are damaged, in one process or many."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from hdm import parts
from hdm.errors import HdmError
from hdm.parts import Files, Folders, Part, Step
from hdm.progress import Tracker, track
from hdm.settings import ExecutionSettings
from hdm.store import Draft, Identity, Output, Store
from tests.squares import fail

COUNT = 6
SQUARES = Identity("squares", 1, {})
CUBES = Identity("cubes", 1, {})


@dataclass(frozen=True)
class Powers(Step[int, list[int]]):
    """The square and the cube of every number, with faults planted.

    Args:
        log: a line for each number that was made.
        fault: at `at`, as long as the file `armed` is there: "raise", "kill" or "hang".
    """

    log: Path
    fault: str = ""
    at: int = -1
    workers: int = 1

    what = "powers"
    unit = "numbers"

    @property
    def armed(self) -> Path:
        return self.log.with_name("armed")

    def plan(self) -> Iterator[Part[int]]:
        for number in range(COUNT):
            yield Part(number, {"squares": (f"{number}.json",), "cubes": (f"{number}.json",)})

    @contextmanager
    def open(self) -> Iterator[list[int]]:
        yield [number * number for number in range(COUNT)]

    def threads(self, tools: list[int]) -> int:
        return self.workers

    def lacking(self, part: Part[int], files: Files) -> Part[int]:
        return replace(part, files=files)

    def make_part(self, part: Part[int], folders: Folders, tools: list[int], bar: Tracker) -> None:
        bar.advance()
        number = part.task
        values = {"squares": tools[number], "cubes": tools[number] * number}
        for name in part.files:
            folders[name].write_json(f"{number}.json", values[name], {"numbers": 1})
            if number == self.at:
                fail(self.log, self.fault)
        with self.log.open("a") as log:
            log.write(f"{number} {'+'.join(part.files)}\n")

    def finish(self, draft: Draft) -> dict[str, int]:
        return {"made": draft.counts()["numbers"]}


def make(step: Powers, store: Store, processes: int | None = None) -> list[Output]:
    with store.draft(SQUARES) as squares, store.draft(CUBES) as cubes:
        return parts.make(step, [squares, cubes], ExecutionSettings(processes=processes))


def contents(store: Store) -> dict[str, bytes]:
    found = {}
    for identity in (SQUARES, CUBES):
        for path in store.folder(identity).glob("*.json"):
            if path.name != "run.json":
                found[f"{identity.name}/{path.name}"] = path.read_bytes()
    return found


def numbers(log: Path) -> list[int]:
    return sorted(int(line.split()[0]) for line in log.read_text().splitlines())


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What a run that nobody disturbs writes."""
    store = Store(tmp_path / "whole")
    squares, cubes = make(Powers(tmp_path / "whole.log"), store)
    assert (squares.name, cubes.name) == ("squares", "cubes")
    assert squares.summary == {"made": COUNT}
    assert len(contents(store)) == 2 * (COUNT + 1)
    return contents(store)


@pytest.mark.parametrize("processes", [None, 2])
@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_interrupted_and_made_again_each_part_is_made_once(
    tmp_path: Path, whole: dict[str, bytes], fault: str, processes: int | None
) -> None:
    step = Powers(tmp_path / "log", fault, at=3)
    step.armed.touch()
    store = Store(tmp_path / "store")
    if fault == "kill" and processes is None:
        words = [
            sys.executable,
            "-c",
            KILLED.format(module=__name__),
            str(store.root),
            str(step.log),
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
        killed = subprocess.run(words, env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
    else:
        with pytest.raises(HdmError, match="planted" if fault == "raise" else "powers ended"):
            make(step, store, processes)
    assert store.find(SQUARES) is None
    assert 3 not in numbers(step.log)
    make(step, store, processes)
    made = numbers(step.log)
    assert len(made) == len(set(made))
    # A process that dies ends the other one too, perhaps between its part and its line in the log.
    cut_off = 1 if fault == "kill" and processes == 2 else 0
    assert len(made) >= COUNT - cut_off
    # The square was finished, and is kept.
    assert "3 cubes" in step.log.read_text().splitlines()
    assert contents(store) == whole


KILLED = """
import sys
from pathlib import Path
from hdm.settings import ExecutionSettings
from hdm.store import Store
from {module} import Powers, make

make(Powers(Path(sys.argv[2]), "kill", at=3), Store(Path(sys.argv[1])))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_one_that_asked(
    tmp_path: Path, whole: dict[str, bytes], number: signal.Signals
) -> None:
    step = Powers(tmp_path / "log", "hang", at=3)
    step.armed.touch()
    store, pid = Store(tmp_path / "store"), tmp_path / "hangs"
    words = [sys.executable, "-c", ASKING.format(module=__name__), str(store.root), str(step.log)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as asking:
        while not pid.exists() or not pid.read_text():
            assert asking.poll() is None
            time.sleep(0.05)
        asking.send_signal(number)
    worker = int(pid.read_text())
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    make(step, store)
    assert numbers(step.log) == list(range(COUNT))
    assert contents(store) == whole


ASKING = """
import sys
from pathlib import Path
from hdm.settings import ExecutionSettings
from hdm.store import Store
from {module} import Powers, make

if __name__ == "__main__":
    make(Powers(Path(sys.argv[2]), "hang", at=3), Store(Path(sys.argv[1])), processes=2)
"""


@pytest.mark.parametrize("processes", [None, 2])
def test_other_processes_and_threads_make_the_same_bytes(
    tmp_path: Path, whole: dict[str, bytes], processes: int | None
) -> None:
    store = Store(tmp_path / "store")
    make(Powers(tmp_path / "log", workers=3), store, processes)
    assert contents(store) == whole


def test_an_error_in_one_thread_keeps_what_the_others_finished(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    step = Powers(tmp_path / "log", "raise", at=2, workers=2)
    step.armed.touch()
    store = Store(tmp_path / "store")
    with pytest.raises(HdmError, match="planted"):
        make(step, store)
    make(step, store)
    assert numbers(step.log) == list(range(COUNT))
    assert contents(store) == whole


def test_only_the_damaged_file_is_made_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    store, log = Store(tmp_path / "store"), tmp_path / "log"
    make(Powers(log), store)
    log.unlink()
    (store.folder(CUBES) / "4.json").write_text("17")
    assert store.find(CUBES) is None
    make(Powers(log), store)
    assert log.read_text() == "4 cubes\n"
    assert contents(store) == whole


class Forgetful(Powers):
    def lacking(self, part: Part[int], files: Files) -> Part[int]:
        return replace(part, files=dict(list(files.items())[:1]) if part.task == 2 else files)


def test_a_part_that_lacks_a_file_is_not_committed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(RuntimeError, match=r"did not write cubes/2\.json"):
        make(Forgetful(tmp_path / "log"), store)
    assert store.find(SQUARES) is None


def test_what_was_done_before_counts_in_the_progress_and_not_in_its_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = iter([0.0, 40.0])
    monkeypatch.setattr("hdm.progress.time.monotonic", lambda: next(now))
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    with track("measure", 100, "pictures", done=50) as bar:
        bar.advance(20)
    assert shown.getvalue() == "measure: 70/100 pictures, 0.5/s, 60 s left\n"


def test_a_signal_stops_between_parts_and_the_rest_is_made_later(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    step = Powers(tmp_path / "log")
    store = Store(tmp_path / "store")

    class Stopping(Powers):
        def make_part(self, part, folders, tools, bar):
            super().make_part(part, folders, tools, bar)
            if part.task == 1:
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(Stopping(step.log), store)
    assert numbers(step.log) == [0, 1]
    make(step, store)
    assert numbers(step.log) == list(range(COUNT))
    assert contents(store) == whole
