"""Normalise captions as they come with pictures."""

from __future__ import annotations

import html
import re
import unicodedata

# What programs write for a missing caption.
_NOTHING = frozenset({"", "none", "nan", "null", "n/a", "<na>", "undefined"})
# Invisible, but Persian, Indic scripts and emoji need them.
_JOINERS = frozenset("\u200c\u200d")
_SPACE = re.compile(r"\s+")
# Raw text may be this many times as long as the limit. Entities and spaces make it longer than the
# normalised text, but not by that much in real captions.
_RAW_CHARS = 8


def normal_caption(given: object, max_chars: int = 2000) -> str | None:
    """Normalise a given caption into the form that every stage uses; None if it is missing.

    HTML entities are resolved twice (`&amp;amp;` is common) and Unicode is composed (NFC). Control
    characters and byte-order, direction and zero-width marks are removed, and white space becomes
    single spaces. Braces, markup and other scripts are left as they are.

    Args:
        given: text, or its bytes in UTF-8. Anything else counts as missing, and so do text that was
            damaged in decoding (U+FFFD, lone surrogates) and words that programs write for nothing
            ("None", "nan", …).
        max_chars: longer captions are cut, between words if the second half has a space.
    """
    text = _decoded(given)
    if text is None:
        return None
    text = html.unescape(html.unescape(text[: max_chars * _RAW_CHARS]))
    if any(char == "\ufffd" or "\ud800" <= char <= "\udfff" for char in text):
        return None
    bare = "".join(char for char in _SPACE.sub(" ", text) if not _is_mark(char))
    # After the marks are gone: one between a letter and its accent would keep them apart.
    text = _SPACE.sub(" ", unicodedata.normalize("NFC", bare)).strip()
    if text.lower() in _NOTHING or not text.strip("\u200c\u200d "):
        return None
    return _cut(text, max_chars)


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
