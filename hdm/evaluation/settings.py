"""How the model is evaluated."""

from __future__ import annotations

from typing import Literal

from hdm import values
from hdm.diffusion.settings import SolverSettings
from hdm.settings import runtime


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
