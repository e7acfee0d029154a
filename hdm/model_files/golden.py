"""Comparison of the model with another implementation's numbers, in a file of weights, inputs,
outputs and gradients.

Its keys: `unet.model.*` weights; `in.x in.t in.ctx in.target`, and where what they serve is there
`in.pos in.pos_camera in.log_aspect in.tread_keep`; `out.plain out.no_pos out.camera out.tread
out.loss out.grad_x`, `grad.<weight>`. All but `out.*` and `grad.*` are given; those that the file
holds are computed and compared.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from hdm.errors import InputError
from hdm.model_files.weights import PREFIX, read_weights
from hdm.models.denoiser import Denoiser

LIMIT = 1e-5
_GRADIENTS = ("out.loss", "out.grad_x")


class Comparison(NamedTuple):
    """A golden tensor's name and ‖ours - golden‖₂ / ‖golden‖₂; 0 if both are zero, infinite if only
    golden is.
    """

    name: str
    error: float

    @property
    def holds(self) -> bool:
        return self.error <= LIMIT  # false for NaN too


def compare(path: Path) -> list[Comparison]:
    """Recompute all outputs and gradients of a golden file on the CPU in float32, and compare them.

    Raises:
        InputError: it is not such a file, or names an unknown output, input or weight.
        DamagedError: it is truncated or garbled.
    """
    # The weights lie in the same file, under the published prefix.
    weights = read_weights(path, inferring=True)
    tensors = load_file(path)
    golden = {name: tensors[name] for name in tensors if not name.startswith(PREFIX)}
    wanted = sorted(name for name in golden if name.startswith(("out.", "grad.")))
    if not wanted:
        raise InputError(
            "holds no outputs to compare with",
            where=path,
            do="name a golden file: in.*, out.* and grad.* beside the weights",
        )
    try:
        with _exact():
            ours = _Golden(weights.model(), golden).compute(wanted)
    # The model does not know which file its input came from.
    except InputError as error:
        raise InputError(error.what, where=path, do=error.do) from error
    found = []
    for name in wanted:
        found.append(Comparison(name, relative_error(ours[name], golden[name], name, path)))
    return found


def relative_error(ours: Tensor, golden: Tensor, name: str, path: Path) -> float:
    """‖ours - golden‖₂ / ‖golden‖₂, in float64.

    Raises:
        InputError: their shapes differ.
    """
    if ours.shape != golden.shape:
        raise InputError(
            f"{name} is {tuple(golden.shape)}, the model's {tuple(ours.shape)}", where=path
        )
    distance = (ours.double() - golden.double()).norm().item()
    size = golden.double().norm().item()
    # A relative error is undefined here.
    if size == 0:
        return 0.0 if distance == 0 else math.inf
    relative: float = distance / size
    return relative


class _Golden:
    def __init__(self, model: Denoiser, golden: Mapping[str, Tensor]) -> None:
        self.model = model
        self.golden = golden
        self.outputs: dict[str, Callable[[], Tensor]] = {
            "out.plain": lambda: self.predict("in.pos"),
            "out.no_pos": lambda: self.predict(None),
            "out.camera": lambda: self.predict("in.pos_camera"),
            "out.tread": lambda: self.predict("in.pos", self.kept()),
        }

    def compute(self, wanted: list[str]) -> dict[str, Tensor]:
        gradients = [name for name in wanted if name in _GRADIENTS or name.startswith("grad.")]
        plain = [name for name in wanted if name not in gradients]
        unknown = [name for name in plain if name not in self.outputs]
        if unknown:
            raise InputError(
                f"no output is called {unknown[0]}",
                do=f"there are {', '.join((*self.outputs, *_GRADIENTS))} and grad.*",
            )
        self.check_shapes()
        with torch.no_grad():
            outputs = {name: self.outputs[name]() for name in plain}
        return {**outputs, **(self.gradients(gradients) if gradients else {})}

    def given(self, name: str) -> Tensor:
        if name not in self.golden:
            raise InputError(f"there is no {name}, which the outputs need")
        return self.golden[name].float()

    def check_shapes(self) -> None:
        """Check that the inputs agree with each other; the model checks the rest itself."""
        latent = self.given("in.x")
        text = self.given("in.ctx")
        if latent.ndim != 4 or text.ndim != 3:
            raise InputError(
                f"in.x is {tuple(latent.shape)} and in.ctx {tuple(text.shape)}, not (B, C, H, W)"
                " and (B, T, text width)"
            )
        batch, _, height, width = latent.shape
        num_tokens = height * width // self.model.config.patch_size**2
        each = {
            "in.t": (batch,),
            "in.log_aspect": (batch,),
            "in.target": tuple(latent.shape),
            "in.tread_keep": (batch, num_tokens),
        }
        for name, shape in each.items():
            if name in self.golden and tuple(self.golden[name].shape) != shape:
                raise InputError(
                    f"{name} is {tuple(self.golden[name].shape)}, beside this in.x it has to be"
                    f" {shape}"
                )

    def predict(
        self, positions: str | None, kept: Tensor | None = None, latent: Tensor | None = None
    ) -> Tensor:
        return self.model(
            self.given("in.x") if latent is None else latent,
            self.given("in.t"),
            self.given("in.ctx"),
            positions=None if positions is None else self.given(positions),
            log_aspect=self.given("in.log_aspect") if self.model.config.aspect_embedding else None,
            kept=kept,
        )

    def kept(self) -> Tensor:
        """Indices of the kept tokens (B, K), from the mask (B, L)."""
        mask = self.given("in.tread_keep") > 0
        counts = mask.sum(1).unique().tolist()
        # The model takes (B, K), so every sample must keep the same number of tokens.
        if len(counts) != 1:
            raise InputError(
                f"in.tread_keep keeps {counts} tokens of different samples; it has to be one number"
            )
        # nonzero goes row by row, so indices ascend in each sample, as those that the model draws.
        return mask.nonzero()[:, 1].view(len(mask), int(counts[0]))

    def gradients(self, names: list[str]) -> dict[str, Tensor]:
        """Gradients of the mean squared error between out.plain and in.target."""
        latent = self.given("in.x").requires_grad_()
        parameters = dict(self.model.named_parameters())
        weights = {}
        for name in names:
            if name in _GRADIENTS:
                continue
            weight = name.removeprefix("grad.")
            if weight not in parameters:
                raise InputError(f"{name}: the model has no such weight")
            weights[name] = parameters[weight]
        loss = (self.predict("in.pos", latent=latent) - self.given("in.target")).square().mean()
        # Weights that do not affect the loss get a gradient of zeros, which can be compared.
        slopes = torch.autograd.grad(loss, [latent, *weights.values()], materialize_grads=True)
        return {
            **dict(zip(("out.grad_x", *weights), slopes, strict=True)),
            "out.loss": loss.detach(),
        }


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """Compute matrix products in full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
