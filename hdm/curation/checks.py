"""Which pictures to keep: every check in order, each refusal with its numbers. Pure: from a table of measures to verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hdm.config import FilterSettings, TopFraction
from hdm.curation.duplicates import Fingerprints, find_copies

REASONS = (
    "undecodable",
    "too_small",
    "aspect",
    "blurred",
    "noisy",
    "duplicate",
    "aesthetic",
    "clip_similarity",
    "top_fraction",
)
"""In the order in which they are looked at: a picture that fails several is refused for the first."""


@dataclass(frozen=True)
class Verdicts:
    """For each picture the check that refused it, or None if it is kept, and that check's numbers."""

    reasons: list[str | None]
    details: list[str | None]

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([reason is None for reason in self.reasons], bool)

    def counts(self) -> dict[str, int]:
        """Number of refused pictures by reason."""
        return dict(Counter(reason for reason in self.reasons if reason is not None))


@dataclass(frozen=True)
class _Check:
    reason: str
    fails: np.ndarray
    detail: Callable[[int], str]


def judge(measures: pa.Table, settings: FilterSettings) -> Verdicts:
    """Decide on every picture.

    Args:
        measures: all rows of MEASURES, in order; the order decides which of several copies is the original.
        settings: thresholds.

    Returns:
        One verdict a row. The original of a copy passes every other check but `top_fraction`; a copy's detail is the original's key.
    """
    checks = {check.reason: check for check in _thresholds(measures, settings)}
    failed = np.zeros(len(measures), bool)
    for check in checks.values():
        failed |= check.fails
    if settings.duplicate_distance is not None:
        checks["duplicate"] = _duplicates(measures, ~failed, settings)
        failed |= checks["duplicate"].fails
    if settings.top_fraction is not None:
        checks["top_fraction"] = _all_but_the_best(measures, ~failed, settings.top_fraction)
    return _verdicts([checks[reason] for reason in REASONS if reason in checks], len(measures))


def _verdicts(checks: list[_Check], count: int) -> Verdicts:
    verdicts = Verdicts([None] * count, [None] * count)
    for check in checks:
        for number in np.flatnonzero(check.fails).tolist():
            if verdicts.reasons[number] is None:
                verdicts.reasons[number], verdicts.details[number] = (
                    check.reason,
                    check.detail(number),
                )
    return verdicts


def _thresholds(measures: pa.Table, settings: FilterSettings) -> Iterator[_Check]:
    """The checks that look at one picture at a time. A measure that is not there (NaN) passes."""
    decoded = np.array(measures.column("decoded").to_pylist(), object)
    width, height = _numbers(measures, "width"), _numbers(measures, "height")
    shorter, aspect = (
        np.minimum(width, height),
        np.maximum(width, height) / np.minimum(width, height),
    )
    yield _Check("undecodable", decoded != "ok", lambda n: str(decoded[n]))
    if settings.min_side_px is not None:
        least = settings.min_side_px
        yield _Check(
            "too_small",
            shorter < least,
            lambda n: f"{width[n]:.0f} × {height[n]:.0f} px, shorter side under {least}",
        )
    if settings.max_aspect is not None:
        most = settings.max_aspect
        yield _Check(
            "aspect",
            aspect > most,
            lambda n: f"{width[n]:.0f} × {height[n]:.0f} px, {aspect[n]:.2f} : 1 over {most:g} : 1",
        )
    if settings.max_noise is not None:
        yield _above("noisy", _numbers(measures, "noise"), settings.max_noise)
    for reason, name, threshold in (
        ("blurred", "sharpness", settings.min_sharpness),
        ("aesthetic", "aesthetic", settings.min_aesthetic),
        ("clip_similarity", "clip_similarity", settings.min_clip_similarity),
    ):
        if threshold is not None:
            yield _below(reason, name, _numbers(measures, name), threshold)


def _below(reason: str, name: str, values: np.ndarray, least: float) -> _Check:
    return _Check(
        reason, values < least, lambda number: f"{name} {values[number]:.3g} under {least:g}"
    )


def _above(reason: str, values: np.ndarray, most: float) -> _Check:
    return _Check(reason, values > most, lambda number: f"noise {values[number]:.3g} over {most:g}")


def _duplicates(measures: pa.Table, fit: np.ndarray, settings: FilterSettings) -> _Check:
    assert settings.duplicate_distance is not None
    decoded = np.flatnonzero([status == "ok" for status in measures.column("decoded").to_pylist()])
    columns: Mapping[str, list] = (
        measures.select(["perceptual_hash", "mirrored_hash", "thumbnail", "sha256"])
        .take(decoded)
        .to_pydict()
    )
    prints = Fingerprints.from_columns(
        columns["perceptual_hash"],
        columns["mirrored_hash"],
        columns["thumbnail"],
        columns["sha256"],
    )
    found = find_copies(
        prints,
        fit[decoded],
        settings.duplicate_distance,
        settings.duplicate_colour,
        settings.duplicate_mirrored,
    )
    copy_of = np.full(len(measures), -1)
    copy_of[decoded[found >= 0]] = decoded[found[found >= 0]]
    keys = measures.column("key")
    return _Check("duplicate", copy_of >= 0, lambda number: keys[int(copy_of[number])].as_py())


def _all_but_the_best(measures: pa.Table, passed: np.ndarray, top: TopFraction) -> _Check:
    """Pictures without the score are not ranked and pass; of equal ones the first is the better."""
    scores = _numbers(measures, top.by)
    ranked = np.flatnonzero(passed & ~np.isnan(scores))
    ranked = ranked[np.argsort(-scores[ranked], kind="stable")]
    worse = ranked[int(np.ceil(top.keep * len(ranked) - 1e-9)) :]
    fails = np.zeros(len(measures), bool)
    fails[worse] = True
    return _Check(
        "top_fraction",
        fails,
        lambda number: f"{top.by} {scores[number]:.3g} is not among the best {top.keep:.4g}",
    )


def _numbers(measures: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN for null."""
    return measures.column(name).cast(pa.float64()).to_numpy()
