"""What cannot work is told before anything runs, all of it at once, and only of the stages that will run."""

from pathlib import Path

import pytest
import torch

from hdm.errors import ConfigError, InputError
from hdm.pipelines import load_pipeline
from hdm.stages import chosen, preflight, problems, run
from hdm.store import Store

SMALL = (
    "download.scenes.count=12",
    "download.scenes.faults=0",
    "download.shard_items=6",
)


def told(tmp_path: Path, *overrides: str, until: str | None = None) -> str:
    """What the preflight says of the demo with other settings; empty: nothing."""
    pipeline = load_pipeline("demo", overrides, None, {})
    return "\n".join(map(str, problems(pipeline, Store(tmp_path), None, until)))


def test_every_shipped_pipeline_with_its_models_here_is_fine(tmp_path: Path) -> None:
    assert told(tmp_path) == ""


def test_all_stages_are_told_of_at_once_each_with_where_and_what_to_do(tmp_path: Path) -> None:
    overrides = ["evaluate.prompts=nowhere.txt", "components.aesthetic_head=nowhere.pth"]
    with pytest.raises(ConfigError, match="2 settings cannot work") as caught:
        preflight(load_pipeline("demo", overrides, None, {}), Store(tmp_path))
    assert str(caught.value).count("nowhere.txt") >= 1
    assert str(caught.value).count("nowhere.pth") >= 1
    assert str(caught.value).count("→") == 2
    assert not list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize("stage", ["filter", "caption", "encode", "train", "evaluate"])
def test_a_device_that_is_not_there(stage: str, tmp_path: Path) -> None:
    assert f"({stage}.device)" in told(tmp_path, f"{stage}.device=cuda")


def test_only_the_stages_that_will_run_are_checked(tmp_path: Path) -> None:
    wrong = "evaluate.prompts=nowhere.txt"
    assert "nowhere.txt" in told(tmp_path, wrong)
    assert told(tmp_path, wrong, until="train") == ""


def test_what_is_finished_is_not_checked(tmp_path: Path) -> None:
    store, demo = Store(tmp_path), load_pipeline("demo", SMALL, None, {})
    wrong = load_pipeline("demo", [*SMALL, "filter.device=cuda:99"], None, {})
    assert len(problems(wrong, store, None, "filter")) == 1
    list(run(demo, store, stop_after="filter"))
    assert problems(wrong, store, None, "filter") == []
    assert {step.stage for step in chosen(wrong, None, "filter")} == {"download", "filter"}


def test_an_error_alone_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read the prompts"):
        preflight(
            load_pipeline("demo", ["evaluate.prompts=nowhere.txt"], None, {}), Store(tmp_path)
        )
