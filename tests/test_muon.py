"""Muon against singular values, against torch's own, and on a loss."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from hdm.muon import Muon, orthogonalized


def nearest_orthogonal(matrices: Tensor) -> Tensor:
    """By singular values, in float64."""
    left, _, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    product: Tensor = left @ right
    return product


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16), (128, 384), (128, 128)])
def test_singular_values_end_near_one_and_their_vectors_stay(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    in_their_basis = left.mT @ orthogonalized(matrices).double() @ right.mT
    moved = in_their_basis.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(in_their_basis, moved.diag_embed(), atol=1e-4, rtol=0)
    bound = values.pow(4).sum(1, keepdim=True).pow(0.25)
    large = values > 0.011 * bound
    assert large.double().mean() > 0.95, "few values of random matrices are small"
    assert moved[large].min() > 0.7
    assert moved[large].max() < 1.3
    # Below, they grow in proportion.
    assert (moved[~large] <= 80 * (values / bound)[~large]).all()


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e12])
def test_a_matrix_of_rank_one_and_zeros_stay_finite(size: float) -> None:
    column = torch.linspace(-1, 2, 32)[:, None]
    matrices = torch.stack((size * column @ column.mT, torch.zeros(32, 32)))
    one, zeros = orthogonalized(matrices)
    wanted = column @ column.mT / column.square().sum()
    assert 0.7 < (one * wanted).sum() < 1.3
    torch.testing.assert_close(one / (one * wanted).sum(), wanted, atol=1e-3, rtol=0)
    assert torch.equal(zeros, torch.zeros(32, 32))


@pytest.mark.parametrize(
    ("size", "torchs"), [("original", "original"), ("adamw", "match_rms_adamw")]
)
def test_matrices_of_several_shapes_move_as_by_the_nearest_orthogonal_ones(
    size: Literal["original", "adamw"], torchs: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((48, 12), (12, 48), (48, 12), (20, 20))
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
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
        ends.append([matrix.detach() for matrix in matrices])
    for number, start in enumerate(starts):
        exact = start.double()
        average = torch.zeros_like(exact)
        rows, columns = start.shape
        scale = (
            0.2 * max(rows, columns) ** 0.5 if size == "adamw" else max(1, rows / columns) ** 0.5
        )
        for step in gradients:
            average = 0.9 * average + 0.1 * step[number].double()
            direction = 0.9 * average + 0.1 * step[number].double()
            exact = (1 - 0.1 * 0.05) * exact - 0.1 * scale * nearest_orthogonal(direction)
        for moved in (ends[0][number], ends[1][number]):
            error = (moved - exact).norm() / (exact - start).norm()
            assert error < 0.2, "as torch's own, singular values are off by some 0.2"


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
