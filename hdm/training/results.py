"""The files of a phase's output, written once training is done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hdm.files import write_json
from hdm.generation.conditioning import Conditioning
from hdm.model_files.card import ModelCard
from hdm.models.adapters import adapter_tensors
from hdm.models.components import VAE, portable_names, weights_digest
from hdm.models.denoiser import Denoiser
from hdm.training import assembly
from hdm.training.measures.sample_grid import Grid
from hdm.training.process.job import GENERATED, METRICS, SUMMARY, Job
from hdm.training.state.milestones import Milestones
from hdm.training.state.trainable import Trainable


def write_results(job: Job, trainable: Trainable, grid: Grid, *, writes: bool) -> None:
    """Generate the pictures and write weights, metrics and summary to the job's `result` folder.

    Args:
        job: what was trained.
        trainable: at its end.
        grid: makes the pictures.
        writes: whether this process does; another one takes part since the model is sharded.
    """
    if writes:
        shutil.rmtree(job.result, ignore_errors=True)
        job.result.mkdir()
    # The pictures show the averaged weights, from which the next phase starts.
    prompts = grid.write(job.result / GENERATED if writes else None)
    # Every rank that takes part calls this, since sharded weights have to be gathered.
    trainable.write(job.result if writes else None)
    if writes:
        names, lost = Milestones(Path(job.scratch)).hand_over(job.result)
        metrics = Path(job.folder) / METRICS
        count = sum(value.numel() for value in trainable.parameters().values())
        _describe(job, count, grid.conditioning, metrics, prompts, names, lost)


def make_companions(job: Job, device: str) -> None:
    """Make again what comes with the weights of a phase that is done, from the weights and metrics
    in the job's folder.

    Raises:
        DamagedError: the averaged weights are not what was written.
    """
    accelerator = assembly.make_accelerator(job, device)
    average = assembly.finished_model(job)
    conditioning = assembly.make_conditioning(job, accelerator.device)
    shutil.rmtree(job.result, ignore_errors=True)
    job.result.mkdir()
    grid = Grid(job, average.to(accelerator.device), conditioning, accelerator.autocast)
    prompts = grid.write(job.result / GENERATED)
    metrics = Path(job.folder) / METRICS
    count = _num_trained(average, job)
    _describe(job, count, conditioning, metrics, prompts, job.milestones or [])


def _describe(
    job: Job,
    num_trained: int,
    conditioning: Conditioning,
    metrics: Path,
    prompts: list[str],
    milestones: Sequence[str],
    lost: Sequence[str] = (),
) -> None:
    """Write `model.json`, metrics and summary; `lost` are milestones that are damaged."""
    # The card holds what sampling needs, since sampling does not read this pipeline's settings.
    card = ModelCard(
        job.settings.train.model,
        resolution=job.phase.resolution,
        max_tokens=conditioning.max_tokens,
        components={
            "autoencoder": weights_digest(job.autoencoder),
            "text_encoder": weights_digest(job.text_encoder),
        },
        component_names=_names(job),
        base=assembly.base_of(job) if job.phase.adapter else None,
    )
    card.write(job.result)
    shutil.copyfile(metrics, job.result / METRICS)
    summary = {
        **last_values(metrics.read_bytes()),
        "parameters": num_trained,
        "prompts": prompts,
        **({"milestones": list(milestones)} if milestones else {}),
        **({"lost": list(lost)} if lost else {}),
    }
    write_json(job.result / SUMMARY, summary)


def _num_trained(model: Denoiser, job: Job) -> int:
    """The parameters that the phase trained, in the model that came of it."""
    own = adapter_tensors(model) if job.phase.adapter else dict(model.named_parameters())
    return sum(value.numel() for value in own.values())


def _names(job: Job) -> dict[str, str]:
    """The names of components that are valid on every machine."""
    names = portable_names(job.settings.components)
    # The training used the fine-tuned autoencoder, not the one that the settings name.
    if VAE in job.inputs:
        names.pop("autoencoder", None)
    return names


def last_values(content: bytes) -> dict[str, Any]:
    """What a metrics.jsonl says last of each of these."""
    line: dict[str, Any] = {}
    for text in content.splitlines():
        line |= json.loads(text)
    held_out = ("validation_loss", "validation_loss_by_time", "raw_validation_loss")
    wanted = ("step", "num_images_seen", "skipped_steps", "loss", *held_out, "best_step")
    return {name: line[name] for name in wanted if name in line}
