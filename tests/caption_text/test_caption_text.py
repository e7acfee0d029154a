"""Captions as they come from the world: entry 49 of the fault catalogue."""

import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hdm.caption_text.cleaning import normal_caption
from hdm.caption_text.sides import speak_of_sides


@pytest.mark.parametrize("given_caption", [
    None, "", " \t\n", "None", " none ", "nan", "NaN", float("nan"), "null", "N/A", "<NA>", 3, True,
    ["a cat", "a dog"], {"text": "a cat"}, b"\xff\xfe broken", "cut \ufffd off",
    "half \ud83d emoji", "\u200b\u200e", "\ufeff", "\x00\x01", "&nbsp;", "\u200d",
])  # fmt: skip
def test_what_is_no_caption_counts_as_missing(given_caption):
    assert normal_caption(given_caption) is None


@pytest.mark.parametrize(("given_caption", "expected"), [
    ("a red circle", "a red circle"),
    ("  two\r\n lines\tand\u00a0spaces ", "two lines and spaces"),
    ("a\x00 cat\x07", "a cat"),
    ("\ufeffa cat", "a cat"),
    ("caf\u0065\u0301", "caf\u00e9"),
    ("cats &amp; dogs &lt;3 &quot;quoted&quot; &#233;", 'cats & dogs <3 "quoted" é'),
    ("cats &amp;amp; dogs", "cats & dogs"),
    ("a {given} cat {0} %s {{}}", "a {given} cat {0} %s {{}}"),
    ("zero\u200bwidth, \u202eright to left\u202c", "zerowidth, right to left"),
    ("שלום עולם", "שלום עולם"),
    ("می\u200cخواهم", "می\u200cخواهم"),
    ("👩\u200d🚒 at work", "👩\u200d🚒 at work"),
    ("naïve 日本語".encode(), "naïve 日本語"),
    ("none of these", "none of these"),
])  # fmt: skip
def test_every_other_text_is_brought_into_one_form(given_caption, expected):
    assert normal_caption(given_caption) == expected


def test_long_text_is_cut_between_words_where_it_can_be():
    assert normal_caption("word " * 200_000, max_chars=99) == "word " * 18 + "word word"[:9]
    assert normal_caption("x" * 1_000_000, max_chars=50) == "x" * 50
    assert normal_caption("&amp;" * 200_000, max_chars=50) == "&" * 50
    assert normal_caption("a cat", max_chars=5) == "a cat"


@settings(max_examples=60)
@given(st.text(max_size=120))
def test_any_text_comes_back_from_parquet_as_written_and_is_not_changed_twice(
    tmp_path_factory, text
):
    caption = normal_caption(text, max_chars=80)
    if caption is None:
        return
    assert 0 < len(caption) <= 80
    assert unicodedata.is_normalized("NFC", caption)
    assert "&" in caption or normal_caption(caption, max_chars=80) == caption
    path = tmp_path_factory.getbasetemp() / "captions.parquet"
    pq.write_table(pa.table({"caption": [caption]}), path)
    assert pq.read_table(path).column("caption").to_pylist() == [caption]


def speaks(caption):
    return speak_of_sides(pa.chunked_array([[caption]])).to_pylist() == [True]


@pytest.mark.parametrize("caption", [
    "a cat to the left of a dog", "Left-handed player", "the RIGHT shoe", "his rights", "leftmost",
    "a wheel turning clockwise", "counter-clockwise", "anticlockwise", "facing north-west",
    "a south wind, southeast", "a stop sign", "it says hello", "a T-shirt with text",
    "hand-written letters", "handwriting", "a bottle with a label", "an old clock", "a map of Rome",
    'called "Mia"', "called “Mia”",
])  # fmt: skip
def test_captions_that_a_mirror_makes_wrong(caption):
    assert speaks(caption)


@pytest.mark.parametrize("caption", [
    "", "a cat", "bright copyright frighten", "a wright at the cleft", "a yeast cake", "feast",
    "a designer assigns", "a sword", "mapping", "a flagstone path", "foreword",
    "ein Hund links von einer Katze",
])  # fmt: skip
def test_captions_that_hold_in_a_mirror(caption):
    assert not speaks(caption)
