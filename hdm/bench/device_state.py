"""A device as each item finds it, and its clock."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch


def fresh(device: str) -> None:
    """Forget what the item before left: its memory, its compiled code, its settings."""
    gc.collect()
    torch.manual_seed(0)
    # float32 is to mean float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], object], device: str, repeats: int, warm_up: int = 1) -> float:
    """The median of some repetitions, after some that do not count."""
    found = []
    for number in range(warm_up + repeats):
        wait(device)
        begun = time.perf_counter()
        work()
        wait(device)
        if number >= warm_up:
            found.append(time.perf_counter() - begun)
    return statistics.median(found)
