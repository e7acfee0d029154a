"""Runs in MLflow's own database, as a person finds them there."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hdm.errors import InputError
from hdm.store import Identity, Store
from tasks.tracker import Keeper
from tasks.tracking import database, log_files, matching, tracked_outputs

AT = 1_700_000_000.0
RUN = {
    "event": "run",
    "at": AT,
    "pipeline": "demo",
    "recipe": "r" * 16,
    "overrides": ["filter.min_side_px=64"],
    "pid": 1,
    "flow_run": "f",
}


END = {"event": "end", "at": AT + 5, "status": "FINISHED"}


@pytest.fixture(autouse=True)
def _no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def outputs(root: Path) -> Iterator[dict[str, Any]]:
    """A download and a training phase, begun and made."""
    before: dict[str, str] = {}
    for name in ("download", "train.64px"):
        with Store(root).draft(Identity(name, 1, {"phase": {"resolution": 64}}, before)) as draft:
            yield {"event": "begin", "at": AT, "name": name, "folder": str(draft.path)}
            with draft.write("metrics.jsonl") as file:
                file.path.write_text(
                    "".join(
                        json.dumps({"num_images_seen": 8 * n, "loss": 1 / n}) + "\n"
                        for n in (1, 2, 4)
                    )
                )
                file.counts["items"] = 7
            draft.write_json("weights.safetensors", [])
            draft.figures["busy_share"] = 0.75
            output = draft.commit({"parameters": 12})
        before = {name: output.digest}
        yield {
            "event": "made",
            "at": AT + 2,
            "name": name,
            "digest": output.digest,
            "path": str(output.path),
            "counts": {"items": 7},
            "seconds": 2.0,
            "cached": False,
        }


def told(root: Path, events: list[dict[str, Any]]) -> Keeper:
    arriving: queue.Queue[dict[str, Any] | None] = queue.Queue()
    for event in [*events, None]:
        arriving.put(event)
    keeper = Keeper(root)
    keeper.keep(arriving)
    return keeper


def test_a_training_is_tracked_that_starts_from_another_pipelines(tmp_path: Path) -> None:
    def events() -> Iterator[dict[str, Any]]:
        yield {**RUN, "params": {}}
        yield from outputs(tmp_path)
        (start,) = tmp_path.glob("train.64px/*")
        tuned = Identity(
            "train.64px", 1, {}, {"start/train": start.name, "mix.0/train.64px": start.name}
        )
        with Store(tmp_path).draft(tuned) as draft:
            yield {"event": "begin", "at": AT, "name": tuned.name, "folder": str(draft.path)}
            draft.write_json("adapter_model.safetensors", [])
            output = draft.commit({})
        made = {"digest": output.digest, "path": str(output.path), "counts": {}, "cached": False}
        yield {"event": "made", "at": AT + 3, "name": tuned.name, **made, "seconds": 2.0}
        yield END

    keeper = told(tmp_path, list(events()))
    assert not keeper.waiting
    assert not keeper.warned


def test_a_run_its_outputs_series_inputs_and_model(tmp_path: Path) -> None:
    run = {**RUN, "params": {"filter.min_side_px": 64, "train.prompts": ["a red disc"]}}
    keeper = told(
        tmp_path, [run, *outputs(tmp_path), {"event": "end", "at": AT + 5, "status": "FINISHED"}]
    )
    assert not keeper.waiting
    assert not keeper.warned

    from mlflow import MlflowClient

    client = MlflowClient(database(tmp_path), registry_uri=database(tmp_path))
    experiment = client.get_experiment_by_name("demo")
    assert experiment
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent, download, train = runs["demo rrrrrr"], runs["download"], runs["train.64px"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.info.end_time - parent.info.start_time == 5000
    assert parent.data.params["filter.min_side_px"] == "64"
    assert parent.data.metrics["train.64px.loss"] == 0.25
    assert parent.data.metrics["download.items"] == 7
    assert parent.data.metrics["download.busy_share"] == download.data.metrics["busy_share"] == 0.75
    assert train.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert {run.data.tags["dataset"] for run in runs.values()} == {download.data.tags["digest"]}
    assert train.inputs is not None
    assert [(data.dataset.name, data.dataset.digest) for data in train.inputs.dataset_inputs] == [
        ("download", download.data.tags["digest"])
    ]
    points = client.get_metric_history(train.info.run_id, "loss")
    assert sorted({(point.step, point.value) for point in points}) == [
        (8, 1.0),
        (16, 0.5),
        (32, 0.25),
    ]
    assert client.get_model_version_by_alias("demo", "newest").run_id == train.info.run_id
    assert "manifest.json" in [file.path for file in client.list_artifacts(train.info.run_id)]

    # The same flow run again, killed without a word: the run goes on, and its end is known.
    told(tmp_path, [run])
    assert [
        run.info.status
        for run in client.search_runs([experiment.experiment_id], "tags.stage = 'all'")
    ] == ["KILLED"]


def test_no_number_is_left_out_and_a_long_text_ends_with_a_sign(tmp_path: Path) -> None:
    begin, made, *rest = outputs(tmp_path)
    made["counts"] = {f"failed_{number}": number for number in range(950)}
    failed = {"event": "failed", "at": AT, "name": "train.64px", "status": "FAILED"}
    run = {**RUN, "params": {"train.prompts": ["a red disc"] * 1000}}
    told(tmp_path, [run, begin, made, rest[0], {**failed, "message": "x" * 6000}, END])

    from mlflow import MlflowClient

    client = MlflowClient(database(tmp_path), registry_uri=database(tmp_path))
    experiment = client.get_experiment_by_name("demo")
    assert experiment
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert made["counts"].items() <= runs["download"].data.metrics.items()
    assert runs["demo rrrrrr"].data.params["train.prompts"].endswith("…")
    assert runs["train.64px"].data.tags["message"].endswith("x…")


def test_pictures_are_there_while_training_goes_on(tmp_path: Path) -> None:
    milestones = tmp_path / "train.64px/1234/.scratch/milestones"
    milestones.mkdir(parents=True)
    for name in (
        "generated-0000000032.png",
        ".tmp-1-generated-0000000064.png",
        "ema-0.1-00000004.safetensors",
    ):
        (milestones / name).write_bytes(b"made")
    begin = {"event": "begin", "at": AT, "name": "train.64px", "folder": str(milestones.parents[1])}
    keeper = told(tmp_path, [{**RUN, "params": {}}, begin])  # killed in the midst of it
    assert not keeper.warned

    from mlflow import MlflowClient

    client = MlflowClient(database(tmp_path), registry_uri=database(tmp_path))
    assert keeper.mirror
    assert [file.path for file in client.list_artifacts(keeper.mirror.children["train.64px"])] == [
        "generated-0000000032.png"
    ]


def test_no_server_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "TRACKING_URI": "http://127.0.0.1:9",
        "HTTP_REQUEST_MAX_RETRIES": "0",
        "HTTP_REQUEST_TIMEOUT": "1",
    }.items():
        monkeypatch.setenv(f"MLFLOW_{name}", value)
    monkeypatch.setattr("tasks.tracker.PATIENCE_SEC", 0.0)
    keeper = told(
        tmp_path, [{**RUN, "params": {}}, {"event": "end", "at": AT, "status": "FINISHED"}]
    )
    assert [event["event"] for event in keeper.waiting] == ["run", "end"]
    assert capsys.readouterr().out.count("warning") == 1


def test_no_point_is_lost_by_a_server_that_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    folder = tmp_path / "train.64px/1234"
    folder.mkdir(parents=True)
    metrics = folder / "metrics.jsonl"
    keeper = Keeper(tmp_path)
    keeper.waiting = [
        {**RUN, "params": {}},
        {"event": "begin", "at": AT, "name": "train.64px", "folder": str(folder)},
    ]
    assert keeper.hand_on()
    works = MlflowClient.log_batch

    def fails(client: MlflowClient, *args: Any, **kwargs: Any) -> None:
        works(client, *args, **kwargs)
        raise MlflowException("took it, and then did not answer in time")

    written = []
    for seen in (8, 16, 24, 32):
        written.append((seen, 1 / seen))
        with metrics.open("a") as file:
            file.write(json.dumps({"num_images_seen": seen, "loss": 1 / seen}) + "\n")
        outage = {8: works, 16: _refuses, 24: fails, 32: works}[seen]
        monkeypatch.setattr(MlflowClient, "log_batch", outage)
        assert keeper.hand_on() == (outage is works)
    assert keeper.mirror
    points = MlflowClient(database(tmp_path)).get_metric_history(
        keeper.mirror.children["train.64px"], "loss"
    )
    assert sorted((point.step, point.value) for point in points) == written


def _refuses(*args: Any, **kwargs: Any) -> None:
    raise ConnectionError


def test_the_cells_of_a_lab_are_child_runs_and_a_second_run_of_it_adds_only_new_ones(
    tmp_path: Path,
) -> None:
    run = {**RUN, "pipeline": "lab-small", "flow_run": "lab-small r", "params": {}}
    made = list(outputs(tmp_path))

    def cell(name: str) -> list[dict[str, Any]]:
        end = {"event": "cell_end", "at": AT + 3, "status": "FINISHED"}
        return [
            {
                "event": "cell",
                "at": AT,
                "name": name,
                "params": {"train.crop": "centre", "seed": 0},
            },
            *made,
            end,
        ]

    end = {"event": "end", "at": AT + 5, "status": "FINISHED"}
    assert not told(tmp_path, [run, *cell("crop/centre seed 0"), end]).warned
    assert not told(
        tmp_path, [run, *cell("crop/centre seed 0"), *cell("crop/centre seed 1"), end]
    ).warned

    from mlflow import MlflowClient

    client = MlflowClient(database(tmp_path), registry_uri=database(tmp_path))
    experiment = client.get_experiment_by_name("lab-small")
    assert experiment
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["crop/centre seed 0", "crop/centre seed 1", "lab-small rrrrrr"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    first = runs["crop/centre seed 0"]
    assert first.data.tags["mlflow.parentRunId"] == runs["lab-small rrrrrr"].info.run_id
    assert first.data.params["train.crop"] == "centre"
    assert first.data.metrics["train.64px.parameters"] == 12
    points = client.get_metric_history(first.info.run_id, "loss")
    assert [(point.step, point.value) for point in points].count((8, 1.0)) == 2, (
        "of both outputs, told once"
    )
    assert not client.search_registered_models(), "no short training is a version of a model"


def test_a_run_is_tagged_with_what_made_it(tmp_path: Path) -> None:
    made = {
        "code": {"version": "9.9", "commit": "c" * 40, "changed": True},
        "libraries": {"torch": "2.14", "mlflow": None},
        "machine": {"cpu": "Z80", "cores": 1, "gpus": ["H200, 150 GB"]},
    }
    keeper = told(tmp_path, [{**RUN, "params": {}, "provenance": made}])
    assert keeper.mirror
    assert not keeper.warned
    tags = keeper.mirror.client.get_run(keeper.mirror.parent).data.tags
    assert tags["code.version"] == "9.9"
    assert tags["code.commit"] == tags["mlflow.source.git.commit"] == "c" * 40
    assert tags["code.changed"] == "true"
    assert tags["libraries.torch"] == "2.14"
    assert tags["machine.cpu"] == "Z80"
    assert tags["machine.gpus"] == '["H200, 150 GB"]'


def test_searching_mlflow_by_names_with_quotes(tmp_path: Path) -> None:
    keeper = told(tmp_path, [{**RUN, "params": {}, "flow_run": "bob's"}] * 2)
    assert not keeper.warned
    assert keeper.mirror
    client, experiment = keeper.mirror.client, keeper.mirror.experiment
    runs = client.search_runs([experiment], matching({"tags.prefect_flow_run": "bob's"}))
    assert len(runs) == 1, "the second begin of the same flow run goes on in the first one's run"
    assert not client.search_runs([experiment], matching({"tags.prefect_flow_run": 'say "x"'}))
    with pytest.raises(ValueError, match="both kinds of quote"):
        matching({"name": "'\""})


def holding(database: Path, text: str) -> list[str]:
    """Every `table.column` of an SQLite file with a value that holds the text."""
    found = []
    with contextlib.closing(sqlite3.connect(database)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type='table'").fetchall()
        for (table,) in tables:
            for row in connection.execute(f"PRAGMA table_info({table})").fetchall():
                values = connection.execute(f'SELECT "{row[1]}" FROM "{table}"')
                if any(text in str(value) for (value,) in values):
                    found.append(f"{table}.{row[1]}")
    return found


@pytest.mark.parametrize("kept", [True, False], ids=["copied", "moved"])
def test_the_records_of_a_copied_or_moved_store_follow_it(tmp_path: Path, kept: bool) -> None:
    original, store = tmp_path / "the é% one", tmp_path / "an?other" / "one"
    assert not told(original, [{**RUN, "params": {}}, *outputs(original), END]).warned
    assert "model_versions.source" in holding(
        original / ".services" / "mlflow.db", original.as_uri()
    )
    shutil.copytree(original, store)
    if not kept:
        shutil.rmtree(original)

    def snapshot() -> dict[Path, float]:
        return {path: path.stat().st_mtime_ns for path in original.rglob("*")}

    before = snapshot()
    page = tmp_path / "page.html"
    page.write_text("second")
    second = {**RUN, "params": {}, "flow_run": "second", "recipe": "s" * 16}
    artifact = {"event": "artifact", "at": AT, "path": str(page)}
    keeper = told(store, [second, *outputs(store), artifact, END])
    assert not keeper.warned
    assert snapshot() == before, "nothing is written into the original"
    for text in (str(original), original.as_uri()):
        assert holding(store / ".services" / "mlflow.db", text) == []
    assert keeper.mirror
    client, experiment = keeper.mirror.client, keeper.mirror.experiment
    for run in client.search_runs([experiment]):
        assert run.info.artifact_uri.startswith(store.as_uri())
        names = [file.path for file in client.list_artifacts(run.info.run_id)]
        assert (run.data.tags["stage"] == "all") != ("manifest.json" in names)
        for name in names:
            assert Path(client.download_artifacts(run.info.run_id, name)).exists()
        assert run.inputs is not None
        for used in run.inputs.dataset_inputs:
            assert Path(json.loads(used.dataset.source)["uri"]).is_relative_to(store)
    for version in client.search_model_versions():
        assert str(version.source).startswith(store.as_uri())
        assert Path(version.tags["folder"]).is_dir() or not kept


def test_artifacts_stay_in_hdm_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store may be another user's: nothing goes there, and a moved folder is followed."""
    store, state = tmp_path / "theirs", tmp_path / "mine"
    page = tmp_path / "page.html"
    page.write_text("a report")
    for number in range(3):
        if number == 2:
            state = state.rename(tmp_path / "moved")
        monkeypatch.setenv("HDM_STATE", str(state))
        run = {**RUN, "params": {}, "flow_run": str(number)}
        artifact = {"event": "artifact", "at": AT, "path": str(page)}
        assert not told(store, [run, artifact, END]).warned
        kept = list((state / ".services" / "mlartifacts").rglob("page.html"))
        assert len(kept) == number + 1
        assert not store.exists()


ONE_OF_MANY = """
import sys, time
from pathlib import Path
import mlflow
from tasks.tracking import Mirror
root, number = Path(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
run = {"event": "run", "at": 1.0, "pipeline": "demo", "recipe": "r" * 16, "overrides": []}
Mirror(root).handle({**run, "pid": 1, "flow_run": number, "params": {}})
"""


def test_runs_that_begin_at_once_in_a_new_store_are_all_written_down(tmp_path: Path) -> None:
    root = tmp_path / "store"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_MANY, str(root), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    with contextlib.closing(sqlite3.connect(root / ".services" / "mlflow.db")) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (3,)


def test_the_outputs_of_a_run_are_found_by_its_id(tmp_path: Path) -> None:
    events = list(outputs(tmp_path))
    told(tmp_path, [{**RUN, "params": {}}, *events, END])

    from mlflow import MlflowClient

    made = {one["name"]: one["digest"] for one in events if one["event"] == "made"}
    found = MlflowClient(database(tmp_path), registry_uri=database(tmp_path))
    (experiment,) = [one for one in found.search_experiments() if one.name == "demo"]
    runs = found.search_runs([experiment.experiment_id])
    (parent,) = [one for one in runs if one.data.tags["stage"] == "all"]
    assert tracked_outputs(tmp_path, parent.info.run_id) == made
    (trained,) = [one for one in runs if one.data.tags.get("output") == "train.64px"]
    of_one = tracked_outputs(tmp_path, trained.info.run_id)
    assert of_one == {"train.64px": made["train.64px"]}
    page = tmp_path / "compare.html"
    page.write_text("<p>better</p>")
    log_files(tmp_path, parent.info.run_id, [page], "compare")
    listed = found.list_artifacts(parent.info.run_id, "compare")
    assert [one.path for one in listed] == ["compare/compare.html"]
    with pytest.raises(InputError, match="MLflow has no run 0000"):
        tracked_outputs(tmp_path, "0" * 32)
