"""Tokens without padding: the kernels' result beside the plain model's."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hdm.kernels import install
from hdm.kernels.packing import STEP, Packing
from hdm.models.xut import XUT
from tests.models.test_xut import TINY
from tests.small_models import shaken

CONFIG = replace(TINY, text_mask="masked")
LENGTHS = (1, 9, 4, 9, 2)
LONGEST = 12  # three more than any text has


def _both() -> tuple[XUT, XUT]:
    plain = shaken(CONFIG)
    fast = copy.deepcopy(plain)
    install(fast)
    return plain, fast


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(len(LENGTHS), CONFIG.channels, 8, 8, generator=generator)
    timestep = torch.rand(len(LENGTHS), generator=generator)
    text = torch.randn(len(LENGTHS), LONGEST, CONFIG.text_width, generator=generator)
    mask = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    return latent, timestep, text, mask


def test_output_and_gradients_are_the_plain_models() -> None:
    latent, timestep, text, mask = _inputs()
    outputs = []
    gradients = []
    for model in _both():
        text = text.detach().requires_grad_()
        output = model(latent, timestep, text, text_mask=mask)
        output.square().sum().backward()
        outputs.append(output)
        assert text.grad is not None
        gradients.append([parameter.grad for parameter in model.parameters()] + [text.grad])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    largest = max(float(plain.abs().max()) for plain in gradients[0] if plain is not None)
    for plain, fast in zip(*gradients, strict=True):
        if plain is not None:
            torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6 * largest)


def test_what_stands_at_padding_changes_no_bit() -> None:
    latent, timestep, text, mask = _inputs()
    _, model = _both()
    other = torch.where(mask[..., None], text, torch.full_like(text, 1e4))
    with torch.no_grad():
        before = model(latent, timestep, text, text_mask=mask)
        after = model(latent, timestep, other, text_mask=mask)
    assert torch.equal(after, before)


@pytest.mark.parametrize("lengths", [(0, 0), (3, 0), (5, 5)])
def test_texts_of_no_length_and_of_equal_length(lengths: tuple[int, ...]) -> None:
    latent, timestep, text, _ = _inputs()
    mask = torch.arange(LONGEST) < torch.tensor(lengths)[:, None]
    plain, fast = _both()
    with torch.no_grad():
        expected = plain(latent[:2], timestep[:2], text[:2], text_mask=mask)
        output = fast(latent[:2], timestep[:2], text[:2], text_mask=mask)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


class Shapes(TorchDispatchMode):
    """Notes the shapes of all results whose last axis has a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.seen: set[torch.Size] = set()

    def __torch_dispatch__(
        self, operator: Any, types: Any, given: Any = (), named: Any = None
    ) -> Any:
        result = operator(*given, **(named or {}))
        if isinstance(result, Tensor) and result.ndim > 1 and result.shape[-1] == self.width:
            self.seen.add(result.shape)
        return result


def test_the_feed_forward_computes_nothing_for_padding() -> None:
    latent, timestep, text, mask = _inputs()
    _, model = _both()
    with Shapes(2 * CONFIG.mlp_width) as shapes:
        model(latent, timestep, text, text_mask=mask)
    count = 16 * len(LENGTHS) + sum(LENGTHS)
    # All blocks but the last, which has image tokens alone.
    packed = torch.Size((-(-count // STEP) * STEP, 2 * CONFIG.mlp_width))
    assert shapes.seen == {packed, torch.Size((len(LENGTHS), 16, 2 * CONFIG.mlp_width))}


def test_whoever_looks_into_the_feed_forward_sees_samples() -> None:
    latent, timestep, text, mask = _inputs()
    _, model = _both()
    shapes: list[torch.Size] = []
    linear = next(model.blocks()).get_submodule("mlp.w12")
    linear.register_forward_hook(lambda _module, given, _output: shapes.append(given[0].shape))
    with torch.no_grad():
        model(latent, timestep, text, text_mask=mask)
    assert shapes == [torch.Size((len(LENGTHS), 16 + LONGEST, CONFIG.width))]


def test_packed_tokens_are_those_that_are_no_padding() -> None:
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    tokens = torch.arange(1.0, 11)[:, None].expand(-1, 3).view(2, 5, 3).clone().requires_grad_()
    packing = Packing(mask)
    packed = packing.pack(tokens)
    assert packed.shape == (STEP, 3)
    assert packed[:8, 0].tolist() == [1, 2, 3, 6, 7, 8, 9, 10]
    assert not packed[8:].any()
    back = packing.unpack(packed)
    assert torch.equal(back, tokens * mask[..., None])
    (back * torch.arange(10.0).view(2, 5, 1)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[..., 0].tolist() == [[0, 1, 2, 0, 0], [5, 6, 7, 8, 9]]
