"""Bootstrapping on scenes: the examples, and the quality of the trained components where the truth
is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hdm.bootstrap.examples import Example
from hdm.demo.detector import detect
from hdm.demo.scenes import (
    COLOURS,
    HELD_OUT,
    KINDS,
    Scene,
    captions,
    draw,
    make_scene,
    object_caption,
)
from hdm.demo.wording import free_caption
from hdm.measuring import Measure, balance, measure_in_time, share
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import Resolved
from hdm.models.contrastive import Contrastive, load_contrastive
from hdm.pixels import to_image, to_pixels

TRAIN_SEED, MEASURE_SEED = 1_000_003, 2_000_003  # apart from the seeds that pipelines use
CAPTIONS = 3
FREE_CAPTIONS = 3
SIZES_PX = (64, 48)  # that the autoencoder is measured at


def scene_examples(count: int, size_px: int = 64, seed: int = TRAIN_SEED) -> Iterator[Example]:
    """Scenes and several true captions of each; never a HELD_OUT pair."""
    for index in range(count):
        scene = make_scene(seed, index, size_px)
        # Other random numbers than the scene's own, which are those of (seed, index).
        rng = np.random.default_rng((seed, index, CAPTIONS))
        usual = captions(scene, rng, CAPTIONS)
        free = [free_caption(scene, rng) for _ in range(FREE_CAPTIONS)]
        yield Example((*usual, *free), draw(scene))


def round_trip(autoencoder: Autoencoder, pixels: np.ndarray) -> np.ndarray:
    """The autoencoder's reconstruction of a picture (H, W, 3) uint8, cropped to multiples of its
    downscale.
    """
    cell = autoencoder.downscale
    height = pixels.shape[0] // cell * cell
    width = pixels.shape[1] // cell * cell
    image = to_image(np.array(pixels[None, :height, :width]))
    latent = autoencoder.normalize(autoencoder.encode(image)).half().float()  # as stored
    decoded = autoencoder.decode(autoencoder.denormalize(latent))
    return to_pixels(decoded[0])


def seen_right(scene: Scene, pixels: np.ndarray) -> bool:
    """Whether the detector finds exactly the scene's kinds and colours."""
    # Counted: two equal objects are not one.
    found = Counter((seen.kind, seen.colour) for seen in detect(pixels))
    return found == Counter((thing.kind, thing.colour) for thing in scene.things)


class SceneQuality(Measure):
    """Measures the quality of components bootstrapped on scenes: shares in [0, 1] on unseen scenes.

    Args:
        resolved: the components.
        count: number of scenes; for the autoencoder, of each size.
    """

    def __init__(self, resolved: Resolved, count: int = 400) -> None:
        super().__init__(count)
        self.autoencoder = load_autoencoder(resolved.need("autoencoder"))
        self.contrastive = load_contrastive(resolved)
        self.scenes: list[Scene] = []
        self.right: dict[int, list[bool]] = {size_px: [] for size_px in SIZES_PX}
        self.texts: list[str] = []
        self.images: list[np.ndarray] = []
        self.fitting: list[np.ndarray] = []

    def add(self, items: Sequence[int]) -> None:
        for size_px, right in self.right.items():
            for item in items:
                scene = make_scene(MEASURE_SEED, item, size_px)
                right.append(seen_right(scene, round_trip(self.autoencoder, draw(scene))))
        pictures = []
        true = []
        for item in items:
            scene = make_scene(MEASURE_SEED, item)
            self.scenes.append(scene)
            pictures.append(draw(scene))
            true.append(captions(scene, np.random.default_rng((MEASURE_SEED, item)))[0])
        self.texts += self.contrastive.caption(pictures, max_tokens=30)
        self.images.append(self.contrastive.embed_images(pictures))
        self.fitting.append(self.contrastive.embed_texts(true))

    def result(self) -> dict[str, Any]:
        trips = {}
        for size_px, right in self.right.items():
            trips[f"detector_right_after_round_trip_{size_px}px"] = share(np.array(right))
        return {**trips, **self._captions(), **self._matching()}

    def _captions(self) -> dict[str, float | None]:
        """Shares of greedy captions that name every object's kind and colour, for one object and
        for all scenes.
        """
        pairs = zip(self.scenes, self.texts, strict=True)
        right = np.array([_names_all(text, scene) for scene, text in pairs])
        one = np.array([len(scene.things) == 1 for scene in self.scenes])
        return {
            "captions_right_one_object": share(right[one]),
            "captions_right": share(right),
        }

    def _matching(self) -> dict[str, float | None]:
        """The cosine threshold that best separates true captions from captions without a common
        kind or colour, and its effect on HELD_OUT pairs.
        """
        cosines = np.concatenate(self.images) @ np.concatenate(self.fitting).T
        fitting = np.diag(cosines)
        others = cosines[~_in_common(self.scenes)]
        candidates = np.quantile(np.concatenate([fitting, others]), np.linspace(0, 1, 1025))
        balances = balance(fitting, others, candidates)
        if np.isnan(balances).any():  # all scenes have something in common
            return {"min_clip_similarity": None}
        # Where several serve equally well: the middle of them.
        threshold = float(np.median(candidates[balances >= balances.max() - 1e-9]))
        return {
            "min_clip_similarity": round(threshold, 3),
            "fitting_kept": share(fitting >= threshold),
            "mismatched_caught": share(others < threshold),
            "held_out_pairs_kept": share(_held_out_cosines(self.contrastive) >= threshold),
        }


def scene_quality(resolved: Resolved, count: int = 400) -> dict[str, Any]:
    """All results of `SceneQuality`."""
    measure = SceneQuality(resolved, count)
    measure_in_time({"scenes": measure}, until=None)
    return measure.result()


def _names_all(text: str, scene: Scene) -> bool:
    return all(f"{thing.colour} {thing.kind}" in text for thing in scene.things)


def _in_common(scenes: Sequence[Scene]) -> np.ndarray:
    """Whether two scenes share a kind or a colour, (N, N) bool."""
    known = [*KINDS, *COLOURS]
    # Which kinds and colours each scene has; the product counts what two scenes share.
    has = np.zeros((len(scenes), len(known)), np.int64)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            has[row, known.index(thing.kind)] = 1
            has[row, known.index(thing.colour)] = 1
    return has @ has.T > 0


def _held_out_cosines(contrastive: Contrastive) -> np.ndarray:
    """Cosines of pictures of HELD_OUT pairs with their captions."""
    from dataclasses import replace

    from hdm.demo.scenes import COLOURS

    rng = np.random.default_rng(MEASURE_SEED)
    pictures, texts = [], []
    for index, (kind, colour) in enumerate(sorted(HELD_OUT) * 8):
        scene = make_scene(MEASURE_SEED + 1, index, num_objects=1)
        thing = replace(scene.things[0], kind=kind, colour=colour, rgb=COLOURS[colour])
        pictures.append(draw(replace(scene, things=(thing,))))
        texts.append(object_caption(colour, kind, thing.place, rng))
    products = contrastive.embed_images(pictures) * contrastive.embed_texts(texts)
    cosines: np.ndarray = products.sum(1)
    return cosines
