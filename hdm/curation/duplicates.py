"""Find copies: similar hashes give candidate pairs, and a comparison of the small copies confirms
each pair.

From the confirmed pairs follow the copies, which are refused, and the families, which share a
split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hdm.curation.candidates import HASH_BITS, similar
from hdm.curation.comparison import (
    HOPELESS,
    align,
    colours_agree,
    correlate,
    difference,
    mirror,
    shows_enough,
)
from hdm.curation.fingerprints import EVERYTHING, boxes_within

MIN_CORRELATION = 0.78  # separates copies from unrelated pictures in bench/duplicates.py
CHUNK = 256  # pairs compared at once, about 50 kB each: their arrays stay in the cache
CROWD = 64  # pictures of one hash
BATCH = 1 << 24  # candidates that wait, 8 bytes each
MEANINGS = 4096  # embeddings compared with as many others at once
UNLIKE, NEARLY, ALIKE = range(3)
_WHOLE = -1  # instead of an index into VIEWS: both pictures whole, with whatever border they have


@dataclass(frozen=True)
class Criterion:
    """When two pictures are one.

    Args:
        distance: share of the hash's bits that may differ; 0: only equal pixels count.
        difference: for drawings, the largest difference at any place of the whole pictures, in
            levels; None: photographs, whose gradients have to correlate, and whose border, crop,
            brightness, contrast and saturation may differ.
        mirrored: a picture and its mirror image are one.
    """

    distance: float
    difference: float | None = None
    mirrored: bool = False


def find_pairs(
    records: np.ndarray, groups: np.ndarray, criterion: Criterion, threads: int = 1
) -> np.ndarray:
    """Pairs of pictures that show the same.

    Args:
        records: (N,) RECORD of all pictures.
        groups: (N,) the first picture with the same pixels; most pictures are their own.
        criterion: what counts as the same.
        threads: candidates are compared by this many.

    Returns:
        (E, 2) int64, sorted, each pair once with the lower number first. Of pictures with the same
        pixels only the first occurs in pairs.
    """
    # Equal pixels are in `groups` already.
    if criterion.distance == 0:
        return np.zeros((0, 2), np.int64)
    first = np.unique(groups)
    found = np.zeros(0, np.uint64)
    with ThreadPoolExecutor(threads, thread_name_prefix="compare") as pool:
        for candidates in _batches(_candidates(records, first, criterion)):
            # Pairs that an earlier batch confirmed are not compared in yet another way.
            unknown = candidates[~np.isin(candidates >> WAY_BITS, found)]
            fresh = _confirmed(records, first, unknown, criterion, pool)
            found = np.concatenate([found, *fresh])
    found.sort()
    lower, higher = _places(found)
    return np.stack([first[lower], first[higher]], axis=1)


# A candidate is one number: the places among the first pictures of the one that comes first and of
# the other, and the way in which they look alike. So they can be sorted by pair.
PLACE_BITS = np.uint64(29)
WAY_BITS = np.uint64(6)


@dataclass(frozen=True)
class _Ways:
    """How the two pictures of candidates look alike: arrays (P,).

    `views` are indices into VIEWS, of the frame of the one picture as the frame of the other is; or
    _WHOLE. `swapped`: the view is that of the picture that comes first. `mirrored`: the picture
    whose frame is compared with the view is mirrored.
    """

    views: np.ndarray
    swapped: np.ndarray
    mirrored: np.ndarray


def _candidates(
    records: np.ndarray, first: np.ndarray, criterion: Criterion
) -> Iterator[np.ndarray]:
    """Candidates (P,) uint64, each once."""
    count = len(first)
    whole = records["whole"][first]
    # A share such as 10 / 64 may come out just below its number of bits.
    max_bits = int(criterion.distance * HASH_BITS + 1e-9)
    turns = [(whole, records["views"][first, 0], False)]
    if criterion.mirrored:
        mirrored = records["mirrored"][first]
        turns.append((mirrored[:, 1], mirrored[:, 0], True))
    # Hashes of all views, one view after the other.
    views = np.ascontiguousarray(records["views"][first].T).ravel()
    for of_whole, of_frame, is_mirrored in turns:
        shown = np.arange(count)
        if criterion.difference is None:
            shown = _shown(records, first, of_whole, whole=True, mirrored=is_mirrored)
        for one, other in similar(of_whole[shown], whole, max_bits):
            yield _coded(shown[one], other, np.full(len(one), _WHOLE), is_mirrored)
        if criterion.difference is None:
            shown = _shown(records, first, of_frame, whole=False, mirrored=is_mirrored)
            for one, place in similar(of_frame[shown], views, max_bits):
                yield _coded(shown[one], place % count, place // count, is_mirrored)


def _shown(
    records: np.ndarray, first: np.ndarray, hashes: np.ndarray, *, whole: bool, mirrored: bool
) -> np.ndarray:
    """Places among the first pictures, without those that cannot be found alike to any.

    Pictures that show next to nothing may have one hash by the million, and every pair of them
    would be a candidate. So it is the pictures of crowds that are looked at here.
    """
    _, number, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    crowd = np.flatnonzero(counts[number] >= CROWD)
    enough = np.ones(len(first), bool)
    for start in range(0, len(crowd), CHUNK):
        some = crowd[start : start + CHUNK]
        pictures = records[first[some]]
        if mirrored:
            pictures = mirror(pictures)
        frames = boxes_within(pictures["frame"], np.zeros(1, np.int64))
        boxes = np.broadcast_to(EVERYTHING, frames.shape) if whole else frames
        enough[some] = shows_enough(pictures, boxes, MIN_CORRELATION)
    return np.flatnonzero(enough)


def _coded(one: np.ndarray, other: np.ndarray, views: np.ndarray, mirrored: bool) -> np.ndarray:
    """Candidates for views of `other` that look like `one`, without a picture paired with itself
    and without the same pair of whole pictures twice.
    """
    # Pairs of whole pictures are symmetric; views beyond the first are not.
    fresh = np.where(views > 0, one != other, one < other)
    one = one[fresh].astype(np.uint64)
    other = other[fresh].astype(np.uint64)
    way = ((views[fresh] - _WHOLE) << 2) + 2 * mirrored + (one > other)
    pair = (np.minimum(one, other) << PLACE_BITS) + np.maximum(one, other)
    candidates: np.ndarray = (pair << WAY_BITS) + way.astype(np.uint64)
    return candidates


def _places(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of both pictures of each pair, a candidate without its way."""
    lower = pairs >> PLACE_BITS
    return lower.astype(np.int64), (pairs - (lower << PLACE_BITS)).astype(np.int64)


def _ways(candidates: np.ndarray) -> _Ways:
    way = (candidates % (1 << WAY_BITS)).astype(np.int64)
    return _Ways((way >> 2) + _WHOLE, (way & 1).astype(bool), (way & 2).astype(bool))


def _batches(candidates: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Sorted batches of some BATCH candidates."""
    waiting: list[np.ndarray] = []
    size = 0
    for some in candidates:
        waiting.append(some)
        size += len(some)
        if size >= BATCH:
            yield np.sort(np.concatenate(waiting))
            waiting = []
            size = 0
    if waiting:
        yield np.sort(np.concatenate(waiting))


def _confirmed(
    records: np.ndarray,
    first: np.ndarray,
    candidates: np.ndarray,
    criterion: Criterion,
    pool: Executor,
) -> Iterator[np.ndarray]:
    """Those pairs of sorted candidates that show the same in one of their ways, each pair once."""
    if criterion.difference is not None:
        found, _ = _in_turn(candidates, partial(_equal, records, first, criterion.difference), pool)
        yield found
        return
    # Moving pictures against each other takes twenty times as long as comparing them as they are.
    found, near = _in_turn(candidates, partial(_correlated, records, first), pool)
    yield found
    near = near[~np.isin(near >> WAY_BITS, found)]
    found, _ = _in_turn(near, partial(_aligned, records, first), pool)
    yield found


def _in_turn(
    candidates: np.ndarray, compare: Callable[[np.ndarray], np.ndarray], pool: Executor
) -> tuple[np.ndarray, np.ndarray]:
    """Compare each pair in one way after the other until it is found alike.

    Args:
        candidates: sorted.
        compare: candidates to ALIKE, NEARLY or UNLIKE.

    Returns:
        The pairs that are alike, and sorted candidates that nearly are.
    """
    found = [np.zeros(0, np.uint64)]
    near = [np.zeros(0, np.uint64)]
    while len(candidates):
        pairs = candidates >> WAY_BITS
        heads = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))
        now = candidates[heads]
        chunks = [now[start : start + CHUNK] for start in range(0, len(now), CHUNK)]
        verdicts = np.concatenate(list(pool.map(compare, chunks)))
        found.append(pairs[heads[verdicts == ALIKE]])
        near.append(now[verdicts == NEARLY])
        lacking = np.repeat(verdicts != ALIKE, np.diff(np.append(heads, len(pairs))))
        lacking[heads] = False
        candidates = candidates[lacking]
    return np.concatenate(found), np.sort(np.concatenate(near))


@dataclass(frozen=True)
class _Sides:
    """Two pictures of each candidate, the one mirrored if that is its way, and their boxes."""

    mine: np.ndarray
    my_boxes: np.ndarray
    theirs: np.ndarray
    their_boxes: np.ndarray


def _sides(records: np.ndarray, first: np.ndarray, candidates: np.ndarray) -> _Sides:
    lower, higher = _places(candidates >> WAY_BITS)
    ways = _ways(candidates)
    mine = records[first[np.where(ways.swapped, higher, lower)]]
    theirs = records[first[np.where(ways.swapped, lower, higher)]]
    mine[ways.mirrored] = mirror(mine[ways.mirrored])
    whole = (ways.views == _WHOLE)[:, None]
    frame = np.zeros(len(candidates), np.int64)
    of_mine = boxes_within(mine["frame"], frame)
    of_theirs = boxes_within(theirs["frame"], np.maximum(ways.views, frame))
    return _Sides(
        mine,
        np.where(whole, EVERYTHING, of_mine),
        theirs,
        np.where(whole, EVERYTHING, of_theirs),
    )


def _equal(
    records: np.ndarray, first: np.ndarray, most: float, candidates: np.ndarray
) -> np.ndarray:
    sides = _sides(records, first, candidates)
    return np.where(difference(sides.mine, sides.theirs) <= most, ALIKE, UNLIKE)


def _correlated(records: np.ndarray, first: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    sides = _sides(records, first, candidates)
    correlation = correlate(sides.mine, sides.my_boxes, sides.theirs, sides.their_boxes)
    verdicts = np.where(correlation > MIN_CORRELATION - HOPELESS, NEARLY, UNLIKE)
    verdicts[correlation >= MIN_CORRELATION] = ALIKE
    verdicts[~colours_agree(sides.mine, sides.theirs)] = UNLIKE
    return verdicts


def _aligned(records: np.ndarray, first: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    sides = _sides(records, first, candidates)
    correlation = align(
        sides.mine, sides.my_boxes, sides.theirs, sides.their_boxes, MIN_CORRELATION
    )
    return np.where(correlation >= MIN_CORRELATION, ALIKE, UNLIKE)


def find_copies(
    groups: np.ndarray, pairs: np.ndarray, order: np.ndarray, fit: np.ndarray
) -> np.ndarray:
    """The kept picture that each picture is a copy of.

    Pictures are visited in order. One that is near no kept picture is kept; any other is a copy of
    the first kept picture that it is near to. So no two kept pictures are near each other, and the
    first picture of a chain of small changes does not swallow the whole chain.

    Args:
        groups: (N,) the first picture with the same pixels.
        pairs: (E, 2) pairs of such first pictures that are near each other.
        order: (N,) the pictures, the best first.
        fit: (N,) bool; only these are kept, so that a bad copy never displaces a good picture.

    Returns:
        (N,) int64: the number of the picture, -1 for one that is no copy.
    """
    starts, neighbours = _neighbours(pairs, len(groups))
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups))
    leader = np.full(len(groups), -1)  # of each first picture, the kept one with its pixels
    copy_of = np.full(len(groups), -1)
    # Fit pictures first, so that an unfit one can be a copy of any of them.
    for number in np.concatenate([order[fit[order]], order[~fit[order]]]).tolist():
        group = groups[number]
        near = leader[[group, *neighbours[starts[group] : starts[group + 1]]]]
        kept = near[near >= 0]
        if len(kept):
            copy_of[number] = kept[rank[kept].argmin()]
        elif fit[number]:
            leader[group] = number
    return copy_of


def _neighbours(pairs: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Adjacency lists: where each number's neighbours start, and all neighbours."""
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    return np.searchsorted(both[:, 0], np.arange(count + 1)), both[:, 1]


def find_families(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(N,) connected components: equal numbers for pictures connected by equal pixels or pairs."""
    count = len(groups)
    one = np.concatenate([np.arange(count), pairs[:, 0]])
    other = np.concatenate([groups, pairs[:, 1]])
    links = coo_array((np.ones(len(one), np.int8), (one, other)), (count, count))
    families: np.ndarray = connected_components(links, directed=False)[1]
    return families


def same_meaning(embeddings: np.ndarray, cosine: float, device: str) -> np.ndarray:
    """Pairs of pictures with similar embeddings, by comparing all with all in blocks.

    Args:
        embeddings: (N, E) of unit length.
        cosine: similarity from which two are near.
        device: where they are multiplied.

    Returns:
        (P, 2) int64, the lower number first.
    """
    # Imported here: finding copies by hashes needs no torch, whose import takes seconds.
    import torch

    vectors = torch.from_numpy(embeddings)
    all_pairs = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(vectors), MEANINGS):
        rows = vectors[start : start + MEANINGS].to(device)
        for first in range(start, len(vectors), MEANINGS):
            # Embeddings have length 1, so their products are cosines.
            near = rows @ vectors[first : first + MEANINGS].to(device).T >= cosine
            pairs = near.nonzero().cpu().numpy() + np.array([start, first])
            all_pairs.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.concatenate(all_pairs)
