"""Text embeddings in 16 and 8 bits: what comes back, and how far it is from what went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hdm.data.text_form import TextForm

VALUES = st.floats(-60_000, 60_000, width=32)


@given(embedding=arrays.arrays(np.float32, (5, 7), elements=VALUES))
def test_8_bits_are_within_half_a_step_of_the_tokens_own_scale(embedding: np.ndarray) -> None:
    form = TextForm(7, "int8")
    stored = form.pack(embedding)
    assert stored.shape == (5, form.token_bytes)
    found = form.unpack(stored)
    assert found.dtype == np.float16
    step = np.abs(embedding).max(axis=1, keepdims=True) / 127
    # Half a step, and what 16 bits round: 11 bits of mantissa, and 2^-24 where numbers are tiny.
    assert (
        np.abs(found.astype(np.float64) - embedding)
        <= 0.5001 * step + np.abs(embedding) * 2**-10 + 2**-24
    ).all()


def test_a_large_token_costs_the_others_nothing() -> None:
    form, embedding = (
        TextForm(64, "int8"),
        np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32),
    )
    alone = form.unpack(form.pack(embedding[1:]))
    embedding[0] *= 10_000
    np.testing.assert_array_equal(form.unpack(form.pack(embedding))[1:], alone)


@given(embedding=arrays.arrays(np.float32, (4, 3), elements=VALUES))
def test_16_bits_are_numpys(embedding: np.ndarray) -> None:
    form = TextForm(3, "float16")
    np.testing.assert_array_equal(form.unpack(form.pack(embedding)), embedding.astype(np.float16))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_padding_is_zero(dtype: str) -> None:
    form = TextForm(6, dtype)
    assert (form.unpack(np.zeros((2, 5, form.token_bytes), np.uint8)) == np.zeros((2, 5, 6))).all()
    assert (form.unpack(form.pack(np.zeros((2, 6), np.float32))) == 0).all()
