"""Extract captions from text files, cells of tables, lists and mappings.

Nothing is dropped silently: what is not understood is returned as a loss with its reason.
"""

from __future__ import annotations

import ast
import codecs
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from hdm.caption_text.cleaning import normal_caption

CAPTION_COLUMNS = ("caption", "captions", "text", "prompt")
"""Columns and fields with captions, ignoring case, unless the settings name another. In each row
the first one with a caption counts.
"""
CLASSES = frozenset({"label", "labels", "class", "category", "split", "lang", "language", "id"})
"""Columns of single words that are not captions."""
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
"""Columns of texts that are not captions."""
SHOWN_CHARS = 20
_MAPPED = (*CAPTION_COLUMNS, "raw")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, with whose mark it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACK = "cp1252"
"""Windows' code page for western Europe. Detectors (charset-normalizer 3.5) get texts as short as
captions wrong: "café" in this code page was detected as UTF-16.
"""
OTHERS = ("shift_jis", "gb18030", "big5", "euc_kr", "koi8_r", "cp1251", "cp1250", "cp1253")
"""Encodings suggested for a text that does not look western."""
NOT_KNOWN = "it is not text in a known encoding"
_WORD = re.compile(r"[^\W\d_]+")
_ACCENTED = frozenset("ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿŠŒŽšœžŸ")
_OPENING = "«‹“”„‘’‚–—…•·¡¿§£€±×©"
_CLOSING = "»›“”‘’–—…•·°²³½¼¾™®©€£%ºª"
_INSIDE = frozenset("’‘–—…·×°")
_SPACELESS = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED = re.compile(rf"[{_SPACELESS}]{{2}}")  # Thai to Chinese, written without spaces
_ONE_WORD = re.compile(rf"[{_SPACELESS}]|[^\W\d_]([^\W\d_]|['’-])+")


@dataclass
class Captions:
    """The captions in one place.

    Args:
        captions: in order, without repetitions, as given.
        guessed: number of captions whose encoding was guessed.
        losses: the reason for each caption that cannot be used.
        doubts: reasons that become losses if the picture has no caption at all; see `settle`.
        unused: number of captions in other fields than those that were taken.
    """

    captions: list[str] = field(default_factory=list)
    guessed: int = 0
    losses: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    unused: int = 0

    def add(self, other: Captions) -> None:
        """Append the captions of another place."""
        self.captions = list(dict.fromkeys([*self.captions, *other.captions]))
        self.guessed += other.guessed
        self.losses += other.losses
        self.doubts += other.doubts
        self.unused += other.unused


def mark_of(data: bytes) -> str | None:
    """The codec of a text's byte-order mark; None without a mark."""
    return next((codec for mark, codec in _MARKS if data.startswith(mark)), None)


def decoded(data: bytes, encoding: str | None = None) -> tuple[str, bool] | None:
    """A text, and whether its encoding was guessed; None if it is not text.

    UTF-8, UTF-16 and UTF-32 with a byte-order mark, and UTF-8 without one, are decoded as such;
    anything else as `encoding`. Without `encoding`, UTF-16 and Windows-1252 are guessed if they
    give plain Latin text.

    Args:
        data: the bytes.
        encoding: a Python codec that the user knows to be right, for texts that are not Unicode.
    """
    # Zero bytes are valid UTF-8, but mean UTF-16 without a mark, or no text.
    with suppress(UnicodeDecodeError):
        text = data.decode(mark_of(data) or "utf-8").removeprefix("\ufeff")
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
    """Why `decoded` does not accept bytes as text, with their beginning in other encodings."""
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
    """Whether a text looks like western European writing, not like another encoding decoded as
    Windows-1252.

    In such writing accented letters stand singly or in pairs between plain ones, and signs stand at
    the edges of words.
    """
    if not text.isascii() and not any(map(str.isalnum, text)):
        return False
    plain = 0
    accented = 0
    for token in text.split():
        core = token.strip("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~").lstrip(_OPENING).rstrip(_CLOSING)
        # A sign inside a word.
        if any(ord(char) > 127 and char not in _ACCENTED | _INSIDE for char in core):
            return False
        for word in _WORD.findall(core):
            high = sum(char in _ACCENTED for char in word)
            # A word of accented letters alone, as other code pages look.
            if high > 1 and high == len(word):
                return False
            accented += high
            plain += len(word) - high
    return accented <= plain or accented == len(text.strip()) == 1


def _guess(data: bytes) -> str:
    """UTF-16 without a mark if every other byte is zero, as with Latin letters; else FALLBACK."""
    for codec, high, low in (
        ("utf-16-le", data[1::2], data[0::2]),
        ("utf-16-be", data[0::2], data[1::2]),
    ):
        if len(low) == len(high) and b"\0" not in low and high.count(0) > 0.7 * len(high):
            return codec
    return FALLBACK


def captions_in(value: Any, encoding: str | None = None) -> Captions:
    """The captions in a value of a table, JSON or data set.

    A text is one caption, a list several. A mapping gives those under `caption`, `captions`, `text`
    or `raw`, or else all its texts. A text that spells out a list (`["a fox", "an animal"]`, as in
    CSV files) is that list. Empty texts and words that programs write for nothing ("None", "nan")
    are not captions.

    Args:
        value: str, bytes, number, list, mapping, or None.
        encoding: of bytes that are not Unicode, as for `decoded`.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return Captions()
    if isinstance(value, bytes):
        return _of_bytes(value, encoding)
    if isinstance(value, str):
        listed = _listed(value)
        return _of_text(value) if listed is None else captions_in(listed, encoding)
    if isinstance(value, Mapping):
        return _of_mapping(value, encoding)
    # Last, since texts, bytes and mappings are iterable too.
    if isinstance(value, Iterable):
        result = Captions()
        for entry in value:
            result.add(captions_in(entry, encoding))
        return result
    return _of_text(str(value))


def caption_fields(names: Iterable[str], chosen: str | None) -> list[str]:
    """The columns of a table, or fields of a JSON object, that hold captions, in order.

    Args:
        names: all columns or fields.
        chosen: the only one to use, if the user named one.
    """
    known = list(names)
    if chosen is not None:
        return [chosen] if chosen in known else []
    fields = []
    for usual in CAPTION_COLUMNS:
        fields += [name for name in known if name.lower() == usual]
    return fields


def captions_in_fields(values: Iterable[Any], encoding: str | None = None) -> Captions:
    """The captions in the first of several fields that has any.

    Args:
        values: values of the fields, as for `captions_in`.
        encoding: as for `captions_in`.
    """
    result = Captions()
    for value in values:
        in_field = captions_in(value, encoding)
        if result.captions:
            result.unused += len(set(in_field.captions) - set(result.captions))
        else:
            result.add(in_field)
    return result


def settle(places: Iterable[Captions]) -> None:
    """Turn doubts into losses if a picture has no caption in any of its places."""
    places = list(places)
    if not any(place.captions for place in places):
        for place in places:
            place.losses += place.doubts


def may_be_captions(column: str, values: Iterable[Any]) -> bool:
    """Whether a column's first values look like captions: several words, or single words that are
    not classes.

    Classes repeat or have a telling column name, and so do credits.
    """
    if column.lower() in CREDITS:
        return False
    values = list(values)
    if any(map(is_wordy, values)):
        return True
    if column.lower() in CLASSES:
        return False
    # More than half of the values are different words.
    words = set()
    for value in values:
        text = as_text(value)
        if text and _ONE_WORD.fullmatch(text):
            words.add(text)
    return 2 * len(words) > len(values)


def is_wordy(value: Any) -> bool:
    """Whether a value, or one inside it, is a text of several words, like a caption."""
    if isinstance(value, bytes):
        result = decoded(value)
        value = result[0] if result else None
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
) -> Captions:
    """The captions in a text file: one a line, unless empty lines separate paragraphs of one text.

    Args:
        data: the file.
        lines: "one": the whole file is one caption in any case.
        encoding: as for `decoded`.
    """
    decoding = decoded(data, encoding)
    if decoding is None:
        return Captions(losses=[unread(data)])
    text, guessed = decoding
    rows = list(map(str.strip, text.strip().splitlines()))
    result = Captions()
    for caption in [text.strip()] if lines == "one" or "" in rows else rows:
        result.add(_of_text(caption))
    if guessed:
        result.guessed = len(result.captions)
    return result


def as_text(value: Any, encoding: str | None = None) -> str | None:
    """A licence, URL or name from a table as text that any table can hold; None if it is empty.

    The first text of a list counts.

    Args:
        value: as a table gives it.
        encoding: of bytes that are not UTF-8; what does not fit is replaced.
    """
    if isinstance(value, list | tuple):
        texts = (as_text(entry, encoding) for entry in value)
        value = next(filter(None, texts), None)
    if isinstance(value, bytes):
        result = decoded(value, encoding) if encoding else None
        value = result[0] if result else value.decode("utf-8", "replace")
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    text = str(value).removeprefix("\ufeff").encode("utf-8", "replace").decode()
    return text if text.strip() else None


def _of_bytes(data: bytes, encoding: str | None) -> Captions:
    decoding = decoded(data, encoding)
    if decoding is None:
        return Captions(losses=[unread(data)])
    text, guessed = decoding
    result = captions_in(text)
    if guessed:
        result.guessed = len(result.captions)
    return result


def _of_text(text: str) -> Captions:
    if not text.strip():
        return Captions()
    # Whoever wrote the list has lost characters already; nothing can bring them back.
    if "\ufffd" in text or any("\ud800" <= char <= "\udfff" for char in text):
        return Captions(
            losses=["its text was damaged before it came here (U+FFFD or half a character)"]
        )
    if normal_caption(text) is None:
        return Captions()
    return Captions([text.removeprefix("\ufeff").strip()])


def _of_mapping(value: Mapping[str, Any], encoding: str | None) -> Captions:
    known = [value[name] for name in _MAPPED if value.get(name) is not None][:1]
    texts = [entry for entry in value.values() if isinstance(entry, str | bytes | list)]
    result = captions_in(known or texts, encoding)
    if value and not known and not texts:
        result.losses.append("it is a mapping without any text")
    return result


def _listed(text: str) -> list[str] | None:
    """The list of texts that a text spells out in JSON or Python; None if it does not."""
    bare = text.strip()
    if not (bare.startswith("[") and bare.endswith("]")):
        return None
    # pandas writes lists into CSV files as Python prints them. For deep nesting literal_eval raises
    # MemoryError or RecursionError.
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(bare)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(entry, str) for entry in value):
            return value
    return None
