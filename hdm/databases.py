"""The SQLite databases of Prefect and MLflow in a store: checks them, and sets unreadable ones
aside.

<store>/.services/
    prefect.db  mlflow.db    the history that the pages show; nothing in the store depends on it
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from hdm.errors import DamagedError
from hdm.store import locked, state_root

MEND = "hdm doctor --fix"
# SQLite would replay a log that is left behind into the new database.
BESIDE = ("", "-wal", "-shm", "-journal")
WAIT_SEC = 2.0


def databases(root: Path) -> list[Path]:
    """The store's databases."""
    return sorted((state_root(root) / ".services").glob("*.db"))


def damage(path: Path) -> str | None:
    """The fault of a database, or None. One that is missing, empty or in use counts as sound."""
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=WAIT_SEC)) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        return None if "locked" in str(error) else str(error)
    return None if found == "ok" else " ".join(found.split())


def check_databases(paths: Iterable[Path]) -> None:
    """Check databases before a server opens them.

    Raises:
        DamagedError: naming the first that is damaged.
    """
    for path in paths:
        if wrong := damage(path):
            raise DamagedError(
                f"the database cannot be read: {wrong}",
                where=path,
                do=f"set it aside and start a new one: {MEND} --store {path.parents[1]}",
            )


def set_aside(root: Path) -> dict[Path, Path]:
    """Rename damaged databases to NAME.damaged; the next run or `hdm serve` makes new ones.

    Returns:
        each damaged database and its new path.

    Raises:
        LockedError: a run or `hdm serve` uses them.
    """
    moved = {}
    with contextlib.ExitStack() as stack:
        # Hold every lock of the services, so that neither `hdm serve` nor a run opens them
        # meanwhile.
        for lock in (state_root(root) / ".services").glob("**/*.lock"):
            stack.enter_context(locked(lock, f"the databases of {root}", shared=True))
        for path in databases(root):
            if damage(path) is None:
                continue
            for part in (path.with_name(path.name + ending) for ending in BESIDE):
                if part.exists():
                    part.replace(part.with_name(part.name + ".damaged"))
            moved[path] = path.with_name(path.name + ".damaged")
    return moved
