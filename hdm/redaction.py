"""What may be shown: text without secrets, and without characters that steer a terminal.

Every edge passes through here: errors (`hdm.errors`), the terminal and the log (`hdm.messages`),
events for MLflow (`tasks.reporter`). Tables of a store keep the URLs and captions of items as
given; nothing else is exempt.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import unquote, urlsplit

HIDDEN = "***"
REFERENCE = re.compile(r"(env|file|block):(?!//)(.+)", re.DOTALL)
"""A secret by reference, as `env:NAME`; `hdm.secrets` reads it."""

_SHORTEST = 8  # shorter ones are words of ordinary text as well
_SECRET_NAME = r"(?:token|password|passwd|secret|api_?key|access_?key|auth_string)"
_VARIABLE = re.compile(rf"\w*{_SECRET_NAME}", re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^\s/?#\"'<>]+@")
_QUERY = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://[^\s?\"'<>]*\?)[^\s\"'<>]+")
_ASSIGNED = re.compile(
    rf"([\w.-]*{_SECRET_NAME}(?:\s?=\s?[\"']?|[\"']\s?:\s?[\"']))"
    # References, empty values and what is hidden already are no secrets.
    r"(?!(?:env|file|block):|null\b|None\b|\*)[^\s,&\"']+",
    re.IGNORECASE,
)
_STEERING = [
    *(code for code in range(0x20) if chr(code) not in "\n\t"),
    *range(0x7F, 0xA0),  # DEL and C1: 0x9B begins a control sequence as ESC [ does
    *(0x061C, 0x200E, 0x200F, 0x2028, 0x2029),
    *range(0x202A, 0x202F),  # bidirectional embeddings and overrides
    *range(0x2066, 0x206A),  # and isolates
    *range(0xD800, 0xE000),  # bytes of file names that are not UTF-8; no stream takes them
]
_VISIBLE = {code: f"\\u{code:04x}" for code in _STEERING}
_known: dict[str, str] = {}


def remember(secret: str, name: str) -> None:
    """From now on, replace a secret by `name` wherever this process shows text."""
    for part in _parts_of_address(secret):
        # As written in the address and decoded, since libraries print either.
        for form in (part, unquote(part)):
            if _hides(form):
                _known[form] = HIDDEN
    if _hides(secret):
        _known[secret] = name


def _parts_of_address(secret: str) -> list[str]:
    """Password, query and the query's values, if the secret is an address."""
    try:
        address = urlsplit(secret)
    except ValueError:
        return []
    if not address.netloc:
        return []
    parts = [address.password or "", address.query]
    for field in address.query.split("&"):
        _, _, value = field.partition("=")
        parts.append(value)
    return parts


def holds_secret(text: str) -> bool:
    """Whether a setting spells a secret out: a user or a query in a URL, or `…token=VALUE`."""
    return _without_patterns(text) != text


def redacted(text: str) -> str:
    """The text without secrets: those read by reference, those in variables of the environment that
    are named like one (HF_TOKEN), and users and queries of URLs."""
    # Secrets that were read by reference are shown as that reference.
    known = {**dict.fromkeys(_of_environment(), HIDDEN), **_known}
    # Longest first: a shorter secret may be part of a longer one.
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, known[secret])
    return _without_patterns(text)


def _of_environment() -> list[str]:
    """Secrets in variables of the environment; of NAME:PASSWORD also the password alone."""
    secrets = []
    for name, value in os.environ.items():
        if _VARIABLE.fullmatch(name) and not REFERENCE.fullmatch(value):
            _, _, password = value.partition(":")
            secrets += [value, password]
    return [secret for secret in secrets if _hides(secret)]


def redacted_value(value: Any) -> Any:
    """The same for every text in nested mappings, lists and tuples."""
    match value:
        case str():
            return redacted(value)
        case dict():
            return {key: redacted_value(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(redacted_value(item) for item in value)
        case _:
            return value


def visible(text: str) -> str:
    """The text with characters that steer a terminal written out, as `\\u001b`, which JSON reads
    back; newlines and tabs stay.
    """
    return text.translate(_VISIBLE)


def shown(text: str) -> str:
    """What a terminal or a log gets of a text."""
    return visible(redacted(text))


def _hides(secret: str) -> bool:
    return len(secret) >= _SHORTEST


def _without_patterns(text: str) -> str:
    text = _USER.sub(f"{HIDDEN}@", text)
    text = _QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return _ASSIGNED.sub(rf"\g<1>{HIDDEN}", text)
