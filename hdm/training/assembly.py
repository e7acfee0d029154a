"""The parts of a training process, made from its job: model, data, text, and the checks that they
fit each other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hdm.caption_text.tag_form import TagDraws
from hdm.chance import seed_at
from hdm.child import FROM_TORCHRUN, forget_launchers
from hdm.data.loader import Loader
from hdm.data.mixture import Mixture
from hdm.data.tags import TagTable
from hdm.errors import InputError
from hdm.generation.conditioning import Conditioning
from hdm.model_files.adapter import read_adapter
from hdm.model_files.card import BaseCard
from hdm.model_files.file_names import EMA
from hdm.model_files.opening import model_digest, open_model
from hdm.model_files.tensors import read_tensors
from hdm.models.adapters import Target, attach, load_adapter
from hdm.models.building import build_denoiser
from hdm.models.denoiser import Denoiser
from hdm.models.execution import compile_blocks, drop_updates, recompute_activations, shard
from hdm.models.settings import AdapterSettings
from hdm.models.text_encoder import load_tokenizer
from hdm.models.word_tokens import WordTokens
from hdm.store import Output
from hdm.training.objective import FlowMatching, Objective
from hdm.training.prefetcher import ADAPTER, Prefetcher
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import Job, mixed_name, num_steps
from hdm.training.process.ranks import Ranks
from hdm.training.process.threads import keep_threads
from hdm.training.state.checkpoint import load_weights
from hdm.training.state.trainable import AdapterAlone, Trainable, WholeModel

log = logging.getLogger(__name__)


def make_accelerator(job: Job, device: str) -> Accelerator:
    """Accelerate's handle on device, precision and the other processes; CPU threads are shared
    among these.
    """
    settings = job.settings
    # Accelerate reads the environment, where another launcher's variables would divide gradients or
    # make it wait for processes that do not exist. Those of our own torchrun are kept.
    forget_launchers(keep=FROM_TORCHRUN if settings.train.num_processes > 1 else ())
    half = settings.train.precision == "bfloat16"
    # Autocast would keep copies of the weights of all blocks to the end of a pass, though each is
    # used once.
    autocast = AutocastKwargs(cache_enabled=not settings.train.shards)
    accelerator = Accelerator(
        cpu=device == "cpu", mixed_precision="bf16" if half else "no", kwargs_handlers=[autocast]
    )
    count = accelerator.num_processes
    threads = settings.threads
    if threads is None and count > 1:
        # Otherwise each process would start a thread for every core, and wait for the others'
        # threads.
        threads = max(1, len(os.sched_getaffinity(0)) // count)
    if device == "cpu":
        with accelerator.main_process_first():  # which writes down how many there are
            keep_threads(Path(job.scratch), threads)
    elif threads is not None:
        torch.set_num_threads(threads)
    return accelerator


def make_ranks(job: Job, device: str, stop: StopRequest) -> Ranks:
    """This process among those that train the job."""
    return Ranks(make_accelerator(job, device), job.settings.train.shards, stop)


def starting_model(job: Job) -> Denoiser:
    """The model with new weights from the seed, or with those that the phase starts from.

    These are the averaged ones of the phase before, or of what `train.start` names for the first.
    """
    settings = job.settings.train
    # The CPU draws the weights, so they are the same wherever training runs.
    torch.manual_seed(settings.seed)
    model = build_denoiser(settings.model)
    before = job.before()
    if before is not None:
        load_weights(model, read_tensors(before.file(EMA)), before.file(EMA))
    elif job.number == 0 and settings.start is not None and settings.start.weights is not None:
        path = Path(settings.start.weights).expanduser()
        load_weights(model, open_model(path).weights.tensors, path)
    return model


def make_trainable(job: Job, ranks: Ranks) -> Trainable:
    """What the phase trains, on this process's device, whole or its shard."""
    # Model and average are made in main memory first, since a device may hold only its shard of
    # them.
    decay = job.settings.train.ema_decay
    adapter = job.phase.adapter
    trainable: Trainable
    if adapter is None:
        trainable = WholeModel(starting_model(job), decay)
    else:
        model, chosen = adapted_model(job, adapter)
        trainable = AdapterAlone(model, decay, adapter, chosen, base_of(job))
    to_device(job, (trainable.model, trainable.averaged), ranks.accelerator)
    return trainable


def adapted_model(job: Job, adapter: AdapterSettings) -> tuple[Denoiser, list[Target]]:
    """The model that the phase starts from with a new adapter, and the layers that have it."""
    model = starting_model(job)
    # The CPU draws the adapter's weights too, after those of any model.
    torch.manual_seed(seed_at(job.settings.train.seed, ADAPTER, job.number))
    chosen = attach(model, adapter, f"train.phases.{job.number}.adapter")
    lowered = [target for target in chosen if target.rank < target.wanted_rank]
    if lowered and adapter.method != "ia3":
        said = [f"{target.name} {target.wanted_rank} → {target.rank}" for target in lowered]
        log.warning("ranks lowered to the layers' smaller sides: %s", ", ".join(said))
    return model, chosen


def base_of(job: Job) -> BaseCard:
    """The model that an adapter is trained on."""
    before = job.before()
    if before is not None:
        return BaseCard(model_digest(before.path), f"{before.name}/{before.digest}")
    start = job.settings.train.start
    # `TrainSettings` lets no phase of an adapter begin with new weights.
    assert start is not None
    assert start.weights is not None
    return BaseCard(model_digest(Path(start.weights).expanduser()))


def finished_model(job: Job) -> Denoiser:
    """The model with the averaged weights that the phase wrote to the job's folder, in evaluation
    mode.

    Raises:
        DamagedError: they are not what was written.
    """
    folder = Path(job.folder)
    adapter = job.phase.adapter
    if adapter is None:
        model = build_denoiser(job.settings.train.model)
        load_weights(model, read_tensors(folder / EMA), folder / EMA)
    else:
        model, _ = adapted_model(job, adapter)
        load_adapter(model, read_adapter(folder).tensors)
    return model.eval().requires_grad_(False)


def make_objective(job: Job) -> Objective:
    """What the phase's model learns."""
    settings = job.settings.train
    return FlowMatching(
        job.phase.timestep_shift, settings.contrastive_weight, settings.min_snr_gamma
    )


def to_device(job: Job, models: Iterable[Denoiser], accelerator: Accelerator) -> None:
    """Bring models from the computer's memory to this process's device, whole or their shards.

    The unit of sharding is a block, as the denoiser names them. Accelerate's plugin for FSDP2 wraps
    by class instead, so torch's function is called directly; Accelerate keeps devices, processes
    and autocast.
    """
    device = accelerator.device
    count = accelerator.num_processes
    # A block's weights are gathered over all processes of the mesh.
    mesh = init_device_mesh(device.type, (count,)) if job.settings.train.shards else None
    for model in models:
        if mesh is None:
            model.to(device)
        else:
            shard(model, mesh)


def make_conditioning(job: Job, device: torch.device) -> Conditioning:
    """The text encoder's part, with weights in 16 bits where training is."""
    half = job.settings.train.precision == "bfloat16" and device.type == "cuda"
    max_tokens = job.phase.max_tokens or int(job.output("encode.tokens").config["max_tokens"])
    return Conditioning(
        job.text_encoder, device, torch.bfloat16 if half else torch.float32, max_tokens
    )


def training_loader(job: Job, rank: int, world_size: int) -> Loader | Mixture:
    """This process's share of the training split, other pipelines' pictures among it if they are
    mixed in.
    """
    settings = job.settings.train
    options: dict[str, Any] = {
        "split": "train",
        "batch_size": job.phase.batch_size,
        "crop": settings.crop,
        "mirror": settings.mirror,
        "caption_dropout": settings.caption_dropout,
        "redraws_tags": settings.redraws_tags,
        "aligned": settings.align_weight > 0,
        "rank": rank,
        "world_size": world_size,
    }
    own = _loader(job, **options)
    if not settings.mix:
        return own
    loaders = [own]
    weights = [1.0]
    for number, entry in enumerate(settings.mix):
        # Seeds far from each other and from those that a person would try, so that the data sets'
        # draws are independent.
        seed = settings.seed + (number + 1 << 32)
        loaders.append(_loader(job, partial(mixed_name, number), seed=seed, **options))
        weights.append(entry.weight)
    return Mixture(loaders, weights)


def make_prefetcher(
    job: Job, loader: Loader | Mixture, objective: Objective, ranks: Ranks
) -> Prefetcher:
    """The examples of the phase."""
    return Prefetcher(
        loader,
        job.settings.train.seed,
        objective,
        job.phase.tread_rates,
        num_steps(job.phase) * job.phase.batch_size,
        pin=ranks.device.type == "cuda",
    )


def measured_loader(job: Job, split: str, batch_size: int) -> Loader:
    """A split of this pipeline's own pictures, always the same way."""
    return _loader(job, split=split, batch_size=batch_size, crop="centre")


def _tags(job: Job, named: Callable[[str], str], seed: int) -> TagTable:
    settings = job.settings.train
    tokenizer = load_tokenizer(job.text_encoder)
    tokens = job.output(named("encode.tokens"))
    max_tokens = job.phase.max_tokens or int(tokens.config["max_tokens"])
    draws = TagDraws(settings.tag_drop, settings.group_drop, settings.tag_shuffle, seed)
    return TagTable(
        job.output(named("caption")),
        draws,
        WordTokens(tokenizer, max_tokens),
        tokenizer.pad_id,
    )


def _features(job: Job, name: str) -> Output:
    if name not in job.inputs:
        raise InputError(
            "train.align_weight needs features of the pictures, and there are none",
            where=name,
            do=f"set encode.features: true and run `hdm run {job.settings.name} --until encode`",
        )
    return job.output(name)


def _loader(
    job: Job,
    named: Callable[[str], str] = str,
    seed: int | None = None,
    *,
    redraws_tags: bool = False,
    aligned: bool = False,
    **options: Any,
) -> Loader:
    """A loader of the inputs that go by these names."""
    settings = job.settings.train
    seed = settings.seed if seed is None else seed
    text = named("encode.text")
    return Loader(
        job.output(named(f"encode.{job.phase.name}")),
        job.output(named("encode.tokens")),
        job.output(named("caption")),
        job.output(named("filter")),
        job.output(text) if text in job.inputs else None,
        _features(job, named("encode.features")) if aligned else None,
        patch_size=settings.model.patch_size,
        seed=seed,
        max_tokens=job.phase.max_tokens,
        tags=_tags(job, named, seed) if redraws_tags else None,
        positions=settings.model.positions,
        **options,
    )


def check_fit(job: Job, loader: Loader | Mixture, conditioning: Conditioning) -> tuple[int, int]:
    """Latents, text embeddings and model, before the first step.

    Returns:
        Tokens of a sample's image, and the most that its text has.

    Raises:
        InputError: they do not fit each other; both sides are named.
    """
    # The preflight compared configurations; this checks what the files hold.
    batch = loader.batch(0)
    model = job.settings.train.model
    channels = batch.raw.shape[1]
    if channels != model.channels:
        raise InputError(
            f"the latents have {channels} channels, the model {model.channels}",
            where="train.model.channels",
            do=f"set train.model.channels to {channels}",
        )
    width = batch.text.shape[-1] if batch.text is not None else conditioning.encoder.width
    if width != model.text_width:
        raise InputError(
            f"the text encoder's embeddings are {width} wide, the model reads {model.text_width}",
            where="train.model.text_width",
            do=f"set train.model.text_width to {width}, or name another text encoder",
        )
    return batch.crops.shape[1], conditioning.max_tokens


def prepared(job: Job, model: Denoiser, whole: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The model as it is called in training: blocks compiled, their activations recomputed, the
    whole in DDP unless sharded, as asked.

    Args:
        job: says what is asked.
        model: the denoiser.
        whole: the same, or a module that calls it.
        accelerator: of this process.
    """
    # The order matters: dropout is compiled with its block, and recomputation runs the compiled
    # code.
    drop_updates(model, job.settings.train.dropout)
    if job.settings.train.compile:
        compile_blocks(model)
    adapter = job.phase.adapter
    draws = adapter is not None and adapter.draws
    recompute_activations(model, job.phase.checkpoint_blocks, draws=draws)
    # Alone, or sharded, there is nothing to wrap: autocast is entered where the model is called.
    if accelerator.num_processes == 1 or job.settings.train.shards:
        return whole
    wrapped: nn.Module = accelerator.prepare(whole)
    return wrapped
