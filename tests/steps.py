"""Steps as other processes get them: pickled, with nothing that was loaded before."""

from __future__ import annotations

import pickle
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hdm import parts
from hdm.parts import Step
from hdm.settings import ExecutionSettings
from hdm.store import Identity, Output, Store


def made_elsewhere(
    step: Step[Any, Any], root: Path, *identities: Identity, processes: int | None = None
) -> list[Output]:
    """The outputs of a step's copy, in another store."""
    for part in step.plan():
        assert pickle.loads(pickle.dumps(part)).files == part.files
    copy = pickle.loads(pickle.dumps(step))
    with ExitStack() as stack:
        drafts = [stack.enter_context(Store(root).draft(identity)) for identity in identities]
        return parts.make(copy, drafts, ExecutionSettings(processes=processes))


def contents(output: Output) -> dict[str, bytes]:
    """Every file that the manifest names, and the manifest."""
    names = [*(record.name for record in output.files), "manifest.json"]
    return {name: (output.path / name).read_bytes() for name in names}
