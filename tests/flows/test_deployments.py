"""The deployments of pipelines.yaml fit the flows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from prefect import Flow
from prefect.cli.deploy._models import DeploymentConfig
from ruamel.yaml import YAML

import tasks
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
