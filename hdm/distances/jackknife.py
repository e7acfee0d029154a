"""Intervals of numbers of two sets of pictures, by leaving out prompts.

A bootstrap of a Fréchet distance or of neighbours sees every picture drawn twice as one more
neighbour, and so misses its own value. Leaving pictures out does not. What is smooth is measured
without one group of prompts at a time. Neighbours are not: one picture fewer changes much for those
beside it, which makes such intervals half as wide again as they should be. They are measured
without half of the prompts, in which half of that goes (Shao and Wu 1989, Annals of Statistics
17:1176).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import hadamard

from hdm.statistics import Estimate, numbered

GROUPS = 20
HALVED = 31  # groups; one less than a power of two
HALF_ODDS = (HALVED - 1) / (HALVED + 1)
"""Kept groups for each one that a half leaves out: 15 for 16."""
BY_GROUPS = f"jackknife over {GROUPS} groups of prompts"
BY_HALVES = f"jackknife over {HALVED} balanced halves of the prompts"


@dataclass(frozen=True)
class Replicates:
    """A number of two independent sets, and the same without some of the prompts of either.

    The number of fewer pictures differs from the whole's by its bias too, as Fréchet distances are
    larger. That is the same whatever is left out, and leaves the variance alone.

    Args:
        value: of all pictures.
        without: for each set, the number without each of its parts, (P,).
        odds: kept prompts for each one that is left out.
        distinct: prompts of the first set.
        estimator: how parts are chosen.
    """

    value: float
    without: tuple[np.ndarray, np.ndarray]
    odds: tuple[float, float]
    distinct: int
    estimator: str

    def __sub__(self, other: Replicates) -> Replicates:
        """The difference of two numbers whose sets leave out the same prompts."""
        first, second = self.without
        its_first, its_second = other.without
        without = (first - its_first, second - its_second)
        return replace(self, value=self.value - other.value, without=without)

    def estimate(self) -> Estimate:
        """The number with Student's t interval, its degrees of freedom by Satterthwaite 1946."""
        variances = []
        doubts = []
        for values, odds in zip(self.without, self.odds, strict=True):
            num_parts = len(values)
            if num_parts < 2:
                return Estimate.alone(self.value, self.distinct)
            variances.append(odds * float(values.var()))
            doubts.append(variances[-1] ** 2 / (num_parts - 1))
        variance = sum(variances)
        freedom = variance**2 / sum(doubts) if variance else 1.0
        return Estimate.of_error(
            self.value, float(np.sqrt(variance)), freedom, self.distinct, self.estimator
        )


def grouped(clusters: Sequence[Hashable], most: int = GROUPS) -> np.ndarray:
    """Each item's group, (N,), in [0, most); whole clusters, as many in each group.

    Fewer groups where there are fewer clusters. Equal clusters are in equal groups, whatever the
    items: two sets of the same prompts leave out the same ones.
    """
    of_item = numbered(clusters)
    total = int(of_item.max()) + 1
    # In no order of the prompts, whose neighbours may be alike.
    places = np.random.default_rng(0).permutation(total)
    of_group: np.ndarray = (places % most)[of_item]
    return of_group


def halves(clusters: Sequence[Hashable]) -> np.ndarray:
    """Which items each half keeps, (HALVED, N) bool: any two prompts of different groups are
    together in as many halves as any others (balanced repeated replication, McCarthy 1969).
    """
    # The first row would keep all groups, and the first column is a group that all halves keep.
    kept: np.ndarray = hadamard(HALVED + 1)[1:, 1:] > 0
    return kept[:, grouped(clusters, HALVED)]


def jackknifed(
    measure: Callable[[np.ndarray, np.ndarray], float],
    clusters: Sequence[Hashable],
    second_clusters: Sequence[Hashable],
) -> Replicates:
    """A number of two sets, measured again without each group of either.

    Args:
        measure: the number of the items that are kept, (N,) and (M,) bool.
        clusters, second_clusters: the prompt of each item of the first set, of the second.
    """
    groups = grouped(clusters)
    second_groups = grouped(second_clusters)
    every = np.ones(len(groups), bool)
    second_every = np.ones(len(second_groups), bool)
    without = [measure(groups != one, second_every) for one in np.unique(groups)]
    second_without = [measure(every, second_groups != one) for one in np.unique(second_groups)]
    return Replicates(
        measure(every, second_every),
        (np.array(without), np.array(second_without)),
        (len(without) - 1.0, len(second_without) - 1.0),
        len(set(clusters)),
        BY_GROUPS,
    )
