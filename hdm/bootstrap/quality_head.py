"""An aesthetic head in LAION's linear form: clean pictures rate 10, spoiled ones down to 1.

Without people's ratings it measures technical quality only, on the scale of LAION's heads.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from hdm.bootstrap.examples import Example
from hdm.measuring import Measure, balance, share
from hdm.models.aesthetic import AestheticHead
from hdm.models.contrastive import Contrastive
from hdm.progress import track

BEST = 10.0
WORST = 1.0
RIDGE = 1e-3
BATCH = 64
MOST_MEASURED = 512  # ratings

Spoiler = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _blur(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(0.08 * strength * min(picture.size)))


def _noise(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(picture, np.float32)
    # Cut off, not rounded by `hdm.pixels`: these spoiled pictures are test data with fixed bytes
    # (decision 11).
    return Image.fromarray(
        np.clip(pixels + rng.normal(0, 60 * strength, pixels.shape), 0, 255).astype(np.uint8)
    )


def _compress(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=round(40 - 37 * strength))
    return Image.open(buffer).convert("RGB")


def _coarsen(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    factor = 1 + 5 * strength
    width, height = picture.size
    size = (max(2, round(width / factor)), max(2, round(height / factor)))
    small = picture.resize(size, Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.NEAREST)


def _wash_out(picture: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    level = int(rng.integers(90, 170))
    grey = Image.new("RGB", picture.size, (level, level, level))
    return Image.blend(picture, grey, 0.85 * strength)


SPOILERS: tuple[Spoiler, ...] = (_blur, _noise, _compress, _coarsen, _wash_out)


def spoiled(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """The picture (H, W, 3) uint8, spoiled in one of five ways with a strength from 0 (unchanged)
    to 1.
    """
    if strength <= 0:
        return pixels
    spoil = SPOILERS[rng.integers(len(SPOILERS))]
    return np.asarray(spoil(Image.fromarray(pixels), float(strength), rng))


def train_quality_head(
    contrastive: Contrastive,
    examples: Sequence[Example],
    num_images: int,
    seed: int,
    until: float | None = None,
) -> tuple[AestheticHead, int]:
    """Fit a head by ridge regression of ratings on embeddings; half of the pictures are spoiled.

    Args:
        contrastive: model of the embeddings.
        examples: clean pictures.
        num_images: number of pictures to rate.
        seed: of the spoiling.
        until: rate no more after this time of `time.monotonic`; None: rate all.

    Returns:
        The head, and the number of rated pictures.
    """
    with track("quality head", num_images, "images") as bar:
        embeddings, ratings = _rated(contrastive, examples, num_images, seed, until, bar.advance)
    centre = embeddings.mean(0)
    inputs = embeddings - centre
    targets = ratings - ratings.mean()
    weight = np.linalg.solve(
        # Relative to the mean of the diagonal, about N / E for N unit embeddings of E numbers.
        inputs.T @ inputs + RIDGE * len(inputs) / inputs.shape[1] * np.eye(inputs.shape[1]),
        inputs.T @ targets,
    )
    bias = ratings.mean() - centre @ weight
    head = AestheticHead([(weight[None].astype(np.float32), np.array([bias], np.float32))])
    return head, len(ratings)


def _rated(
    contrastive: Contrastive,
    examples: Sequence[Example],
    num_images: int,
    seed: int | tuple[int, ...],
    until: float | None = None,
    advance: Callable[[int], object] = int,
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, E) and ratings (N,), float64, of `num_images` pictures, or of fewer whole
    batches if time runs out.
    """
    rng = np.random.default_rng(seed)
    # Drawn for all pictures first: what is rated does not depend on where time runs out.
    strengths = np.where(rng.random(num_images) < 0.5, rng.uniform(0.5, 1, num_images), 0)
    items = rng.integers(len(examples), size=num_images)
    batches = []
    for start in range(0, num_images, BATCH):
        pictures = []
        for number in range(start, min(start + BATCH, num_images)):
            pictures.append(spoiled(examples[items[number]].pixels, strengths[number], rng))
        batches.append(contrastive.embed_images(pictures))
        advance(len(pictures))
        if until is not None and time.monotonic() > until:
            break
    # float64: the normal equations of the regression square the condition number.
    embeddings = np.concatenate(batches).astype(np.float64)
    return embeddings, BEST - (BEST - WORST) * strengths[: len(embeddings)]


def save_quality_head(head: AestheticHead, file: Path) -> None:
    """Write LAION's linear form: `weight` (1, E) and `bias` (1,)."""
    from safetensors.torch import save_file

    weight, bias = head.layers[0]
    save_file({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}, file)


class HeadQuality(Measure):
    """The threshold that best separates held-out clean pictures from spoiled ones, and the shares
    that it gets right.

    Args:
        head, contrastive: the head to measure, and the model of its embeddings.
        examples: clean pictures; each is rated four times and spoiled about every second time, with
            at most 512 ratings in total.
        seed: of the spoiling.
    """

    def __init__(
        self,
        head: AestheticHead,
        contrastive: Contrastive,
        examples: Sequence[Example],
        seed: int = 1,
    ) -> None:
        super().__init__(min(MOST_MEASURED, 4 * len(examples)))
        self.head = head
        self.contrastive = contrastive
        self.examples = examples
        self.seed = seed
        self.embeddings: list[np.ndarray] = []
        self.ratings: list[np.ndarray] = []

    def add(self, items: Sequence[int]) -> None:
        seed = (self.seed, self.pieces_done)
        embeddings, ratings = _rated(self.contrastive, self.examples, len(items), seed)
        self.embeddings.append(embeddings)
        self.ratings.append(ratings)

    def result(self) -> dict[str, Any]:
        scores = self.head(np.concatenate(self.embeddings))
        clean = np.concatenate(self.ratings) == BEST
        candidates = np.unique(scores)
        best = candidates[int(np.argmax(balance(scores[clean], scores[~clean], candidates)))]
        return {
            "threshold": round(float(best), 2),
            "clean_above": share(scores[clean] >= best),
            "spoiled_below": share(scores[~clean] < best),
        }
