"""The environment of this package's processes and of the children that they start.

Variables of a launcher (accelerate, torchrun, mpirun) change how Accelerate and torch compute: they
would scale gradients, pick a device, or wait for processes that never start, while the digest stays
the same. The number of training processes is a setting instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

LAUNCHER_NAMES = frozenset({"FORK_LAUNCHED", "NODE_RANK", "RANK", "WORLD_SIZE"})
LAUNCHER_PREFIXES = (
    "ACCELERATE_",
    "DEEPSPEED_",
    "FSDP_",
    "GROUP_",
    "LOCAL_",
    "MASTER_",
    "MEGATRON_LM_",
    "MPI_LOCAL",
    "MV2_COMM_WORLD_",
    "OMPI_COMM_WORLD_",
    "PARALLELISM_CONFIG_",
    "PMI_",
    "ROLE_",
    "TORCHELASTIC_",
)
FROM_TORCHRUN = ("GROUP_", "LOCAL_", "MASTER_", "RANK", "ROLE_", "TORCHELASTIC_", "WORLD_SIZE")
"""The variables that torchrun sets for the ranks that it starts."""

log = logging.getLogger(__name__)


def child_environment(defaults: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables without those of launchers, which a warning names, and with the path
    of our packages, which need not be installed.

    Args:
        defaults: values of variables that the user has not set.
    """
    # Our packages first, then the user's.
    found = [
        str(Path(__file__).resolve().parents[1]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    unwanted = _launcher_variables()
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    _warn(unwanted)
    ours = {
        "PYTHONPATH": os.pathsep.join(found),
        "PYTHONSAFEPATH": "1",  # a working folder may hold packages called flows or tasks
    }
    return {**(defaults or {}), **kept, **ours}


def forget_launchers(keep: tuple[str, ...] = ()) -> None:
    """Remove the variables of launchers from this process's environment, and name them in a
    warning.

    Call it before torch or Accelerate read them, at the start of anything that trains, encodes or
    measures in the caller's process.

    Args:
        keep: prefixes of names that are kept: `FROM_TORCHRUN` in a rank that our own torchrun
            started.
    """
    unwanted = [name for name in _launcher_variables() if not name.startswith(keep or ("\0",))]
    for name in unwanted:
        del os.environ[name]
    _warn(unwanted)


def _launcher_variables() -> list[str]:
    found = []
    for name in os.environ:
        if name in LAUNCHER_NAMES or name.startswith(LAUNCHER_PREFIXES):
            found.append(name)
    return sorted(found)


def _warn(names: list[str]) -> None:
    if names:
        log.warning(
            "ignored: variables of a launcher (%s); train.num_processes sets how many processes"
            " train",
            ", ".join(names),
        )
