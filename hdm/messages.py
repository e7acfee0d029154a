"""Everything that people read from a process: what it prints and what it logs, without secrets and
without control characters.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import traceback
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hdm.errors import FULL, DoesNotFitError
from hdm.redaction import redacted_value, shown, visible


class Terminal(Console):
    """A rich console. Colours and cursor movements are its own; those in what it prints are written
    out.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        with printing():
            super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Before the layout: a table measures what it will show.
        return super().render_str(shown(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Report in one line that what the block prints does not fit on its disk.

    Raises:
        DoesNotFitError: it does not.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DoesNotFitError(
            "no space left for what is printed",
            where="standard output or error",
            do="send it to another disk",
        ) from error


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line as it is, for other programs or beside a progress bar."""
    with printing():
        print(shown(text), file=file or sys.stdout, flush=True)


def say_json(value: Any, indent: int | None = None) -> None:
    """Print JSON for other programs."""
    text = json.dumps(redacted_value(value), ensure_ascii=False, indent=indent)
    with printing():
        print(visible(text), flush=True)


def guard_output() -> None:
    """Pass every log message of this process, from any logger to any handler, through `shown`, and
    a final traceback too.
    """
    sys.excepthook = _show_traceback
    # Once in a process: every further call would wrap the factory again.
    make = logging.getLogRecordFactory()
    if getattr(make, "guarded", False):
        return

    def guarded(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        _guard(record)
        return record

    guarded.guarded = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(guarded)


def _show_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    say("".join(traceback.format_exception(kind, error, trace)).rstrip(), sys.stderr)


def _guard(record: logging.LogRecord) -> None:
    try:
        message = record.getMessage()
    except (TypeError, ValueError):  # arguments that do not fit the message
        record.msg = f"{record.msg} {record.args}"
        record.args = None
        message = record.getMessage()
    # Otherwise message and arguments stay apart: some formatters read the arguments.
    if (safe := shown(message)) != message:
        record.msg = safe
        record.args = None
    if record.exc_info and record.exc_info[0] is not None:
        # Formatters take this text instead of making their own.
        record.exc_text = shown(logging.Formatter().formatException(record.exc_info))
