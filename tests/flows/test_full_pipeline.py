"""Flows on a real Prefect server: what is made, what is found, how failures and signals show."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId

from flows import full_pipeline as deployed
from flows import stages
from flows.full_pipeline import pipeline_flow
from hdm.errors import ConfigError, InputError
from tasks.configuration import Project
from tasks.outcome import Outcome

if TYPE_CHECKING:
    from tests.flows.conftest import SmallStages

pytestmark = pytest.mark.usefixtures("prefect_server")
MINE = (
    "pipelines: {mine: {components: {folder: demo}, download: {kind: scenes}, "
    "train: {model: {channels: 8, text_width: 128}}, evaluate: {seed: %d}}}"
)


def under(state: Any) -> dict[str, str]:
    """Outputs → state's name, of the flow runs under the one that ended in that state."""
    parent = FlowRunFilterParentFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter(parent_flow_run_id=parent))
    return {" ".join(run.parameters["outputs"]): str(run.state.name) for run in runs if run.state}


def test_every_stage_and_every_phase_is_a_flow_run_and_a_second_run_finds_them_all(
    small_stages: SmallStages,
) -> None:
    first = deployed.full_pipeline("demo", return_state=True)
    parts = {
        "download",
        "filter.measures filter",
        "caption",
        "encode.48px encode.64px",
        "train.48px",
        "train.64px",
        "evaluate",
    }
    assert under(first) == dict.fromkeys(parts, "Completed")
    assert small_stages.made == list(small_stages.NAMES)
    assert [(record.name, record.cached, record.counts) for record in first.result()] == [
        (name, False, {"items": 3}) for name in small_stages.NAMES
    ]

    second = deployed.full_pipeline("demo", return_state=True)
    assert second.name == "UpToDate"
    assert under(second) == dict.fromkeys(parts, "UpToDate")
    assert [record.digest for record in second.result()] == [
        record.digest for record in first.result()
    ]
    assert small_stages.made == list(small_stages.NAMES)

    changed = deployed.full_pipeline("demo", overrides=["evaluate.seed=7"], return_state=True)
    assert small_stages.made == [*small_stages.NAMES, "evaluate"]
    assert under(changed) == {**dict.fromkeys(parts, "UpToDate"), "evaluate": "Completed"}


def test_a_known_error_is_told_in_its_own_words(
    small_stages: SmallStages, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise InputError("the list is empty", where="urls.txt", do="write something into it")

    small_stages.before["caption"] = fail
    state = deployed.full_pipeline("demo", return_state=True)
    assert state.is_failed()
    error = state.result(raise_on_failure=False)
    assert isinstance(error, InputError)
    assert error.do == "write something into it"
    assert str(state.message) == str(error)
    assert "Traceback" not in capfd.readouterr().err

    del small_stages.before["caption"]
    assert [record.cached for record in deployed.full_pipeline("demo")] == [True] * 3 + [False] * 6


def test_sigterm_in_a_stage_cancels_the_run_and_a_rerun_goes_on(small_stages: SmallStages) -> None:
    def be_told_to_stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    small_stages.before["encode.64px"] = be_told_to_stop
    state = deployed.full_pipeline("demo", return_state=True)
    assert state.is_cancelled()
    assert under(state)["encode.48px encode.64px"] == "Cancelled"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    small_stages.before.clear()
    assert (
        next(record.name for record in deployed.full_pipeline("demo") if not record.cached)
        == "encode.64px"
    )


def test_a_file_that_is_edited_meanwhile_changes_the_next_run(
    small_stages: SmallStages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text(MINE % 1)
    monkeypatch.setenv("HDM_PIPELINES", str(file))
    small_stages.before["caption"] = lambda: bool(file.write_text(MINE % 2))
    first, second = deployed.full_pipeline("mine"), deployed.full_pipeline("mine")
    assert [record.cached for record in second] == [True] * 8 + [False]
    assert first[-1].digest != second[-1].digest


def test_each_run_of_a_project_has_a_report_of_its_own(
    small_stages: SmallStages, tmp_path: Path
) -> None:
    nothing_there, first, second = Outcome(), Outcome(), Outcome()
    project = Project(tmp_path, tracked=False)
    failed: Any = pipeline_flow(project, nothing_there)(
        "demo", start_from="encode", return_state=True
    )
    assert failed.is_failed()
    assert nothing_there.report is None
    pipeline_flow(project, first)("demo", stop_after="caption")
    pipeline_flow(project, second)("demo")
    pages = [first.report, second.report]
    folders = {page.parent for page in pages if page}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {tmp_path / "reports" / "demo"}


def test_projects_of_one_process_keep_apart(small_stages: SmallStages, tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    digests = []
    for seed, root in enumerate(roots):
        file = tmp_path / f"{seed}.yaml"
        file.write_text(MINE % seed)
        records = pipeline_flow(Project(root, file, tracked=False))("mine")
        assert all(Path(record.path).is_relative_to(root) for record in records)
        digests.append(records[-1].digest)
    assert digests[0] != digests[1]
    assert small_stages.made == 2 * list(small_stages.NAMES)
    assert not (tmp_path / "download").exists(), "the store that the environment names"


def test_parts_of_the_pipeline(small_stages: SmallStages) -> None:
    assert [record.name for record in deployed.full_pipeline("demo", stop_after="caption")] == list(
        small_stages.NAMES[:4]
    )
    deployed.full_pipeline("demo")
    assert [
        record.name
        for record in deployed.full_pipeline("demo", start_from="encode", stop_after="encode")
    ] == ["encode.48px", "encode.64px"]
    assert [
        record.name
        for record in deployed.full_pipeline(
            "demo", start_from="train.48px", stop_after="train.48px"
        )
    ] == ["train.48px"]
    assert [record.name for record in deployed.full_pipeline("demo", start_from="train.64px")] == [
        "train.64px",
        "evaluate",
    ]
    assert [record.name for record in stages.encode_latents("demo", outputs=["encode.64px"])] == [
        "encode.64px"
    ]
    backwards = deployed.full_pipeline(
        "demo", start_from="train", stop_after="filter", return_state=True
    )
    assert isinstance(backwards.result(raise_on_failure=False), ConfigError)


def test_a_run_is_written_down_for_status_and_sample(
    prefect_server: None, small_stages: SmallStages, tmp_path: Path
) -> None:
    from hdm.last_runs import last_runs, newest_model

    deployed.full_pipeline("demo", stop_after="train.48px")
    (run,) = last_runs(tmp_path)
    assert run.outputs["train.64px"] is None
    assert newest_model(tmp_path, "demo")[0].parent.name == "train.48px"
    deployed.full_pipeline("demo")
    model, parts = newest_model(tmp_path, "demo")
    assert model.parent.name == "train.64px"
    assert parts == {}  # the package's own
    deployed.full_pipeline("demo", overrides=["evaluate.seed=3"], stop_after="encode")
    assert newest_model(tmp_path, "demo")[0] == model


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.validate_every=0"], "train.validate_every = 0: must be a whole number"),
        (["evaluate.guidance=.nan"], "evaluate.guidance = nan: must be a number"),
        (["evaluate.prompts=nowhere.txt", "evaluate.size=50x50"], "2 settings cannot work"),
    ],
)
def test_settings_that_cannot_work_end_the_flow_before_its_first_stage(
    small_stages: SmallStages, overrides: list[str], said: str
) -> None:
    """As the form of a deployment gives them; a stage's own flow checks that stage."""
    state = deployed.full_pipeline("demo", overrides=overrides, return_state=True)
    found = state.result(raise_on_failure=False)
    assert isinstance(found, ConfigError)
    assert said in str(found)
    assert small_stages.made == []


def test_a_stage_run_alone_is_checked_alone(small_stages: SmallStages) -> None:
    deployed.full_pipeline("demo", stop_after="caption")
    small_stages.made.clear()
    wrong = ["train.phases.0.resolution=50"]
    found = stages.encode_latents("demo", overrides=wrong, return_state=True).result(
        raise_on_failure=False
    )
    assert isinstance(found, InputError)
    assert "use 48 or 64" in str(found)
    assert small_stages.made == []
