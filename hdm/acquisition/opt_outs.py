"""Pictures that their sites ask machines not to learn from, by the header X-Robots-Tag."""

from __future__ import annotations

from collections.abc import Iterable

AGENT = "hdm-pipeline"
"""How requests name this program, and how a site may address it."""
OPT_OUTS = frozenset({"noai", "noimageai", "noml", "noindex", "noimageindex", "none"})
WITH_VALUES = frozenset(
    {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}
)
"""Directives with a colon of their own, which is not that of an agent's name."""


def is_opted_out(tags: Iterable[str]) -> bool:
    """Whether a site opts out for everybody, or for this program.

    Args:
        tags: the values of its headers X-Robots-Tag, as `noai`, `noindex, nofollow` or
            `otherbot: noai`; an agent's name holds to the end of its header.
    """
    for tag in tags:
        addressed = True
        for directive in tag.lower().split(","):
            before, colon, after = directive.partition(":")
            name = before.strip()
            # A date after `unavailable_after` may hold commas, and colons in its time of day.
            if colon and name not in WITH_VALUES and not any(map(str.isspace, name)):
                addressed = name in ("*", AGENT)
                directive = after
            if addressed and directive.strip() in OPT_OUTS:
                return True
    return False
