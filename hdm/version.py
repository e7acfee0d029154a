"""Which code this is: the package's version and, in a checkout, the commit."""

from __future__ import annotations

import importlib.metadata
import subprocess
from pathlib import Path

DISTRIBUTION = "hdm-pipeline"
GIT_SEC = 5.0


def code_version(root: Path | None = None) -> str:
    """As `0.1.0`, or in a checkout `0.1.0 (git 1a94798c2f31)`, with `, changed` where tracked files differ from the commit.

    Args:
        root: the folder that holds the package; None: this one's.
    """
    version = importlib.metadata.version(DISTRIBUTION)
    commit = _commit(root or Path(__file__).resolve().parents[1])
    return f"{version} (git {commit})" if commit else version


def _commit(root: Path) -> str | None:
    """None: no checkout, or no git to ask."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}, changed" if changed else commit


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SEC, check=True)
    return done.stdout
