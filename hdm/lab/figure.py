"""The held-out curves of a lab as one SVG: a panel for each comparison, and for each setting a line
with the range of its seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from hdm.evaluation.curves import ticks
from hdm.lab.cell_results import Result, Results
from hdm.lab.grid import Grid

PANEL_WIDTH = 320
PANEL_HEIGHT = 230
COLUMNS = 3
LEFT = 44
RIGHT = 12
TOP = 44
BOTTOM = 30
# The first, grey, is the reference's. After the last they start again, dashed.
COLOURS = ("#4b5563", "#d9480f", "#1971c2", "#2f9e44", "#9c36b5")
LEGEND_LINE = 14
SAMPLE = 16  # of a setting's line, before its name in the legend
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#444}.title{font-weight:600;font-size:12px}"
    ".grid{stroke:#ddd}.mean{fill:none;stroke-width:1.8}"
)


def figure(grid: Grid, results: Results) -> str:
    """The SVG; "" if no comparison has two settings whose curves can be compared."""
    compared = {}
    for name, comparison in grid.comparisons.items():
        curves = {}
        for setting in comparison.settings:
            cell_results = _curves(grid, results, name, setting)
            # A curve needs two points.
            if cell_results and len(cell_results[0].losses) > 1:
                curves[setting] = cell_results
        if len(curves) > 1 and comparison.losses_compare:
            compared[name] = curves
    if not compared:
        return ""
    # Every panel has room for the longest legend.
    legend = max(_legend(curves)[-1][1] for curves in compared.values())
    panel_height = PANEL_HEIGHT + legend
    width = PANEL_WIDTH * min(COLUMNS, len(compared))
    height = panel_height * math.ceil(len(compared) / COLUMNS)
    # Losses of the first third lie above the panel and are clipped.
    inside = (
        f'<clipPath id="inside"><rect x="{LEFT}" y="{TOP + legend}"'
        f' width="{PANEL_WIDTH - LEFT - RIGHT}" height="{PANEL_HEIGHT - TOP - BOTTOM}"/></clipPath>'
    )
    groups = ""
    for number, (name, curves) in enumerate(compared.items()):
        row, column = divmod(number, COLUMNS)
        position = f"{PANEL_WIDTH * column} {panel_height * row}"
        groups += f'<g transform="translate({position})">{_panel(name, curves, legend)}</g>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="held-out losses over images seen"><style>{STYLE}</style>{inside}<rect'
        f' width="{width}" height="{height}" fill="#fff"/>{groups}</svg>\n'
    )


def _curves(grid: Grid, results: Results, comparison: str, setting: str) -> list[Result]:
    cells = (grid.cell(comparison, setting, seed) for seed in range(grid.seeds))
    return [results[cell] for cell in cells if cell in results]


def _legend(settings: Iterable[str]) -> list[tuple[int, int]]:
    """Where each entry of the legend starts: x, and how far it is below the first line."""
    positions = []
    x = LEFT
    below = 0
    for setting in settings:
        # About 7 units a character at this font size.
        width = SAMPLE + 7 * len(setting)
        if x > LEFT and x + width > PANEL_WIDTH - RIGHT:
            x = LEFT
            below += LEGEND_LINE
        positions.append((x, below))
        x += width + 14
    return positions


def _panel(title: str, curves: Mapping[str, Sequence[Result]], legend: int) -> str:
    """One comparison.

    Args:
        legend: by how much the legend's further lines move the plot down.
    """
    top = TOP + legend
    bottom = PANEL_HEIGHT + legend - BOTTOM
    points: list[tuple[int, float]] = []
    for cell_results in curves.values():
        for result in cell_results:
            points += result.losses
    last = max(seen for seen, _ in points)
    # The first third is left out: the loss falls so far there that later differences would vanish.
    losses = [loss for seen, loss in points if seen >= last / 3]
    margin = 0.05 * (max(losses) - min(losses) or 1)
    low = min(losses) - margin
    high = max(losses) + margin

    def place(seen: float, loss: float) -> tuple[float, float]:
        share = (loss - low) / (high - low)
        return (
            LEFT + (PANEL_WIDTH - LEFT - RIGHT) * seen / last,
            bottom - (bottom - top) * share,
        )

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    # Grid and axes, then a band and a line for each setting.
    for value in ticks(low, high):
        y = place(0, value)[1]
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{PANEL_WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text text-anchor="end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    parts.append(
        f'<text text-anchor="end" x="{PANEL_WIDTH - RIGHT}" y="{bottom + 20}">{last:,}'
        " images</text>"
    )
    starts = _legend(curves)
    for number, (setting, cell_results) in enumerate(curves.items()):
        turn, colour_number = divmod(number, len(COLOURS))
        colour = COLOURS[colour_number]
        stroke = f'class="mean" stroke="{colour}"'
        if turn:
            stroke += f' stroke-dasharray="{3 * turn} 3"'
        x, below = starts[number]
        y = 32 + below
        parts.append(f'<line {stroke} x1="{x}" x2="{x + SAMPLE - 4}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(
            f'<text x="{x + SAMPLE}" y="{y}" style="fill:{colour}">{escape(setting)}</text>'
        )
        mean, lowest, highest = _band(cell_results)
        around = _points(place(seen, loss) for seen, loss in [*lowest, *reversed(highest)])
        line = _points(place(seen, loss) for seen, loss in mean)
        parts.append(
            f'<polygon clip-path="url(#inside)" points="{around}" fill="{colour}"'
            ' fill-opacity="0.15"/>'
        )
        parts.append(f'<polyline clip-path="url(#inside)" {stroke} points="{line}"/>')
    return "".join(parts)


Line = list[tuple[int, float]]


def _points(places: Iterable[tuple[float, float]]) -> str:
    """The value of SVG's attribute `points`."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _band(results: Sequence[Result]) -> tuple[Line, Line, Line]:
    """Mean, lowest and highest loss of the seeds, at the points where all were measured."""
    curves = [dict(result.losses) for result in results]
    mean: Line = []
    lowest: Line = []
    highest: Line = []
    for seen in sorted(set.intersection(*map(set, curves))):
        losses = [curve[seen] for curve in curves]
        mean.append((seen, sum(losses) / len(losses)))
        lowest.append((seen, min(losses)))
        highest.append((seen, max(losses)))
    return mean, lowest, highest
