"""`hdm init`: creates a folder for a new project."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hdm.errors import InputError
from hdm.files import make_folder, write_bytes
from hdm.messages import Terminal

STARTERS = ("pipelines.yaml", "prefect.toml")


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; created if missing.")] = Path(),
) -> None:
    """Write a commented pipelines.yaml, and a prefect.toml that lets `prefect` find this package.

    Existing files are never overwritten.
    """
    # Check all files before writing any.
    taken = [name for name in STARTERS if (folder / name).exists()]
    if taken:
        raise InputError(
            f"there is a {' and a '.join(taken)} already",
            where=folder.resolve(),
            do="name another folder, or move what is there",
        )
    make_folder(folder, do="name another")
    for name in STARTERS:
        text = files("hdm").joinpath("starter", name).read_text(encoding="utf-8")
        write_bytes(folder / name, text.encode())
    console = Terminal(highlight=False, soft_wrap=True)
    console.print(f"wrote {escape(', '.join(str(folder / name) for name in STARTERS))}")
    console.print("edit the pipeline `mine` there; to see everything work first: hdm run demo")
