"""The provenance of a result besides its settings: code, libraries and machine. It is reported with
results and is part of no digest.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DISTRIBUTION = "hdm-pipeline"
LIBRARIES = ("torch", "prefect", "mlflow", "diffusers", "transformers", "numpy", "Pillow")
PACKAGES = ("hdm", "tasks", "flows")
GIT_SEC = 10.0
_CPUINFO = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def provenance() -> dict[str, Any]:
    """Code, libraries and machine of this process, as plain JSON values."""
    return {"code": code(), "libraries": libraries(), "machine": machine()}


@cache
def code() -> dict[str, Any]:
    """The package's version; in a checkout also `commit`, and `changed`: whether its code differs
    from that.
    """
    return {"version": version_of(DISTRIBUTION), **checkout(ROOT)}


def code_version(folder: Path = ROOT) -> str:
    """The same in a line, as `0.1.0`, or in a checkout `0.1.0 (git 1a94798c2f31, changed)`.

    Args:
        folder: that holds the packages.
    """
    version = version_of(DISTRIBUTION)
    found = checkout(folder)
    changed = ", changed" if found.get("changed") else ""
    return f"{version} (git {found['commit'][:12]}{changed})" if found else str(version)


def checkout(folder: Path) -> dict[str, Any]:
    """The commit of a git checkout, and whether its tracked files differ from that or its packages
    contain others; {} if the folder is no checkout.

    A folder inside a checkout does not count: a virtual environment may lie in somebody else's.
    """
    if not (folder / ".git").exists():
        return {}
    commit = _git(folder, "rev-parse", "HEAD")
    changes = [
        _git(folder, "status", "--porcelain", "--untracked-files=no"),
        _git(folder, "status", "--porcelain", "--", *PACKAGES),
    ]
    return {"commit": commit, "changed": any(changes)} if commit and None not in changes else {}


def libraries() -> dict[str, str | None]:
    """Name → version; None: it is not installed."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in LIBRARIES}}


def version_of(distribution: str) -> str | None:
    """The version that this process has loaded, which names the build, else the installed one."""
    loaded = getattr(sys.modules.get(distribution), "__version__", None)
    if loaded is not None:
        return str(loaded)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(distribution)
    return None


def machine() -> dict[str, Any]:
    """Model of the CPU, cores that this process may use, bytes of memory, and names of the GPUs."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus(),
    }


@cache
def cpu_model() -> str:
    """What the CPU calls itself."""
    with contextlib.suppress(OSError), _CPUINFO.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """By torch where this process has it already, else by NVIDIA's driver: importing torch takes
    seconds.
    """
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_available():
        cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return [f"{card.name}, {card.total_memory / 1e9:.0f} GB" for card in cards]
    found = []
    for file in sorted(_NVIDIA.glob("*/information")):
        with contextlib.suppress(OSError):
            about = dict(line.partition(":")[::2] for line in file.read_text().splitlines())
            found.append(about.get("Model", "").strip())
    return found


def _git(folder: Path, *words: str) -> str | None:
    """git's answer; None if git is missing or refuses."""
    # Within a git hook, GIT_DIR and others name another repository.
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=GIT_SEC, check=True, env=own
        )
        return done.stdout.strip()
    return None
