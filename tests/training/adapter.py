"""A small low-rank adapter, as whoever fine-tunes would write it: nothing else of the model is
trained, averaged, kept or written.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from hdm.model_files.tensors import save_tensors
from hdm.models.denoiser import Denoiser
from hdm.training import assembly
from hdm.training.process.job import Job
from hdm.training.process.ranks import Ranks
from hdm.training.state.average import decay_at
from hdm.training.state.trainable import Sets

RANK = 2
FILE = "adapter.safetensors"
AVERAGED_FILE = "adapter_ema.safetensors"


class Adapted(nn.Module):
    """A frozen linear layer, and a product of two small matrices beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        plain: Tensor = self.base(x)
        return plain + x @ self.down.mT @ self.up.mT


def attach(model: Denoiser) -> Denoiser:
    """The same model, frozen, with an adapter at every linear layer of its blocks."""
    model.requires_grad_(False)
    for block in model.blocks():
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, Adapted(child))
    return model


class Adapter:
    """Trains the adapter of a model."""

    def __init__(self, model: Denoiser, decay: float) -> None:
        self.model = attach(model).train()
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.decay = decay

    def parameters(self) -> dict[str, nn.Parameter]:
        named = self.model.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def averages(self) -> dict[str, Tensor]:
        every = dict(self.averaged.named_parameters())
        return {name: every[name] for name in self.parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        for mine, theirs in zip(self.averages().values(), self.parameters().values(), strict=True):
            mine.lerp_(theirs, 1 - decay_at(step, self.decay))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"weights": dict(self.parameters()), "ema": self.averages()}

    @torch.no_grad()
    def load(self, tensors: Sets, where: Path) -> None:
        for name, own in self.tensors().items():
            saved: Mapping[str, Tensor] = tensors(name)
            for key, value in own.items():
                value.copy_(saved[key])

    def write(self, folder: Path | None) -> None:
        if folder is not None:
            save_tensors(folder / FILE, self.tensors()["weights"])
            save_tensors(folder / AVERAGED_FILE, self.tensors()["ema"])


def make_adapter(job: Job, ranks: Ranks) -> Adapter:
    adapter = Adapter(assembly.starting_model(job), job.settings.train.ema_decay)
    assembly.to_device(job, (adapter.model, adapter.averaged), ranks.accelerator)
    return adapter
