"""The loss curve as inline SVG. The page's style sheet sets its colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, chain

# In units of the SVG's view box.
WIDTH = 960
HEIGHT = 300
LEFT = 52
RIGHT = 12
TOP = 14
BOTTOM = 40
MAX_POINTS = 400


@dataclass(frozen=True)
class PhaseCurve:
    """One phase: points (images seen in it, loss), held-out losses likewise, and its number of
    images.
    """

    name: str
    num_images: int
    losses: list[tuple[int, float]]
    validation: list[tuple[int, float]]


def loss_curve(phases: Sequence[PhaseCurve]) -> str:
    """The loss over images seen, phase after phase; "" with fewer than two points."""
    # Phases follow each other on one axis of images seen.
    starts = [0, *accumulate(phase.num_images for phase in phases)][: len(phases)]
    losses = []
    held = []
    for start, phase in zip(starts, phases, strict=True):
        losses.append([(start + seen, loss) for seen, loss in _thinned(phase.losses)])
        held += [(start + seen, loss) for seen, loss in phase.validation]
    every = list(chain(*losses))
    if len(every) < 2:
        return ""
    axes = _Axes(starts[-1] + phases[-1].num_images, [loss for _, loss in [*every, *held]])
    parts = [axes.svg()]
    for start, phase, line in zip(starts, phases, losses, strict=True):
        if start:
            parts.append(
                f'<line class="phase" x1="{axes.x(start):.1f}" x2="{axes.x(start):.1f}" y1="{TOP}"'
                f' y2="{HEIGHT - BOTTOM}"/>'
            )
        parts.append(
            f'<text class="name" x="{axes.x(start) + 6:.1f}"'
            f' y="{TOP + 10}">{escape(phase.name)}</text>'
        )
        if line:
            steps = " ".join(f"{axes.x(seen):.1f},{axes.y(loss):.1f}" for seen, loss in line)
            parts.append(f'<polyline class="loss" points="{steps}"/>')
    for seen, loss in held:
        # Browsers show it where the pointer rests.
        title = f"held-out loss {loss:.4f} after {seen:,} images"
        parts.append(
            f'<circle class="held" cx="{axes.x(seen):.1f}" cy="{axes.y(loss):.1f}"'
            f' r="4"><title>{title}</title></circle>'
        )
    label = f"training loss over images seen, from {every[0][1]:.3f} to {every[-1][1]:.3f}"
    return (
        f'<svg class="curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{label}">{"".join(parts)}</svg>'
    )


class _Axes:
    def __init__(self, last: int, losses: Sequence[float]) -> None:
        ordered = sorted(losses)
        # The losses of the first steps would flatten the rest: the highest 1.5 % are cut off.
        low = ordered[0]
        high = ordered[min(len(ordered) - 1, int(0.985 * len(ordered)))]
        room = (high - low or abs(high) or 1.0) * 0.06
        self.low = low - room
        self.high = high + room
        self.last = max(1, last)

    def x(self, seen: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * seen / self.last

    def y(self, loss: float) -> float:
        share = (min(max(loss, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    def svg(self) -> str:
        parts = []
        for value in ticks(self.low, self.high):
            y = self.y(value)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            parts.append(
                f'<text class="tick" text-anchor="end" x="{LEFT - 8}"'
                f' y="{y + 4:.1f}">{value:g}</text>'
            )
        for value in ticks(0, self.last):
            parts.append(
                f'<text class="tick" text-anchor="middle" x="{self.x(value):.1f}"'
                f' y="{HEIGHT - BOTTOM + 18}">{_thousands(value)}</text>'
            )
        parts.append(
            f'<text class="tick" text-anchor="end" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}">images'
            " seen</text>"
        )
        return "".join(parts)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers within [low, high]."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    # The smallest of 1, 2, 5 and 10 times a power of ten that gives at most six intervals.
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    first = math.ceil(low / step)
    return [round(number * step, 12) for number in range(first, math.floor(high / step) + 1)]


def _thousands(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Means over equal spans if there are more points than the curve can show."""
    span = -(-len(points) // MAX_POINTS)
    thinned: list[tuple[float, float]] = []
    for start in range(0, len(points), max(1, span)):
        group = points[start : start + span]
        mean = sum(loss for _, loss in group) / len(group)
        thinned.append((group[-1][0], mean))
    return thinned
