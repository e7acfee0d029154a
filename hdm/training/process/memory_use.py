"""Memory of this process and of the computer."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


def peak_memory_bytes() -> int:
    """The most memory this process has held: on the accelerator if there is one, else resident."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    # Of this program alone: getrusage's figure begins with that of the process that started it.
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Darwin counts bytes


def system_memory_bytes(what: str) -> int | None:
    """Of the computer, "MemTotal" or "MemAvailable" (proc(5), /proc/meminfo); None where the system
    does not say.
    """
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    return 1024 * int(meminfo.read_text().partition(f"{what}:")[2].split()[0])
