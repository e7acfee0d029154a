"""The environment of a process that another one of ours starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import hdm


def child_environment(defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, and the packages where they were found: they need not be installed.

    Args:
        defaults: variables for those that the user has not set.
    """
    found = [
        str(Path(hdm.__file__).resolve().parent.parent),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    return {**(defaults or {}), **os.environ, "PYTHONPATH": os.pathsep.join(found)}
