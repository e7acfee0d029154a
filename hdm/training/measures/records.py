"""What training writes down while it goes: `metrics.jsonl`, the same at every run, and
`timing.jsonl`, which is not.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hdm.files import read_json
from hdm.training.measures.meter import Meter
from hdm.training.process.memory_use import peak_memory_bytes


class Metrics:
    """`metrics.jsonl`: one JSON object a line, with nothing in it that differs from run to run.

    Args:
        path: the file, which others may follow while it grows.
        content: what it starts with; after a kill it may be shorter than what is there.
    """

    def __init__(self, path: Path, content: bytes = b"") -> None:
        self.path = path
        path.write_bytes(content)

    def add(self, step: int, num_images_seen: int, values: Mapping[str, Any]) -> None:
        """Append a line: the clock, then the values in order of name, since a checkpoint may have
        reordered them.
        """
        line = {"step": step, "num_images_seen": num_images_seen, **dict(sorted(values.items()))}
        # The file is opened for each line, so that no line waits in a buffer when the process is
        # killed.
        with self.path.open("ab") as file:
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()


class Timing:
    """`timing.jsonl`: speed and memory of this run; appended to, never compared.

    Args:
        path: the file.
        num_images_seen: where this run starts.

    `before` is the last line of an earlier run; {} for the first.
    """

    def __init__(self, path: Path, num_images_seen: int) -> None:
        self.path = path
        self.before = dict[str, Any]()
        self._seen = num_images_seen
        self._waited_sec = 0.0
        self._start = self._last = time.perf_counter()
        if path.exists():  # a killed run may have left half a line
            content = path.read_bytes()
            os.truncate(path, content.rfind(b"\n") + 1)
            whole = content[: content.rfind(b"\n") + 1].splitlines()
            # Totals such as hours and energy continue from the last line.
            self.before = _numbers(whole[-1]) if whole else {}

    def add(
        self,
        step: int,
        num_images_seen: int,
        loss: float | None,
        waited_sec: float,
        meter: Meter | None = None,
        optimizer_bytes: int = 0,
    ) -> None:
        """Append a line.

        Args:
            step: optimizer steps done.
            num_images_seen: images seen.
            loss: for whoever watches; None if every step was skipped.
            waited_sec: spent waiting for data since this run started.
            meter: of what was done; None: nobody counts it.
            optimizer_bytes: that the optimizers' state takes.
        """
        now = time.perf_counter()
        elapsed = max(now - self._last, 1e-9)
        values: Mapping[str, Any] = {
            "step": step,
            "num_images_seen": num_images_seen,
            "loss": loss,
            "seconds": round(now - self._start, 3),
            "images_per_sec": round((num_images_seen - self._seen) / elapsed, 3),
            "data_wait": round((waited_sec - self._waited_sec) / elapsed, 4),
            "peak_memory_gb": round(peak_memory_bytes() / 1e9, 3),
            "optimizer_memory_gb": round(optimizer_bytes / 1e9, 4),
            **_step_memory(),
            **(meter.read(elapsed) if meter else {}),
        }
        self._seen = num_images_seen
        self._waited_sec = waited_sec
        self._last = now
        with self.path.open("a") as file:
            file.write(json.dumps(values) + "\n")


def _step_memory() -> dict[str, float]:
    """What a step takes beside what stays between steps, activations and gradients that is, where
    the accelerator tells it.
    """
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return {}
    return {
        "step_memory_gb": round(
            (torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()) / 1e9, 3
        )
    }


def _numbers(line: bytes) -> dict[str, Any]:
    """Those of a line of timing.jsonl; {} of a damaged one, which costs the totals so far and no
    training.
    """
    try:
        said = read_json(line)
        return {name: value for name, value in said.items() if isinstance(value, int | float)}
    except (ValueError, AttributeError):
        return {}
