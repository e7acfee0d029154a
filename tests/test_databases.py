"""Damaged databases of the services: named before anything starts, and set aside by the command
that is named.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.databases import damage
from hdm.store import locked


def hdm(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def database(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE runs (name TEXT PRIMARY KEY, told TEXT)")
        rows = [(f"run {number}", "x" * 500) for number in range(500)]
        connection.executemany("INSERT INTO runs VALUES (?, ?)", rows)
        connection.commit()
    return path


def overwritten(path: Path) -> None:
    path.write_bytes(b"not a database at all " * 1000)


def garbled(path: Path) -> None:
    """A page in the middle, with header and schema whole."""
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20_000])


@pytest.mark.parametrize("spoil", [overwritten, garbled, cut_off])
@pytest.mark.parametrize("name", ["prefect.db", "mlflow.db"])
@pytest.mark.parametrize("words", [["run", "demo", "--until", "download"], ["serve"]])
def test_a_damaged_database_is_named_and_set_aside(
    tmp_path: Path, spoil: object, name: str, words: list[str]
) -> None:
    path = database(tmp_path / ".services" / name)
    other = database(tmp_path / ".services" / "other.db")
    spoil(path)  # type: ignore[operator]
    spoilt = path.read_bytes()
    code, told = hdm(*words, "--store", str(tmp_path))
    assert code == 5
    assert str(path) in told
    command = re.search(r"hdm (doctor --fix --store .*)", told)
    assert command is not None
    assert hdm("doctor", "--store", str(tmp_path))[0] == 2
    code, told = hdm(*command[1].split())
    assert "prefect.db is now" in told or "mlflow.db is now" in told
    assert path.with_name(f"{name}.damaged").read_bytes() == spoilt
    assert not path.exists()
    assert other.exists()
    assert damage(path) is None


def test_sound_databases_stay(tmp_path: Path) -> None:
    path = database(tmp_path / ".services" / "prefect.db")
    (tmp_path / ".services" / "mlflow.db").touch()  # as a kill before the first write leaves it
    hdm("doctor", "--fix", "--store", str(tmp_path))
    assert path.exists()
    with contextlib.closing(sqlite3.connect(path)) as writing:
        writing.execute("BEGIN EXCLUSIVE")
        assert damage(path) is None  # in use


def test_nothing_is_set_aside_while_services_run(tmp_path: Path) -> None:
    path = database(tmp_path / ".services" / "prefect.db")
    overwritten(path)
    with locked(tmp_path / ".services" / "serve.lock", "the services"):
        code, told = hdm("doctor", "--fix", "--store", str(tmp_path))
    assert code == 4
    assert "hdm stop" in told
    assert path.exists()
