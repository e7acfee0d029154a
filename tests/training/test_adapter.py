"""Training an adapter alone: it is what is measured, averaged, kept as best and written."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hdm.training import assembly
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import Job
from hdm.training.trainer import Trainer
from tests.training.adapter import AVERAGED_FILE, FILE, make_adapter
from tests.training.test_trainer import (
    StopAfter,
    _fresh_process,  # noqa: F401
    assert_same_bits,
    lines,
    milestones,
    with_phase,
)
from tests.training.workshop import Workshop


@pytest.fixture(scope="module")
def tuned(workshop: Workshop) -> Workshop:
    """Six steps that keep the best of three held-out losses, averages beside them."""
    adamw = {"kind": "adamw", "learning_rate": 1e-2}
    few = with_phase(workshop.cached(), num_images=48, micro_batch=None, optimizer=adamw)
    return few.changed(keep="best", validate_every=2, checkpoint_sec=1e7)


def trained(job: Job) -> Trainer:
    trainer = Trainer(job, StopRequest(), "cpu", make_adapter)
    assert trainer.run()
    return trainer


@pytest.fixture(scope="module")
def whole(tuned: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    torch.use_deterministic_algorithms(True)
    return trained(tuned.job(tmp_path_factory.mktemp("adapter")))


def of_adapter(tensors: dict[str, Tensor]) -> bool:
    return bool(tensors) and all(name.rpartition(".")[2] in ("down", "up") for name in tensors)


def test_the_rest_of_the_model_stays_as_it_was(whole: Trainer) -> None:
    begun = assembly.starting_model(whole.job).state_dict()
    for model in (whole.state.trainable.model, whole.state.trainable.averaged):
        now = {name.replace(".base.", "."): value for name, value in model.state_dict().items()}
        assert [name for name, value in begun.items() if not torch.equal(value, now[name])] == []
    moved = [name for name, value in whole.state.trainable.parameters().items() if value.any()]
    assert any(name.endswith("up") for name in moved)


def test_what_is_kept_averaged_and_written_is_the_adapter(whole: Trainer) -> None:
    job = whole.job
    losses = {
        line["step"]: line["validation_loss"] for line in lines(job) if "validation_loss" in line
    }
    best = min(losses, key=lambda step: losses[step])
    kept = Path(job.scratch) / "best" / f"{best:08d}"
    written = {FILE: "weights", AVERAGED_FILE: "ema"}
    for name, of_set in written.items():
        there = load_file(job.result / name)
        assert of_adapter(there)
        own = load_file(kept / f"{of_set}.safetensors")
        assert own.keys() == there.keys()
        assert all(torch.equal(value, own[key]) for key, value in there.items())
    snapshots = sorted((Path(job.scratch) / "milestones").glob("ema-*.safetensors"))
    assert len(snapshots) == 6
    assert all(load_file(path).keys() == there.keys() for path in snapshots)


def test_norms_are_of_the_adapter(tuned: Workshop, tmp_path: Path) -> None:
    job = tuned.changed(keep="last").job(tmp_path)
    trainer = trained(job)
    line = [line for line in lines(job) if "loss" in line][-1]
    weights = load_file(job.result / FILE).values()
    squares = [value.double().square().sum().item() for value in weights]
    told = [norm**2 for norm in line["weight_norm_of"].values()]
    assert sum(told) == pytest.approx(math.fsum(squares), rel=1e-5)
    assert line["grad_norm_of"].keys() == line["weight_norm_of"].keys()
    assert trainer.state.optimizers.tensors().keys() == {
        f"{name}:{what}"
        for name in trainer.state.trainable.parameters()
        for what in ("exp_avg", "exp_avg_sq", "step")
    }


def test_stops_change_no_bit(tuned: Workshop, whole: Trainer, tmp_path: Path) -> None:
    job = tuned.changed(checkpoint_sec=0.001).job(tmp_path)
    for times in (3, 2):
        assert Trainer(job, StopAfter(times), "cpu", make_adapter).run() is False
    saved = sorted(Path(job.scratch).glob("checkpoint-*"))[-1]
    assert of_adapter(load_file(saved / "weights.safetensors"))
    assert_same_bits(trained(job), whole)
    names = [FILE, AVERAGED_FILE, "metrics.jsonl", "generated.png"]
    for name in names:
        assert (job.result / name).read_bytes() == (whole.job.result / name).read_bytes()
    assert milestones(job) == milestones(whole.job)
    assert json.loads((job.result / "summary.json").read_bytes())["best_step"] >= 2
