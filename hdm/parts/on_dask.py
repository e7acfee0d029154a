"""Parts made by the workers of a Dask cluster: one that exists, or one of this machine.

Dask decides who makes which part, and makes the parts of a worker that dies elsewhere. Data never
passes through its scheduler: a step goes to the workers as a file in the store, and they answer
with what they recorded of the files that they wrote there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from distributed import Client, Future, LocalCluster, as_completed, get_worker
from distributed.client import FutureCancelledError, FuturesCancelledError
from distributed.comm.core import CommClosedError
from distributed.scheduler import KilledWorker

from hdm.errors import ConfigError, HdmError
from hdm.parts.one_thread import compute_with_one_thread
from hdm.parts.step import Folders, Part, Records, Step, Task, Tools, Work, make_one
from hdm.parts.stopping import Watched
from hdm.provenance import DISTRIBUTION, version_of
from hdm.settings import ExecutionSettings

GONE = (CommClosedError, FutureCancelledError, FuturesCancelledError)
"""What is raised where the scheduler has ended."""
CONNECT_SEC = 30
LOOK_SEC = 0.05
HUNG_SEC = 1.0
"""Seconds between two looks for parts that are done, and for workers that hang."""
BEGUN = "hdm-parts"
"""Dask's topic for the moments at which parts begin."""


def make_on_dask(work: Work[Task, Tools], execution: ExecutionSettings, scratch: Path) -> None:
    """Make the parts on the cluster.

    Args:
        scratch: a folder that every worker sees.

    Raises:
        ConfigError: the cluster cannot be used.
        HdmError: it ended, or workers die of a part; finished parts are kept.
    """
    file = scratch / f"step-{uuid.uuid4().hex}.pickle"
    scratch.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(work.step))
    try:
        with _client(execution) as client:
            _check_workers(client, file)
            _Tries(client, file, work, execution.deadline_sec).run()
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _client(execution: ExecutionSettings) -> Iterator[Client]:
    """A client of the cluster at the address, or of one that lives as long as the block."""
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        address: Any = execution.address
        if address is None:
            # Workers run what they are sent. TLS with a certificate of this run's own keeps other
            # users of the machine out.
            with _interrupts_held():
                cluster = LocalCluster(
                    n_workers=execution.processes or len(os.sched_getaffinity(0)),
                    threads_per_worker=1,
                    host="127.0.0.1",
                    protocol="tls://",
                    security=True,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                    # Without a dashboard the scheduler still answers HTTP, at one port for all.
                    scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                )
                address = stack.enter_context(cluster)
        try:
            client = Client(address, timeout=CONNECT_SEC, set_as_default=False)
        except OSError as error:
            raise ConfigError(
                f"no Dask scheduler answers there: {error}",
                where=f"execution.address={execution.address}",
                do="start it (dask scheduler), or leave the address out",
            ) from error
        yield stack.enter_context(client)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back until the end of the block, and keep it for good from threads and processes
    that begin there: on a terminal it reaches a cluster's workers too, which would all report it.
    """
    resource_tracker.ensure_running()  # where it starts, it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Dask's own messages of a cluster that goes: this module reports it. After Ctrl-C they
    may come later, so it stays quiet.
    """
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if not interrupted:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def _check_workers(client: Client, file: Path) -> None:
    """Refuse workers that could write something else, or elsewhere."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_SEC)
    except TimeoutError as error:
        raise ConfigError(
            "the Dask cluster has no workers",
            where=_address(client),
            do="start some: dask worker ADDRESS",
        ) from error
    mine = _facts(str(file))
    for worker, facts in sorted(client.run(_facts, str(file)).items()):
        if facts["version"] != mine["version"]:
            raise ConfigError(
                f"the worker has version {facts['version']} of {DISTRIBUTION}, this process"
                f" {mine['version']}",
                where=worker,
                do="install the same version everywhere",
            )
        if not facts["sees_store"]:
            raise ConfigError(
                f"the worker does not see the store's folder {file.parent}",
                where=worker,
                do="mount the store at the same path on every machine",
            )


def _address(client: Client) -> str | None:
    return client.scheduler.address if client.scheduler else None


def _facts(file: str) -> dict[str, Any]:
    return {"version": version_of(DISTRIBUTION), "sees_store": Path(file).is_file()}


class _Tries:
    """Parts in progress on a cluster.

    Args:
        client: of the cluster.
        file: the pickled step.
        work: the parts.
        deadline_sec: see `ExecutionSettings`.
    """

    def __init__(
        self, client: Client, file: Path, work: Work[Any, Any], deadline_sec: float | None
    ) -> None:
        self.client = client
        self.file = file
        self.work = work
        self.deadline_sec = deadline_sec
        self.parts: dict[Future[Records], Part[Any]] = {}
        self.done = as_completed(loop=client.loop)
        self.signs: dict[str, tuple[str | None, float]] = {}
        """The part that each worker began last, and since when it has had work and begun no other.
        """
        self.hung: set[str] = set()

    def run(self) -> None:
        """Make the parts, and take what each wrote as it comes."""
        what = self.work.step.what
        for part in self.work.parts:
            self._submit(part)
        looked = time.monotonic()
        try:
            while self.parts:
                for future in self._finished():
                    if future not in self.parts:
                        continue  # two workers made the part
                    part = self.parts[future]
                    records = future.result()
                    self.work.bar.advance(part.size)
                    self.work.take(records)
                    self._forget(future)
                if time.monotonic() - looked > HUNG_SEC:
                    self._make_late_ones_elsewhere()
                    looked = time.monotonic()
        except KilledWorker as error:
            raise HdmError(
                f"workers that make parts of {what} end, one after the other",
                where=error.last_worker.address,
                do="look at its log; finished parts are kept",
            ) from error
        except GONE as error:
            raise self._lost(what) from error
        finally:
            self.client.cancel(list(self.parts))

    def _submit(self, part: Part[Any], workers: Collection[str] | None = None) -> None:
        future = self.client.submit(
            _make_on_worker,
            str(self.file),
            part,
            self.work.folders,
            pure=False,
            workers=workers,
            # If all of these end, the others make it.
            allow_other_workers=workers is not None,
        )
        self.parts[future] = part
        self.done.add(future)

    def _finished(self) -> list[Future[Records]]:
        """The parts that are done; waits a moment where there are none."""
        if self.client.status != "running":
            raise CommClosedError("the scheduler is gone")
        if not self.done.has_ready():
            time.sleep(LOOK_SEC)
            return []
        finished: list[Future[Records]] = self.done.next_batch(block=False)
        return finished

    def _forget(self, future: Future[Records]) -> None:
        """No result of this part is awaited any more: it is done."""
        part = self.parts.pop(future)
        if self.deadline_sec is None:
            return  # one try a part
        others = [one for one, other in self.parts.items() if other is part]
        self.client.cancel(others)
        for one in others:
            del self.parts[one]

    def _make_late_ones_elsewhere(self) -> None:
        """Submit again what hangs, and what waits behind it on the same worker: also what the
        cluster gives that worker later, once the part in which it hangs is made elsewhere.
        """
        if self.deadline_sec is None:
            return
        processing = self.client.processing()
        hung = self._hung(processing, self.deadline_sec)
        others = set(processing) - hung
        if not others:
            return
        stuck = {key for worker in hung for key in processing[worker]}
        for part in list(self.parts.values()):
            tries = [one.key for one, other in self.parts.items() if other is part]
            if stuck.issuperset(tries):
                self._submit(part, others)

    def _hung(self, processing: Mapping[str, Collection[object]], deadline_sec: float) -> set[str]:
        """The workers that had a part for longer than the deadline, and have begun none since."""
        begun = {}
        for _, event in self.client.get_events(BEGUN):
            begun[event["worker"]] = event["key"]
        # From when it is seen here: clocks of machines differ.
        now = time.monotonic()
        for worker, keys in processing.items():
            last = begun.get(worker)
            before, since = self.signs.get(worker, (last, now))
            if before != last:
                self.hung.discard(worker)
            if before != last or not keys:
                since = now
            elif now - since > deadline_sec:
                self.hung.add(worker)
            self.signs[worker] = (last, since)
        return self.hung & set(processing)

    def _lost(self, what: str) -> HdmError:
        return HdmError(
            f"the Dask cluster that makes parts of {what} is gone",
            where=_address(self.client),
            do="start it again and run the same command: finished parts are kept",
        )


@dataclass(frozen=True)
class _Opened:
    """A step that this worker has opened."""

    file: str
    step: Step[Any, Any]
    tools: Any
    stack: ExitStack


@dataclass(frozen=True)
class _Cancelled:
    """Whether a part that this worker makes is wanted no more."""

    key: str

    def is_set(self) -> bool:
        state = get_worker().state.tasks.get(self.key)
        return state is None or state.state == "cancelled"


_opened: _Opened | None = None
_one_at_a_time = threading.Lock()


def _make_on_worker(file: str, part: Part[Any], folders: Folders) -> Records:
    worker = get_worker()
    key = str(worker.get_current_task())
    # A worker with several threads would otherwise open the step's models once for each.
    with _one_at_a_time:
        worker.log_event(BEGUN, {"key": key, "worker": worker.address})
        here = _open(file)
        return make_one(here.step, part, folders, here.tools, Watched(_Cancelled(key)))


def _open(file: str) -> _Opened:
    """The step and its tools; those of the step before are closed."""
    global _opened
    if _opened is None or _opened.file != file:
        if _opened is not None:
            _opened.stack.close()
            _opened = None
        compute_with_one_thread()
        step = pickle.loads(Path(file).read_bytes())
        stack = ExitStack()
        _opened = _Opened(file, step, stack.enter_context(step.open()), stack)
    return _opened
