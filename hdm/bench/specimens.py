"""Models and batches to measure with: random, the same on every machine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.overrides import TorchFunctionMode

from hdm.architecture import XUTConfig
from hdm.kernels import install
from hdm.models.building import build_denoiser
from hdm.models.denoiser import Denoiser
from hdm.models.execution import compile_blocks, recompute_activations
from hdm.models.tread import draw_kept
from hdm.training.objective import FlowMatching
from hdm.training.settings import Optimizer, Phase
from hdm.training.state.optimizers import Optimizers

SMALL = XUTConfig(
    width=64,
    num_heads=4,
    head_size=16,
    mlp_width=192,
    text_width=48,
    depth=2,
    enc_blocks=1,
    dec_blocks=1,
    prev_blocks=1,
    post_blocks=1,
).recommended()
"""Every kind of block, in a size that float64 on a CPU can follow."""
# The optimizer's eps is 1e-8: gradients near it would turn rounding into whole steps.
RATE = 1e-3


@dataclass(frozen=True)
class Case:
    """A model, what it is given, and how it computes.

    Args:
        config: of the model.
        batch: samples.
        side: image tokens, on each axis.
        num_text: text tokens of a sample.
        tread_rate: share of the image tokens that skip the route.
        masked: texts are of different lengths.
        checkpoint_blocks: share of the blocks that are recomputed.
        compiled: by which backend of torch.compile the blocks are; None: they are not.
    """

    config: XUTConfig = SMALL
    batch: int = 4
    side: int = 8
    num_text: int = 12
    tread_rate: float = 0.0
    masked: bool = False
    checkpoint_blocks: float = 0.0
    compiled: str | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Of the image and of the text."""
        return self.side**2, self.num_text

    def phase(self, downscale: int = 8) -> Phase:
        """The training phase that has such steps."""
        return Phase(
            resolution=self.side * self.config.patch_size * downscale,
            num_images=self.batch,
            batch_size=self.batch,
            tread_rate=self.tread_rate,
            checkpoint_blocks=self.checkpoint_blocks,
        )


@dataclass(frozen=True)
class Given:
    """A batch: tensors of a step, (B, …)."""

    latent: Tensor
    noise: Tensor
    timestep: Tensor
    text: Tensor
    text_mask: Tensor | None
    log_aspect: Tensor
    kept: Tensor | None

    def to(self, device: str, dtype: torch.dtype) -> Given:
        """The same elsewhere, its numbers in another precision."""
        moved: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device, dtype if value.is_floating_point() else None)
        return replace(self, **moved)


def batch_of(case: Case, number: int = 0) -> Given:
    """The batch of a step, drawn on the CPU, so that a number means the same everywhere."""
    draws = torch.Generator().manual_seed(1000 + number)
    side = case.side * case.config.patch_size
    shape = (case.batch, case.config.channels, side, side)
    lengths = torch.randint(1, case.num_text + 1, (case.batch, 1), generator=draws)
    return Given(
        latent=torch.randn(shape, generator=draws),
        noise=torch.randn(shape, generator=draws),
        timestep=FlowMatching().draw_timesteps(case.batch, draws),
        text=torch.randn(case.batch, case.num_text, case.config.text_width, generator=draws),
        text_mask=torch.arange(case.num_text) < lengths if case.masked else None,
        log_aspect=torch.zeros(case.batch),
        kept=draw_kept(case.batch, case.side**2, case.tread_rate, draws),
    )


def model_of(config: XUTConfig) -> Denoiser:
    """A model on the CPU all of whose weights matter: new ones hold zeros, behind which gradients
    vanish.
    """
    torch.manual_seed(0)
    model = build_denoiser(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


class Training:
    """Optimizer steps of a model, by the code of training.

    Args:
        model: changed in place; on its device.
        case: how it computes.
        autocast: matrix products in bfloat16.
        kernels: on the CPU, with the kernels that training takes there.
        optimizer: rates and kind; None: AdamW's usual.
    """

    def __init__(
        self,
        model: Denoiser,
        case: Case,
        *,
        autocast: bool = False,
        kernels: bool = True,
        optimizer: Optimizer | None = None,
    ) -> None:
        self.model = model
        self.autocast = autocast
        self.device = next(model.parameters()).device
        self.settings = optimizer or Optimizer(learning_rate=RATE)
        self.optimizers = Optimizers(model, self.settings)
        self.objective = FlowMatching()
        if case.compiled is not None:
            compile_blocks(model, case.compiled)
        recompute_activations(model, case.checkpoint_blocks)
        # Last, as in training: what was compiled or wrapped stays as it is.
        if kernels:
            install(model)

    def loss(self, given: Given) -> Tensor:
        """The mean loss of a batch, with its graph."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            predicted = self.model(
                self.objective.noisy(given.latent, given.noise, given.timestep),
                given.timestep,
                given.text,
                log_aspect=given.log_aspect,
                text_mask=given.text_mask,
                kept=given.kept,
            )
        target = self.objective.target(given.latent, given.noise, given.timestep)
        return self.objective.losses(predicted, target, given.timestep).mean()

    def backward(self, given: Given) -> Tensor:
        """Add a batch's gradients; its loss, on the device."""
        loss = self.loss(given)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Clip the gradients, change the weights, and forget the gradients."""
        parameters = list(self.model.parameters())
        norm = get_total_norm([value.grad for value in parameters if value.grad is not None])
        clip_grads_with_norm_(parameters, self.settings.clip_norm, norm, foreach=True)
        self.optimizers.step(1.0)
        self.model.zero_grad(set_to_none=True)

    def step(self, given: Given) -> Tensor:
        """One optimizer step; its loss, on the device."""
        loss = self.backward(given)
        self.update()
        return loss


class _Wider(TorchFunctionMode):
    """Casts to float32 become casts to float64: what the model computes in float32 in any case, a
    reference computes more exactly.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.float:
            return args[0].double()
        return func(*args, **(kwargs or {}))


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute a reference: models and inputs in it are float64 throughout."""
    with _Wider():
        yield


def double_copy(model: nn.Module) -> Any:
    """The same model on the CPU in float64."""
    return copy.deepcopy(model).double()
