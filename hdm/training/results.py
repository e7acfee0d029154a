"""The files of a phase's output, written once training is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hdm.files import write_json
from hdm.generation.conditioning import Conditioning
from hdm.models.components import VAE, portable_names, weights_digest
from hdm.models.xut import XUT
from hdm.sharding import gathered
from hdm.training.checkpoint import save_tensors
from hdm.training.job import EMA, GENERATED, METRICS, MODEL, SUMMARY, WEIGHTS, Job
from hdm.training.milestones import Milestones
from hdm.training.pictures import generate_grid, prompts_to_show
from hdm.training.records import Metrics


def write_results(
    job: Job,
    model: XUT,
    average: XUT,
    conditioning: Conditioning,
    metrics: Metrics | None,
    milestones: Milestones,
) -> None:
    """Generate the pictures and write weights, metrics and summary to the job's `result` folder.

    Args:
        job: what was trained.
        model, average: the raw and the averaged weights.
        conditioning: of the prompts.
        metrics: all lines of the phase; None on a process that writes nothing, and takes part since the models are sharded.
        milestones: what was written while it went.
    """
    result, settings = job.result, job.settings.train
    if metrics is not None:
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
    prompts = write_grid(
        job, average, conditioning, None if metrics is None else result / GENERATED
    )
    weights, ema = gathered(model.state_dict()), gathered(average.state_dict())
    if metrics is None:
        return
    save_tensors(result / WEIGHTS, weights)
    save_tensors(result / EMA, ema)
    write_json(
        result / MODEL,
        {
            "xut": settings.model.to_dict(),
            "resolution": job.phase.resolution,
            "max_tokens": conditioning.max_tokens,
            "components": {
                "autoencoder": weights_digest(job.autoencoder),
                "text_encoder": weights_digest(job.text_encoder),
            },
            "component_names": _names(job),
        },
    )
    shutil.copyfile(metrics.path, result / METRICS)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    files = milestones.hand_over(result)
    summary = {
        **last_values(metrics),
        "parameters": parameters,
        "prompts": prompts,
        **({"milestones": files} if files else {}),
    }
    write_json(result / SUMMARY, summary)


def _names(job: Job) -> dict[str, str]:
    """Of the components that have a name everywhere; a fine-tuned autoencoder has none."""
    names = portable_names(job.settings.components)
    return {
        name: told
        for name, told in names.items()
        if not (name == "autoencoder" and VAE in job.inputs)
    }


def write_grid(
    job: Job,
    model: XUT,
    conditioning: Conditioning,
    path: Path | None,
    cut_short: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Generate the pictures of the job's prompts at its seed, in a file unless `path` is None; the prompts.

    Raises:
        CutShort: `cut_short`, asked after each step of the sampler, said so.
    """
    settings = job.settings.train
    prompts = prompts_to_show(settings.prompts, job.output("caption"), job.output("filter"))
    generate_grid(
        path,
        model,
        conditioning,
        job.autoencoder,
        prompts,
        job.phase.resolution,
        settings.seed,
        cut_short,
    )
    return prompts


def last_values(metrics: Metrics) -> dict[str, Any]:
    """What was said last of each of these."""
    line = dict(pair for text in metrics.content.splitlines() for pair in json.loads(text).items())
    held_out = ("validation_loss", "validation_loss_by_time", "raw_validation_loss")
    wanted = ("step", "num_images_seen", "skipped_steps", "loss", *held_out, "best_step")
    return {name: line[name] for name in wanted if name in line}
