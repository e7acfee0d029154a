"""Which trainings a lab is made of: `labs:` of pipelines.yaml, and the cells (settings × seeds)
that follow from it.
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
Values = dict[str, Any]
"""Fields of a pipeline by dotted name, as `train.model.residual: published`."""
BASELINE = "baseline"


class Comparison(Settings):
    """Settings against each other."""

    question: str = ""
    """What is asked, in a few words."""
    given: Values = Field(default_factory=dict)
    """What all its settings have in common beyond the lab's."""
    settings: dict[Name, Values] = Field(min_length=2)
    """By name; the first is the reference that the others are compared with."""
    losses_compare: bool = True
    """Whether held-out losses may be compared: not between latents or text of different kinds."""
    note: str = ""
    """What a reader of the figures has to know."""

    @property
    def reference(self) -> str:
        return next(iter(self.settings))


class Lab(Settings):
    """One entry of `labs:`."""

    name: str
    description: str = ""
    pipeline: str
    """Entry of `pipelines:` that it builds on. With the settings below it has one training
    phase.
    """
    given: Values = Field(default_factory=dict)
    """Of every cell."""
    seeds: values.Few = 3
    """Trainings of every setting; `train.seed` counts from 0. Data, prompts and the seeds of the
    pictures are the same in all.
    """
    comparisons: dict[Name, Comparison] = Field(min_length=1)


@dataclass(frozen=True)
class Cell:
    """One training, and its evaluation.

    Args:
        setting: what it is called, as `residual/published`, or `baseline` where it is the lab's
            settings and nothing else.
        seed: of the training.
        overrides: of the lab's pipeline, `stage.field=value`.
        own: those of them that are not the whole lab's.
    """

    setting: str
    seed: int
    overrides: tuple[str, ...]
    own: Mapping[str, Any] = field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.setting} seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """The part of a lab that was asked for.

    Args:
        lab: it all.
        comparisons: those asked for.
        seeds: how many.
        overrides: `stage.field=value` over everything else, for every cell.
        file: pipelines.yaml.
    """

    lab: Lab
    comparisons: Mapping[str, Comparison]
    seeds: int
    overrides: tuple[str, ...] = ()
    file: Path | None = None

    def cell(self, comparison: str, setting: str, seed: int) -> Cell:
        """The training of a setting; the same one may belong to several comparisons."""
        one = self.comparisons[comparison]
        own = {**one.given, **one.settings[setting]}
        name = f"{comparison}/{setting}" if own else BASELINE
        overrides = (
            *_assignments(self.lab.given),
            *_assignments(own),
            *self.overrides,
            f"train.seed={seed}",
        )
        return Cell(name, seed, overrides, own)

    def cells(self) -> list[Cell]:
        """Every training once, all settings of a seed before the next seed: an interrupted lab is
        balanced.
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
        """What a cell trains.

        Raises:
            ConfigError: its settings do not exist or do not go together; the cell is named.
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
    return {
        name: str(entry.values.get("description", ""))
        for name, entry in definitions("labs", file).items()
    }


def load_lab(name: str, file: Path | None = None) -> Lab:
    """The entry of that name.

    Raises:
        ConfigError: there is none, or it is not written as `Lab` says.
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
        message = "\n".join(
            f"labs.{name}.{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigError(message, where=f"{entry.path}:{entry.line}") from error


def plan_grid(
    lab: Lab,
    only: Iterable[str] = (),
    seeds: int | None = None,
    overrides: Iterable[str] = (),
    file: Path | None = None,
) -> Grid:
    """The comparisons asked for, every cell's settings checked before anything is trained.

    Args:
        only: names of comparisons; none: all.
        seeds: instead of the lab's.
        overrides: `stage.field=value` for every cell.

    Raises:
        ConfigError: there is no such comparison, or a cell's settings are wrong.
    """
    wanted = list(only) or list(lab.comparisons)
    for name in wanted:
        if name not in lab.comparisons:
            raise ConfigError(
                f"the lab {lab.name} has no comparison"
                f" {name!r}{did_you_mean(name, lab.comparisons)}",
                do=f"there are: {', '.join(lab.comparisons)}",
            )
    chosen = {name: comparison for name, comparison in lab.comparisons.items() if name in wanted}
    grid = Grid(lab, chosen, seeds or lab.seeds, tuple(overrides), file)
    for cell in grid.cells():
        if cell.seed == 0:  # the others differ in nothing that could be wrong
            grid.pipeline(cell)
    return grid


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]
