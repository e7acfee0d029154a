"""Pipelines in the documents are what they are said to be: the checks before a run pass them."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest

from hdm.definitions import read_section
from hdm.evaluation.prompts import check_held_out, check_prompts
from hdm.pipelines import load_pipeline
from tests.told_commands import PROJECT


def test_the_pipeline_for_ones_own_adapter_has_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (PROJECT / "docs" / "finetuning.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\npipelines:\n(.*?)```", page, re.DOTALL)
    assert found is not None
    starter = files("hdm").joinpath("starter", "pipelines.yaml").read_text(encoding="utf-8")
    file = tmp_path / "pipelines.yaml"
    file.write_text(f"{starter}\n{found[1]}", encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a crescent\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert {"mine", "mine-lora"} <= read_section(file, "pipelines").keys()
    pipeline = load_pipeline("mine-lora", file=file)
    check_prompts(pipeline)
    check_held_out(pipeline, None)
    assert pipeline.train.phases[-1].adapter is not None
