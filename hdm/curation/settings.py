"""Which pictures are kept."""

from __future__ import annotations

from typing import Protocol

from hdm import values
from hdm.models.settings import WithComponents
from hdm.pictures.settings import WithImages
from hdm.settings import Settings, runtime, since


class TopFraction(Settings):
    by: str = "aesthetic"
    """The score that ranks: aesthetic, clip_similarity, sharpness, noise (the least is the best),
    or a registered criterion's.
    """
    keep: values.PositiveShare = 1.0


class FilterSettings(Settings):
    """Thresholds; None switches a check off."""

    min_side_px: values.MinimumSide | None = 32
    max_aspect: values.Aspect | None = 3.0
    """Longer side over shorter side."""
    min_sharpness: values.Share | None = None
    """Steepness of the steepest edges, shorter side brought to 256 px where larger: 1 is a step
    from one pixel to the next, 0.25 edges blurred over about a pixel, 0 one colour."""
    max_noise: values.Grey | None = None
    """Standard deviation of pixel noise, in grey levels (Immerkær's estimate in the smoothest
    tenth).
    """
    duplicate_distance: values.Share | None = 0.16
    """Share of a 64-bit perceptual hash's bits that may differ for two pictures to be compared; 0:
    only exact copies.
    """
    duplicate_difference: values.Grey | None = None
    """null, for photographs: gradients are compared, so that copies may be cropped, bordered,
    slightly rotated or watermarked and may differ in brightness, contrast and saturation. A number,
    for drawings: the grey levels by which copies may differ at any place; 10 keeps emoji apart.
    """
    duplicate_mirrored: bool = False
    """Mirror images count as copies. Leave it off where captions mention left and right."""
    duplicate_meaning: values.Cosine | None = None
    """Cosine similarity of the contrastive model's embeddings from which two pictures count as
    showing the same; null: not checked.
    """
    min_aesthetic: values.Score | None = None
    min_clip_similarity: values.Cosine | None = None
    """Cosine similarity of picture and given caption. Pictures without a caption pass."""
    top_fraction: TopFraction | None = None
    """After the thresholds, keep only this share of the best pictures."""
    limits: dict[str, values.Score] = since("0.2.0", {})
    """Limits of criteria that other code registers (hdm/curation/criteria.py), by the criterion's
    name.
    """
    validation: values.Rate = 0.02
    held_out: values.Rate = 0.05
    """Share of the kept pictures that training does not see; likewise `validation`. Assigned by a
    hash of content, copies together; within a store a picture keeps its split.
    """
    batch_size: values.Batch = runtime(64)
    device: values.Device = runtime("auto")


class Pipeline(WithComponents, WithImages, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def filter(self) -> FilterSettings: ...
