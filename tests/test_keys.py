"""Keys as text and as numbers."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from hdm.keys import FIELD, Key, Keys, key_number, key_numbers, key_of, key_text

KEYS = [Key(hashlib.sha256(bytes([number])).hexdigest()[:16]) for number in range(200)]


@pytest.mark.parametrize("type", [pa.string(), pa.large_string()])
def test_columns_of_keys_are_numbers_and_back(type: pa.DataType) -> None:
    keys = pa.chunked_array([KEYS[:5], [], KEYS[5:]], type)
    numbers = key_numbers(keys)
    assert numbers.dtype == np.uint64
    assert numbers.tolist() == [int(key, 16) for key in KEYS]
    assert key_numbers(keys.slice(3, 4)).tolist() == [int(key, 16) for key in KEYS[3:7]]
    assert [key_text(number) for number in numbers] == KEYS
    assert [key_number(key) for key in KEYS] == numbers.tolist()
    assert key_numbers(pa.chunked_array([], type)).tolist() == []


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "12",
        "0123456789abcdeF",
        "0123456789abcdeg",
        "01234567 9abcdef",
        "0123456789abcd:f",
        None,
    ],
)
def test_a_column_that_holds_no_key_is_refused(wrong: str | None) -> None:
    with pytest.raises(ValueError, match="hex"):
        key_numbers(pa.array([KEYS[0], wrong]))


def test_a_source_that_comes_again_has_other_keys_and_the_first_is_that_of_the_source() -> None:
    keys = Keys()
    given = [keys.give(name) for name in ("a.png", "b.png", "a.png", "a.png", "a\udcff.png")]
    assert len(set(given)) == 5
    assert given[0] == key_of("a.png") == hashlib.sha256(b"a.png").hexdigest()[:16]
    assert given[2:4] == [key_of("a.png", 1), key_of("a.png", 2)]
    assert key_numbers(pa.array(given, FIELD.type)).tolist() == [int(key, 16) for key in given]
