"""The folder of a lab: its table as Markdown and JSON, its curves, and the measured costs.

<store>/reports/lab-<name>/
    table.md  losses.svg    for people
    table.json              the same figures
    costs.json              measured costs of steps, kept so that a rewritten table shows the same
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hdm.files import canonical_json, read_record, write_bytes, write_json
from hdm.lab.cell_results import Results, read_results
from hdm.lab.cost import Cost, measure_costs
from hdm.lab.figure import figure
from hdm.lab.grid import Grid
from hdm.lab.table import table_rows, to_markdown
from hdm.store import Store, state_root

# By comparison with a hash of its settings, and by setting: the share of the training at which a
# part starts, and its cost.
Parts = dict[str, dict[str, list[tuple[float, float]]]]

TABLE = "table.md"
TABLE_JSON = "table.json"
FIGURE = "losses.svg"
COSTS = "costs.json"


class CostBook:
    """`costs.json`: measured costs by the settings of a comparison.

    Args:
        path: the file, created when first written.
        grid: the selected comparisons.
    """

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path = path
        self.grid = grid
        do = "remove it: what steps cost is then measured again"
        self._parts = read_record(path, Parts, do) if path.exists() else {}

    def missing(self) -> list[str]:
        """Comparisons that were not measured with these settings."""
        return [name for name in self.grid.comparisons if self._key(name) not in self._parts]

    def measure(self, comparison: str, store: Store) -> None:
        """Measure a comparison and record it.

        Raises:
            InputError: the data of one of its settings is not in the store.
            HdmError: the steps failed.
        """
        pipelines = {}
        for setting in self.grid.comparisons[comparison].settings:
            pipelines[setting] = self.grid.pipeline(self.grid.cell(comparison, setting, 0))
        parts = {}
        for setting, cost in measure_costs(pipelines, store).items():
            parts[setting] = list(cost.parts)
        self._parts[self._key(comparison)] = parts
        write_json(self.path, self._parts)

    def costs(self) -> dict[str, dict[str, Cost]]:
        """The measured costs by comparison and setting."""
        costs: dict[str, dict[str, Cost]] = {}
        for name in self.grid.comparisons:
            measured = self._parts.get(self._key(name), {})
            costs[name] = {setting: _cost(parts) for setting, parts in measured.items()}
        return costs

    def _key(self, comparison: str) -> str:
        overrides = []
        for setting in self.grid.comparisons[comparison].settings:
            overrides.append(self.grid.cell(comparison, setting, 0).overrides)
        # A comparison whose settings changed under the same name is measured again.
        return f"{comparison} {hashlib.sha256(canonical_json(overrides)).hexdigest()[:12]}"


def _cost(parts: Iterable[tuple[float, float]]) -> Cost:
    """A cost from JSON, where pairs are lists."""
    return Cost(tuple((start, ratio) for start, ratio in parts))


def lab_folder(store: Store, lab: str) -> Path:
    """The folder of a lab's table and curves."""
    return state_root(store.root) / "reports" / f"lab-{lab}"


def write_lab(grid: Grid, store: Store) -> None:
    """Write table and curves of the finished cells."""
    folder = lab_folder(store, grid.lab.name)
    results = read_results(grid, store)
    rows = table_rows(grid, results, CostBook(folder / COSTS, grid).costs())
    text = to_markdown(grid, rows, results)
    write_bytes(folder / TABLE, text.encode())
    write_bytes(folder / FIGURE, figure(grid, results).encode())
    write_json(
        folder / TABLE_JSON,
        {"lab": grid.lab.name, "rows": [row.to_dict() for row in rows], "cells": _cells(results)},
    )


def _cells(results: Results) -> list[Mapping[str, object]]:
    cells: list[Mapping[str, object]] = []
    for cell, result in results.items():
        cells.append(
            {
                "cell": cell.name,
                "overrides": list(cell.overrides),
                "losses": result.losses,
                "scores": {name: score.value for name, score in result.scores.items()},
                "num_images": result.num_images,
            }
        )
    return cells
