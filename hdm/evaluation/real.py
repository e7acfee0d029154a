"""The real pictures that generated ones are compared with: held out of training, of about the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hdm.curation.measure import read_embeddings
from hdm.data.captions import captions_by_key
from hdm.data.tables import read_tables
from hdm.store import Output

SIMILAR_ASPECT = 1.25
ENOUGH = 64
SPLITS = ("held_out", "validation")  # the second where nothing was held out


@dataclass(frozen=True)
class RealPictures:
    """Kept pictures of one split, in order of their keys, which is a random one.

    Args:
        split: "held_out", or "validation" if there is no other; "" if there is none at all.
        same_shape: whether only those of about the generated images' aspect ratio are in it.
        captions: key → its first caption.
        others: keys of training pictures of the same shapes, to tell how far real pictures are from real ones.
    """

    split: str
    same_shape: bool
    captions: Mapping[str, str]
    others: tuple[str, ...]


def read_real(inputs: Mapping[str, Output], aspect: float, count: int) -> RealPictures:
    """Choose the real pictures to compare with.

    Args:
        inputs: the outputs `filter` and `caption`.
        aspect: width over height of the generated images. Pictures within a factor of 1.25 are taken where there are enough of them.
        count: at most so many training pictures.
    """
    scores = read_tables(inputs["filter"], "scores", ["key", "split", "width", "height"])
    scores = scores.append_column("alike", pa.array(_alike(scores, aspect)))
    for split in SPLITS:
        held = scores.filter(pc.field("split") == split)
        captions = {
            key: texts[0]
            for key, texts in captions_by_key(inputs["caption"], held["key"].to_pylist()).items()
            if texts
        }
        if captions:
            break
    else:
        return RealPictures("", False, {}, ())
    alike = set(held.filter(pc.field("alike"))["key"].to_pylist()) & set(captions)
    same_shape = len(alike) >= min(ENOUGH, len(captions))
    training = scores.filter(
        (pc.field("split") == "train") & (pc.field("alike") | (not same_shape))
    )["key"].to_pylist()
    chosen = sorted(alike if same_shape else captions)
    return RealPictures(
        split, same_shape, {key: captions[key] for key in chosen}, tuple(sorted(training)[:count])
    )


def embeddings_of(measures: Output, keys: list[str]) -> np.ndarray:
    """The stored embeddings of some pictures, (N, E) float32, brought back to length 1; (0, 0) without a contrastive model."""
    every, vectors = read_embeddings(measures)
    if not every:
        return np.zeros((0, 0), np.float32)
    place = {key: number for number, key in enumerate(every)}
    found = vectors[[place[key] for key in keys]]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def _alike(scores: pa.Table, aspect: float) -> np.ndarray:
    """Whether each picture's aspect ratio is near to this one; (N,) bool."""
    width, height = (scores[name].cast(pa.float64()).to_numpy() for name in ("width", "height"))
    return np.abs(np.log(width / height / aspect)) <= np.log(SIMILAR_ASPECT)
