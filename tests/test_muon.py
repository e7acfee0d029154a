"""Muon against singular values, against torch's own, and on a loss."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from hdm.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_orthogonalized_is_the_quintic_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    a, b, c = 3.4445, -4.7750, 2.0315
    left, values, right = torch.linalg.svd(
        matrices.double() / matrices.double().norm(dim=(1, 2), keepdim=True), full_matrices=False
    )
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(
        orthogonalized(matrices).double(), left @ values.diag_embed() @ right, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e12])
def test_a_matrix_of_rank_one_and_zeros_stay_finite(size: float) -> None:
    column = torch.linspace(-1, 2, 32)[:, None]
    matrices = torch.stack((size * column @ column.mT, torch.zeros(32, 32)))
    one, zeros = orthogonalized(matrices)
    wanted = column @ column.mT / column.square().sum()
    # Jordan's quintic leaves values of 1 at 0.70, and all between 0.68 and 1.14.
    assert 0.68 < (one * wanted).sum() < 1.14
    torch.testing.assert_close(one / (one * wanted).sum(), wanted, atol=1e-3, rtol=0)
    assert torch.equal(zeros, torch.zeros(32, 32))


@pytest.mark.parametrize(
    ("size", "torchs"), [("original", "original"), ("adamw", "match_rms_adamw")]
)
def test_matrices_of_several_shapes_move_as_torchs_do(
    size: Literal["original", "adamw"], torchs: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = [
        torch.randn(shape, generator=generator) for shape in ((12, 6), (6, 12), (12, 6), (5, 5))
    ]
    gradients = [
        [torch.randn(start.shape, generator=generator) for start in starts] for _ in range(3)
    ]
    ends = []
    for make in (
        lambda matrices: Muon(matrices, lr=0.1, weight_decay=0.05, momentum=0.9, size=size),
        lambda matrices: torch.optim.Muon(
            matrices, lr=0.1, weight_decay=0.05, momentum=0.9, adjust_lr_fn=torchs
        ),
    ):
        matrices = [torch.nn.Parameter(start.clone()) for start in starts]
        optimizer = make(matrices)
        for step in gradients:
            for matrix, gradient in zip(matrices, step, strict=True):
                matrix.grad = gradient.clone()
            optimizer.step()
        ends.append(matrices)
    for ours, theirs in zip(*ends, strict=True):
        # torch rounds to bfloat16 on the way: 3 steps of 0.1 · √2 each at most, to about a
        # hundredth.
        torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)


def test_a_convolution_moves_as_the_matrix_of_its_kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = (torch.randn(8, 3, 3, 3, generator=generator) for _ in range(2))
    ends = []
    for shape in ((8, 3, 3, 3), (8, 27)):
        weight = torch.nn.Parameter(start.clone().view(shape))
        weight.grad = gradient.view(shape)
        Muon([weight], lr=0.1).step()
        ends.append(weight.detach().flatten())
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], start.flatten())


def test_what_has_no_gradient_stays() -> None:
    still, moved = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    moved.grad = torch.eye(4)
    optimizer = Muon([still, moved], weight_decay=0.5)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moved, torch.ones(4, 4))
    assert list(optimizer.state) == [moved]
