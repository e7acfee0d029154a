"""Training an adapter alone: it is what is measured, averaged, kept as best and written."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hdm.errors import ConfigError, InputError
from hdm.evaluation.painting import Painter
from hdm.model_files.file_names import ADAPTER, ADAPTER_CONFIG, CARD
from hdm.model_files.opening import Addition, model_digest, open_model
from hdm.model_files.weights import Weights, save_weights
from hdm.models.adapters import adapter_tensors
from hdm.models.xut import XUT
from hdm.store import SCRATCH
from hdm.training import assembly, phase
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import START, Job
from hdm.training.process.origin import check_origin
from hdm.training.trainer import Trainer
from tests.small_models import shaken
from tests.training.here import train_here
from tests.training.test_mending import contents, flip
from tests.training.test_trainer import (
    StopAfter,
    _fresh_process,  # noqa: F401
    assert_same_bits,
    lines,
    milestones,
    with_phase,
)
from tests.training.workshop import Workshop

LORA = {"method": "lora", "rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def base(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights on disk that an adapter is trained on."""
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    config = workshop.pipeline.train.model
    save_weights(path, Weights(config, shaken(config).state_dict()))
    return path


@pytest.fixture(scope="module")
def tuned(workshop: Workshop, base: Path) -> Workshop:
    """Six steps that keep the best of three held-out losses, averages beside them."""
    adamw = {"kind": "adamw", "learning_rate": 1e-2}
    few = with_phase(
        workshop.cached().changed(start={"weights": str(base)}),
        num_images=48,
        micro_batch=None,
        optimizer=adamw,
        adapter=LORA,
    )
    return few.changed(keep="best", validate_every=2, checkpoint_sec=1e7)


def trained(job: Job) -> Trainer:
    trainer = Trainer(job, StopRequest(), "cpu")
    assert trainer.run()
    return trainer


@pytest.fixture(scope="module")
def whole(tuned: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    torch.use_deterministic_algorithms(True)
    return trained(tuned.job(tmp_path_factory.mktemp("adapter")))


def test_the_rest_of_the_model_stays_as_it_was(whole: Trainer) -> None:
    begun = assembly.starting_model(whole.job).state_dict()
    trainable = whole.state.trainable
    for model in (trainable.model, trainable.averaged):
        now = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items()}
        assert [name for name, value in begun.items() if not torch.equal(value, now[name])] == []
    moved = [name for name, value in trainable.parameters().items() if value.any()]
    assert any("lora_B" in name for name in moved)
    # The base is in memory once.
    there = {value.data_ptr() for value in trainable.model.parameters() if not value.requires_grad}
    assert there
    assert there < {value.data_ptr() for value in trainable.averaged.parameters()}


def test_what_is_averaged_kept_and_written_is_the_adapter(whole: Trainer) -> None:
    job = whole.job
    losses = {
        line["step"]: line["validation_loss"] for line in lines(job) if "validation_loss" in line
    }
    best = min(losses, key=lambda step: losses[step])
    kept = load_file(Path(job.scratch) / "best" / f"{best:08d}" / "ema.safetensors")
    assert kept.keys() == whole.state.trainable.parameters().keys()
    written = load_file(job.result / ADAPTER)
    of_file = {f"base_model.model.{name.replace('.default', '')}": kept[name] for name in kept}
    assert written.keys() == of_file.keys()
    assert all(torch.equal(value, of_file[name]) for name, value in written.items())
    snapshots = sorted((Path(job.scratch) / "milestones").glob("ema-*.safetensors"))
    assert len(snapshots) == 6
    assert all(load_file(path).keys() == kept.keys() for path in snapshots)


def test_the_card_names_the_base_and_the_merged_weights_are_those_by_hand(
    whole: Trainer, base: Path
) -> None:
    folder = whole.job.result
    card = json.loads((folder / CARD).read_bytes())
    assert card["base"] == {"digest": model_digest(base), "output": None}
    tensors = load_file(folder / ADAPTER)
    merged = open_model(base, adapters=[Addition(folder)]).weights.tensors
    plain = open_model(base).weights.tensors
    changed = {name for name, value in merged.items() if not torch.equal(value, plain[name])}
    layers = {name.partition(".lora_")[0] for name in tensors}
    assert {f"base_model.model.{name.removesuffix('.weight')}" for name in changed} == layers
    for layer in layers:
        name = f"{layer.removeprefix('base_model.model.')}.weight"
        down, up = (tensors[f"{layer}.lora_{side}.weight"].double() for side in "AB")
        by_hand = plain[name] + 8 / 4 * up @ down
        assert (merged[name] - by_hand).abs().max() < 1e-6


def test_norms_are_of_the_adapter(tuned: Workshop, tmp_path: Path) -> None:
    job = tuned.changed(keep="last", ema_lengths=[]).job(tmp_path)
    trainer = trained(job)
    line = [line for line in lines(job) if "loss" in line][-1]
    weights = trainer.state.trainable.parameters()
    squares = [value.detach().double().square().sum().item() for value in weights.values()]
    told = [norm**2 for norm in line["weight_norm_of"].values()]
    assert sum(told) == pytest.approx(math.fsum(squares), rel=1e-5)
    assert line["grad_norm_of"].keys() == line["weight_norm_of"].keys()
    assert trainer.state.optimizers.tensors().keys() == {
        f"{name}:{what}" for name in weights for what in ("exp_avg", "exp_avg_sq", "step")
    }
    summary = json.loads((job.result / "summary.json").read_bytes())
    assert summary["parameters"] == sum(value.numel() for value in weights.values())


def test_stops_change_no_bit(tuned: Workshop, whole: Trainer, tmp_path: Path) -> None:
    job = tuned.changed(checkpoint_sec=0.001).job(tmp_path)
    for times in (3, 2):
        assert Trainer(job, StopAfter(times), "cpu").run() is False
    saved = sorted(Path(job.scratch).glob("checkpoint-*"))[-1]
    names = whole.state.trainable.parameters().keys()
    for of_set in ("weights", "ema"):
        assert load_file(saved / f"{of_set}.safetensors").keys() == names
    assert_same_bits(trained(job), whole)
    for name in (ADAPTER, ADAPTER_CONFIG, CARD, "metrics.jsonl", "generated.png"):
        assert (job.result / name).read_bytes() == (whole.job.result / name).read_bytes()
    assert milestones(job) == milestones(whole.job)
    assert json.loads((job.result / "summary.json").read_bytes())["best_step"] >= 2


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr"])
def test_dropout_of_an_adapter_survives_stops_and_recomputation(
    tuned: Workshop, tmp_path: Path, method: str
) -> None:
    adapter = {"method": method, "rank": 4, "dropout": 0.3}
    few = with_phase(tuned, adapter=adapter, num_images=24).changed(
        keep="last", validate_every=None
    )
    straight = trained(few.job(tmp_path / "straight"))
    job = few.changed(checkpoint_sec=0.001).job(tmp_path / "stopped")
    assert Trainer(job, StopAfter(2), "cpu").run() is False
    assert_same_bits(trained(job), straight)
    again = trained(with_phase(few, checkpoint_blocks=1.0).job(tmp_path / "again"))
    ours = adapter_tensors(again.state.trainable.model)
    for name, value in adapter_tensors(straight.state.trainable.model).items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    none = with_phase(few, adapter={**adapter, "dropout": 0.0})
    whole = adapter_tensors(trained(none.job(tmp_path / "none")).state.trainable.model)
    assert any((whole[name] - value).abs().max() > 1e-3 for name, value in ours.items())


@pytest.fixture(scope="module")
def made(workshop: Workshop, tuned: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """An adapter trained on another pipeline's output, in one store."""
    store = tmp_path_factory.mktemp("made")
    before = with_phase(workshop.cached(), num_images=16).changed(checkpoint_sec=1e7)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(phase, "run_training", train_here)
        first = before.elsewhere(store).train()
        # As `hdm.stages` gives it, where `train.start` names a pipeline.
        there = replace(tuned.elsewhere(store), inputs={**tuned.inputs, START: first})
        there = there.changed(start={"pipeline": "before"})
        there.train()
    return there


def test_its_output_is_read_with_its_base(made: Workshop) -> None:
    output = made.store.find(made.identity)
    assert output is not None
    first = made.inputs[START]
    assert {ADAPTER, ADAPTER_CONFIG, CARD, "generated.png"} < {one.name for one in output.files}
    assert not (output.path / "ema.safetensors").exists()
    card = json.loads((output.path / CARD).read_bytes())
    assert card["base"] == {
        "digest": model_digest(first.path), "output": f"{first.name}/{first.digest}"
    }  # fmt: skip
    read = open_model(output.path)
    by_hand = open_model(first.path, adapters=[Addition(output.path)])
    assert read.kind == "trained"
    assert read.card.resolution == 16
    assert all(
        torch.equal(value, by_hand.weights.tensors[name])
        for name, value in read.weights.tensors.items()
    )
    painted = Painter(made.pipeline, output, made.job(output.path / "x").autoencoder)
    assert painted.paint(["red circle"], [0])[0].shape == (16, 16, 3)


def test_without_its_base_beside_it_the_error_says_what_to_name(
    made: Workshop, tmp_path: Path
) -> None:
    output = made.store.find(made.identity)
    assert output is not None
    moved = tmp_path / "elsewhere" / "train.16px" / "0"
    moved.mkdir(parents=True)
    for name in (ADAPTER, CARD):
        (moved / name).write_bytes((output.path / name).read_bytes())
    with pytest.raises(InputError, match="not in the store beside it") as caught:
        open_model(moved)
    assert "--lora" in str(caught.value.do)


def test_what_is_damaged_beside_the_adapter_is_made_again(
    made: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = made.store.find(made.identity)
    assert output is not None
    before = contents(output.path)
    flip(output.path / "generated.png")
    assert made.store.find(made.identity) is None

    def no_training(job: Job) -> None:
        raise AssertionError("nothing is to be trained")

    monkeypatch.setattr(phase, "run_training", no_training)
    monkeypatch.setattr(phase, "make_companions", train_here)
    again = made.train()
    assert contents(again.path) == before


def resumed(tuned: Workshop, old: Job, **changes: Any) -> Job:
    """The phase with changes, from the unfinished one's checkpoint."""
    changed = with_phase(tuned, resume_from=f"{old.digest}@2", **changes)
    folder = Path(old.folder).parent / changed.identity.digest
    job = changed.job(folder)
    return replace(job, folder=str(folder), scratch=str(folder / SCRATCH))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"rank": 2}, r"adapter\.rank 4 → 2"),
        ({"targets": ["qkv"]}, r'adapter\.targets null → \["qkv"\]'),
        ({"method": "dora"}, r'adapter\.method "lora" → "dora"'),
        ({"alpha": 4.0}, r"adapter\.alpha 8\.0 → 4\.0"),
    ],
)
def test_what_fits_no_checkpoint_is_refused_by_name(
    tuned: Workshop, tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    old = stopped(tuned, tmp_path)
    allowed = {"resume_allow": [f"train.phases.0.adapter.{field}" for field in changes]}
    job = resumed(tuned, old, adapter={**LORA, **changes}, **allowed)
    with pytest.raises(ConfigError, match=f"do not fit other settings of .*{name}"):
        check_origin(job)


def test_another_base_fits_no_checkpoint(tuned: Workshop, base: Path, tmp_path: Path) -> None:
    old = stopped(tuned, tmp_path)
    other = tmp_path / "other.safetensors"
    config = tuned.pipeline.train.model
    save_weights(other, Weights(config, XUT(config).state_dict()))
    elsewhere = tuned.changed(start={"weights": str(other)})
    job = resumed(elsewhere, old, resume_allow=["components.start"])
    with pytest.raises(ConfigError, match=r"do not fit other settings of components\.start"):
        check_origin(job)


def stopped(tuned: Workshop, store: Path) -> Job:
    """Two steps of the phase, as they lie in a store."""
    job = tuned.job(store / "elsewhere")
    folder = store / tuned.identity.name / job.digest
    (folder / SCRATCH).mkdir(parents=True)
    job = replace(job, folder=str(folder), scratch=str(folder / SCRATCH))
    assert Trainer(job, StopAfter(2), "cpu").run() is False
    return job


def test_settings_that_cannot_work_are_refused(workshop: Workshop, base: Path) -> None:
    first = workshop.pipeline.model_dump(mode="json")["train"]["phases"][0]
    adapter = {**first, "adapter": LORA}
    start = {"weights": str(base)}
    with pytest.raises(ConfigError, match="needs a model that was trained"):
        workshop.changed(phases=[adapter])
    with pytest.raises(ConfigError, match="a phase follows on one that trains an adapter"):
        workshop.changed(phases=[adapter, {**first, "resolution": 32}], start=start)
    with pytest.raises(ConfigError, match="is not sharded"):
        workshop.changed(phases=[adapter], start=start, num_processes=2, sharding="full")


def test_targets_are_checked_before_anything_is_made(workshop: Workshop, base: Path) -> None:
    wrong = {**LORA, "targets": ["atn.qkv"]}
    there = with_phase(workshop.changed(start={"weights": str(base)}), adapter=wrong)
    (error,) = list(phase.preflight(there.pipeline, {}))
    assert "'atn.qkv' fits no layer" in error.what
    assert "attn.qkv" in str(error.do)


def test_the_digest_follows_the_adapter_and_without_one_is_as_before(
    workshop: Workshop, tuned: Workshop
) -> None:
    assert with_phase(workshop, adapter=None).identity.digest == workshop.identity.digest
    digests = {
        with_phase(tuned, adapter=adapter).identity.digest
        for adapter in (None, LORA, {**LORA, "rank": 5}, {**LORA, "dropout": 0.1})
    }
    assert len(digests) == 4
