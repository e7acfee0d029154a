from typing import Any

import pytest
import torch

from hdm.errors import InputError
from hdm.models.tread import draw_kept, gather, kept_rows, num_kept, rate_at, scatter


def drawn(*arguments: Any) -> torch.Tensor:
    kept = draw_kept(*arguments)
    assert kept is not None
    return kept


def test_gather_and_scatter_are_what_a_loop_over_samples_does():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 10 + 3, 6, generator=generator)
    kept = drawn(4, 10, 0.4, generator)
    rows = kept_rows(kept, 10, 3)
    inner = gather(tokens, rows)
    assert inner.shape == (4, 6 + 3, 6)
    wanted = tokens.clone()
    for b in range(4):
        for i, token in enumerate([*kept[b].tolist(), 10, 11, 12]):
            assert torch.equal(inner[b, i], tokens[b, token])
            wanted[b, token] = 2 * tokens[b, token] + 1
    assert torch.equal(scatter(tokens, rows, 2 * inner + 1), wanted)


def test_gradients_pass_dropped_tokens_by_and_kept_ones_through():
    tokens = torch.randn(2, 6, 3, requires_grad=True)
    rows = kept_rows(torch.tensor([[0, 3], [1, 2]]), 4, 2)
    scatter(tokens, rows, 3 * gather(tokens, rows)).sum().backward()
    wanted = torch.ones(2, 6, 3)
    wanted[0, [0, 3, 4, 5]] = wanted[1, [1, 2, 4, 5]] = 3
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, wanted)


def test_tokens_are_drawn_uniformly_without_replacement():
    kept = drawn(20_000, 8, 0.25, torch.Generator().manual_seed(3))
    assert kept.shape == (20_000, 6)
    assert (kept.diff(dim=1) > 0).all()
    pairs = torch.zeros(8, 8)
    for i in range(6):
        for j in range(6):
            pairs.index_put_((kept[:, i], kept[:, j]), torch.tensor(1.0), accumulate=True)
    frequency = pairs / len(kept)
    torch.testing.assert_close(frequency.diagonal(), torch.full((8,), 6 / 8), rtol=0, atol=0.02)
    others = frequency[~torch.eye(8, dtype=torch.bool)]
    torch.testing.assert_close(others, torch.full((56,), 6 / 8 * 5 / 7), rtol=0, atol=0.02)


def test_draws_repeat_from_a_generator():
    first, second = (drawn(5, 32, 0.5, torch.Generator().manual_seed(9)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, drawn(5, 32, 0.5, torch.Generator().manual_seed(10)))


@pytest.mark.parametrize(
    ("num_tokens", "rate", "count"),
    [(16, 0.5, 8), (15, 0.5, 8), (16, 0.0, 16), (3, 0.99, 1), (1, 0.9, 1), (10, 0.05, 10)],
)
def test_the_number_kept_rounds_the_dropped_down(num_tokens, rate, count):
    assert num_kept(num_tokens, rate) == count
    kept = draw_kept(2, num_tokens, rate)
    if count == num_tokens:
        assert kept is None
    else:
        assert kept is not None
        assert kept.shape == (2, count)


@pytest.mark.parametrize(
    ("progress", "rate"),
    [(0.0, 0.75), (0.499, 0.75), (0.5, 0.25), (0.89, 0.25), (0.9, 0.0), (1.0, 0.0)],
)
def test_a_schedule_s_rate_holds_until_the_next_one_begins(progress, rate):
    assert rate_at([(0, 0.75), (0.5, 0.25), (0.9, 0.0)], progress) == rate


@pytest.mark.parametrize("schedule", [[], [(0.5, 0.25)]])
def test_a_schedule_that_does_not_say_is_refused(schedule):
    with pytest.raises(InputError, match="says nothing of"):
        rate_at(schedule, 0.25)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(rate):
    with pytest.raises(InputError, match="outside \\[0, 1\\)"):
        drawn(2, 16, rate)
