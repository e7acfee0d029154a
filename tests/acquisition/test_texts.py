"""Captions in every form in which people keep them, and what is said of those that cannot be read."""

import json

import pytest

from hdm.acquisition.texts import captions_in, captions_in_file, decoded


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"caf\xc3\xa9", ("café", False)),
        (b"\xef\xbb\xbfcaf\xc3\xa9", ("café", False)),
        ("狐 ü".encode("utf-16"), ("狐 ü", False)),
        ("狐 ü".encode("utf-32"), ("狐 ü", False)),
        (b"\xfe\xff" + "狐".encode("utf-16-be"), ("狐", False)),
        (b"caf\xe9 \x96 \x93quoted\x94", ("café – “quoted”", True)),
        ("a fox".encode("utf-16-le"), ("a fox", True)),
        ("a fox".encode("utf-16-be"), ("a fox", True)),
        (b"", ("", False)),
        (b"\x81\x8d\x8f", None),
        ("a – b".encode("utf-16-le"), ("a – b", True)),
        (b"a fox\0", None),
        (b"a\0fox\0", None),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", None),
    ],
)
def test_bytes_in_any_encoding(data, text):
    assert decoded(data) == text


def test_an_encoding_that_the_user_names_is_no_guess():
    data = "рыжая лиса".encode("cp1251")
    assert decoded(data, "cp1251") == ("рыжая лиса", False)
    assert captions_in_file("caf\xe9\nth\xe9".encode("latin-1"), "captions").guessed == 2


@pytest.mark.parametrize(
    ("value", "captions"),
    [
        (None, []),
        ("", []),
        (" a fox ", ["a fox"]),
        (float("nan"), []),
        ("None", []),
        (0.5, ["0.5"]),
        (b"a fox", ["a fox"]),
        (["a fox", "", None, "an animal", "a fox"], ["a fox", "an animal"]),
        (("a", ["b", ["c"]]), ["a", "b", "c"]),
        ({"caption": "a", "score": "b"}, ["a"]),
        ({"raw": ["a", "b"], "tokens": [["a"], ["b"]]}, ["a", "b"]),
        ({"en": "a fox", "de": "ein Fuchs", "id": 7}, ["a fox", "ein Fuchs"]),
        ('["a fox", "an animal"]', ["a fox", "an animal"]),
        ("['a fox', \"the dog's\"]", ["a fox", "the dog's"]),
        ("[trigger], a photo of [name]", ["[trigger], a photo of [name]"]),
        ("[1, 2]", ["[1, 2]"]),
        ("a {b}", ["a {b}"]),
    ],
)
def test_values_of_tables(value, captions):
    found = captions_in(value)
    assert (found.captions, found.losses) == (captions, [])


@pytest.mark.parametrize(
    "value", [b"\x81\x8d", "half \ud83d", "gone \ufffd", {"id": 7}, ["\ufffd"]]
)
def test_what_cannot_be_used_is_a_loss_with_its_reason(value):
    found = captions_in(value)
    assert not found.captions
    assert len(found.losses) == 1


@pytest.mark.parametrize(
    ("text", "lines", "captions"),
    [
        ("a fox\nan animal", "captions", ["a fox", "an animal"]),
        ("a fox\r\n\r\n", "captions", ["a fox"]),
        ("\n\n", "captions", []),
        ("a fox\n\nin snow", "captions", ["a fox\n\nin snow"]),
        ("a fox\nin snow\n", "one", ["a fox\nin snow"]),
        ("a fox\ra dog", "captions", ["a fox", "a dog"]),
        (json.dumps(["a"]), "captions", ['["a"]']),
    ],
)
def test_text_files(text, lines, captions):
    assert captions_in_file(text.encode(), lines).captions == captions
