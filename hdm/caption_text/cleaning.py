"""Captions as the world gives them, brought into one form."""

from __future__ import annotations

import html
import re
import unicodedata

# What programs write for a caption that is not there.
_NOTHING = frozenset({"", "none", "nan", "null", "n/a", "<na>", "undefined"})
# Invisible, but Persian, Indic scripts and emoji are written with them.
_JOINERS = frozenset("\u200c\u200d")
_SPACE = re.compile(r"\s+")
_RAW_CHARS = 8  # entities and spaces make the given text longer than what is left of it, never by so much in earnest


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
