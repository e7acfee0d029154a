"""Captions as the world gives them, brought into one form."""

from __future__ import annotations

import html
import re
import unicodedata

import pyarrow as pa
import pyarrow.compute as pc

_NOTHING = frozenset(
    {"", "none", "nan", "null", "n/a", "<na>", "undefined"}
)  # what programs write for a caption that is not there
_JOINERS = frozenset(
    "\u200c\u200d"
)  # invisible, but Persian, Indic scripts and emoji are written with them
_SPACE = re.compile(r"\s+")
_RAW_CHARS = 8  # entities and spaces make the given text longer than what is left of it, never by so much in earnest

_SIDED = (
    r"\b(left|right)(s|most|wards?)?\b",
    r"\b((anti|counter)[- ]?)?clockwise\b",
    r"\b(north|south)?[- ]?(east|west)(ern|wards?)?\b",
    # Writing, and what bears it: mirrored, it is wrong whatever the caption says of sides.
    r"\b(hand)?(text|words?|letter(s|ing)?|writ(e|es|ing|ten)|says|saying|reads|sign(s|age)?|label(s|led|ed)?|logos?|captions?|titled?)\b",
    r"\b(numbers?|numerals?|digits?|alphabets?|typograph(y|ic)|calligraph(y|ic)|graffiti|inscri(bed|ptions?)|quot(e|es|ed|ation))\b",
    r"\b(clocks?|maps?|posters?|banners?|billboards?|newspapers?|magazines?|screenshots?|keyboards?|flags?|licen[cs]e plates?)\b",
    r"[\"\x{201c}\x{201d}\x{ab}\x{bb}]",
)


def speak_of_sides(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which captions would be false, or their pictures wrong, in a mirror: those that speak of left
    and right, of turning, or of writing.

    English words alone are known; a caption in another language counts as speaking of none.

    Args:
        captions: strings.

    Returns:
        Booleans.
    """
    return pc.match_substring_regex(captions, "|".join(_SIDED), ignore_case=True)


def normal_caption(given: object, max_chars: int = 2000) -> str | None:
    """A given caption in the one form that every stage uses, or None where there is none.

    HTML entities are resolved (twice over: `&amp;amp;` is common), Unicode composed (NFC), control
    characters, byte-order, direction and zero-width marks removed, white space made single spaces.
    Braces, markup and other scripts are left as they are.

    Args:
        given: text, or its bytes in UTF-8. Anything else, text that was damaged in decoding
            (U+FFFD, lone surrogates), and the words that programs write for nothing ("None", "nan",
            …) count as missing.
        max_chars: what is longer is cut, between words where there is a space in the second half.
    """
    text = _decoded(given)
    if text is None:
        return None
    text = html.unescape(html.unescape(text[: max_chars * _RAW_CHARS]))
    if any(char == "\ufffd" or "\ud800" <= char <= "\udfff" for char in text):
        return None
    bare = "".join(char for char in _SPACE.sub(" ", text) if not _is_mark(char))
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", bare)).strip()
    return (
        None
        if text.lower() in _NOTHING or text.strip("\u200c\u200d ") == ""
        else _cut(text, max_chars)
    )


def _decoded(given: object) -> str | None:
    if isinstance(given, bytes):
        try:
            return given.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return given if isinstance(given, str) else None


def _is_mark(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf") and char not in _JOINERS


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    space = text.rfind(" ", max_chars // 2, max_chars + 1)
    return text[: space if space > 0 else max_chars].rstrip()
