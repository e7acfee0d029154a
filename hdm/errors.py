"""Errors that a person can act on, and the exit code of each.

HdmError                 1   something unexpected
├── InputError           2   a file, folder, picture list or model is missing or unusable
│   └── ConfigError      2   pipelines.yaml, --set or an environment variable
├── DoesNotFitError      3   not enough memory or disk
├── LockedError          4   another run works on the same output
├── DamagedError         5   a file is not what was written
└── SavedOnSignal       75   stopped by SIGTERM or Ctrl-C, progress saved; run again to go on
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from hdm.redaction import redacted, shown

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's error codes for a full disk or an exhausted quota."""


class HdmError(Exception):
    """What happened, where, and what to do about it; secrets are left out of all three.

    Args:
        what: one sentence, no trailing period needed.
        where: the file, stage, URL or field; None if `what` names it.
        do: what the reader can do now; None if nothing sensible can be said.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, do: str | None = None) -> None:
        # When it is made: libraries log and store errors without asking.
        self.what = redacted(what)
        self.do = redacted(do) if do else do
        place = redacted(str(where))
        # Keep the object, such as a Path, unless it has to be redacted.
        self.where = where if place == str(where) else place
        super().__init__(self.what, self.where, self.do)

    def __reduce__(self) -> tuple[Callable[..., HdmError], tuple[str]]:
        """Keep all fields in a pickle, so that the error leaves another process complete."""
        return partial(type(self), where=self.where, do=self.do), (self.what,)

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where is not None else ""
        return shown(f"{self.what}{place}" + (f"\n  → {self.do}" if self.do else ""))


class InputError(HdmError):
    exit_code = 2


class ConfigError(InputError):
    pass


class DoesNotFitError(HdmError):
    exit_code = 3


class LockedError(HdmError):
    exit_code = 4


class DamagedError(HdmError):
    exit_code = 5


class SavedOnSignal(HdmError):  # noqa: N818  (a signal was obeyed; nothing went wrong)
    exit_code = 75


class Refusal:
    """A context that turns a library's exceptions into an InputError that ends with the library's
    message.

    Args:
        *kinds: of exceptions; others pass.
        what: of the InputError; the library's message follows it.
        where: of the InputError.
        do: of the InputError.
    """

    def __init__(self, *kinds: type[Exception], what: str, where: object, do: str) -> None:
        self.kinds = kinds
        self.what = what
        self.where = where
        self.do = do

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, self.kinds):
            raise InputError(f"{self.what}: {error}", where=self.where, do=self.do) from error


def counted(count: int, one: str, several: str | None = None) -> str:
    """A count with its noun, as "1 picture" and "2,000 pictures"; `several`: irregular plural."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"


def raised_by(*checks: Callable[[], object]) -> Iterator[InputError]:
    """The InputErrors that some checks raise, collected so that they can be reported together."""
    for check in checks:
        try:
            check()
        except InputError as error:
            yield error


def combined(errors: Iterable[InputError]) -> InputError | None:
    """One error that lists several, each once, with its location and advice; None if there are
    none.
    """
    by_text = {str(error): error for error in errors}
    if len(by_text) < 2:
        return next(iter(by_text.values()), None)
    listed = "\n".join(f"- {text}" for text in by_text)
    return ConfigError(f"{len(by_text)} settings cannot work:\n{listed}")
