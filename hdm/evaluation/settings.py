"""How the model is evaluated."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from hdm import values
from hdm.acquisition import settings as acquisition
from hdm.curation import settings as curation
from hdm.diffusion.settings import SolverSettings
from hdm.encoding.settings import EncodeSettings
from hdm.models.settings import WithAutoencoder
from hdm.settings import runtime
from hdm.training.settings import TrainSettings


class EvaluateSettings(SolverSettings):
    prompts: Literal["held_out", "scenes", "emoji"] | str = "held_out"
    """held_out: captions of held-out pictures; scenes: one- and two-object prompts with known
    truth; emoji: 32 combinations and 32 names that no training picture of kind emoji has, with a
    page to choose from four names; otherwise a text or JSONL file.
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
