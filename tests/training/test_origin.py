"""Going on from an unfinished training with other settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from hdm.errors import ConfigError, HdmError, InputError
from hdm.store import SCRATCH
from hdm.training.process.guard import Stopped, StopRequest
from hdm.training.process.job import ERROR, Job, write_outcome
from hdm.training.process.origin import check_origin, notice
from hdm.training.state import checkpoint
from hdm.training.state.position import Position
from hdm.training.trainer import Trainer
from tests.training.workshop import Workshop

RATE = "train.phases.0.optimizer.learning_rate"


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


class Stop(StopRequest):
    """Before the step after so many, or at the end, where other tests look on."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self.trainer: Trainer | None = None
        self.after = after

    @property
    def requested(self) -> bool:
        return self.trainer is not None and self.trainer.state.position.step == self.after

    @requested.setter
    def requested(self, value: bool) -> None:
        pass

    def release(self) -> None:
        raise Stopped


def trained(job: Job, after: int | None = None) -> Trainer:
    stop = Stop(after)
    stop.trainer = trainer = Trainer(job, stop, "cpu")
    if after is None:
        with pytest.raises(Stopped):
            trainer.run()
    else:
        assert not trainer.run()
    return trainer


def job_of(
    workshop: Workshop, store: Path, optimizer: dict[str, Any] | None = None, **phase: Any
) -> Job:
    """The phase's training as it lies in a store, with changed settings."""
    before = workshop.pipeline.model_dump(mode="json")["train"]["phases"][0]
    changed = {**before, **phase, "optimizer": {**before["optimizer"], **(optimizer or {})}}
    there = workshop.changed(phases=[changed], checkpoint_sec=1e7, validate_every=None)
    job = there.job(store / "elsewhere")
    folder = store / there.identity.name / job.digest
    (folder / SCRATCH).mkdir(parents=True, exist_ok=True)
    return replace(job, folder=str(folder), scratch=str(folder / SCRATCH))


@pytest.fixture
def old(workshop: Workshop, tmp_path: Path) -> Job:
    """A training that stopped after five steps."""
    job = job_of(workshop, tmp_path)
    job.write()
    trained(job, after=5)
    return job


def test_a_rate_that_is_allowed_by_name_takes_over_where_the_old_one_was(
    workshop: Workshop, tmp_path: Path, old: Job
) -> None:
    origin, other = f"{old.digest}@5", {"learning_rate": 0.01}

    told = notice(job_of(workshop, tmp_path, other))
    assert told
    assert f"resume_from={origin}" in told
    assert f"{RATE} 0.001 → 0.01" in told
    assert RATE in told.partition("resume_allow=")[2]
    with pytest.raises(ConfigError, match=f"{RATE} 0.001 → 0.01") as caught:
        check_origin(job_of(workshop, tmp_path, other, resume_from=origin))
    assert f'resume_allow=["{RATE}"]' in (caught.value.do or "")

    job = job_of(workshop, tmp_path, other, resume_from=origin, resume_allow=[RATE])
    check_origin(job)
    assert notice(job) is None
    trained(job, after=8)
    trainer = trained(job)  # the second time from its own checkpoint
    assert trainer.state.position.step == 12
    naive = Trainer(job_of(workshop, tmp_path / "naive", other), StopRequest(), "cpu")
    kept = checkpoint.read(Path(old.scratch) / "checkpoint-00000005")
    naive.state.load_tensors(kept)
    naive.state.position = Position.of(kept.state["position"])
    while naive.state.position.step < 12:
        naive.step()
    for mine, oracle in (
        (trainer.state.trainable.model, naive.state.trainable.model),
        (trainer.state.trainable.averaged, naive.state.trainable.averaged),
    ):
        assert all(
            torch.equal(value, oracle.state_dict()[name])
            for name, value in mine.state_dict().items()
        )
    lines = (Path(job.folder) / "metrics.jsonl").read_bytes()
    assert lines.startswith(kept.metrics), "the curve goes on"
    assert job.digest not in (old.digest, job_of(workshop, tmp_path, other).digest), (
        "what comes out tells where it came from"
    )


def test_going_on_is_offered_for_the_same_pipeline_and_data_unless_it_failed(
    workshop: Workshop, tmp_path: Path, old: Job
) -> None:
    job = job_of(workshop, tmp_path, {"learning_rate": 0.01})
    assert notice(job)

    elsewhere = {**job.identity, "inputs": {**job.identity["inputs"], "filter": "0" * 16}}
    assert notice(replace(job, identity=elsewhere)) is None
    assert notice(replace(job, pipeline={**job.pipeline, "name": "another"})) is None

    write_outcome(Path(old.scratch), 0, ERROR, HdmError("training exploded"))
    assert notice(job) is None


def test_what_cannot_be_gone_on_from_is_refused(
    workshop: Workshop, tmp_path: Path, old: Job
) -> None:
    with pytest.raises(
        InputError,
        match=f"there is no checkpoint 0abc@7; unfinished trainings of this phase: {old.digest}@5",
    ):
        check_origin(job_of(workshop, tmp_path, resume_from="0abc@7"))
    field = "train.phases.0.optimizer.kind"
    with pytest.raises(ConfigError, match=r'do not fit other settings of .*kind "muon" → "adamw"'):
        check_origin(
            job_of(
                workshop,
                tmp_path,
                {"kind": "adamw"},
                resume_from=f"{old.digest}@5",
                resume_allow=[field],
            )
        )
    allowed: dict[str, Any] = {
        "resume_from": f"{old.digest}@5",
        "resume_allow": ["train.phases.0.batch_size"],
    }
    with pytest.raises(
        ConfigError, match="has seen 40 images, from where batches of 12 do not lead to 96"
    ):
        check_origin(job_of(workshop, tmp_path, batch_size=12, **allowed))
    job = job_of(workshop, tmp_path, batch_size=4, **allowed)
    check_origin(job)
    trainer = Trainer(job, StopRequest(), "cpu")
    assert (
        trainer.state.position.step,
        trainer.state.position.num_images_seen,
        trainer.num_steps,
    ) == (
        10,
        40,
        24,
    )
    trainer.prefetcher.close()
