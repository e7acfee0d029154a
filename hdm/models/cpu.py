"""Environment variables for a process that trains on the CPU; libraries read them only when it
starts.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

# Freed activations stay with the process. By default glibc gives large blocks back at once and gets
# them anew, zeroed page by page, in the next operation.
KEEPING_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# Threads wait for the next operation without sleeping: a step is hundreds of operations of under a
# millisecond.
WAITING_AWAKE = {"OMP_WAIT_POLICY": "active"}
IDLE = 0.6
LOOK_SEC = 0.3
CPU_TIMES = Path("/proc/stat")


def training_environment() -> dict[str, str]:
    """Variables for the process; they change only its speed.

    Threads that spin while waiting pay off on an idle machine. Beside other work, they make steps
    take seconds instead of tenths: a thread that waits for one displaced by the other work blocks
    its own core meanwhile.
    """
    share = idle_share()
    return {**KEEPING_MEMORY, **(WAITING_AWAKE if share is not None and share >= IDLE else {})}


def idle_share(seconds: float = LOOK_SEC) -> float | None:
    """The idle share of the machine's processor time, in [0, 1], measured over this many seconds;
    None if unknown.
    """
    with contextlib.suppress(OSError, ValueError, IndexError, ZeroDivisionError):
        before = _times()
        time.sleep(seconds)
        idle_before, whole_before = before
        idle, whole = _times()
        return (idle - idle_before) / (whole - whole_before)
    return None


def _times() -> tuple[int, int]:
    """Idle and total time of all cores since the machine started.

    proc(5), /proc/stat: user nice system idle iowait irq softirq steal.
    """
    ticks = [int(text) for text in CPU_TIMES.read_text().splitlines()[0].split()[1:9]]
    # A core that waits for the disk (iowait) is free. Guests' time, the next two fields, is part of
    # user and nice.
    return ticks[3] + ticks[4], sum(ticks)
