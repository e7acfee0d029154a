"""The flow's side of training: start the processes, follow them, pass signals on, and leave none
behind.

One process on its own is started plainly, several by torchrun. Each holds the read end of a pipe as
its standard input and ends when this process, which holds the other end, is gone. Signals: the
first is passed on, so that a checkpoint is saved (20 s are given); a second one, or the end of that
time, kills.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from hdm.child import child_environment
from hdm.errors import HdmError, LockedError, SavedOnSignal
from hdm.models.cpu import training_environment
from hdm.progress import Tracker, track
from hdm.store import locked
from hdm.training.process.guard import Signals, signals_counted
from hdm.training.process.job import (
    DONE,
    ERROR,
    PEER_LOST,
    SAVED,
    STOPPED,
    TIMING,
    Job,
    checkpoint_step,
    clear_outcomes,
    living_ranks,
    newest_checkpoint,
    num_steps,
    outcome_error,
    read_outcome,
    read_outcomes,
)
from hdm.training.process.origin import check_origin, notice

GRACE_SEC = 20.0  # for saving; Prefect gives 30 s in all
LOCK_WAIT_SEC = 60.0  # for ranks of a killed run to end
POLL_SEC = 0.1
LAST_LINES = 12

log = logging.getLogger(__name__)


def run_training(job: Job) -> None:
    """Train the job's phase in processes of its own, to the end.

    Raises:
        InputError, ConfigError: the checkpoint of `resume_from` is not there, or was made with
            settings that may not differ.
        SavedOnSignal: stopped by SIGTERM or SIGINT; the next start goes on from the newest
            checkpoint, if there is one.
        LockedError: processes of an earlier run do not end.
        HdmError: the error that a rank met, or its last lines.
    """
    check_origin(job)
    if message := notice(job):
        log.warning("%s", message)
    phase = job.phase
    bar = track(f"train.{phase.name}", num_steps(phase) * phase.batch_size, "images")
    with signals_counted() as signals, bar as tracker:
        report = _Report(job, tracker)
        while True:
            before = newest_checkpoint(Path(job.scratch))
            code = _run_once(job, signals, report)
            newest = newest_checkpoint(Path(job.scratch))
            # Restart only after progress, or a fault that recurs would be retried without end.
            if signals.count or not _died(job, code) or newest is None or newest == before:
                break
            log.warning(
                "a training process died (%s); going on from step %d",
                _exit(code),
                checkpoint_step(newest),
            )
    _judge(job, code, stopped=signals.count > 0)


def make_companions(job: Job) -> None:
    """Have a process of its own make what comes with the weights of a phase that is done; see
    `Job.milestones`.

    Raises:
        SavedOnSignal: stopped by SIGTERM or SIGINT.
        HdmError: the error that the process met, or its last lines.
    """
    bar = track(f"train.{job.phase.name}", None, "images")
    with signals_counted() as signals, bar as tracker:
        code = _run_once(job, signals, _Report(job, tracker))
    _judge(job, code, stopped=signals.count > 0)


def _run_once(job: Job, signals: Signals, report: _Report) -> int:
    """Train until the processes end; their exit code."""
    # A rank of an earlier run may still write its outcome, so this waits before they are cleared.
    _wait_for_others(job)
    clear_outcomes(Path(job.scratch))
    job.write()
    with _started(job) as process:
        # Each start writes a new log.
        report.log = _Tail(job.log)
        _follow(process, job, signals, report)
    return process.returncode


def _died(job: Job, code: int) -> bool:
    """Whether a process ended without reporting an outcome, and no other one met an error, which
    would recur.
    """
    states = [outcome["state"] for outcome in read_outcomes(Path(job.scratch))]
    # A killed process leaves no outcome.
    silent = len(states) < job.settings.train.num_processes or PEER_LOST in states
    return code != 0 and ERROR not in states and silent


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _wait_for_others(job: Job) -> None:
    # Ranks hold the lock themselves, so two trainings never run on one folder, even if the process
    # that started the first was killed.
    deadline = time.monotonic() + LOCK_WAIT_SEC
    while True:
        try:
            with locked(job.lock, "this training phase"):
                return
        except LockedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SEC)


def _command(job: Job) -> list[str]:
    count = job.settings.train.num_processes
    worker = ["-m", "hdm.training.worker", str(job.path)]
    if count == 1:
        return [sys.executable, *worker]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        # torchrun then meets on this machine, at a free port.
        "--standalone",
        "--nnodes",
        "1",
        "--nproc_per_node",
        str(count),
        *worker,
    ]


@contextlib.contextmanager
def _started(job: Job) -> Iterator[subprocess.Popen[bytes]]:
    """The child process; at the end of the block it and its ranks are gone."""
    # The child inherits a handle of its own, so this one can be closed at once.
    with job.log.open("wb") as output:
        process = subprocess.Popen(
            _command(job),
            stdin=subprocess.PIPE,  # its end tells the child that this process is gone
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on
            # Without buffering, the log also has the last lines of a killed process.
            env={**child_environment(_environment(job)), "PYTHONUNBUFFERED": "1"},
        )
    try:
        yield process
    finally:
        if process.poll() is None:  # an exception is passing through: let training save first
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SEC)
        _kill(process, job)


def _environment(job: Job) -> dict[str, str]:
    """Variables that speed up training on the CPU; the user's own take precedence."""
    from hdm.models.devices import quiet_device  # torch

    settings = job.settings.train
    # With several processes, threads that spin while waiting would take each other's cores.
    on_cpu_alone = settings.num_processes == 1 and quiet_device(settings.device) == "cpu"
    return training_environment() if on_cpu_alone else {}


def _kill(process: subprocess.Popen[bytes], job: Job) -> None:
    """SIGKILL to every rank (torchrun gives each a session of its own) and to the child's group."""
    for pid in living_ranks(job):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if process.poll() is None:
        # The child leads its own process group (start_new_session).
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()
    process.wait()


def _follow(process: subprocess.Popen[bytes], job: Job, signals: Signals, report: _Report) -> None:
    """Wait for the end, showing progress; obey signals."""
    deadline: float | None = None
    while process.poll() is None:
        report.update()
        if signals.count and deadline is None:
            log.warning(
                "stopping: the training processes may take %.0f s to save (once more to stop at"
                " once)",
                GRACE_SEC,
            )
            process.send_signal(signal.SIGTERM)
            # torchrun passes the signal on to its ranks.
            deadline = time.monotonic() + GRACE_SEC
        if signals.count > 1 or (deadline is not None and time.monotonic() > deadline):
            _kill(process, job)
        time.sleep(POLL_SEC)
    report.update()


class _Report:
    """Progress and warnings, as the ranks write them."""

    def __init__(self, job: Job, bar: Tracker) -> None:
        self.bar = bar
        self.num_images_seen = 0
        # Resuming appends to this file, so only new lines are reported.
        self.timing = _Tail(Path(job.folder) / TIMING, from_end=True)
        self.log = _Tail(job.log)

    def update(self) -> None:
        for line in self.log.lines():
            # Ranks log `LEVEL message`. Warnings are shown at once; the rest stays in the file.
            if line.startswith("WARNING "):
                log.warning("%s", line.removeprefix("WARNING "))
        for line in self.timing.lines():
            now = json.loads(line)
            loss = "not finite" if now["loss"] is None else f"{now['loss']:.4f}"
            note = f"loss {loss}, {now['images_per_sec']:.1f} images/s"
            self.bar.advance(now["num_images_seen"] - self.num_images_seen, note)
            self.num_images_seen = now["num_images_seen"]


class _Tail:
    """Follows a file, and returns the complete lines added to it."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        self.path = path
        self.place = path.read_bytes().rfind(b"\n") + 1 if from_end and path.exists() else 0

    def lines(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.place)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]  # a line still being written waits
        self.place += len(whole)
        # Libraries write to this log too, and not always in UTF-8.
        return whole.decode(errors="replace").splitlines()


def _judge(job: Job, code: int, stopped: bool) -> None:
    """Raise the error that the ranks' outcomes amount to, or return if they are done."""
    # What the ranks reported explains most, then the signal, then the exit code and the log's last
    # lines.
    outcome = read_outcome(Path(job.scratch))
    state = outcome.get("state")
    if state == DONE and code == 0:
        if stopped:  # else the next phase would start as if nobody had asked
            raise SavedOnSignal(
                "training stopped on a signal as it ended; all of it is saved",
                where=job.folder,
                do="run the same command again to go on",
            )
        return
    newest = newest_checkpoint(Path(job.scratch))
    kept = (
        "no checkpoint had been saved yet: the phase will start anew"
        if newest is None
        else f"the checkpoint of step {checkpoint_step(newest)} is kept"
    )
    if state == SAVED and newest is not None:
        raise SavedOnSignal(
            f"training stopped on a signal after saving step {checkpoint_step(newest)}",
            where=job.folder,
            do="run the same command again to go on",
        )
    if state == STOPPED:
        raise SavedOnSignal(
            f"training stopped on a signal before its first step; {kept}",
            where=job.folder,
            do="run the same command again",
        )
    if stopped and state != ERROR:
        raise SavedOnSignal(
            f"training was stopped by a signal and killed before it had saved; {kept}",
            where=job.folder,
            do="run the same command again",
        )
    if "kind" in outcome:
        raise outcome_error(outcome)
    killed = "; SIGKILL often means that memory ran out" if -code == signal.SIGKILL else ""
    raise HdmError(
        f"training ended with exit code {code}{killed}",
        where=job.log,
        do="its last lines:\n" + _last_lines(job.log),
    )


def _last_lines(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return "\n".join(f"    {line}" for line in lines)
