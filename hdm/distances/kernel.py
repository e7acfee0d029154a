"""Kernel distances (squared maximum mean discrepancies) with their intervals.

A distance is a U-statistic (Gretton et al. 2012, eq. 3): means over pairs of different items, so
that its expectation is 0 for two sets of one distribution, however small, and it may be negative.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from hdm.statistics import Estimate, numbered

# As in CMMD (arXiv 2401.09603).
SIGMA = 10.0
SCALE = 1000.0
ROWS_AT_ONCE = 256
ESTIMATOR = "variance of the U-statistic, by prompt"

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(N, E) and (M, E) rows → (N, M) kernels."""


def gaussian(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """CMMD's kernel, of unit embeddings, less 1: a constant leaves distances as they are, and they
    are small beside it.
    """
    squared = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    # The expanded square may round to slightly below 0.
    near: np.ndarray = np.expm1(-np.clip(squared, 0, None) / (2 * SIGMA**2))
    return near


def kernel_distance(
    sets: Sequence[np.ndarray],
    reference: np.ndarray,
    clusters: Sequence[Hashable],
    reference_clusters: Sequence[Hashable],
    kernel: Kernel = gaussian,
) -> Estimate:
    """The kernel distance of a set to a reference, or by how much those of two sets differ, times
    1000.

    Its variance is that of a U-statistic (Hoeffding 1948) of independent prompts, to second order.
    A difference's rows belong together, so what both sets owe to a prompt cancels in it.

    Args:
        sets: one set, (N, E); or two, whose rows correspond to each other: the first's distance
            minus the second's.
        reference: (M, E).
        clusters, reference_clusters: the prompt of each row.
        kernel: of float64 rows.
    """
    of_set = numbered(clusters)
    of_reference = numbered(reference_clusters)
    # Items of one prompt beside each other, so that a block of rows holds whole prompts.
    order = np.argsort(of_set, kind="stable")
    other_order = np.argsort(of_reference, kind="stable")
    of_set = of_set[order]
    of_reference = of_reference[other_order]
    pairs = _Pairs(
        [rows[order].astype(np.float64) for rows in sets],
        reference[other_order].astype(np.float64),
        kernel,
    )
    within = _Means(pairs.within, of_set, of_set, same=True)
    between = _Means(pairs.between, of_set, of_reference, same=False)
    apart = _Means(pairs.apart, of_reference, of_reference, same=True)
    value = within.mean + apart.mean - 2 * between.mean
    distinct = int(of_set[-1]) + 1
    num_references = int(of_reference[-1]) + 1
    if min(distinct, num_references) < 2:
        return Estimate.alone(SCALE * value, distinct)
    # What each item adds to the statistic, by itself: its first-order part.
    of_item = 2 * (within.rows - between.rows)
    of_other = 2 * (apart.rows - between.columns)
    first_order = _variance(of_item, of_set) + _variance(of_other, of_reference)
    second_order = 2 * within.squares() + 2 * apart.squares() + 4 * between.squares()
    # Estimated first-order parts hold the noise of the second order twice: once too often. And
    # where there is nothing but the second order, it is all there is.
    variance = max(first_order - second_order, second_order)
    freedom = min(distinct, num_references) - 1
    return Estimate.of_error(
        SCALE * value, SCALE * float(np.sqrt(variance)), freedom, distinct, ESTIMATOR
    )


class _Pairs:
    """Rows of the three matrices of kernels, by blocks; of two sets, of their difference."""

    def __init__(self, sets: Sequence[np.ndarray], reference: np.ndarray, kernel: Kernel) -> None:
        self.sets = sets
        self.reference = reference
        self.kernel = kernel

    def within(self, start: int, stop: int) -> np.ndarray:
        return self._difference([self.kernel(rows[start:stop], rows) for rows in self.sets])

    def between(self, start: int, stop: int) -> np.ndarray:
        return self._difference(
            [self.kernel(rows[start:stop], self.reference) for rows in self.sets]
        )

    def apart(self, start: int, stop: int) -> np.ndarray:
        # In a difference the reference's own pairs cancel.
        if len(self.sets) > 1:
            return np.zeros((stop - start, len(self.reference)))
        return self.kernel(self.reference[start:stop], self.reference)

    def _difference(self, kernels: Sequence[np.ndarray]) -> np.ndarray:
        return kernels[0] if len(kernels) == 1 else kernels[0] - kernels[1]


class _Means:
    """Means of one matrix, which is never held whole.

    Args:
        block: rows from one number to another.
        of_row, of_column: the prompt of each row and column, in order.
        same: whether rows and columns are the same items, whose pairs with themselves are left out.

    `rows` and `columns` are the means of each row and column, `mean` is that of all.
    """

    def __init__(
        self,
        block: Callable[[int, int], np.ndarray],
        of_row: np.ndarray,
        of_column: np.ndarray,
        *,
        same: bool,
    ) -> None:
        self.block = block
        self.same = same
        self.row_starts = _starts(of_row)
        self.column_starts = _starts(of_column)
        self.rows = np.zeros(len(of_row))
        self.columns = np.zeros(len(of_column))
        for start, kernels in self._blocks():
            self.rows[start : start + len(kernels)] = kernels.sum(1)
            self.columns += kernels.sum(0)
        self.rows /= len(of_column) - same
        self.columns /= len(of_row) - same
        self.mean = float(self.rows.mean())

    def _blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Whole prompts, about ROWS_AT_ONCE rows at a time; the number of the first row."""
        start = 0
        while start < len(self.rows):
            later = self.row_starts[self.row_starts >= start + ROWS_AT_ONCE]
            stop = int(later[0]) if len(later) else len(self.rows)
            yield start, self._without_own(self.block(start, stop), start)
            start = stop

    def _without_own(self, kernels: np.ndarray, start: int) -> np.ndarray:
        if self.same:
            own = np.arange(len(kernels))
            kernels[own, start + own] = 0
        return kernels

    def squares(self) -> float:
        """The variance of the matrix's mean that neither its rows' means nor its columns' explain:
        that of independent pairs of prompts.
        """
        total = 0.0
        for start, kernels in self._blocks():
            stop = start + len(kernels)
            centred = kernels - self.rows[start:stop, None] - self.columns + self.mean
            self._without_own(centred, start)
            first = int(np.searchsorted(self.row_starts, start))
            last = int(np.searchsorted(self.row_starts, stop))
            by_row = np.add.reduceat(centred, self.row_starts[first:last] - start)
            by_prompt = np.add.reduceat(by_row, self.column_starts, axis=1)
            if self.same:
                # Pairs within a prompt are no independent ones.
                own = np.arange(last - first)
                by_prompt[own, first + own] = 0
            total += float((by_prompt**2).sum())
        return total / (len(self.rows) * (len(self.columns) - self.same)) ** 2


def _starts(clusters: np.ndarray) -> np.ndarray:
    """The places at which another cluster begins."""
    return np.flatnonzero(np.diff(clusters, prepend=-1))


def _variance(parts: np.ndarray, clusters: np.ndarray) -> float:
    """The variance of a mean (N,) of dependent parts, by independent clusters."""
    sums = np.bincount(clusters, parts - parts.mean())
    count = len(sums)
    return float(sums @ sums) / len(parts) ** 2 * count / (count - 1)
