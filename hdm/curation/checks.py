"""Decide which pictures to keep: apply every check in order and give each refusal with its numbers.

Pure functions from a table of measures to verdicts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from hdm.curation.criteria import Criterion, Row, criteria, numbers, ranking
from hdm.curation.duplicates import Criterion as DuplicateCriterion
from hdm.curation.duplicates import (
    find_copies,
    find_families,
    find_pairs,
    same_meaning,
)
from hdm.curation.settings import FilterSettings, TopFraction


@dataclass(frozen=True)
class Verdicts:
    """For each picture the check that refused it, or None if it is kept, and that check's numbers.

    `order` are all pictures, the best first; `families` the same number for a picture and its
    copies, and copies of these.
    """

    reasons: list[str | None]
    details: list[str | None]
    order: np.ndarray
    families: np.ndarray

    @property
    def kept(self) -> np.ndarray:
        """(N,) bool."""
        return np.array([reason is None for reason in self.reasons], bool)

    def counts(self) -> dict[str, int]:
        """Number of refused pictures by reason."""
        return dict(Counter(filter(None, self.reasons)))


@dataclass(frozen=True)
class _Check:
    reason: str
    fails: np.ndarray
    detail: Callable[[int], str]


def judge(
    measures: pa.Table,
    records: np.ndarray,
    settings: FilterSettings,
    embeddings: np.ndarray | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> Verdicts:
    """Decide on every picture.

    Args:
        measures: all rows of MEASURES but for their fingerprints, with the models' scores.
        records: fingerprints of the decodable pictures, RECORD, in the same order.
        settings: thresholds.
        embeddings: of the decodable pictures; only `duplicate_meaning` reads them.
        device: where embeddings are compared.
        threads: compare fingerprints; their number changes no verdict.

    Returns:
        One verdict a row. The detail of a copy is the key of the picture that is kept in its place,
        which passes every other check except perhaps `top_fraction`.
    """
    checks = {check.reason: check for check in _thresholds(measures, settings)}
    failed = np.zeros(len(measures), bool)
    for check in checks.values():
        failed |= check.fails
    copies = _Copies(measures, settings, threads)
    # Copies come after the thresholds: a picture that fails one of these never stands for its
    # copies.
    for check in copies.checks(records, embeddings, failed, device):
        checks[check.reason] = check
        failed |= check.fails
    if settings.top_fraction is not None:
        checks["top_fraction"] = _all_but_the_best(measures, ~failed, settings.top_fraction)
    reasons: list[str | None] = [None] * len(measures)
    details: list[str | None] = [None] * len(measures)
    # A picture that fails several checks is refused for the first one in the order of criteria.
    for criterion in criteria():
        if criterion.name not in checks:
            continue
        check = checks[criterion.name]
        for number in np.flatnonzero(check.fails).tolist():
            if reasons[number] is None:
                reasons[number] = check.reason
                details[number] = check.detail(number)
    return Verdicts(reasons, details, copies.order, copies.families())


def _thresholds(measures: pa.Table, settings: FilterSettings) -> Iterator[_Check]:
    """The checks that look at one picture at a time. A missing measure (NaN) passes."""
    decoded = np.array(measures.column("decoded").to_pylist(), object)
    yield _Check("undecodable", decoded != "ok", lambda number: str(decoded[number]))
    for criterion in criteria():
        limit = criterion.limit(settings)
        if criterion.bound is not None and limit is not None:
            yield _threshold(criterion, measures, limit)


def _threshold(criterion: Criterion, measures: pa.Table, limit: float) -> _Check:
    values = criterion.read(measures)
    width = numbers(measures, "width")
    height = numbers(measures, "height")
    # Comparisons with NaN are false, so a missing measure passes.
    fails = values < limit if criterion.bound == "min" else values > limit

    def detail(number: int) -> str:
        row = Row(width[number], height[number], values[number], limit)
        return criterion.describe(row)

    return _Check(criterion.name, fails, detail)


class _Copies:
    """The checks for copies, and the families that follow from them.

    A row is a position among all pictures, a place a position among the decodable ones.
    """

    def __init__(self, measures: pa.Table, settings: FilterSettings, threads: int) -> None:
        self.settings = settings
        self.threads = threads
        self.keys = measures.column("key")
        self.order = _best_first(measures)
        self.rows = np.flatnonzero(np.array(measures.column("decoded").to_pylist()) == "ok")
        self.groups = _first_equal(measures.column("sha256").take(self.rows))
        self.pairs = np.zeros((0, 2), np.int64)
        place = np.full(len(measures), -1)
        place[self.rows] = np.arange(len(self.rows))
        self.places_in_order = place[self.order][place[self.order] >= 0]

    def checks(
        self, records: np.ndarray, embeddings: np.ndarray | None, failed: np.ndarray, device: str
    ) -> Iterator[_Check]:
        settings = self.settings
        if settings.duplicate_distance is not None:
            criterion = DuplicateCriterion(
                settings.duplicate_distance,
                settings.duplicate_difference,
                settings.duplicate_mirrored,
            )
            pairs = find_pairs(records, self.groups, criterion, self.threads)
            yield self._check("duplicate", self.groups, pairs, failed)
        if settings.duplicate_meaning is not None and embeddings is not None:
            pairs = same_meaning(embeddings, settings.duplicate_meaning, device)
            yield self._check("duplicate_meaning", np.arange(len(self.rows)), pairs, failed)

    def _check(
        self, reason: str, groups: np.ndarray, pairs: np.ndarray, failed: np.ndarray
    ) -> _Check:
        # Families join the pairs of both checks.
        self.pairs = np.concatenate([self.pairs, pairs])
        copies = find_copies(groups, pairs, self.places_in_order, ~failed[self.rows])
        copy_of = np.full(len(failed), -1)
        copy_of[self.rows[copies >= 0]] = self.rows[copies[copies >= 0]]
        return _Check(
            reason, copy_of >= 0, lambda number: str(self.keys[int(copy_of[number])].as_py())
        )

    def families(self) -> np.ndarray:
        """(N,) by row; a picture that cannot be decoded has -1."""
        families = np.full(len(self.keys), -1)
        families[self.rows] = find_families(self.groups, self.pairs)
        return families


def _first_equal(hashes: pa.ChunkedArray) -> np.ndarray:
    """(N,) the place of the first picture with the same pixels."""
    numbers = hashes.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(numbers, return_index=True)  # numbered in order of appearance
    firsts: np.ndarray = first[numbers]
    return firsts


def _best_first(measures: pa.Table) -> np.ndarray:
    """(N,) rows by size, sharpness, aesthetic score, and key."""
    size = numbers(measures, "width") * numbers(measures, "height")
    by = [size, numbers(measures, "sharpness"), numbers(measures, "aesthetic")]
    worst_last = [-np.nan_to_num(values, nan=-np.inf) for values in by]
    keys = np.array(measures.column("key").to_pylist())
    # lexsort sorts by its last key first.
    return np.lexsort([keys, *reversed(worst_last)])


def _all_but_the_best(measures: pa.Table, passed: np.ndarray, top: TopFraction) -> _Check:
    """Refuse all but the best share. Pictures without a score are not ranked and pass; ties go to
    the earlier picture.
    """
    criterion = ranking(top.by)
    scores = criterion.read(measures)
    # Of a score that must not be too large, the least is the best.
    order = -scores if criterion.bound == "min" else scores
    ranked = np.flatnonzero(passed & ~np.isnan(scores))
    ranked = ranked[np.argsort(order[ranked], kind="stable")]
    # Less 1e-9, so that a rounding error of the product does not keep one picture more.
    worse = ranked[int(np.ceil(top.keep * len(ranked) - 1e-9)) :]
    fails = np.zeros(len(measures), bool)
    fails[worse] = True
    return _Check(
        "top_fraction",
        fails,
        lambda number: f"{top.by} {scores[number]:.3g} is not among the best {top.keep:.4g}",
    )
