"""The deployments of pipelines.yaml fit the flows."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import Flow
from prefect.cli.deploy._models import DeploymentConfig
from prefect.settings import get_current_settings
from ruamel.yaml import YAML

import tasks
from flows.dead_runs import POOL
from flows.deployments import deploy
from flows.prefect_api import delete, post
from hdm.stage_list import stage_names, stages

PROJECT = Path(__file__).parents[2]
DEPLOYMENTS = YAML(typ="safe").load((PROJECT / "pipelines.yaml").read_text())["deployments"]


def test_every_stage_has_a_deployment() -> None:
    flows = ["full-pipeline", *(stage.flow for stage in stages())]
    assert [found["name"] for found in DEPLOYMENTS] == flows


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda found: found["name"])
def test_a_deployment_names_a_flow_by_its_module_path(deployment: dict[str, object]) -> None:
    entrypoint = DeploymentConfig.model_validate(deployment).entrypoint
    assert entrypoint
    module, _, name = entrypoint.rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    assert isinstance(flow, Flow)
    assert flow.name == deployment["name"]
    assert flow.persist_result
    assert flow.parameters.properties["pipeline"]["default"] == "demo"
    # Neither the store nor a file of pipelines: whoever may start a run chooses no folder here.
    parts = {"start_from", "stop_after", "outputs"}
    assert set(flow.parameters.properties) <= {"pipeline", "overrides", *parts}


def test_the_form_of_the_full_pipeline_offers_the_stages() -> None:
    from flows.full_pipeline import full_pipeline

    assert list(full_pipeline.parameters.properties) == [
        "pipeline",
        "start_from",
        "stop_after",
        "overrides",
    ]
    assert json.dumps(list(stage_names())) in json.dumps(full_pipeline.parameters.model_dump())
    assert "first stage" in full_pipeline.parameters.properties["start_from"]["description"]


def test_tasks_is_our_package() -> None:
    assert Path(str(tasks.__file__)).parent == PROJECT / "tasks"


def test_they_are_made_again_only_where_something_changed(
    prefect_server: None, tmp_path: Path
) -> None:
    api = get_current_settings().api.url
    environment = {**os.environ, "PREFECT_API_URL": str(api)}

    def deployed() -> dict[str, dict[str, Any]]:
        asked = {"work_pools": {"name": {"any_": [POOL]}}}
        return {one["name"]: one for one in post(f"{api}/deployments/filter", asked, None)}

    deploy(tmp_path, None, environment, tmp_path)
    first = deployed()
    assert set(first) == {found["name"] for found in DEPLOYMENTS}
    deploy(tmp_path, None, environment, tmp_path)
    assert deployed() == first, "nothing was written"

    # One removed, and one changed by somebody else: both are as they were after the next start.
    delete(f"{api}/deployments/{first['full-pipeline']['id']}", None)
    changed = httpx.patch(
        f"{api}/deployments/{first['train-model']['id']}", json={"job_variables": {"stream": False}}
    )
    assert changed.status_code == 204
    deploy(tmp_path, None, environment, tmp_path)
    again = deployed()
    assert set(again) == set(first)
    assert again["train-model"]["job_variables"] == first["train-model"]["job_variables"]
