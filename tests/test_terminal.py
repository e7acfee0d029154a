"""Standard output and error that are closed, cut off, full, or know few characters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hdm.files import written_aside

HDM = "from flows.cli import app; app()"
WORK = """
import logging, os, subprocess, sys
from pathlib import Path
from rich.console import Console
from hdm.files import written_aside
from hdm.progress import show_log
from hdm.terminal import survive_closing
survive_closing()
show_log()
with written_aside(Path(sys.argv[1])) as aside, aside.open("w") as file:
    for number in range(3000):
        print("to standard output", number)
        print("to standard error", number, file=sys.stderr, flush=True)
        Console(stderr=True).print("with rich")
        logging.getLogger("hdm.run").info("as a message")
    subprocess.run(["sh", "-c", "echo a child; echo a child >&2"], check=True)
    print("the last word", flush=True)
    file.write("done")
"""


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def test_work_goes_on_when_nobody_reads(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        python(WORK, str(tmp_path / "made")), stdout=writing, stderr=writing, check=False
    )
    os.close(writing)
    assert done.returncode == 0
    assert (tmp_path / "made").read_text() == "done"


def test_a_broken_pipe_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), written_aside(tmp_path / "file") as aside:  # noqa: PT012
        aside.write_bytes(b"half")
        os.write(writing, b"words")
    os.close(writing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path, closed: str) -> None:
    words = [sys.executable, "-c", WORK, str(tmp_path / "made")]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *words], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "made").read_text() == "done"


def test_a_command_whose_reader_has_enough_succeeds() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        python(HDM, "config", "demo"), stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["pipelines"], ["config", "demo"]])
def test_output_to_a_full_disk_is_one_line_of_error(words: list[str]) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            python(HDM, *words), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3
    assert "no space left for what is printed (standard output or error)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"TERM": "dumb", "COLUMNS": "40"},
    ],
)
def test_characters_that_the_terminal_lacks_are_replaced(environment: dict[str, str]) -> None:
    done = subprocess.run(
        python(HDM, "ema", "--help"),
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"--length" in done.stdout
