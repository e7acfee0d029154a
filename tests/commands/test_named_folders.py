"""Folders that a person names where none can be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hdm.commands.cli import app
from hdm.errors import InputError
from hdm.files import make_folder


@pytest.mark.parametrize("named", ["taken", "taken/below", "/proc/none", "/dev/null"])
def test_a_folder_that_cannot_be_is_an_error_of_a_line(tmp_path: Path, named: str) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(InputError, match="cannot make this folder") as told:
        make_folder(tmp_path / named, do="name another")
    assert "name another" in str(told.value)
    result = CliRunner().invoke(app, ["init", os.fspath(tmp_path / named)])
    assert result.exit_code == InputError.exit_code
    assert "cannot make this folder" in result.output


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", do="")
    make_folder(tmp_path / "a" / "b", do="")
    assert (tmp_path / "a" / "b").is_dir()
