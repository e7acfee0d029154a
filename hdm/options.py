"""Options that several commands have, and numbers with the bounds of `hdm.values`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from hdm.values import Within

File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        envvar="HDM_PIPELINES",
        help="Your own pipelines.yaml; else the one of this folder, if there is one.",
    ),
]


def number(kind: Any, *names: str, **rest: Any) -> Any:
    """A typer option for one of the numbers of `hdm.values`, as `number(Count, help="Pictures.")`.

    Args:
        kind: an annotated int or float; the parameter itself is a plain int or float, or None
            beside it.
        names: of the option, where the parameter's own will not do.
        rest: what `typer.Option` takes.
    """
    bounds = next(item for item in get_args(kind) if isinstance(item, Within))

    def check(value: float | None) -> float | None:
        # NaN is in no range, which a comparison with typer's own min and max would miss.
        if value is not None and value not in bounds:
            raise typer.BadParameter(f"{value} must be {bounds}")
        return value

    return typer.Option(*names, callback=check, **rest)
