"""The stages, in order. Flows, tasks, deployments and the names for --from and --until derive from
this list.

It imports neither torch nor Prefect, which take seconds to import.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from hdm.errors import ConfigError
from hdm.extensions import STAGES, extensions
from hdm.settings import Settings


@dataclass(frozen=True)
class Stage:
    """A part of the pipeline that makes one output or several.

    Args:
        name: for `--from`, `--until` and pipelines.yaml; its outputs' names begin with it.
        flow: name of its flow and its deployment in Prefect.
        help: what it does, in one sentence.
        after: the stage that an added stage follows; "": its position in the list counts.
        settings: the class of an added stage's settings, which are under `stages:` in a pipeline;
            None: one of this package's stages.
    """

    name: str
    flow: str
    help: str
    after: str = ""
    settings: type[Settings] | None = None


# A stage's name begins the names of its outputs, and so is part of digests. Its flow's name is that
# of its deployment in pipelines.yaml.
OWN_STAGES = (
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


@cache
def stages() -> tuple[Stage, ...]:
    """This package's stages and those that installed packages add.

    Raises:
        ConfigError: an added stage has the name of another, or follows an unknown stage.
    """
    every = list(OWN_STAGES)
    for stage in added_stages().values():
        names = [known.name for known in every]
        if stage.name in names or stage.flow in [known.flow for known in every]:
            raise ConfigError(
                f"two stages are called {stage.name}, or their flows {stage.flow}",
                do=f"uninstall one of the packages that add them (entry points {STAGES})",
            )
        if stage.after not in names:
            raise ConfigError(
                f"the added stage {stage.name} follows {stage.after!r}, which is no stage",
                do=f"let it follow one of {', '.join(names)}",
            )
        every.insert(names.index(stage.after) + 1, stage)
    return tuple(every)


def added_stages() -> dict[str, Stage]:
    """The stages that installed packages add, by name."""
    return {stage.name: stage for stage in extensions(STAGES).values()}


def stage_names() -> tuple[str, ...]:
    return tuple(stage.name for stage in stages())
