"""Tokens without padding: the kernels' result beside the plain model's."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.kernels import install
from hdm.kernels.packing import STEP, Packing
from hdm.models.xut import XUT

CONFIG = XUTConfig(
    width=32,
    num_heads=2,
    head_size=16,
    mlp_width=48,
    text_width=24,
    channels=4,
    depth=2,
    enc_blocks=1,
    dec_blocks=1,
    prev_blocks=1,
    post_blocks=1,
    text_mask="masked",
)
LENGTHS = (1, 9, 4, 9, 2)
LONGEST = 12  # three more than any text has


def _both() -> tuple[XUT, XUT]:
    torch.manual_seed(0)
    plain = XUT(CONFIG)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    fast = copy.deepcopy(plain)
    install(fast)
    return plain, fast


def _inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(len(LENGTHS), 4, 8, 8, generator=generator)
    timestep = torch.rand(len(LENGTHS), generator=generator)
    text = torch.randn(len(LENGTHS), LONGEST, 24, generator=generator)
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


def test_whoever_looks_into_the_feed_forward_sees_samples() -> None:
    latent, timestep, text, mask = _inputs()
    _, model = _both()
    shapes: list[torch.Size] = []
    linear = next(model.blocks()).get_submodule("mlp.w12")
    linear.register_forward_hook(lambda _module, given, _output: shapes.append(given[0].shape))
    with torch.no_grad():
        model(latent, timestep, text, text_mask=mask)
    assert shapes == [torch.Size((len(LENGTHS), 16 + LONGEST, 32))]


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
