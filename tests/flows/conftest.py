"""A Prefect server of their own for the flows' tests, once, and a pipeline of stages that take no
time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from flows.commands.run import OWN_SERVER
from hdm import stages
from hdm.config import Pipeline
from hdm.evaluation import report
from hdm.stage_work import OutputStep
from hdm.store import Identity, Output, Store

Make = Callable[[], object]


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    settings = {
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
    }
    os.environ |= OWN_SERVER  # as of the server of `hdm run`
    with temporary_settings(settings), prefect_test_harness(server_startup_timeout=120):
        yield


class SmallStages:
    """Six stages and two phases that write one small file each into a real store; `before[name]` is
    called before the output is made.
    """

    NAMES = (
        "download",
        "filter.measures",
        "filter",
        "caption",
        "encode.48px",
        "encode.64px",
        "train.48px",
        "train.64px",
        "evaluate",
    )

    def __init__(self) -> None:
        self.before: dict[str, Make] = {}
        self.made: list[str] = []

    def steps(self, pipeline: Pipeline) -> list[OutputStep[Pipeline]]:
        return [
            OutputStep(
                name,
                self.NAMES[place - 1 : place] if place else (),
                self._identify(name),
                self._make,
            )
            for place, name in enumerate(self.NAMES)
        ]

    def _identify(self, name: str) -> Callable[[Pipeline, Mapping[str, str]], Identity]:
        return lambda pipeline, inputs: Identity(
            name, 1, {"seed": pipeline.evaluate.seed if name == "evaluate" else 0}, dict(inputs)
        )

    def _make(
        self, pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
    ) -> Output:
        with store.draft(identity) as draft:
            self.before.get(identity.name, lambda: None)()
            self.made.append(identity.name)
            draft.write_json("made.json", {"name": identity.name}, {"items": 3})
            return draft.commit({"colour": 0.5})


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SmallStages:
    found = SmallStages()
    monkeypatch.setattr(stages, "steps", found.steps)
    monkeypatch.setattr(
        report, "write_report", lambda pipeline, made, folder, *rest: folder / "report.html"
    )
    monkeypatch.setenv("HDM_STORE", str(tmp_path))
    monkeypatch.setenv("HDM_TRACKING", "off")
    return found
