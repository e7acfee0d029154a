"""The checks of `hdm doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from hdm.databases import MEND, damage, databases
from hdm.errors import HdmError
from hdm.planning.measured_file import AGAIN, NAME, read_measured
from hdm.provenance import DISTRIBUTION, code_version, cpu_model, gpus

DISK_BYTES = 2_000_000_000  # the demo's store and its services take less than half


@dataclass(frozen=True)
class Check:
    """One check: what was found, whether it is fine, and what to do if not."""

    name: str
    fine: bool
    found: str
    do: str = ""


def checks(root: Path) -> Iterator[Check]:
    """Check Python, the versions of the code and its packages, the torch pair, devices, disk and
    databases.
    """
    yield Check(
        "python",
        sys.version_info >= (3, 11),
        sys.version.split()[0],
        "" if sys.version_info >= (3, 11) else "3.11 or newer is needed",
    )
    yield Check("hdm", True, code_version())
    yield packages()
    yield torch_pair()
    yield devices()
    yield disk(root)
    yield services_databases(root)
    yield measured(root)


def packages() -> Check:
    """Whether the installed versions are within the tested bounds."""
    listed = importlib.metadata.requires(DISTRIBUTION) or []
    # Optional extras need not be installed.
    requirements = [Requirement(text) for text in listed if "extra ==" not in text]
    outside = []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            outside.append(f"{requirement} is missing")
            continue
        # Somebody's own build of torch may be a prerelease.
        if not requirement.specifier.contains(version, prereleases=True):
            outside.append(f"{requirement.name} {version} is outside {requirement.specifier}")
    versions = "; ".join(outside) or f"{len(requirements)} within their bounds"
    return Check(
        "packages", not outside, versions, "pip install -c constraints.txt -e ." if outside else ""
    )


def torch_pair() -> Check:
    """Whether torch and torchvision match: with a mismatched pair, open_clip, diffusers and
    transformers do not import either.
    """
    try:
        torch = importlib.import_module("torch")
        torchvision = importlib.import_module("torchvision")
    # RuntimeError: "operator torchvision::nms does not exist", with a torch of another build.
    except (ImportError, RuntimeError) as error:
        return Check(
            "torch",
            False,
            f"torch and torchvision do not fit together: {str(error).splitlines()[0]}",
            "install both from the same place: pip install --force-reinstall -c constraints.txt"
            " torch torchvision (or, for your own build of torch, the torchvision from the index"
            " that it came from)",
        )
    return Check("torch", True, f"torch {torch.__version__}, torchvision {torchvision.__version__}")


def devices() -> Check:
    """GPUs, or the CPU's cores."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, RuntimeError) as error:
        return Check("devices", False, str(error).splitlines()[0])
    if torch.cuda.is_available():
        return Check("devices", True, "; ".join(gpus()))
    cores = f"{len(os.sched_getaffinity(0))} cores of {cpu_model()}"
    return Check("devices", True, f"no GPU; {cores}, enough for the pipelines demo and folder")


def disk(root: Path) -> Check:
    """Disk space, and permission to write."""
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        return Check(
            "store", False, f"{root} cannot be written", "choose another with HDM_STORE or --store"
        )
    room = f"{root}, {free / 1e9:.1f} GB free"
    return Check(
        "store",
        free >= DISK_BYTES,
        room,
        "" if free >= DISK_BYTES else "make room or choose another with HDM_STORE or --store",
    )


def services_databases(root: Path) -> Check:
    """Whether the databases of Prefect and MLflow in the store can be read."""
    there = databases(root)
    wrong = [f"{path}: {reason}" for path in there if (reason := damage(path))]
    state = "; ".join(wrong) or f"{len(there)} of Prefect and MLflow can be read"
    return Check("databases", not wrong, state, f"set aside: {MEND}" if wrong else "")


def measured(root: Path) -> Check:
    """Whether this machine's card was checked and measured, by `hdm bench`."""
    path = root / NAME
    if not path.exists():
        return Check("measured", True, "no card yet: hdm bench checks and measures the one here")
    try:
        found = read_measured(path)
    except HdmError as error:
        return Check("measured", False, f"{path}: {error.what}", AGAIN)
    wrong = found.wrong
    about = f"{found.card} on {found.began}, {path}"
    if wrong:
        names = "; ".join(row.what or row.item for row in wrong)
        return Check("measured", False, f"{about}: wrong: {names}", "look at docs/gpu.md")
    return Check("measured", True, about)
