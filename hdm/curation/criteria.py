"""The registry of reasons to refuse a picture. Decisions, counts, errors and report derive from it.

A new criterion is one file that calls `register`. A pipeline uses it by naming it in
`filter.limits`: `filter.limits={darkness: 20}`. Its scores are an output of their own,
`filter.darkness`, so that switching it on measures nothing else again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from hdm.curation.downloaded import Picture
from hdm.curation.settings import FilterSettings, Pipeline
from hdm.errors import ConfigError

Score = Callable[[Sequence[Picture]], Sequence[float | None]]
"""The values of a batch of decoded pictures; None where a picture has none, which passes."""


@dataclass(frozen=True)
class Row:
    """One picture that lies beyond a limit, for the wording of its refusal."""

    width: float
    height: float
    value: float
    limit: float


@dataclass(frozen=True)
class Criterion:
    """A reason to refuse a picture.

    Args:
        name: the reason in tables of scores and in counts.
        words: the reason in the report.
        setting: the setting that holds the limit; empty: `filter.limits.NAME`.
        component: name in `components` of the model that it needs; None: it needs none.
        bound: whether the limit is the least or the largest value that passes. None: the criterion
            compares pictures with each other, which `hdm.curation.checks` does.
        column: the column to compare with the limit; empty: that of the criterion's name.
        values: (N,) values to compare instead where they are no column.
        detail: the numbers of a refusal; None: the usual wording.
        open: for a criterion with an output of its own, loads what it needs and returns its score.
            It has to be a module-level function, so that other processes can import it.
        version: of `open`; raise it when scores change.
        flops: operations of `open`'s score for one picture, two a multiplication and addition, for
            `hdm plan`; None: not known.
    """

    name: str
    words: str
    setting: str = ""
    component: str | None = None
    bound: Literal["min", "max"] | None = None
    column: str = ""
    values: Callable[[pa.Table], np.ndarray] | None = None
    detail: Callable[[Row], str] | None = None
    open: Callable[[Pipeline], Score] | None = None
    version: int = 1
    flops: float | None = None

    @property
    def where(self) -> str:
        """The setting's full name."""
        return self.setting or f"filter.limits.{self.name}"

    def limit(self, settings: FilterSettings) -> Any:
        """The setting's value; None: switched off."""
        if not self.setting:
            return settings.limits.get(self.name)
        # None also for a setting outside of the filter, such as `images`, which is no limit.
        return getattr(settings, self.setting.removeprefix("filter."), None)

    @property
    def score(self) -> str | None:
        """The column by which pictures can be ranked, if there is one."""
        return None if self.bound is None or self.values else self.column or self.name

    def read(self, measures: pa.Table) -> np.ndarray:
        """(N,) what is compared with the limit."""
        if self.values is not None:
            return self.values(measures)
        return numbers(measures, self.column or self.name)

    def describe(self, row: Row) -> str:
        """The numbers of a refusal."""
        if self.detail is not None:
            return self.detail(row)
        beyond = "under" if self.bound == "min" else "over"
        return f"{self.column or self.name} {row.value:.3g} {beyond} {row.limit:g}"


def numbers(measures: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN for null."""
    values: np.ndarray = measures.column(name).cast(pa.float64()).to_numpy()
    return values


def _shorter(measures: pa.Table) -> np.ndarray:
    shorter: np.ndarray = np.minimum(numbers(measures, "width"), numbers(measures, "height"))
    return shorter


def _aspect(measures: pa.Table) -> np.ndarray:
    longer = np.maximum(numbers(measures, "width"), numbers(measures, "height"))
    aspect: np.ndarray = longer / _shorter(measures)
    return aspect


def _sides(row: Row) -> str:
    return f"{row.width:.0f} × {row.height:.0f} px"


_CRITERIA = [
    Criterion("undecodable", "cannot be decoded to the last pixel", "images"),
    Criterion(
        "too_small",
        "too small",
        "filter.min_side_px",
        bound="min",
        values=_shorter,
        detail=lambda row: f"{_sides(row)}, shorter side under {row.limit}",
    ),
    Criterion(
        "aspect",
        "too long or too tall",
        "filter.max_aspect",
        bound="max",
        values=_aspect,
        detail=lambda row: f"{_sides(row)}, {row.value:.2f} : 1 over {row.limit:g} : 1",
    ),
    Criterion("blurred", "blurred", "filter.min_sharpness", bound="min", column="sharpness"),
    Criterion("noisy", "noisy", "filter.max_noise", bound="max", column="noise"),
    Criterion("duplicate", "a copy of another picture", "filter.duplicate_distance"),
    Criterion(
        "duplicate_meaning",
        "shows the same as another picture",
        "filter.duplicate_meaning",
        component="contrastive",
    ),
    Criterion(
        "aesthetic",
        "low aesthetic score",
        "filter.min_aesthetic",
        component="aesthetic_head",
        bound="min",
    ),
    Criterion(
        "clip_similarity",
        "the caption does not fit the picture",
        "filter.min_clip_similarity",
        component="contrastive",
        bound="min",
    ),
    Criterion("top_fraction", "not among the best", "filter.top_fraction"),
]


def criteria() -> tuple[Criterion, ...]:
    """In the order of the checks: a picture that fails several is refused for the first."""
    return tuple(_CRITERIA)


def register(criterion: Criterion) -> None:
    """Add a criterion, looked at after the other limits and before `top_fraction`.

    Raises:
        ValueError: the name is taken, or the criterion lacks its bound or its score.
    """
    if criterion.bound is None or criterion.open is None:
        raise ValueError(f"criterion {criterion.name} needs a bound and a score (`open`)")
    if criterion.setting:
        raise ValueError(
            f"criterion {criterion.name}: its setting is always filter.limits.{criterion.name}"
        )
    # Columns and other outputs of the filter must not be hidden by it.
    taken = {other.name for other in _CRITERIA}
    taken |= {"key", "decoded", "width", "height", "sharpness", "noise", "fingerprint", "sha256"}
    taken |= {"kept", "reason", "detail", "split", "measures", "contrastive"}
    if criterion.name in taken:
        raise ValueError(f"there is already a criterion or column {criterion.name}")
    # `top_fraction` stays last: it ranks what passed everything else.
    _CRITERIA.insert(len(_CRITERIA) - 1, criterion)


def unregister(name: str) -> None:
    """Remove a registered criterion; the built-in ones stay."""
    for criterion in tuple(_CRITERIA):
        if criterion.name == name and criterion.open is not None:
            _CRITERIA.remove(criterion)


def added(settings: FilterSettings) -> list[Criterion]:
    """The registered criteria that the settings switch on, or rank by."""
    by = settings.top_fraction.by if settings.top_fraction else None
    wanted = [one for one in _CRITERIA if one.limit(settings) is not None or one.name == by]
    return [one for one in wanted if one.open]


def ranking(score: str) -> Criterion:
    """The criterion whose score ranks pictures under this name.

    Raises:
        ConfigError: there is none.
    """
    known = {one.score: one for one in _CRITERIA if one.score}
    if score not in known:
        raise ConfigError(
            f"pictures are not ranked by {score!r}",
            where="filter.top_fraction.by",
            do=f"use one of {', '.join(known)}",
        )
    return known[score]


def words() -> dict[str, str]:
    """The report's wording by reason."""
    return {criterion.name: criterion.words for criterion in _CRITERIA}


def problems(settings: FilterSettings, present: Callable[[str], bool]) -> Iterator[ConfigError]:
    """Limits of unknown criteria, and criteria whose models are not `present`."""
    registered = [criterion.name for criterion in _CRITERIA if criterion.open]
    for name in settings.limits:
        if name not in registered:
            yield ConfigError(
                f"there is no criterion {name!r} for filter.limits",
                where=f"filter.limits.{name}",
                do=f"use one of {', '.join(registered)}" if registered else "register it first",
            )
    for criterion in _CRITERIA:
        if criterion.limit(settings) is not None:
            yield from _lacking(criterion, criterion.where, present)
    if settings.top_fraction is not None:
        by = settings.top_fraction.by
        try:
            yield from _lacking(ranking(by), f"filter.top_fraction.by: {by}", present)
        except ConfigError as error:
            yield error


def _lacking(
    criterion: Criterion, setting: str, present: Callable[[str], bool]
) -> Iterator[ConfigError]:
    component = criterion.component
    if component and not present(component):
        yield ConfigError(
            f"{setting} needs components.{component}, which is not set",
            do=f"set components.{component}, or leave {setting} out",
        )
