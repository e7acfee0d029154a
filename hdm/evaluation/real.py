"""The real pictures that generated ones are compared with: held out of training, of about the same
shape.
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
from hdm.store import Output

SIMILAR_ASPECT = 1.25
ENOUGH = 64
SPLITS = ("held_out", "validation")  # the second where nothing was held out


@dataclass(frozen=True)
class RealPictures:
    """Kept pictures of one split: those that images are generated beside, and those that both are
    compared with.

    Images generated from a picture's caption are bound to lie near that very picture. Distances are
    therefore taken to pictures of other captions, and so are those of the real pictures whose
    captions the images were generated from.

    Args:
        split: "held_out", or "validation" if there is no other; "" if there is none at all.
        same_shape: whether only those of about the generated images' aspect ratio are in it.
        captions: key → its first caption; those of `compared` come first, each part in order of
            keys, which is a random one.
        compared: keys whose captions images are generated from, to be compared with `reference`.
        reference: as many keys, of pictures none of whose captions is one of theirs. Both are empty
            where there is only one caption.
    """

    split: str
    same_shape: bool
    captions: Mapping[Key, str]
    compared: tuple[Key, ...]
    reference: tuple[Key, ...]


def read_real(inputs: Mapping[str, Output], aspect: float, count: int) -> RealPictures:
    """Choose the real pictures to compare with.

    Args:
        inputs: the outputs `filter` and `caption`.
        aspect: width over height of the generated images. Pictures within a factor of 1.25 are
            taken where there are enough of them.
        count: at most so many pictures are compared with as many others.
    """
    scores = read_tables(inputs["filter"], "scores", ["key", "split", "width", "height"])
    scores = scores.append_column("alike", pa.array(_alike(scores, aspect)))
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
    chosen = sorted(alike if same_shape else captions)
    compared, reference = _apart({key: captions[key] for key in chosen}, count)
    rest = [key for key in chosen if key not in set(compared)]
    firsts = {key: captions[key][0] for key in (*compared, *rest)}
    return RealPictures(split, same_shape, firsts, compared, reference)


def normal_prompt(text: str) -> str:
    """What two prompts have in common that differ in case and spaces alone."""
    return " ".join(text.casefold().split())


def _apart(
    captions: Mapping[Key, list[str]], count: int
) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
    """Two equally large parts of some pictures, at most `count` each; no caption of the second is a
    first caption of the first.

    Args:
        captions: key → its captions, the first of which images are generated from.
    """
    groups: dict[str, list[Key]] = {}
    for key, texts in captions.items():
        groups.setdefault(normal_prompt(texts[0]), []).append(key)
    one: list[Key] = []
    other: list[Key] = []
    for group in sorted(groups.values(), key=len, reverse=True):
        smaller = one if len(one) <= len(other) else other
        smaller += group
    asked = {normal_prompt(captions[key][0]) for key in one}
    other = [key for key in other if not asked & set(map(normal_prompt, captions[key]))]
    size = min(len(one), len(other), count)
    return tuple(sorted(one)[:size]), tuple(sorted(other)[:size])


def embeddings_of(measures: Output, keys: list[Key]) -> np.ndarray:
    """The stored embeddings of some pictures, (N, E) float32, brought back to length 1; (0, 0)
    without a contrastive model.
    """
    every, vectors = read_embeddings(measures)
    if not every:
        return np.zeros((0, 0), np.float32)
    place = {key: number for number, key in enumerate(every)}
    found = vectors[[place[key] for key in keys]]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _alike(scores: pa.Table, aspect: float) -> np.ndarray:
    """Whether each picture's aspect ratio is near to this one; (N,) bool."""
    width = scores["width"].cast(pa.float64()).to_numpy()
    height = scores["height"].cast(pa.float64()).to_numpy()
    return np.abs(np.log(width / height / aspect)) <= np.log(SIMILAR_ASPECT)
