"""Secrets that settings name by reference. They are read where they are used; what is written of
settings holds the reference.

env:NAME     a variable of the environment of the process that needs it
file:PATH    the content of a file, without the newline at its end
block:NAME   a Secret block of Prefect's, in runs alone (`tasks.secret_blocks`)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from hdm.errors import InputError
from hdm.redaction import REFERENCE, remember

ADVICE = (
    "give it by reference: env:NAME (a variable of the environment), file:PATH, or block:NAME (a"
    " Secret block of Prefect's). What was spelled out in the parameters of a run is stored there:"
    " change the secret"
)


def _of_environment(name: str) -> str:
    if name not in os.environ:
        raise InputError(
            f"the environment has no variable {name}",
            where=f"env:{name}",
            do="export it where the run starts; for a deployment, where `hdm serve` starts",
        )
    return os.environ[name]


def _of_file(name: str) -> str:
    path = Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeError) as error:
        # Raised without its cause: a UnicodeDecodeError holds the file's bytes.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(
            f"the secret's file cannot be read: {reason}",
            where=path,
            do="look at the path and its permissions",
        ) from None


READERS: dict[str, Callable[[str], str]] = {"env": _of_environment, "file": _of_file}
"""Kind of reference → what reads it; `tasks` adds those that the library cannot."""


def resolved(text: str) -> str:
    """The secret that a reference names; from then on, no output of this process shows it. Any
    other text is returned unchanged.

    Raises:
        InputError: there is no such secret, or it is empty.
    """
    match = REFERENCE.fullmatch(text)
    if match is None:
        return text
    kind, name = match.groups()
    if kind not in READERS:
        raise InputError(
            f"only runs read {kind}: references",
            where=text,
            do="use env:NAME or file:PATH with this command",
        )
    secret = READERS[kind](name)
    if not secret:
        raise InputError("the secret is empty", where=text, do="give it a value")
    remember(secret, text)
    return secret


def readable(text: str | None) -> bool:
    """Whether `resolved` can be tried in this process: Secret blocks are read in runs alone."""
    match = REFERENCE.fullmatch(text or "")
    return match is None or match[1] in READERS


def _refuse_literal(text: str) -> str:
    if not REFERENCE.fullmatch(text):
        raise PydanticCustomError("literal_secret", f"a secret is not written here; {ADVICE}")
    return text


SecretReference = Annotated[str, AfterValidator(_refuse_literal)]
"""A secret, as env:NAME, file:PATH or block:NAME."""
