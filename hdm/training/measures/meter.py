"""What training does and costs: tokens, arithmetic, power, money."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hdm.architecture import XUTConfig
from hdm.models.flops import Pass, training_flops


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product on a device, the best of some:
    what its arithmetic can do at most.
    """
    # These sizes reach the peak and take about a tenth of a second.
    size, tries = (8192, 10) if device.type == "cuda" else (1024, 3)
    left = torch.full((size, size), 0.5, dtype=dtype, device=device)
    right = torch.full_like(left, 0.5)
    best = 0.0
    for _ in range(tries):
        _wait(device)
        begun = time.perf_counter()
        left @ right
        _wait(device)
        # The first products also start threads and fill caches, so the best one counts.
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def power_watts(device: torch.device, count: int) -> float | None:
    """Present power draw of the machine's first `count` accelerators together; None if it cannot be
    read.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml  # through which torch reads it
    except ImportError:
        return None
    try:
        # torch reports milliwatts.
        return sum(torch.cuda.power_draw(number) for number in range(count)) / 1000
    except (RuntimeError, pynvml.NVMLError):
        return None


@dataclass(frozen=True)
class Machine:
    """What training runs on.

    Args:
        device: of this process.
        count: processes, each with a device of its own.
        peak_tflops: of one device, in 10¹² operations a second.
        peak_is: how that is known, "set" or "measured".
        price_per_hour: of all devices together; None: not known.
    """

    device: torch.device
    count: int
    peak_tflops: float
    peak_is: str
    price_per_hour: float | None = None

    @classmethod
    def look(
        cls,
        device: torch.device,
        count: int,
        half: bool,
        peak_tflops: float | None = None,
        price_per_hour: float | None = None,
    ) -> Machine:
        """This machine; a peak that is not given is measured, which takes a tenth of a second.

        Args:
            half: whether matrix products are taken in bfloat16.
        """
        measured = peak_tflops is None
        peak = (
            product_rate(device, torch.bfloat16 if half else torch.float32) / 1e12
            if peak_tflops is None
            else peak_tflops
        )
        return cls(device, count, peak, "measured" if measured else "set", price_per_hour)


class Meter:
    """Counts the work of steps, and reports it per second.

    Args:
        machine: what they run on.
        model, route: of the denoiser, for its arithmetic.
        before: the last line that an earlier run of the same phase wrote, whose totals go on.
    """

    def __init__(
        self,
        machine: Machine,
        model: XUTConfig,
        route: tuple[int, int] | None,
        before: Mapping[str, Any],
    ) -> None:
        self.machine = machine
        self.model = model
        self.route = route
        self._tokens = 0
        self._flops = 0
        # A resumed phase continues to count its hours and energy.
        self._hours = float(before.get("hours", 0.0))
        self._energy_kwh = float(before.get("energy_kwh", 0.0))

    def count(self, batch: int, num_image: int, num_text: int, tread_rate: float) -> None:
        """A step of `batch` samples over all processes, each of so many image tokens and, padded,
        text tokens.
        """
        self._tokens += batch * (num_image + num_text)
        # Padding counts, while recomputed blocks do not, as is usual for utilisation.
        given = Pass(num_image, num_text, batch, tread_rate, self.route)
        self._flops += training_flops(self.model, given)

    def read(self, elapsed_sec: float) -> dict[str, Any]:
        """What happened in the seconds since this was last called.

        Returns:
            `tokens_per_sec`, image and text, those that TREAD drops too; `tflops` of all devices
            together, three forward passes a step, recomputation not counted; `utilisation`, their
            share of `peak_tflops`, which is "set" or "measured"; `hours` so far; `power_watts` and
            `energy_kwh` so far where the accelerator tells it; `cost` so far where a price is set.
        """
        machine = self.machine
        tflops = self._flops / elapsed_sec / 1e12
        values: dict[str, Any] = {
            "tokens_per_sec": round(self._tokens / elapsed_sec, 1),
            "tflops": round(tflops, 4),
            "utilisation": round(tflops / (machine.peak_tflops * machine.count), 4),
            "peak_tflops": round(machine.peak_tflops, 3),
            "peak_is": machine.peak_is,
        }
        self._tokens = self._flops = 0
        self._hours += elapsed_sec / 3600
        values["hours"] = round(self._hours, 6)
        watts = power_watts(machine.device, machine.count)
        if watts is not None:
            self._energy_kwh += watts * elapsed_sec / 3.6e6
            values |= {"power_watts": round(watts, 1), "energy_kwh": round(self._energy_kwh, 6)}
        if machine.price_per_hour is not None:
            values["cost"] = round(machine.price_per_hour * self._hours, 4)
        return values
