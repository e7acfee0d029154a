"""Parts on a Dask cluster: workers that die or hang, a scheduler that goes, and strangers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from hdm import parts
from hdm.errors import ConfigError, HdmError
from hdm.parts import Folders, Part
from hdm.parts.on_dask import make_on_dask
from hdm.parts.preflight import check_execution
from hdm.parts.step import Records, Work
from hdm.progress import Tracker, track
from hdm.settings import ExecutionSettings
from hdm.store import Folder, Output, Store
from tests.squares import SQUARES, Squares

COUNT = 8
DASK = ExecutionSettings(executor="dask", processes=2)


def make(step: Squares, store: Store, execution: ExecutionSettings) -> Output:
    return parts.make_output(step, store, SQUARES, execution)


def squares(output: Output) -> list[str]:
    return [(output.path / f"{number}.json").read_text().strip() for number in range(COUNT)]


RIGHT = [str(number**2) for number in range(COUNT)]


@pytest.mark.parametrize("fault", ["", "kill", "hang"])
def test_a_worker_that_dies_or_hangs_costs_its_try_alone(tmp_path: Path, fault: str) -> None:
    step = Squares(tmp_path / "log", COUNT, fault=fault)
    if fault:
        (tmp_path / "armed").touch()
    execution = DASK.model_copy(update={"deadline_sec": 2.0 if fault == "hang" else None})
    made = make(step, Store(tmp_path / "store"), execution)
    assert squares(made) == RIGHT
    assert made.summary == {"made": COUNT}
    assert not list((tmp_path / "store").rglob("*.pickle"))
    numbers = step.log.read_text().split()
    assert sorted(set(numbers), key=int) == [str(number) for number in range(COUNT)]
    if fault == "hang":
        hung = int((tmp_path / "hangs").read_text())
        assert not psutil.pid_exists(hung), "it ends with its cluster"


def test_an_error_of_a_part_is_the_runs_and_keeps_what_is_finished(tmp_path: Path) -> None:
    step = Squares(tmp_path / "log", COUNT, fault="raise", at=COUNT - 1)
    (tmp_path / "armed").touch()
    store = Store(tmp_path / "store")
    with pytest.raises(HdmError, match="planted"):
        make(step, store, DASK)
    before = step.log.read_text().split()
    assert squares(make(step, store, ExecutionSettings())) == RIGHT
    after = step.log.read_text().split()
    assert len(after) == len(set(after)) == COUNT, "nothing was made twice"
    assert set(before) < set(after)


def test_a_worker_that_hangs_keeps_no_later_part(tmp_path: Path) -> None:
    # So many that the cluster gives it more, once another worker has made the one it hangs in.
    step = Squares(tmp_path / "log", 30, fault="hang", at=0, pause_sec=0.4)
    (tmp_path / "armed").touch()
    made = make(step, Store(tmp_path / "store"), DASK.model_copy(update={"deadline_sec": 2.0}))
    assert made.summary == {"made": 30}


@dataclass(frozen=True)
class Twice(Squares):
    """Numbers 0 and 1 are finished only once two workers make 0."""

    def make_part(self, part: Part[int], folders: Folders, tools: None, bar: Tracker) -> None:
        tries = self.log.with_name("tries")
        if part.task == 0:
            with tries.open("a") as log:
                log.write("0")
        while part.task < 2 and (not tries.exists() or len(tries.read_text()) < 2):
            time.sleep(0.05)
        super().make_part(part, folders, tools, bar)


def test_a_part_that_two_workers_finish_at_once_counts_once(tmp_path: Path) -> None:
    step = Twice(tmp_path / "log", 2)
    store = Store(tmp_path / "store")
    execution = ExecutionSettings(executor="dask", processes=4, deadline_sec=0.5)
    taken: list[str] = []

    def take(records: Records) -> None:
        taken.extend(records["squares"])
        # Let both be done before the next look.
        while taken == ["1.json"] and step.log.read_text().split().count("0") < 2:
            time.sleep(0.05)
        time.sleep(0.5)

    with store.draft(SQUARES) as draft:
        folders = {"squares": Folder(draft.path, draft.digest)}
        with track(step.what, None, step.unit) as bar:
            make_on_dask(Work(step, list(step.plan()), folders, bar, take), execution, tmp_path)
    assert sorted(taken) == ["0.json", "1.json"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a scheduler in a process of its own, and it and its worker."""
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    dask = (sys.executable, "-m", "distributed.cli.dask_scheduler")
    worker = (sys.executable, "-m", "distributed.cli.dask_worker")
    common = ("--scheduler-file", str(file))
    commands = [
        [*dask, *common, "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        [*worker, *common, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard"],
    ]
    with (tmp_path / "cluster.log").open("wb") as log:
        running = [
            subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=log, stderr=log)
            for words in commands
        ]
    try:
        while not file.exists() or not file.read_text():
            assert running[0].poll() is None, (tmp_path / "cluster.log").read_text()
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"], running
    finally:
        for process in reversed(running):
            process.kill()
            process.wait()


def test_a_scheduler_that_goes_stops_the_run_which_goes_on_later(
    tmp_path: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, (scheduler, _) = cluster
    step = Squares(tmp_path / "log", COUNT, pause_sec=0.5)
    store = Store(tmp_path / "store")
    words = [sys.executable, "-c", ASKING.format(module=__name__, address=address)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    asking = subprocess.Popen(
        [*words, str(store.root), str(step.log)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not step.log.exists():
        assert asking.poll() is None, asking.stderr and asking.stderr.read()
        time.sleep(0.05)
    scheduler.kill()
    _, said = asking.communicate()
    assert "HdmError: the Dask cluster that makes parts of squares is gone" in said
    assert squares(make(step, store, ExecutionSettings())) == RIGHT


ASKING = """
import sys
from pathlib import Path
from hdm.settings import ExecutionSettings
from hdm.store import Store
from {module} import make
from tests.squares import Squares

execution = ExecutionSettings(executor="dask", address="{address}")
make(Squares(Path(sys.argv[2]), pause_sec=0.5), Store(Path(sys.argv[1])), execution)
"""


def test_ctrl_c_is_told_by_the_run_alone(tmp_path: Path) -> None:
    step = Squares(tmp_path / "log", COUNT, pause_sec=0.5)
    words = [sys.executable, "-c", INTERRUPTED.format(module=__name__)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    asking = subprocess.Popen(
        [*words, str(tmp_path / "store"), str(step.log)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not step.log.exists():
        assert asking.poll() is None, asking.stderr and asking.stderr.read()
        time.sleep(0.05)
    os.killpg(asking.pid, signal.SIGINT)  # as a terminal does
    _, said = asking.communicate()
    assert said == "stopped\n"
    assert squares(make(step, Store(tmp_path / "store"), ExecutionSettings())) == RIGHT


INTERRUPTED = """
import signal, sys
from pathlib import Path
from hdm.store import Store
from {module} import DASK, make
from tests.squares import Squares

signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    try:
        make(Squares(Path(sys.argv[2]), pause_sec=0.5), Store(Path(sys.argv[1])), DASK)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("tcp://127.0.0.1:8786", False),
        ("tcp://localhost:8786", False),
        ("tcp://[::1]:8786", False),
        ("tls://cluster.example:8786", False),
        ("tcp://cluster.example:8786", True),
        ("tcp://0.0.0.0:8786", True),
        ("ws://192.0.2.1:8786", True),
        ("cluster.example:8786", True),
        ("127.0.0.1.example:8786", True),
    ],
)
def test_beyond_this_machine_a_cluster_needs_tls(address: str, refused: bool) -> None:
    execution = ExecutionSettings(executor="dask", address=address)
    if refused:
        with pytest.raises(ConfigError, match="needs TLS"):
            check_execution(execution)
    else:
        check_execution(execution)


def test_an_address_where_nobody_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hdm.parts import on_dask

    monkeypatch.setattr(on_dask, "CONNECT_SEC", 1)
    execution = ExecutionSettings(executor="dask", address="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match="no Dask scheduler answers"):
        make(Squares(tmp_path / "log"), Store(tmp_path / "store"), execution)


def test_an_address_without_dask_is_refused() -> None:
    with pytest.raises(ConfigError, match="parts are made locally"):
        check_execution(ExecutionSettings(address="tcp://127.0.0.1:8786"))
