"""Choice of devices, and batches that shrink when they do not fit in memory."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from hdm.errors import ConfigError, DoesNotFitError, InputError
from hdm.values import device_of

CPU_BATCH = 4  # items: one core is as fast with so few, and all have something to do

Item = TypeVar("Item")
Result = TypeVar("Result")
log = logging.getLogger(__name__)


def check_device(wanted: str, where: str) -> None:
    """Raise an InputError if torch has no such device.

    Args:
        wanted: "auto" or a device of torch.
        where: the setting or option that names it.
    """
    try:
        device_of(wanted)
    except ValueError as error:
        raise ConfigError(f"device {wanted!r}: {error}", where=where) from error
    kind, _, number = wanted.partition(":")
    # torch always has a CPU, and "auto" falls back to it.
    if kind in ("auto", "cpu"):
        return
    count = _count(kind)
    if int(number or 0) >= count:
        raise InputError(
            f"torch finds no accelerator {wanted!r}"
            + (f": there are {count}, counted from 0" if count else ""),
            where=where,
            do="set it to auto or cpu, or look at nvidia-smi",
        )


def check_processes(wanted: str, count: int, where: str) -> None:
    """Raise an InputError if there are fewer accelerators than processes.

    Args:
        wanted: "auto" or a device of torch; on the CPU any number of processes is fine.
        count: of the processes.
        where: the setting that names it.
    """
    # Processes may share a CPU, but each needs an accelerator of its own.
    kind = quiet_device(wanted).partition(":")[0]
    if count == 1 or kind == "cpu" or count <= (there := _count(kind)):
        return
    raise InputError(
        f"{count} processes need an accelerator each, and torch finds {there} ({kind})",
        where=where,
        do=f"set it to {there} or less, or the device to cpu",
    )


def _count(kind: str) -> int:
    """The number of devices of a kind that torch finds."""
    # torch.cuda, torch.xpu, torch.mps and others have the same functions.
    backend = getattr(torch, kind, None)
    return backend.device_count() if backend is not None and backend.is_available() else 0


def choose_device(wanted: str, what: str) -> str:
    """Choose the device for some work, and log it.

    Args:
        wanted: "auto" (the accelerator if there is one, else the CPU) or a device of torch.
        what: the work, for the log.

    Raises:
        InputError: there is no such device.
    """
    check_device(wanted, what)
    device = quiet_device(wanted)
    if device == "cpu":
        # A GPU that torch does not see would otherwise go unnoticed for hours.
        log.log(logging.WARNING if wanted == "auto" else logging.INFO, "%s runs on the CPU", what)
    else:
        log.info(
            "%s runs on %s (%s)",
            what,
            device,
            torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        )
    return device


def quiet_device(wanted: str) -> str:
    """The device that `choose_device` chooses, without logging it."""
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def choose_devices(wanted: str, what: str) -> list[str]:
    """Choose the devices for work that several can share, and log them.

    Args:
        wanted: "auto" or "cuda" (every accelerator; for "auto" the CPU if there is none), or
            devices of torch separated by commas; a device named twice works on two items at once.
        what: the work, for the log.

    Raises:
        InputError: there is no such device.
    """
    if torch.cuda.is_available() and wanted in ("auto", "cuda"):
        wanted = ",".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
    return [choose_device(name.strip(), what) for name in wanted.split(",")]


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Make results bit-identical in every run; only on the CPU, since it costs speed elsewhere."""
    # Not torch.use_deterministic_algorithms, which also imports the compiler: 1.4 s at every start.
    # `compile_blocks` passes the mode on to it.
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("error" if wanted else "default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def stage_batches(
    batch_size: int, device: str | torch.device, threads: int | None, setting: str
) -> Batches:
    """The batches of a stage's model. On the CPU these are small and of fixed size, several at once
    with one thread each.

    Args:
        batch_size: total number of items at once.
        device: of the model.
        threads: the pipeline's setting for the number of threads; None: OMP_NUM_THREADS, or one per
            core.
        setting: what sets the device, for the error: "encode.device".
    """
    if torch.device(device).type != "cpu":
        return Batches(batch_size, setting)
    # The size is fixed, whatever the number of cores, since another batch would round differently.
    size = min(CPU_BATCH, batch_size)
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    # OMP_NUM_THREADS may be a list, with a number for each level of nesting.
    asked = int(wanted) if wanted.isdecimal() else 0
    # Containers and taskset may allow fewer cores than the machine has.
    workers = threads or asked or len(os.sched_getaffinity(0))
    return Batches(size, setting, max(1, min(workers, batch_size // size)))


@contextlib.contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Use this many CPU threads for each of torch's operations within the block, because the number
    changes how sums are rounded. None: keep the current number.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Batches:
    """Runs a model over many items in batches, which are halved if they do not fit in the device's
    memory.

    Args:
        size: initial number of items per batch; once halved, it stays so.
        setting: what sets the device, for the error: "encode.device".
        workers: this many threads each process a batch, using one of torch's threads, so that
            results do not depend on their number. None: the caller's thread works, with all of
            torch's threads.
    """

    def __init__(self, size: int, setting: str, workers: int | None = None) -> None:
        self.size = size
        self.setting = setting
        self.workers = workers
        self._threads = (
            None
            if workers is None
            # Each worker sets its own number, since OpenMP keeps it by thread. One thread per
            # operation makes the rounding of sums, and so every byte of the result, independent of
            # the cores.
            else ThreadPoolExecutor(workers, "batches", torch.set_num_threads, (1,))
        )

    @property
    def at_once(self) -> int:
        """The number of items that keep all workers busy."""
        return self.size * (self.workers or 1)

    def run(
        self, items: Sequence[Item], work: Callable[[Sequence[Item]], Result]
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        """Each batch and the result of `work` for it, in order; no item is dropped.

        Raises:
            DoesNotFitError: a single item does not fit.
        """
        if self._threads is not None:
            yield from self._run_in(self._threads, items, work)
            return
        done = 0
        while done < len(items):
            batch = items[done : done + self.size]
            try:
                result = work(batch)
            except torch.OutOfMemoryError as error:
                self._halve(len(batch), error)
                continue
            done += len(batch)
            yield batch, result

    def _run_in(
        self,
        threads: ThreadPoolExecutor,
        items: Sequence[Item],
        work: Callable[[Sequence[Item]], Result],
    ) -> Iterator[tuple[Sequence[Item], Result]]:
        waiting: deque[tuple[Sequence[Item], Future[Result]]] = deque()
        begun = done = 0
        try:
            while done < len(items):
                # The bound keeps all workers busy without letting results pile up.
                while begun < len(items) and len(waiting) <= 2 * (self.workers or 1):
                    batch = items[begun : begun + self.size]
                    waiting.append((batch, threads.submit(work, batch)))
                    begun += len(batch)
                batch, future = waiting.popleft()
                try:
                    result = future.result()
                except torch.OutOfMemoryError as error:
                    _cancel(waiting)
                    begun = done
                    self._halve(len(batch), error)
                    continue
                done += len(batch)
                yield batch, result
        finally:  # an error, or a signal: nobody begins another
            # Batches begun at the old size are dropped, so that results stay in order.
            _cancel(waiting)

    def _halve(self, size: int, error: torch.OutOfMemoryError) -> None:
        if size == 1:
            raise DoesNotFitError(
                f"one item does not fit in the device's memory: {error}",
                do=f"set {self.setting} to cpu",
            ) from error
        self.size = size // 2
        log.warning(
            "a batch of %d does not fit in the device's memory; going on with %d", size, self.size
        )
        # torch's cache would keep the larger batch's blocks.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _cancel(waiting: deque[tuple[Sequence[Item], Future[Result]]]) -> None:
    for _, future in waiting:
        future.cancel()
    waiting.clear()
