"""The files of a phase's output, written once training is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hdm.files import write_json
from hdm.generation.conditioning import Conditioning
from hdm.models.components import VAE, portable_names, weights_digest
from hdm.models.denoiser import Denoiser, build_denoiser
from hdm.models.tensors import read_tensors, save_tensors
from hdm.sharding import gathered
from hdm.training import assembly
from hdm.training.checkpoint import load_weights
from hdm.training.job import EMA, GENERATED, METRICS, MODEL, SUMMARY, WEIGHTS, Job
from hdm.training.milestones import Milestones
from hdm.training.pictures import generate_grid, prompts_to_show
from hdm.training.records import Metrics


def write_results(
    job: Job,
    model: Denoiser,
    average: Denoiser,
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
    writes = metrics is not None
    if writes:
        shutil.rmtree(job.result, ignore_errors=True)
        job.result.mkdir()
    prompts = write_grid(job, average, conditioning, job.result / GENERATED if writes else None)
    weights, ema = gathered(model.state_dict()), gathered(average.state_dict())
    if metrics is None:
        return
    save_tensors(job.result / WEIGHTS, weights)
    save_tensors(job.result / EMA, ema)
    names, lost = milestones.hand_over(job.result)
    _describe(job, model, conditioning, metrics.path, prompts, names, lost)


def make_companions(job: Job, device: str) -> None:
    """Make again what comes with the weights of a phase that is done, from the weights and metrics in the job's folder.

    Raises:
        DamagedError: the averaged weights are not what was written.
    """
    accelerator = assembly.make_accelerator(job, device)
    average = build_denoiser(job.settings.train.model).eval().requires_grad_(False)
    path = Path(job.folder) / EMA
    load_weights(average, read_tensors(path), path)
    conditioning = assembly.make_conditioning(job, accelerator.device)
    shutil.rmtree(job.result, ignore_errors=True)
    job.result.mkdir()
    with accelerator.autocast():
        prompts = write_grid(
            job, average.to(accelerator.device), conditioning, job.result / GENERATED
        )
    metrics = Path(job.folder) / METRICS
    _describe(job, average, conditioning, metrics, prompts, job.milestones or [])


def _describe(
    job: Job,
    model: Denoiser,
    conditioning: Conditioning,
    metrics: Path,
    prompts: list[str],
    milestones: Sequence[str],
    lost: Sequence[str] = (),
) -> None:
    """Write `model.json`, metrics and summary; `lost` are milestones that are damaged."""
    write_json(
        job.result / MODEL,
        {
            "xut": job.settings.train.model.to_dict(),
            "resolution": job.phase.resolution,
            "max_tokens": conditioning.max_tokens,
            "components": {
                "autoencoder": weights_digest(job.autoencoder),
                "text_encoder": weights_digest(job.text_encoder),
            },
            "component_names": _names(job),
        },
    )
    shutil.copyfile(metrics, job.result / METRICS)
    summary = {
        **last_values(metrics.read_bytes()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "prompts": prompts,
        **({"milestones": list(milestones)} if milestones else {}),
        **({"lost": list(lost)} if lost else {}),
    }
    write_json(job.result / SUMMARY, summary)


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
    model: Denoiser,
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


def last_values(content: bytes) -> dict[str, Any]:
    """What a metrics.jsonl says last of each of these."""
    line: dict[str, Any] = {}
    for text in content.splitlines():
        line |= json.loads(text)
    held_out = ("validation_loss", "validation_loss_by_time", "raw_validation_loss")
    wanted = ("step", "num_images_seen", "skipped_steps", "loss", *held_out, "best_step")
    return {name: line[name] for name in wanted if name in line}
