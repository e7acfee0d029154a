"""The index: what a dictionary of lists says, in a few bytes a picture."""

from __future__ import annotations

import numpy as np
import pytest

from hdm.data.index import build_index


@pytest.mark.parametrize(("latents", "captions"), [(0, 0), (1, 3), (40, 0), (200, 500)])
def test_it_joins_as_dictionaries_do(latents: int, captions: int) -> None:
    rng = np.random.default_rng(latents)
    pool = rng.integers(0, 2**64, 300, np.uint64)
    latent_keys = rng.choice(pool, latents, replace=False)
    split_keys = rng.choice(pool, 150, replace=False)
    caption_keys = rng.choice(pool, captions)
    index = build_index(latent_keys, split_keys, caption_keys)
    row_of = {
        key: row for row, key in enumerate(latent_keys.tolist()) if key in set(split_keys.tolist())
    }
    assert [int(row) for row in index.rows] == [row_of[key] for key in sorted(row_of)]
    for number, key in enumerate(sorted(row_of)):
        own = index.captions[index.caption_starts[number] : index.caption_starts[number + 1]]
        assert own.tolist() == [
            row for row, other in enumerate(caption_keys.tolist()) if other == key
        ]
    assert index.num_bytes <= 8 * len(index) + 4 + 4 * captions


def test_an_empty_split_has_no_pictures() -> None:
    keys = np.arange(5, dtype=np.uint64)
    assert len(build_index(keys, keys[:0], keys)) == 0
