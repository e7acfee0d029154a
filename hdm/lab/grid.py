"""The trainings of a lab: `labs:` in pipelines.yaml, and the cells (settings × seeds) that follow
from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from hdm import values
from hdm.config import Pipeline
from hdm.definitions import NAME_PATTERN, definitions
from hdm.errors import ConfigError
from hdm.pipelines import did_you_mean, load_pipeline
from hdm.settings import Settings

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Values = dict[str, Any]  # fields of a pipeline by dotted name: `train.model.residual: published`
BASELINE = "baseline"


class Comparison(Settings):
    """Several settings that are compared with each other."""

    question: str = ""
    """The question of the comparison, in a few words."""
    given: Values = Field(default_factory=dict)
    """Values that all its settings share, beyond the lab's."""
    settings: dict[Name, Values] = Field(min_length=2)
    """By name; the first is the reference with which the others are compared."""
    losses_compare: bool = True
    """Whether held-out losses are comparable; they are not between different latents or texts."""
    note: str = ""
    """What a reader of the figures needs to know."""

    @property
    def reference(self) -> str:
        return next(iter(self.settings))


class Lab(Settings):
    """One entry of `labs:`."""

    name: str
    description: str = ""
    pipeline: str
    """Entry of `pipelines:` on which it builds. With the values below it has to have one training
    phase.
    """
    given: Values = Field(default_factory=dict)
    """Values of every cell."""
    seeds: values.Few = 3
    """Number of trainings of every setting; `train.seed` counts from 0. Data, prompts and the seeds
    of the pictures are the same in all of them.
    """
    comparisons: dict[Name, Comparison] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One training and its evaluation.

    Args:
        setting: its name, such as `residual/published`, or `baseline` for the lab's values alone.
        seed: of the training.
        overrides: of the lab's pipeline, `stage.field=value`.
        own: the overrides that the whole lab does not share.
    """

    setting: str
    seed: int
    overrides: tuple[str, ...]
    # Not compared: a dictionary cannot be hashed, and `overrides` says the same.
    own: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.setting} seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """The selected part of a lab.

    Args:
        lab: the whole lab.
        comparisons: the selected ones.
        seeds: number of seeds.
        overrides: `stage.field=value` for every cell, with precedence over everything else.
        file: pipelines.yaml.
    """

    lab: Lab
    comparisons: Mapping[str, Comparison]
    seeds: int
    overrides: tuple[str, ...] = ()
    file: Path | None = None

    def cell(self, comparison: str, setting: str, seed: int) -> Cell:
        """The training of a setting; one training may belong to several comparisons."""
        one = self.comparisons[comparison]
        own = {**one.given, **one.settings[setting]}
        name = f"{comparison}/{setting}" if own else BASELINE
        # Later ones win: the lab's, the setting's own, the command line's.
        overrides = (
            *_assignments(self.lab.given),
            *_assignments(own),
            *self.overrides,
            # Last, so that no other override replaces it.
            f"train.seed={seed}",
        )
        return Cell(name, seed, overrides, own)

    def cells(self) -> list[Cell]:
        """Every training once, with all settings of a seed before the next seed, so that an
        interrupted lab is balanced.
        """
        cells: dict[tuple[str, ...], Cell] = {}
        for seed in range(self.seeds):
            for name, comparison in self.comparisons.items():
                for setting in comparison.settings:
                    cell = self.cell(name, setting, seed)
                    cells.setdefault(cell.overrides, cell)
        return list(cells.values())

    def common(self) -> tuple[str, ...]:
        """The overrides of every cell."""
        return (*_assignments(self.lab.given), *self.overrides)

    def pipeline(self, cell: Cell) -> Pipeline:
        """The pipeline of a cell.

        Raises:
            ConfigError: its settings do not exist or are inconsistent; the error names the cell.
        """
        try:
            pipeline = load_pipeline(self.lab.pipeline, cell.overrides, self.file)
        except ConfigError as error:
            raise ConfigError(
                f"{cell.setting} of the lab {self.lab.name}: {error.what}",
                where=error.where,
                do=error.do,
            ) from error
        if len(pipeline.train.phases) != 1:
            raise ConfigError(
                f"the lab {self.lab.name} trains {len(pipeline.train.phases)} phases, and reads one"
                " curve",
                where="train.phases",
                do=f"give one phase in labs.{self.lab.name}.given",
            )
        return pipeline


def lab_names(file: Path | None = None) -> dict[str, str]:
    """Name → description of every lab."""
    descriptions = {}
    for name, entry in definitions("labs", file).items():
        descriptions[name] = str(entry.values.get("description", ""))
    return descriptions


def load_lab(name: str, file: Path | None = None) -> Lab:
    """The entry of that name.

    Raises:
        ConfigError: there is none, or it is not a valid `Lab`.
    """
    labs = definitions("labs", file)
    if name not in labs:
        raise ConfigError(
            f"no lab is called {name!r}{did_you_mean(name, labs)}",
            where=file or Path.cwd(),
            do=f"there are: {', '.join(labs)}",
        )
    entry = labs[name]
    try:
        return Lab.model_validate({**entry.values, "name": name})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            field = ".".join(map(str, problem["loc"]))
            lines.append(f"labs.{name}.{field}: {problem['msg']}")
        raise ConfigError("\n".join(lines), where=f"{entry.path}:{entry.line}") from error


def plan_grid(
    lab: Lab,
    only: Iterable[str] = (),
    seeds: int | None = None,
    overrides: Iterable[str] = (),
    file: Path | None = None,
) -> Grid:
    """Select comparisons and check the settings of every cell before anything is trained.

    Args:
        only: names of comparisons; empty: all.
        seeds: number of seeds instead of the lab's.
        overrides: `stage.field=value` for every cell.

    Raises:
        ConfigError: there is no such comparison, or a cell's settings are wrong.
    """
    selected = list(only) or list(lab.comparisons)
    for name in selected:
        if name not in lab.comparisons:
            raise ConfigError(
                f"the lab {lab.name} has no comparison"
                f" {name!r}{did_you_mean(name, lab.comparisons)}",
                do=f"there are: {', '.join(lab.comparisons)}",
            )
    every = lab.comparisons  # in the lab's order, whatever the order of --only
    comparisons = {name: every[name] for name in every if name in selected}
    grid = Grid(lab, comparisons, seeds or lab.seeds, tuple(overrides), file)
    for cell in grid.cells():
        # The other cells differ only in the seed, which cannot be wrong.
        if cell.seed == 0:
            grid.pipeline(cell)
    return grid


def _assignments(values: Mapping[str, Any]) -> list[str]:
    # Overrides are read as YAML, of which JSON is a part.
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]
