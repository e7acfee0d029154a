"""Run every command of README.md, in order, as a newcomer does: in a copy of the project, in a
shell that has nothing set.

    python -m tests.faults.walk_readme          (`make readme`)

What takes long is made short by settings in the environment (`HDM__stage__field`), and PICTURES is
a small folder. `make test` alone is left out: it is where the rest is tested.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from tests.told_commands import PROJECT, command_lines

LEFT_OUT = ("make test",)
SHORTER = {"hdm bootstrap": " --minutes 0.1 --max-pictures 64"}
SETTINGS = {
    "HDM__download__scenes__count": "120",
    "HDM__filter__min_sharpness": "null",
    "HDM__filter__duplicate_distance": "0",
    "HDM__train__phases__0__num_images": "32",
    "HDM__train__phases__1__num_images": "32",
    "HDM__evaluate__num_images": "4",
    "HDM__evaluate__steps": "1",
}
COMMAND_SEC, POLL_SEC = 1800.0, 1.0
ACTIVATE = ". .venv/bin/activate"


def main() -> None:
    """Exit with 1 at the first command that fails."""
    with tempfile.TemporaryDirectory(prefix="hdm-readme-") as folder:
        project = copied(Path(folder) / "project")
        pictures(project / "PICTURES")
        walk(project, environment(Path(folder)))
    print("every command of the README works")


def copied(project: Path) -> Path:
    """The tracked files, and the environment that `make setup` made."""
    if not (PROJECT / ".venv" / ".installed").exists():
        sys.exit("first: make setup")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, project / name)
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(project / name, (0, 0))  # make finds the environment up to date
    (project / ".venv").symlink_to((PROJECT / ".venv").resolve())
    return project


def pictures(folder: Path) -> None:
    """Ninety-six captioned pictures, all different."""
    folder.mkdir()
    colours = ("red", "green", "blue", "yellow")
    for number in range(96):
        colour, side = colours[number % 4], 20 + number // 4 * 3
        image = Image.effect_noise((128, 128), 20 + number % 7).convert("RGB")
        draw = ImageDraw.Draw(image)
        shape = draw.ellipse if number % 8 < 4 else draw.rectangle
        shape((8, 8, 8 + side, 8 + side), fill=colour)
        image.save(folder / f"{number:03d}.png")
        kind = "circle" if number % 8 < 4 else "square"
        (folder / f"{number:03d}.txt").write_text(f"a {colour} {kind} of {side} pixels")


def environment(home: Path) -> dict[str, str]:
    """What a login shell has, and the settings that shorten."""
    plain = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", "TERM": "dumb"}
    # Where the package is not installed from this checkout, and where others work on the same
    # cores.
    kept = ("PYTHONPATH", "OMP_NUM_THREADS")
    other = {name: os.environ[name] for name in kept if name in os.environ}
    return plain | SETTINGS | other


def walk(project: Path, variables: dict[str, str]) -> None:
    """Each command in a new shell, activated once the README says so; `hdm serve` stays until the
    end.
    """
    serving: subprocess.Popen[bytes] | None = None
    before = ""
    try:
        for line in command_lines(PROJECT / "README.md"):
            command = line.partition("#")[0].strip()
            if command == ACTIVATE:
                before = f"{ACTIVATE} && "  # each command has a shell of its own
                continue
            if command in LEFT_OUT:
                continue
            for start, more in SHORTER.items():
                command += more if command.startswith(start) else ""
            print(f"$ {command}", flush=True)
            shell = ["bash", "-c", f"{before}exec {command}" if before else command]
            if command == "hdm serve":
                serving = subprocess.Popen(
                    shell, cwd=project, env=variables, start_new_session=True
                )
                wait_until_served(project, variables, before)
                continue
            begun = time.monotonic()
            told = last_run(project)
            if subprocess.run(shell, cwd=project, env=variables, timeout=COMMAND_SEC).returncode:
                sys.exit(f"failed: {command}")
            if command.startswith("prefect deployment run"):
                wait_for_run(project, told)
            print(f"  ({time.monotonic() - begun:.0f} s)", flush=True)
    finally:
        if serving is not None:
            os.killpg(serving.pid, signal.SIGINT)
            serving.wait(60)


def wait_until_served(project: Path, variables: dict[str, str], before: str) -> None:
    """Until `hdm status` names the pages."""
    deadline = time.monotonic() + COMMAND_SEC
    while time.monotonic() < deadline:
        status = subprocess.run(
            ["bash", "-c", f"{before}hdm status"],
            cwd=project,
            env=variables,
            capture_output=True,
            text=True,
            check=True,
        )
        if "Prefect http" in status.stdout:
            return
        time.sleep(POLL_SEC)
    sys.exit("hdm serve did not start")


def last_run(project: Path) -> float:
    """When the demo's last run was written down; 0 if it never was."""
    record = project / "store" / ".pipelines" / "demo.json"
    return record.stat().st_mtime if record.exists() else 0.0


def wait_for_run(project: Path, told: float) -> None:
    """Until the worker has begun the run that the deployment asked for."""
    deadline = time.monotonic() + COMMAND_SEC
    while last_run(project) == told:
        if time.monotonic() > deadline:
            sys.exit("the worker did not run the deployment")
        time.sleep(POLL_SEC)


if __name__ == "__main__":
    main()
