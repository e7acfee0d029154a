"""How the model is evaluated."""

from __future__ import annotations

from typing import Any, Protocol

from hdm import values
from hdm.acquisition import settings as acquisition
from hdm.curation import settings as curation
from hdm.diffusion.settings import SamplerSettings
from hdm.encoding.settings import EncodeSettings
from hdm.models.settings import WithAutoencoder
from hdm.settings import runtime
from hdm.training.settings import TrainSettings


class EvaluateSettings(SamplerSettings):
    prompts: str = "held_out"
    """held_out: captions of held-out pictures; the name of registered prompts, as scenes (a judge
    knows what one or two objects look like) or emoji (a page asks a person which of four names a
    picture has); else a text or JSONL file.
    """
    num_images: values.Count = 256
    size: values.Size | None = None
    """WIDTHxHEIGHT; None: the square of the last phase's resolution."""
    seed: values.Seed = 0
    batch_size: values.Batch = runtime(64)
    device: values.Device = runtime("auto")


class Pipeline(WithAutoencoder, curation.Pipeline, acquisition.Pipeline, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def name(self) -> str: ...
    @property
    def encode(self) -> EncodeSettings: ...
    @property
    def train(self) -> TrainSettings: ...
    @property
    def evaluate(self) -> EvaluateSettings: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...
