"""Find copies: similar hashes give candidate pairs, and a comparison of the small copies confirms
each pair.

From the confirmed pairs follow the copies, which are refused, and the families, which share a
split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hdm.curation.candidates import similar
from hdm.curation.comparison import colours_agree, correlate, difference, mirror
from hdm.curation.fingerprints import EVERYTHING, boxes_within

MIN_CORRELATION = 0.78  # separates copies from unrelated pictures in bench/duplicates.py
CHUNK = 2048  # pairs confirmed at once, about 50 kB each
MEANINGS = 4096  # embeddings compared with as many others at once
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


def find_pairs(records: np.ndarray, groups: np.ndarray, criterion: Criterion) -> np.ndarray:
    """Pairs of pictures that show the same.

    Args:
        records: (N,) RECORD of all pictures.
        groups: (N,) the first picture with the same pixels; most pictures are their own.
        criterion: what counts as the same.

    Returns:
        (E, 2) int64, sorted, each pair once with the lower number first. Of pictures with the same
        pixels only the first occurs in pairs.
    """
    # Equal pixels are in `groups` already.
    if criterion.distance == 0:
        return np.zeros((0, 2), np.int64)
    first = np.unique(groups)
    all_pairs = [np.zeros((0, 2), np.int64)]
    for one, other, view, mirrored in _candidates(records, first, criterion):
        mine = records[first[one]]
        theirs = records[first[other]]
        alike = _confirmed(mirror(mine) if mirrored else mine, theirs, view, criterion)
        pairs = np.stack([first[one[alike]], first[other[alike]]], axis=1)
        all_pairs.append(np.sort(pairs, axis=1))
    return np.unique(np.concatenate(all_pairs), axis=0)


_Candidates = tuple[np.ndarray, np.ndarray, np.ndarray, bool]


def _candidates(
    records: np.ndarray, first: np.ndarray, criterion: Criterion
) -> Iterator[_Candidates]:
    """Candidate pairs as positions in `first`: one picture, the other, the view of the other that
    looks like the one, and whether the one was mirrored.
    """
    count = len(first)
    whole = records["whole"][first]
    # A share such as 10 / 64 may come out just below its number of bits.
    max_bits = int(criterion.distance * 64 + 1e-9)
    turns = [(whole, records["views"][first, 0], False)]
    if criterion.mirrored:
        mirrored = records["mirrored"][first]
        turns.append((mirrored[:, 1], mirrored[:, 0], True))
    # Hashes of all views, one view after the other.
    views = np.ascontiguousarray(records["views"][first].T).ravel()
    for of_whole, of_frame, is_mirrored in turns:
        yield from _chunks(similar(of_whole, whole, max_bits), count, _WHOLE, is_mirrored)
        if criterion.difference is None:
            framed = similar(np.ascontiguousarray(of_frame), views, max_bits)
            yield from _chunks(framed, count, 0, is_mirrored)


def _chunks(
    pairs: Iterator[tuple[np.ndarray, np.ndarray]], count: int, view: int, mirrored: bool
) -> Iterator[_Candidates]:
    """Chunks of at most CHUNK pairs, without a picture paired with itself and without the same pair
    of whole pictures twice.
    """
    waiting: list[np.ndarray] = []
    size = 0
    for one, place in pairs:
        other = place % count
        seen = view + place // count
        # Pairs of whole pictures are symmetric; views beyond the first are not.
        fresh = np.where(seen > 0, one != other, one < other)
        waiting.append(np.stack([one[fresh], other[fresh], seen[fresh]]))
        size += int(fresh.sum())
        if size >= CHUNK:
            yield from _cut(np.concatenate(waiting, axis=1), mirrored)
            waiting = []
            size = 0
    if size:
        yield from _cut(np.concatenate(waiting, axis=1), mirrored)


def _cut(candidates: np.ndarray, mirrored: bool) -> Iterator[_Candidates]:
    for start in range(0, candidates.shape[1], CHUNK):
        one, other, seen = candidates[:, start : start + CHUNK]
        yield one, other, seen, mirrored


def _confirmed(
    mine: np.ndarray, theirs: np.ndarray, views: np.ndarray, criterion: Criterion
) -> np.ndarray:
    if criterion.difference is not None:
        alike: np.ndarray = difference(mine, theirs) <= criterion.difference
        return alike
    whole = (views == _WHOLE)[:, None]
    frame = np.zeros(len(views), np.int64)
    my_boxes = np.where(whole, EVERYTHING, boxes_within(mine["frame"], frame))
    their_boxes = np.where(
        whole, EVERYTHING, boxes_within(theirs["frame"], np.maximum(views, frame))
    )
    correlation = correlate(mine, my_boxes, theirs, their_boxes, MIN_CORRELATION)
    confirmed: np.ndarray = (correlation >= MIN_CORRELATION) & colours_agree(mine, theirs)
    return confirmed


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
