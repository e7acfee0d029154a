"""How many CPU threads or processes make the data stages changes no byte of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

MAKE = """
import json, sys
from pathlib import Path
from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Store

settings = ["download.scenes.count=12", "download.scenes.faults=0", "download.allow_loopback=true"]
settings += ["download.shard_items=6", *sys.argv[3:]]
made = run(load_pipeline("demo", settings), Store(Path(sys.argv[1])), stop_after=sys.argv[2])
files = {}
for one in made:
    for record in one.output.files:
        files[f"{one.step.name}/{record.name}"] = record.sha256
print(json.dumps(files))
"""


def files(store: Path, num_threads: int, until: str, *settings: str) -> dict[str, str]:
    """sha256 of every file up to that stage, made by a process with so many threads."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment["OMP_NUM_THREADS"] = str(num_threads)
    done = subprocess.run(
        [sys.executable, "-c", MAKE, str(store), until, *settings],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_one_thread_three_and_two_processes_make_the_same_bytes(tmp_path: Path) -> None:
    one = files(tmp_path / "one", 1, "encode")
    three = files(tmp_path / "three", 3, "encode")
    apart = files(tmp_path / "apart", 1, "filter.measures", "execution.processes=2")
    assert {name.split("/")[0] for name in one} >= {
        "filter.measures",
        "encode.text",
        "encode.48px",
        "encode.64px",
    }
    assert [name for name in one if one[name] != three.get(name)] == []
    assert {name.split("/")[0] for name in apart} >= {"filter.measures"}
    assert [name for name in apart if apart[name] != one[name]] == []
