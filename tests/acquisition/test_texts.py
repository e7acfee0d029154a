"""Captions in every form in which people keep them, and what is said of those that cannot be
read.
"""

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
    "text",
    [
        "un renard près de l’étang", "«\xa0Où est-elle\xa0?\xa0» — l’œuvre", "pääöljy",
        "El niño, ¿qué?", "smørrebrød på øya", "20°C, 5 m², 30 €", "Straße nach Köln (Größe: 3×4)",
        "São João, três maçãs", "“café”…", "à", "é", "naïve Blümchen™",
    ],
)  # fmt: skip
def test_western_text_in_its_code_page_is_read(text):
    assert decoded(text.encode("cp1252")) == (text, True)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("赤い狐", "shift_jis"),
        ("キツネ", "shift_jis"),
        ("a photo of ソファ", "shift_jis"),
        ("ｷﾂﾈ", "shift_jis"),
        ("表", "shift_jis"),
        ("红色的狐狸", "gbk"),
        ("狐", "gbk"),
        ("a 狐狸 in snow", "gbk"),
        ("紅色的狐狸", "big5"),
        ("붉은 여우", "euc_kr"),
        ("рыжая лиса", "koi8_r"),
        ("рыжая лиса", "cp1251"),
        ("лиса", "iso8859_5"),
        ("κόκκινη αλεπού", "cp1253"),
        ("żółta łąka", "cp1250"),
        ("赤い狐", "euc_jp"),
        ("שועל אדום", "cp1255"),
        ("จิ้งจอกแดง", "cp874"),
    ],
)
def test_text_in_another_encoding_is_refused_and_read_where_the_user_names_it(text, encoding):
    data = text.encode(encoding)
    assert decoded(data) is None
    assert "--set download.encoding" in captions_in_file(data, "captions").losses[0]
    assert decoded(data, encoding) == (text, False)


def test_the_reason_shows_how_a_text_reads_in_other_encodings():
    reason = captions_in_file("赤い狐".encode("shift_jis"), "captions").losses[0]
    assert "shift_jis (赤い狐)" in reason


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
