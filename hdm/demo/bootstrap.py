"""Bootstrapping on scenes: the examples, and what the trained components are worth where the truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hdm.data.examples import Example
from hdm.demo.detector import detect
from hdm.demo.scenes import HELD_OUT, Scene, captions, draw, make_scene, object_caption
from hdm.demo.wording import free_caption
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import Resolved
from hdm.models.contrastive import Contrastive, load_contrastive

TRAIN_SEED, MEASURE_SEED = 1_000_003, 2_000_003  # apart from the seeds that pipelines use
CAPTIONS, FREE_CAPTIONS = 3, 3


def scene_examples(count: int, size_px: int = 64, seed: int = TRAIN_SEED) -> Iterator[Example]:
    """Scenes and several true captions of each; never a HELD_OUT pair."""
    for index in range(count):
        scene = make_scene(seed, index, size_px)
        rng = np.random.default_rng((seed, index, CAPTIONS))
        usual = captions(scene, rng, CAPTIONS)
        free = [free_caption(scene, rng) for _ in range(FREE_CAPTIONS)]
        yield Example((*usual, *free), draw(scene))


def round_trip(autoencoder: Autoencoder, pixels: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 as the autoencoder gives it back; sides are cut to multiples of its downscale."""
    height, width = (
        side // autoencoder.downscale * autoencoder.downscale for side in pixels.shape[:2]
    )
    image = torch.tensor(pixels[:height, :width]).permute(2, 0, 1)[None].float() / 127.5 - 1
    latent = autoencoder.normalize(autoencoder.encode(image)).half().float()  # as stored
    decoded = autoencoder.decode(autoencoder.denormalize(latent))
    return ((decoded[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def seen_right(scene: Scene, pixels: np.ndarray) -> bool:
    """Whether the detector finds exactly the scene's kinds and colours."""
    return Counter((found.kind, found.colour) for found in detect(pixels)) == Counter(
        (thing.kind, thing.colour) for thing in scene.things
    )


def scene_quality(resolved: Resolved, count: int = 400) -> dict[str, Any]:
    """What components bootstrapped on scenes are worth: shares in [0, 1] on scenes that they have not seen."""
    autoencoder, contrastive = (
        load_autoencoder(resolved.need("autoencoder")),
        load_contrastive(resolved),
    )
    quality: dict[str, Any] = {}
    for size_px in (64, 48):
        scenes = [make_scene(MEASURE_SEED, index, size_px) for index in range(count)]
        right = [seen_right(scene, round_trip(autoencoder, draw(scene))) for scene in scenes]
        quality[f"detector_right_after_round_trip_{size_px}px"] = round(float(np.mean(right)), 4)
    scenes = [make_scene(MEASURE_SEED, index) for index in range(count)]
    return {
        "scenes": {
            **quality,
            **_captions_quality(contrastive, scenes),
            **_matching_quality(contrastive, scenes),
        }
    }


def _captions_quality(contrastive: Contrastive, scenes: list[Scene]) -> dict[str, float]:
    """Shares of greedy captions that name every object's kind and colour, for one object and for all scenes."""
    made = contrastive.caption([draw(scene) for scene in scenes], max_tokens=30)
    right = np.array(
        [
            all(f"{t.colour} {t.kind}" in text for t in scene.things)
            for scene, text in zip(scenes, made, strict=True)
        ]
    )
    one = np.array([len(scene.things) == 1 for scene in scenes])
    return {
        "captions_right_one_object": round(float(right[one].mean()), 4),
        "captions_right": round(float(right.mean()), 4),
    }


def _matching_quality(contrastive: Contrastive, scenes: list[Scene]) -> dict[str, float]:
    """The cosine that best tells true captions from captions without a kind or colour in common; and HELD_OUT pairs at it."""
    rng = np.random.default_rng(MEASURE_SEED)
    cosines = (
        contrastive.embed_images([draw(scene) for scene in scenes])
        @ contrastive.embed_texts([captions(s, rng)[0] for s in scenes]).T
    )
    fitting = np.diag(cosines)
    others = np.array(
        [
            cosines[i, j]
            for i, a in enumerate(scenes)
            for j, b in enumerate(scenes)
            if not _in_common(a, b)
        ]
    )
    candidates = np.quantile(np.concatenate([fitting, others]), np.linspace(0, 1, 1025))
    balance = [min((fitting >= value).mean(), (others < value).mean()) for value in candidates]
    # Where several serve equally well: the middle of them.
    threshold = float(np.median(candidates[np.array(balance) >= max(balance) - 1e-9]))
    return {
        "min_clip_similarity": round(threshold, 3),
        "fitting_kept": round(float((fitting >= threshold).mean()), 4),
        "mismatched_caught": round(float((others < threshold).mean()), 4),
        "held_out_pairs_kept": round(
            float(np.mean(_held_out_cosines(contrastive) >= threshold)), 4
        ),
    }


def _in_common(first: Scene, second: Scene) -> bool:
    same_kind = {thing.kind for thing in first.things} & {thing.kind for thing in second.things}
    return bool(
        same_kind
        or {thing.colour for thing in first.things} & {thing.colour for thing in second.things}
    )


def _held_out_cosines(contrastive: Contrastive) -> np.ndarray:
    """Of pictures that show HELD_OUT pairs, with their captions."""
    from dataclasses import replace

    from hdm.demo.scenes import COLOURS

    rng = np.random.default_rng(MEASURE_SEED)
    pictures, texts = [], []
    for index, (kind, colour) in enumerate(sorted(HELD_OUT) * 8):
        scene = make_scene(MEASURE_SEED + 1, index, num_objects=1)
        thing = replace(scene.things[0], kind=kind, colour=colour, rgb=COLOURS[colour])
        pictures.append(draw(replace(scene, things=(thing,))))
        texts.append(object_caption(colour, kind, thing.place, rng))
    return (contrastive.embed_images(pictures) * contrastive.embed_texts(texts)).sum(1)
