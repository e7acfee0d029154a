"""Environment variables for a process that trains on the CPU; libraries read them only when it
starts.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

# Freed activations stay with the process. By default glibc gives large blocks back at once and gets
# them anew, zeroed page by page, in the next operation.
KEEPING_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# Threads wait for the next operation without sleeping: a step is hundreds of operations of under a
# millisecond.
WAITING_AWAKE = {"OMP_WAIT_POLICY": "active"}
IDLE = 0.6
LOOK_SEC = 0.3
CPU_TIMES = Path("/proc/stat")
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


def training_environment() -> dict[str, str]:
    """Variables for the process; they change only its speed.

    Threads that spin while waiting pay off on an idle machine. Beside other work, they make steps
    take seconds instead of tenths: a thread that waits for one displaced by the other work blocks
    its own core meanwhile.
    """
    share = idle_share()
    return {**KEEPING_MEMORY, **(WAITING_AWAKE if share is not None and share >= IDLE else {})}


def idle_share(seconds: float = LOOK_SEC) -> float | None:
    """The share of the machine's processor time that other programs leave, in [0, 1], measured over
    this many seconds; None if unknown.

    What this process and its children use counts as left: they wait while a training runs, but are
    seldom done with what came before it at the moment when it starts.
    """
    with contextlib.suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        before = _times()
        ours_before = _own_times()
        time.sleep(seconds)
        idle_before, whole_before = before
        idle, whole = _times()
        idle -= idle_before
        whole -= whole_before
        ours = 0.0
        for process, used in _own_times().items():
            ours += used - ours_before.get(process, 0.0)
        return min(1.0, (idle + ours * TICKS_PER_SEC) / whole)
    return None


def _times() -> tuple[int, int]:
    """Idle and total time of all cores since the machine started, in ticks.

    proc(5), /proc/stat: user nice system idle iowait irq softirq steal.
    """
    ticks = [int(text) for text in CPU_TIMES.read_text().splitlines()[0].split()[1:9]]
    # A core that waits for the disk (iowait) is free. Guests' time, the next two fields, is part of
    # user and nice.
    return ticks[3] + ticks[4], sum(ticks)


def _own_times() -> dict[int, float]:
    """Processor time of this process and of all that descend from it, in seconds, by pid."""
    this = psutil.Process()
    used = {}
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it has ended
            times = process.cpu_times()
            used[process.pid] = times.user + times.system
    return used
