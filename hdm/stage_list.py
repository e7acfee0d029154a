"""The stages, in order. Flows, tasks, deployments and the names for --from and --until derive from
this list.

It imports nothing, so that it can be read before torch and Prefect are: both take seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """A part of the pipeline that makes one output or several.

    Args:
        name: for `--from`, `--until` and pipelines.yaml; the first word of its outputs' names.
        flow: of its flow and its deployment in Prefect.
        help: what it does, in one sentence.
    """

    name: str
    flow: str
    help: str


STAGES = (
    Stage(
        "download",
        "download-images",
        "Fetch the pictures of a source into tar shards, with their given captions.",
    ),
    Stage(
        "filter",
        "filter-images",
        "Measure every picture, then decide: keep or reject, why, and into which split.",
    ),
    Stage(
        "caption",
        "caption-images",
        "Write the kept pictures' captions: given, from a model, or from a template.",
    ),
    Stage(
        "vae",
        "finetune-autoencoder",
        "Fine-tune the autoencoder on the kept pictures, where the pipeline has settings for it.",
    ),
    Stage(
        "encode",
        "encode-latents",
        "Write token ids, latents for every resolution, and text embeddings where asked for.",
    ),
    Stage(
        "train",
        "train-model",
        "Train the denoiser, phase by phase of rising resolution.",
    ),
    Stage(
        "evaluate",
        "evaluate-model",
        "Generate images at fixed seeds, score them, and draw the report.",
    ),
)
STAGE_NAMES = tuple(stage.name for stage in STAGES)
