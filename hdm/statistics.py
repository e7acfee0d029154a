"""Numbers with their uncertainty: shares, means over prompts, differences, several at once."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

CONFIDENCE_95 = 1.959963984540054  # standard deviations
DRAWS = 2000  # of a bootstrap
DRAWS_AT_ONCE = 100
FEWEST = 8
"""Items that percentiles of a bootstrap need. No draw lies beyond the least and the greatest item,
between which the truth lies in half of all cases of two."""
POWER_80 = 0.8416212335729143  # standard deviations
WILSON = "Wilson's score interval"
BOOTSTRAP = f"bootstrap of prompts, {DRAWS:,} draws"


@dataclass(frozen=True)
class Share:
    """`right` of `total`, with Wilson's score interval at 95 % (Wilson 1927, JASA 22:209).

    Args:
        right, total: counts.
        distinct: how many of `total` are independent, if several answer the same question; None:
            all.
    """

    right: int
    total: int
    distinct: int | None = None

    @property
    def value(self) -> float:
        """The share itself; 0 of nothing is 0."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper bound, in [0, 1]; (0, 1) of nothing."""
        if not self.total:
            return 0.0, 1.0
        z = CONFIDENCE_95
        p = self.value
        n = self.total if self.distinct is None else self.distinct
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_dict(self) -> dict[str, Any]:
        low, high = self.interval
        return {
            "right": self.right,
            "total": self.total,
            **({} if self.distinct is None else {"distinct": self.distinct}),
            "share": self.value,
            "low": low,
            "high": high,
        }


@dataclass(frozen=True)
class Interval:
    """`mean` ± `half`: Student's t interval at 95 % for the mean of some values; `half` is None for
    a single value.
    """

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """Of at least one value."""
        count = len(values)
        mean = float(np.mean(values))
        if count < 2:
            return cls(mean, None)
        return cls(
            mean, float(stdtrit(count - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(count))
        )

    @property
    def excludes_zero(self) -> bool:
        return self.half is not None and abs(self.mean) > self.half


@dataclass(frozen=True)
class Estimate:
    """A number with its interval at 95 %.

    Args:
        value: the number.
        low, high: the interval; None where there is too little to tell.
        error: standard error; None likewise.
        p_value: how often chance alone would take a number that is truly 0 this far from it, to
            either side; None likewise.
        distinct: independent prompts, or pictures, that it rests on.
        estimator: how the interval was found.
    """

    value: float
    low: float | None
    high: float | None
    error: float | None
    p_value: float | None
    distinct: int
    estimator: str

    @classmethod
    def of_error(
        cls, value: float, error: float, freedom: float, distinct: int, estimator: str
    ) -> Estimate:
        """Student's t interval.

        Args:
            error: standard error of `value`.
            freedom: its degrees of freedom.
        """
        half = float(stdtrit(freedom, 0.975)) * error
        # Without any spread a number is either exactly 0 or certainly not.
        far = abs(value) / error if error else (math.inf if value else 0.0)
        p_value = 2 * float(stdtr(freedom, -far))
        return cls(value, value - half, value + half, error, p_value, distinct, estimator)

    @classmethod
    def of_draws(cls, value: float, draws: np.ndarray, distinct: int, estimator: str) -> Estimate:
        """Percentiles of a bootstrap, widened as Student's t is wider than the normal distribution
        (expanded percentiles, Hesterberg 2015, arXiv 1411.5279): those of few items are too narrow.
        Of fewer than `FEWEST` items, Student's t interval with the draws' standard error.

        Args:
            draws: (D,) the number of each bootstrap sample of `distinct` items.
        """
        widen = math.sqrt(distinct / (distinct - 1))
        error = float(draws.std(ddof=1)) * widen
        if distinct < FEWEST:
            return cls.of_error(value, error, distinct - 1, distinct, estimator)
        tail = float(ndtr(widen * stdtrit(distinct - 1, 0.025)))
        low, high = np.quantile(draws, [tail, 1 - tail])
        beyond = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
        # One more of each: no number of draws shows that something never happens.
        share = min((beyond + 1) / (len(draws) + 1), 0.5)
        p_value = 2 * float(stdtr(distinct - 1, ndtri(share) / widen))
        return cls(value, float(low), float(high), error, p_value, distinct, estimator)

    @classmethod
    def alone(cls, value: float, distinct: int) -> Estimate:
        """A number of too few items for an interval."""
        return cls(value, None, None, None, None, distinct, "")

    @property
    def half(self) -> float | None:
        """Half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def detectable(self, num_questions: int = 1) -> float | None:
        """The smallest true value that four of five repetitions would tell from 0.

        Args:
            num_questions: that are asked at once, of which only 5 % of all askings may raise any
                false alarm.
        """
        if self.error is None:
            return None
        return (float(ndtri(1 - 0.025 / num_questions)) + POWER_80) * self.error

    def needed(self, num_questions: int = 1) -> int | None:
        """About how many independent items would tell a true value of this size from 0 in four of
        five repetitions; None where it cannot be said. Its argument is that of `detectable`.
        """
        detectable = self.detectable(num_questions)
        if not detectable or not self.value:
            return None
        return math.ceil(self.distinct * (detectable / self.value) ** 2)


def mean_of(values: np.ndarray, clusters: Sequence[Hashable]) -> Estimate | None:
    """The mean, with an interval from a bootstrap that draws clusters; None of no values.

    Args:
        values: (N,).
        clusters: the cluster of each value, such as its prompt; values of one cluster may depend on
            each other.
    """
    if not len(values):
        return None
    of_value = numbered(clusters)
    sums = np.bincount(of_value, values)
    sizes = np.bincount(of_value)
    distinct = len(sizes)
    mean = float(np.mean(values))
    if distinct < 2:
        return Estimate.alone(mean, distinct)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(0, DRAWS, DRAWS_AT_ONCE):
        # In blocks, since a number for each draw and prompt would fill the memory.
        drawn = rng.integers(distinct, size=(DRAWS_AT_ONCE, distinct))
        draws.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    return Estimate.of_draws(mean, np.concatenate(draws), distinct, BOOTSTRAP)


def numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """Each item's cluster as a number, in order of first appearance; (N,)."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in clusters], np.int64)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of several questions asked at once, so that 5 % of all askings raise any false alarm
    (Holm 1979).
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda one: p_values[one])):
        # One that is surer than another may not come out as less sure.
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - place)))
        adjusted[name] = largest
    return adjusted
