"""Choose the real pictures with which generated ones are compared: held out of training, with about
the same aspect ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm.curation.embed import read_embeddings
from hdm.data.captions import captions_by_key
from hdm.data.tables import read_tables
from hdm.keys import Key
from hdm.store import Output, Outputs

SIMILAR_ASPECT = 1.25  # largest factor between similar aspect ratios
ENOUGH = 64  # with this many pictures of similar aspect, only these are used
SPLITS = ("held_out", "validation")  # the second if nothing was held out


@dataclass(frozen=True)
class RealPictures:
    """Kept pictures of one split: those whose captions are prompts, and the reference with which
    both they and the generated images are compared.

    An image generated from a picture's caption is bound to be near that very picture. Distances are
    therefore measured to pictures with other captions, for generated and for real pictures alike.

    Args:
        split: "held_out", or "validation" if nothing was held out; "" if both are empty.
        same_shape: whether only pictures of about the generated images' aspect ratio are used.
        captions: key → its first caption; those of `compared` come first, each part in order of
            keys, which is a random order.
        compared: keys from whose captions images are generated, to be compared with `reference`.
        reference: as many keys of pictures that share no caption with those. Both are empty if
            there is only one caption.
    """

    split: str
    same_shape: bool
    captions: Mapping[Key, str]
    compared: tuple[Key, ...]
    reference: tuple[Key, ...]


def read_real(inputs: Outputs, aspect: float, count: int) -> RealPictures:
    """Choose the real pictures to compare with.

    Args:
        inputs: the outputs `filter` and `caption`.
        aspect: width over height of the generated images. Only pictures within a factor of 1.25 are
            used if there are enough of them.
        count: largest number of pictures to compare with as many others.
    """
    scores = read_tables(inputs["filter"], "scores", ["key", "split", "width", "height"])
    scores = scores.append_column("alike", pa.array(_alike(scores, aspect)))
    # The held-out pictures, or else those for validation, if any of them has a caption.
    for split in SPLITS:
        held = scores.filter(pc.field("split") == split)
        captioned = captions_by_key(inputs["caption"], held["key"].to_pylist())
        captions = {key: texts for key, texts in captioned.items() if texts}
        if captions:
            break
    else:
        return RealPictures("", False, {}, (), ())
    alike = set(held.filter(pc.field("alike"))["key"].to_pylist()) & set(captions)
    same_shape = len(alike) >= min(ENOUGH, len(captions))
    keys = sorted(alike if same_shape else captions)
    compared, reference = _apart({key: captions[key] for key in keys}, count)
    # Compared pictures come first, so that a small evaluation generates from their captions.
    first_captions = {key: captions[key][0] for key in (*compared, *keys)}
    return RealPictures(split, same_shape, first_captions, compared, reference)


def normal_prompt(text: str) -> str:
    """The prompt in one form, equal for prompts that differ only in case and white space."""
    return " ".join(text.casefold().split())


def _apart(
    captions: Mapping[Key, list[str]], count: int
) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Divide pictures into two equally large parts of at most `count`; no caption of the second is
    a first caption of the first.

    Args:
        captions: key → its captions; images are generated from the first.
    """
    groups: dict[str, list[Key]] = {}
    for key, texts in captions.items():
        groups.setdefault(normal_prompt(texts[0]), []).append(key)
    one: list[Key] = []
    other: list[Key] = []
    # Largest groups first: the greedy choice then gives parts of nearly equal size.
    for group in sorted(groups.values(), key=len, reverse=True):
        smaller = one if len(one) <= len(other) else other
        smaller += group
    prompts = {normal_prompt(captions[key][0]) for key in one}
    other = [key for key in other if prompts.isdisjoint(map(normal_prompt, captions[key]))]
    size = min(len(one), len(other), count)
    return tuple(sorted(one)[:size]), tuple(sorted(other)[:size])


def embeddings_of(measures: Output, keys: list[Key]) -> np.ndarray:
    """The stored embeddings of some pictures, (N, E) float32 of length 1; (0, 0) without a
    contrastive model.
    """
    all_keys, vectors = read_embeddings(measures)
    if not all_keys:
        return np.zeros((0, 0), np.float32)
    row_of = {key: row for row, key in enumerate(all_keys)}
    selected = vectors[[row_of[key] for key in keys]]
    unit: np.ndarray = selected / np.linalg.norm(selected, axis=1, keepdims=True)
    return unit


def _alike(scores: pa.Table, aspect: float) -> np.ndarray:
    """Whether each picture's aspect ratio is similar to this one; (N,) bool."""
    width = scores["width"].cast(pa.float64()).to_numpy()
    height = scores["height"].cast(pa.float64()).to_numpy()
    alike: np.ndarray = np.abs(np.log(width / height / aspect)) <= np.log(SIMILAR_ASPECT)
    return alike
