"""`hdm gc`: removes what a store no longer needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from hdm.errors import LockedError
from hdm.messages import Terminal
from hdm.options import File, StoreFolder
from hdm.store import LOCK, Store, locked, store_root

if TYPE_CHECKING:
    from hdm.garbage import Garbage

MOST_DAYS = 36500


def gc(
    days: Annotated[
        float,
        typer.Option(
            min=0, max=MOST_DAYS, help="Keep outputs used in the last N days, whatever made them."
        ),
    ] = 30.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed, and stop.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
    store: StoreFolder = None,
    file: File = None,
) -> None:
    """Remove outputs that no run refers to, and leftovers of kills and damage. Asks first.

    Kept are: outputs that the pipelines and labs of pipelines.yaml make or read with their present
    settings; outputs used in the last --days, by a run with any --set or by hdm sample; everything
    these were made from; and everything that a running process works on or requested. The rest is
    listed with its size and last use: finished outputs, unfinished ones with their checkpoints,
    files set aside as .damaged, temporary files of killed runs. To get a removed output back, run
    its pipeline with its settings again.

    Examples:

    hdm gc --dry-run

    hdm gc --days 7 --yes
    """
    from hdm.garbage import discard, garbage, needs

    console = Terminal(highlight=False, soft_wrap=True)
    root = Store(store_root(store))
    needed = needs(file)
    for name in needed.unknown:
        console.print(f"not all its needs are known, so only recent use keeps it: {escape(name)}")
    # Listed without changing anything; the table is what the user agrees to.
    found = garbage(root, needed, days)
    if not found:
        console.print(f"nothing to remove in {escape(str(root.root))}")
        return
    console.print(_table(found, root.root))
    total = _size(sum(one.num_bytes for one in found))
    console.print(f"{len(found)} in all, {total}")
    if dry_run:
        return
    if not yes:
        typer.confirm("Remove them?", abort=True)
    kept = 0
    # Two `hdm gc` must not remove at the same time. `discard` checks again whether an output is in
    # use.
    with locked(root.root / LOCK, f"hdm gc in {root.root}", do="wait for it"):
        for one in found:
            try:
                discard(one)
            except LockedError as error:
                kept += one.num_bytes
                console.print(f"kept {escape(str(one.path))}: {escape(error.what)}")
    freed = sum(one.num_bytes for one in found) - kept
    console.print(f"removed {_size(freed)}")


def _table(found: list[Garbage], root: Path) -> Table:
    columns = ("what", Column("size", justify="right"), Column("last used", justify="right"), "why")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for one in found:
        days = (time.time() - one.used) / 86400
        age = f"{days:.0f} days ago" if days >= 2 else f"{24 * days:.0f} hours ago"
        name = escape(str(one.path.relative_to(root)))
        table.add_row(name, _size(one.num_bytes), age, one.why)
    return table


def _size(num_bytes: int) -> str:
    if num_bytes >= 10**9:
        return f"{num_bytes / 1e9:.1f} GB"
    if num_bytes >= 10**6:
        return f"{num_bytes / 1e6:.1f} MB"
    return f"{num_bytes / 1e3:.0f} kB"
