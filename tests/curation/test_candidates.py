"""The search for near hashes against comparing all with all."""

import numpy as np
import pytest

from hdm.curation import candidates
from hdm.curation.candidates import similar


def near_hashes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of random bits, and others of which some differ from them in 0 to 13 bits."""
    rng = np.random.default_rng(0)
    left = rng.integers(0, 2**64, count, dtype=np.uint64)
    right = rng.integers(0, 2**64, 3 * count, dtype=np.uint64)
    for number in range(count):
        flipped = rng.choice(64, rng.integers(0, 14), replace=False)
        right[number] = left[number] ^ np.bitwise_or.reduce(
            np.uint64(1) << flipped.astype(np.uint64), initial=np.uint64(0)
        )
    right[-5:] = left[0]  # a crowd
    return left, right


@pytest.mark.parametrize("max_bits", [0, 3, 10, 13])
def test_every_near_pair_is_found_once(monkeypatch, max_bits):
    left, right = near_hashes(700)
    bits = np.array([[int(a ^ b).bit_count() for b in right] for a in left])
    expected = [tuple(pair) for pair in np.argwhere(bits <= max_bits).tolist()]
    for limit in (0, 1 << 30):
        monkeypatch.setattr(candidates, "EXHAUSTIVE", limit)
        pairs = np.concatenate([np.stack(some, axis=1) for some in similar(left, right, max_bits)])
        assert sorted(map(tuple, pairs.tolist())) == expected
