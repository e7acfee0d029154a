"""Steps made for a plan, against a training of the same phase."""

from __future__ import annotations

import json

import pytest

from hdm.errors import HdmError, InputError
from hdm.planning.hardware import card
from hdm.planning.plan import Question, make_plan
from hdm.planning.timed_steps import measure
from hdm.store import Output
from hdm.training.process.job import TIMING
from tests.training.workshop import Workshop, make_workshop

WIDE = dict(width=256, num_heads=4, head_size=64, mlp_width=768)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """With a model and a batch whose memory shows beside that of the libraries."""
    small = make_workshop(tmp_path_factory.mktemp("measure"))
    train = small.pipeline.model_dump(mode="json")["train"]
    phase = {**train["phases"][0], "batch_size": 160, "num_images": 3 * 160, "micro_batch": None}
    return small.changed(
        model={**train["model"], **WIDE}, phases=[phase], checkpoint_sec=600, validate_every=None
    )


@pytest.fixture(scope="module")
def trained(workshop: Workshop) -> Output:
    return workshop.train()


def test_the_peak_memory_of_its_steps_is_that_of_the_training(
    workshop: Workshop, trained: Output
) -> None:
    found = measure(workshop.pipeline, 0)
    lines = [json.loads(line) for line in (trained.path / TIMING).read_text().splitlines()]
    # With the last line comes the held-out loss.
    assert found.memory_bytes == pytest.approx(1e9 * lines[-2]["peak_memory_gb"], rel=0.1)
    assert found.step_sec > 0


def test_a_training_leaves_what_was_planned(workshop: Workshop, trained: Output) -> None:
    download = workshop.pipeline.download.model_copy(update={"expected_items": 40})
    plan = make_plan(
        Question(
            workshop.pipeline.model_copy(update={"download": download}), workshop.store, card("cpu")
        )
    )
    row = next(row for row in plan.rows if row.name == trained.name)
    assert row.items == trained.counts["images_seen"]
    assert row.bytes == pytest.approx(
        sum(file.bytes for file in trained.files if file.name.endswith(".safetensors")), rel=0.01
    )


def test_it_says_what_the_steps_died_of(workshop: Workshop) -> None:
    model = {**workshop.pipeline.model_dump(mode="json")["train"]["model"], "text_width": 24}
    with pytest.raises(HdmError, match="24"):
        measure(workshop.changed(model=model).pipeline, 0)


def test_a_model_that_is_not_here_is_named(workshop: Workshop) -> None:
    components = workshop.pipeline.components.model_copy(update={"autoencoder": "nobody/knows"})
    with pytest.raises(InputError, match="nobody/knows"):
        measure(workshop.pipeline.model_copy(update={"components": components}), 0)
