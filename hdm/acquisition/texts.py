"""Captions out of what people write them in: text files, cells of tables, lists and mappings.

Nothing is dropped without a word: what is not understood comes back as a loss with its reason.
"""

from __future__ import annotations

import ast
import codecs
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hdm.caption_text.cleaning import normal_caption

CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")
"""Columns and fields that hold captions, in any case, unless another is asked for; of each row the
first one with a caption counts."""
CLASSES = frozenset({"label", "labels", "class", "category", "split", "lang", "language", "id"})
"""Columns of single words that are no captions."""
CREDITS = frozenset(
    {
        "artist",
        "attribution",
        "author",
        "camera",
        "copyright",
        "creator",
        "credit",
        "licence",
        "license",
        "photographer",
        "source",
        "url",
    }
)
"""Columns of texts that are no captions."""
SHOWN_CHARS = 20
_MAPPED = (*CAPTION_COLUMNS, "raw")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK = "cp1252"
"""Windows' code page for western Europe. Detectors (charset-normalizer 3.5) were tried and get
texts as short as captions wrong: "café" in this code page came out as UTF-16."""
OTHERS = ("shift_jis", "gb18030", "big5", "euc_kr", "koi8_r", "cp1251", "cp1250", "cp1253")
"""Encodings that are offered for a text that does not look western."""
NOT_KNOWN = "it is not text in a known encoding"
_WORD = re.compile(r"[^\W\d_]+")
_ACCENTED = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿŠŒŽšœžŸ")
_OPENING = "«‹“”„‘’‚–—…•·¡¿§£€±×©"
_CLOSING = "»›“”‘’–—…•·°²³½¼¾™®©€£%ºª"
_INSIDE = frozenset("’‘–—…·×°")
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(rf"[{_SPACELESS}]{{2}}")  # Thai to Chinese: written without spaces
_ONE_WORD = re.compile(rf"[{_SPACELESS}]|[^\W\d_]([^\W\d_]|['’-])+")


@dataclass
class Found:
    """The captions in one place.

    Args:
        captions: in order, equal ones once, as they are given.
        guessed: how many of them were decoded by a guess at their encoding.
        losses: for each caption that cannot be used, why.
        doubts: what may be captions, and is lost if the picture has no others; see `settle`.
        unused: how many captions other fields hold besides those that were taken.
    """

    captions: list[str] = field(default_factory=list)
    guessed: int = 0
    losses: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unused: int = 0

    def add(self, other: Found) -> None:
        """Append the captions of another place."""
        self.captions += [text for text in other.captions if text not in self.captions]
        self.guessed += other.guessed
        self.losses += other.losses
        self.doubts += other.doubts
        self.unused += other.unused


def mark_of(data: bytes) -> str | None:
    """The codec that a text's byte-order mark names; None without a mark."""
    return next((codec for mark, codec in _MARKS if data.startswith(mark)), None)


def decoded(data: bytes, encoding: str | None = None) -> tuple[str, bool] | None:
    """A text, and whether its encoding was guessed; None if it is no text.

    UTF-8, UTF-16 and UTF-32 with their mark, UTF-8 without; what is neither is read as `encoding`.
    Without that, UTF-16 and Windows-1252 are guessed where they give plain Latin text.

    Args:
        data: the bytes.
        encoding: a Python codec that the user knows to be right, for texts that are not Unicode.
    """
    marked = mark_of(data)
    for codec in [marked] if marked else ["utf-8"]:
        try:
            text = data.decode(codec).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, False
    guess = encoding or _guess(data)
    try:
        text = data.decode(guess)
    except UnicodeDecodeError:
        return None
    if "\0" in text or (encoding is None and not _is_western(text)):
        return None
    return text, encoding is None


def unread(data: bytes) -> str:
    """Why bytes are no text to `decoded`, with what they would be in other encodings."""
    readings = []
    for codec in OTHERS:
        try:
            text = " ".join(data.decode(codec).split())
        except UnicodeDecodeError:
            continue
        if text.isprintable():
            readings.append(f"{codec} ({text[:SHOWN_CHARS]})")
    offered = f", as {', '.join(readings)}" if readings else ""
    return f"{NOT_KNOWN}: --set download.encoding names another{offered}"


def _is_western(text: str) -> bool:
    """Whether a text is such as people write in western Europe, and not another encoding read as
    Windows-1252.

    There, accented letters stand singly or in pairs between plain ones, and signs at the edges of
    words.
    """
    if not text.isascii() and not any(map(str.isalnum, text)):
        return False
    plain = accented = 0
    for token in text.split():
        core = token.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~").lstrip(_OPENING).rstrip(_CLOSING)
        if any(ord(char) > 127 and char not in _ACCENTED | _INSIDE for char in core):
            return False
        for word in _WORD.findall(core):
            high = sum(char in _ACCENTED for char in word)
            if high > 1 and high == len(word):
                return False
            accented += high
            plain += len(word) - high
    return accented <= plain or accented == len(text.strip()) == 1


def _guess(data: bytes) -> str:
    """UTF-16 without its mark where every other byte is zero, as in Latin letters."""
    for codec, high, low in (
        ("utf-16-le", data[1::2], data[0::2]),
        ("utf-16-be", data[0::2], data[1::2]),
    ):
        if len(low) == len(high) and b"\0" not in low and high.count(0) > 0.7 * len(high):
            return codec
    return FALLBACK


def captions_in(value: Any, encoding: str | None = None) -> Found:
    """The captions in a value of a table, JSON or data set.

    Text is one caption, a list several; a mapping gives those under `caption`, `captions`, `text`
    or `raw`, else all its texts. A text that holds a whole list (`["a fox", "an animal"]`, as in
    CSV files) is that list. Empty texts and the words that programs write for nothing ("None",
    "nan") are no captions.

    Args:
        value: str, bytes, number, list, mapping, or None.
        encoding: of bytes that are not Unicode, as for `decoded`.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Found()
    if isinstance(value, bytes):
        return _of_bytes(value, encoding)
    if isinstance(value, str):
        listed = _listed(value)
        return _of_text(value) if listed is None else captions_in(listed, encoding)
    if isinstance(value, Mapping):
        return _of_mapping(value, encoding)
    if isinstance(value, Iterable):
        result = Found()
        for entry in value:
            result.add(captions_in(entry, encoding))
        return result
    return _of_text(str(value))


def caption_fields(names: Iterable[str], asked: str | None) -> list[str]:
    """Those of a table's columns, or of a JSON object's fields, that hold captions, in order.

    Args:
        names: all of them.
        asked: the only one, if the user named one.
    """
    known = list(names)
    if asked is not None:
        return [asked] if asked in known else []
    return [name for usual in CAPTION_COLUMNS for name in known if name.lower() == usual]


def captions_in_fields(values: Iterable[Any], encoding: str | None = None) -> Found:
    """The captions in the first of several fields that has any.

    Args:
        values: what the fields hold, as for `captions_in`.
        encoding: as for `captions_in`.
    """
    result = Found()
    for value in values:
        said = captions_in(value, encoding)
        if result.captions:
            result.unused += sum(text not in result.captions for text in said.captions)
        else:
            result.add(said)
    return result


def settle(found: Iterable[Found]) -> None:
    """Make losses of the doubts about a picture that has no caption at all."""
    places = list(found)
    if not any(place.captions for place in places):
        for place in places:
            place.losses += place.doubts


def may_be_captions(column: str, values: Iterable[Any]) -> bool:
    """Whether a column's first values look like captions: of several words, or single words that
    are no classes.

    Classes repeat, or the column's name says what they are, as it does of credits.
    """
    if column.lower() in CREDITS:
        return False
    values = list(values)
    if any(map(is_wordy, values)):
        return True
    words = [word for value in values if (word := as_text(value)) and _ONE_WORD.fullmatch(word)]
    return column.lower() not in CLASSES and 2 * len(set(words)) > len(values)


def is_wordy(value: Any) -> bool:
    """Whether a value, or one in it, is text of several words, as captions are."""
    if isinstance(value, bytes):
        read = decoded(value)
        value = read[0] if read else None
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(is_wordy, value))
    if not isinstance(value, str):
        return False
    words = [word for word in value.split() if any(map(str.isalpha, word))]
    return len(words) > 1 or _UNSPACED.search(value) is not None


def captions_in_file(
    data: bytes, lines: Literal["captions", "one"], encoding: str | None = None
) -> Found:
    """The captions in a text file: each line one, unless empty lines show paragraphs of one text.

    Args:
        data: the file.
        lines: "one": the whole file is one caption in any case.
        encoding: as for `decoded`.
    """
    read = decoded(data, encoding)
    if read is None:
        return Found(losses=[unread(data)])
    text, guessed = read
    rows = [line.strip() for line in text.strip().splitlines()]
    result = Found()
    for caption in [text.strip()] if lines == "one" or "" in rows else rows:
        result.add(_of_text(caption))
    if guessed:
        result.guessed = len(result.captions)
    return result


def as_text(value: Any, encoding: str | None = None) -> str | None:
    """A licence, URL or name out of somebody's table as text that any table can hold, or None.

    Of a list the first text is taken; an empty text is none.

    Args:
        value: as a table gives it.
        encoding: of bytes that are not UTF-8; what does not fit is replaced.
    """
    if isinstance(value, list | tuple):
        value = next((text for entry in value if (text := as_text(entry, encoding))), None)
    if isinstance(value, bytes):
        read = decoded(value, encoding) if encoding else None
        value = read[0] if read else value.decode("utf-8", "replace")
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).removeprefix("\ufeff").encode("utf-8", "replace").decode()
    return text if text.strip() else None


def _of_bytes(data: bytes, encoding: str | None) -> Found:
    read = decoded(data, encoding)
    if read is None:
        return Found(losses=[unread(data)])
    result = captions_in(read[0])
    if read[1]:
        result.guessed = len(result.captions)
    return result


def _of_text(text: str) -> Found:
    if not text.strip():
        return Found()
    if "\ufffd" in text or any("\ud800" <= char <= "\udfff" for char in text):
        return Found(
            losses=["its text was damaged before it came here (U+FFFD or half a character)"]
        )
    if normal_caption(text) is None:
        return Found()
    return Found([text.removeprefix("\ufeff").strip()])


def _of_mapping(value: Mapping[str, Any], encoding: str | None) -> Found:
    known = [value[name] for name in _MAPPED if value.get(name) is not None][:1]
    texts = [entry for entry in value.values() if isinstance(entry, str | bytes | list)]
    result = captions_in(known or texts, encoding)
    if value and not known and not texts:
        result.losses.append("it is a mapping without any text")
    return result


def _listed(text: str) -> list[str] | None:
    """The list of texts that a text spells out in JSON or Python; None if it is none."""
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return value
    return None
