"""The loop itself, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from hdm.diffusion.flow_matching import min_snr_weights
from hdm.errors import ConfigError, DoesNotFitError, HdmError, InputError
from hdm.store import read_output
from hdm.training import assembly
from hdm.training.denoising import Denoising
from hdm.training.prefetcher import Example
from hdm.training.process.guard import Stopped, StopRequest
from hdm.training.process.job import START, Job, mixed_name
from hdm.training.state import checkpoint
from hdm.training.state.position import Position
from hdm.training.trainer import Trainer, train
from tests.training.workshop import KEYS, Workshop, write_latents


@pytest.fixture(autouse=True)
def _fresh_process() -> Iterator[None]:
    """What a training process would set for itself alone."""
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


class StopAfter(StopRequest):
    """A signal that comes after it was asked for so many times: before each step, and before each
    batch of the held-out loss.
    """

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    def _get(self) -> bool:
        self.left -= 1
        return self.left < 0

    def _set(self, value: bool) -> None:
        pass

    requested = property(_get, _set)


class Finished(StopRequest):
    """No signal, but the end comes before measuring and generating, which other tests look at."""

    def release(self) -> None:
        raise Stopped


def run(job: Job) -> Trainer:
    """To the last step."""
    trainer = Trainer(job, Finished(), "cpu")
    with pytest.raises(Stopped):
        trainer.run()
    return trainer


def lines(job: Job) -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (Path(job.folder) / "metrics.jsonl").read_text().splitlines()
    ]


def losses(job: Job) -> list[Any]:
    return [line["loss"] for line in lines(job) if "loss" in line]


def all_tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {
        f"{name} {key}": value
        for name, values in trainer.state.tensors().items()
        for key, value in values.items()
    }


def assert_same_bits(one: Trainer, two: Trainer) -> None:
    first, second = all_tensors(one), all_tensors(two)
    assert first.keys() == second.keys()
    assert [name for name, value in first.items() if not torch.equal(value, second[name])] == []


@pytest.fixture(scope="module")
def straight(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Without a stop, and without a checkpoint before the end."""
    torch.use_deterministic_algorithms(True)
    changed = workshop.changed(checkpoint_sec=1e7, peak_tflops=None)
    return run(changed.job(tmp_path_factory.mktemp("straight")))


def test_stops_and_checkpoints_change_no_bit(
    workshop: Workshop, straight: Trainer, tmp_path: Path
) -> None:
    job = workshop.job(tmp_path)  # a checkpoint at each step
    for times in (6, 1, 2):  # the first two come while the held-out loss after step 5 is measured
        assert Trainer(job, StopAfter(times), "cpu").run() is False
    assert_same_bits(run(job), straight)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        Path(straight.job.folder) / "metrics.jsonl"
    ).read_bytes()
    assert milestones(job) == milestones(straight.job)
    assert list(milestones(job)) == [
        f"ema-{length}-{step:08d}.safetensors" for length in (0.1, 0.2) for step in (4, 8, 12)
    ]


def milestones(job: Job) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in sorted((Path(job.scratch) / "milestones").glob("[!.]*"))
    }


def test_a_training_keeps_the_number_of_threads_that_it_began_with(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = {"width": 128, "head_size": 64, "mlp_width": 256}
    wide = with_phase(
        workshop.cached().changed(
            model={**workshop.pipeline.train.model.to_dict(), **sizes}, validate_every=None
        ),
        batch_size=16,
        micro_batch=None,
        num_images=64,
    )

    def on(threads: int, folder: str) -> Job:
        pipeline = wide.pipeline.model_copy(update={"threads": threads})
        return replace(wide, pipeline=pipeline).job(tmp_path / folder)

    whole = run(on(2, "two"))
    assert losses(run(on(1, "one")).job) != losses(whole.job), "threads do not show in this test"
    assert not Trainer(on(2, "resumed"), StopAfter(2), "cpu").run()
    caplog.clear()
    assert_same_bits(run(on(1, "resumed")), whole)
    assert "goes on with 2 CPU threads, as it began" in caplog.text


def test_variables_of_a_launcher_change_no_bit(
    workshop: Workshop, straight: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert_same_bits(run(workshop.changed(checkpoint_sec=1e7).job(tmp_path)), straight)


def test_metrics_beyond_the_checkpoint_are_forgotten(
    workshop: Workshop, straight: Trainer, tmp_path: Path
) -> None:
    job = workshop.changed(checkpoint_sec=1e7).job(tmp_path)
    assert Trainer(job, StopAfter(4), "cpu").run() is False
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    run(job)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (
        Path(straight.job.folder) / "metrics.jsonl"
    ).read_bytes()


def test_it_learns(straight: Trainer) -> None:
    held_out = [
        line["validation_loss"] for line in lines(straight.job) if "validation_loss" in line
    ]
    assert held_out[-1] < held_out[0]


def test_norms_by_part_of_the_model_and_speed_are_told(straight: Trainer) -> None:
    job = straight.job
    for line in lines(job):
        if "loss" in line:
            parts = line["grad_norm_of"]
            assert line["grad_norm"] == pytest.approx(
                sum(norm**2 for norm in parts.values()) ** 0.5, rel=1e-5
            )
            assert {"in_patch", "backbone", "out_patch"} <= parts.keys()
    backbone = [
        value.double().square().sum()
        for value in straight.state.trainable.model.get_submodule("backbone").parameters()
    ]
    assert lines(job)[-1]["weight_norm_of"]["backbone"] == pytest.approx(
        torch.stack(backbone).sum().sqrt().item(), rel=1e-5
    )

    timing = [
        json.loads(line) for line in (Path(job.folder) / "timing.jsonl").read_text().splitlines()
    ]
    seconds = timing[-1]["seconds"]
    assert timing[-1]["hours"] == pytest.approx(seconds / 3600, rel=0.05)
    assert all(0 < line["utilisation"] < 1 and line["peak_is"] == "measured" for line in timing)
    assert all(0 <= line["data_wait"] <= 1 for line in timing)
    assert timing[-1]["optimizer_memory_gb"] == round(straight.state.optimizers.num_bytes / 1e9, 4)


def test_pictures_every_so_many_images_across_stops(
    workshop: Workshop, straight: Trainer, tmp_path: Path
) -> None:
    changed = workshop.changed(generate_every=30, ema_lengths=[])
    whole = run(changed.job(tmp_path / "whole"))
    names = [
        f"generated-{seen:010d}.png" for seen in (32, 64, 96)
    ]  # at the end of the steps that pass 30, 60 and 90
    assert list(milestones(whole.job)) == names
    assert len(set(milestones(whole.job).values())) == 3, (
        "the same prompts and noise, other weights"
    )
    assert Image.open(Path(whole.job.scratch) / "milestones" / names[0]).size == (64, 16)
    assert losses(whole.job) == losses(straight.job), "they leave the training alone"
    job = changed.job(tmp_path / "stopped")
    for times in (6, 3, 30):  # the second comes while the first ones are made
        assert Trainer(job, StopAfter(times), "cpu").run() is False
    run(job)
    assert milestones(job) == milestones(whole.job)
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (
        tmp_path / "whole/metrics.jsonl"
    ).read_bytes()


def with_phase(workshop: Workshop, **changes: Any) -> Workshop:
    first = workshop.pipeline.model_dump(mode="json")["train"]["phases"][0]
    return workshop.changed(phases=[{**first, **changes}])


class StoppedAfterNine(Trainer):
    """A trainer to whom a signal comes in its ninth step."""

    def step(self) -> None:
        super().step()
        self.ranks.stop.requested = self.state.position.step == 9


def test_bits_that_flip_in_files_of_an_unfinished_training_do_not_come_out(
    workshop: Workshop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They lie there from the step at which they were written until the phase is done."""
    changed = workshop.cached().changed(generate_every=48, validate_every=None, checkpoint_sec=1e7)
    job, whole = changed.job(tmp_path), ["ema-0.1-00000004.safetensors", "generated-0000000048.png"]
    assert not StoppedAfterNine(job, StopRequest(), "cpu").run()
    before = milestones(job)
    for name in whole:
        path = Path(job.scratch) / "milestones" / name
        path.write_bytes(before[name][:-1] + bytes([before[name][-1] ^ 1]))
    for _ in range(2):  # as after a kill before they were collected
        assert Trainer(job, StopRequest(), "cpu").run()
        summary = json.loads((job.result / "summary.json").read_bytes())
        assert summary["lost"] == whole
        assert summary["milestones"] == [
            *("ema-0.1-00000008.safetensors", "ema-0.1-00000012.safetensors"),
            *(f"ema-0.2-{step:08d}.safetensors" for step in (4, 8, 12)),
            "generated-0000000096.png",
        ]
        assert {path.name for path in job.result.iterdir()}.isdisjoint(whole)
    assert caplog.text.count("not what was written; set aside, and left out of the output") == 2


def test_a_tread_schedule_follows_the_images_seen_across_a_stop(
    workshop: Workshop, tmp_path: Path
) -> None:
    """Three quarters are dropped for the first half of 12 steps, from the U's first block alone;
    then none.
    """
    schedule = {"tread_schedule": [[0, 0.75], [0.5, 0]], "micro_batch": None}
    changed = with_phase(workshop, **schedule, tread_route=[1, 2])
    whole = run(changed.job(tmp_path / "whole"))
    kept = [whole.prefetcher.make(8 * step).kept for step in range(12)]
    num_tokens = whole.prefetcher.loader.batch(0).positions.shape[1]
    assert [None if tokens is None else tokens.shape[1] / num_tokens for tokens in kept] == [
        0.25
    ] * 6 + [None] * 6

    job = changed.job(tmp_path / "stopped")
    assert Trainer(job, StopAfter(5), "cpu").run() is False
    assert_same_bits(run(job), whole)
    elsewhere = run(with_phase(workshop, **schedule).job(tmp_path / "default"))
    assert losses(elsewhere.job) != losses(whole.job)


@pytest.fixture(scope="module")
def spoiling(workshop: Workshop) -> Workshop:
    """Training that soon makes things worse: a held-out loss every second step, whose lowest lies
    in the middle.
    """
    optimizer = {
        "kind": "adamw",
        "learning_rate": 0.03,
        "schedule": "constant",
        "betas": [0.9, 0.9],
    }
    return (
        with_phase(workshop, optimizer=optimizer, micro_batch=None)
        .cached()
        .changed(validate_every=2, validate_raw=True, ema_lengths=[], checkpoint_sec=1e7)
    )


def held_out(job: Job, name: str = "validation_loss") -> dict[int, float]:
    return {line["step"]: line[name] for line in lines(job) if name in line}


@pytest.mark.parametrize("watch", ["validation_loss", "raw_validation_loss"])
def test_the_best_weights_come_out_across_stops(
    spoiling: Workshop, tmp_path: Path, watch: str
) -> None:
    changed = spoiling.changed(keep="best", watch=watch)
    job = changed.job(tmp_path / "best")
    for times in (5, 9):
        assert Trainer(job, StopAfter(times), "cpu").run() is False
    trainer = Trainer(job, StopRequest(), "cpu")
    assert trainer.run()
    found = held_out(job, watch)
    best = min(found, key=found.__getitem__)
    assert 2 < best < 12, "the test's training does not show what it is to show"
    assert json.loads((job.result / "summary.json").read_bytes())["best_step"] == best

    there = Trainer(spoiling.job(tmp_path / "there"), StopRequest(), "cpu")
    while there.state.position.step < best:
        there.step()
    for name, model in (
        ("weights", there.state.trainable.model),
        ("ema", there.state.trainable.averaged),
    ):
        kept = load_file(job.result / f"{name}.safetensors")
        assert [
            key for key, value in model.state_dict().items() if not torch.equal(value, kept[key])
        ] == []
    # The raw weights' loss is told beside the average's, and is another.
    assert held_out(job).keys() == held_out(job, "raw_validation_loss").keys()
    assert held_out(job)[2] != held_out(job, "raw_validation_loss")[2]


def test_a_phase_ends_where_the_held_out_loss_stays_worse(
    spoiling: Workshop, tmp_path: Path
) -> None:
    whole = run(spoiling.job(tmp_path / "whole"))
    found = held_out(whole.job)
    best = min(found, key=found.__getitem__)
    changed = spoiling.changed(patience=2, ema_lengths=[0.1], ema_snapshots=1)
    job = changed.job(tmp_path / "patient")
    assert Trainer(job, StopAfter(11), "cpu").run() is False
    ended = run(job)
    assert ended.state.position.step == best + 4 < whole.num_steps
    assert held_out(job) == {step: loss for step, loss in found.items() if step <= best + 4}
    assert list(milestones(job)) == [f"ema-0.1-{best + 4:08d}.safetensors"], (
        "the snapshot of the end"
    )
    assert run(job).state.position.step == best + 4, "it is not begun again"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"keep": "best", "validate_every": None}, "train.validate_every"),
        ({"patience": 3, "watch": "raw_validation_loss"}, "train.watch"),
    ],
)
def test_a_choice_by_a_loss_that_is_not_measured_is_refused(
    workshop: Workshop, settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        workshop.changed(**settings)


@pytest.mark.parametrize("change", [{"micro_batch": None}, {"checkpoint_blocks": 1.0}])
def test_memory_settings_change_rounding_alone(
    workshop: Workshop, straight: Trainer, tmp_path: Path, change: dict[str, Any]
) -> None:
    changed = with_phase(workshop, **change)
    assert changed.identity.digest == workshop.identity.digest
    job = changed.job(tmp_path)
    run(job)
    assert losses(job) == pytest.approx(losses(straight.job), rel=1e-4)


def test_the_contrastive_term_does_not_depend_on_how_a_batch_is_cut(
    workshop: Workshop, straight: Trainer, tmp_path: Path
) -> None:
    whole = with_phase(workshop, micro_batch=None, num_images=24).changed(contrastive_weight=0.05)
    assert whole.identity.digest != with_phase(workshop, num_images=24).identity.digest
    found = []
    for micro_batch in (None, 2, 6):
        job = with_phase(whole, micro_batch=micro_batch).job(tmp_path / str(micro_batch))
        run(job)
        found.append(losses(job))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)
    # At first the model says 0 everywhere: the term is 5 % of a neighbour's squared velocity, as
    # the loss is of a sample's own.
    assert found[0][0] == pytest.approx(0.95 * losses(straight.job)[0], rel=1e-4)


def test_dropout_is_the_same_across_stops_and_recomputed_alike(
    workshop: Workshop, straight: Trainer, tmp_path: Path
) -> None:
    changed = workshop.cached().changed(dropout=0.2, validate_every=None)
    assert changed.identity.digest != workshop.cached().changed(validate_every=None).identity.digest
    whole = run(changed.job(tmp_path / "whole"))
    job = changed.job(tmp_path / "stopped")
    assert Trainer(job, StopAfter(5), "cpu").run() is False
    assert_same_bits(run(job), whole)
    # By the end what is dropped shows; at first, with a zero output layer, hardly.
    assert losses(whole.job)[-1] != pytest.approx(losses(straight.job)[-1], rel=1e-4)
    again = run(with_phase(changed, checkpoint_blocks=1.0).job(tmp_path / "again"))
    assert losses(again.job) == pytest.approx(losses(whole.job), rel=1e-5)


def test_weights_by_time_do_not_depend_on_how_a_batch_is_cut(
    workshop: Workshop, tmp_path: Path
) -> None:
    shorter = with_phase(
        workshop.cached().changed(min_snr_gamma=5.0, validate_every=None),
        num_images=24,
        timestep_shift=2.0,
    )
    found = []
    for micro_batch in (None, 3):
        job = with_phase(shorter, micro_batch=micro_batch).job(tmp_path / str(micro_batch))
        trainer = run(job)
        found.append(losses(job))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    # At first the model says about 0 everywhere: a sample's loss is its weight times its velocity
    # squared.
    example = trainer.prefetcher.make(0)
    squares = (example.noise - example.batch.latent).square().flatten(1).mean(1)
    weights = min_snr_weights(example.timestep, 5.0, 2.0)
    assert found[0][0] == pytest.approx((weights * squares).mean().item(), rel=0.01)
    assert found[0][0] != pytest.approx(squares.mean().item(), rel=0.1)


@pytest.mark.parametrize(
    ("phase", "train", "named"),
    [
        ({"micro_batch": 3}, {}, "phases.0.micro_batch"),
        (
            {"micro_batch": None, "batch_size": 6},
            {"num_processes": 2},
            "phases.0.batch_size, train.num_processes",
        ),
        (
            {"micro_batch": None, "batch_size": 8},
            {"num_processes": 3},
            "phases.0.batch_size, train.num_processes",
        ),
    ],
)
def test_pairs_that_would_be_cut_are_refused(
    workshop: Workshop, phase: dict[str, Any], train: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        with_phase(workshop, **phase).changed(contrastive_weight=0.05, **train)
    with_phase(workshop, **phase).changed(**train)  # without the term any cut will do


def test_bfloat16_keeps_float32_masters(
    workshop: Workshop, straight: Trainer, tmp_path: Path
) -> None:
    job = with_phase(workshop.changed(precision="bfloat16"), num_images=24).job(tmp_path)
    trainer = run(job)
    assert {value.dtype for value in all_tensors(trainer).values()} == {torch.float32}
    assert losses(job)[0] == pytest.approx(losses(straight.job)[0], rel=0.02)
    assert losses(job)[0] != losses(straight.job)[0]


def test_two_data_sets_are_trained_on_by_their_weights_across_a_stop(
    workshop: Workshop, tmp_path: Path
) -> None:
    again = {mixed_name(0, name): output for name, output in workshop.inputs.items()}
    mixed = replace(
        with_phase(workshop, micro_batch=None).changed(mix=[{"pipeline": "again", "weight": 0.5}]),
        inputs={**workshop.inputs, **again},
    )
    whole = run(mixed.job(tmp_path / "whole"))
    rows = [whole.prefetcher.make(8 * step).batch.rows for step in range(12)]
    others = [int((part >= len(KEYS)).sum()) for part in rows]
    assert sum(others) == 32, "one of three"
    assert max(others) - min(others) <= 1
    job = mixed.job(tmp_path / "stopped")
    assert Trainer(job, StopAfter(5), "cpu").run() is False
    assert_same_bits(run(job), whole)


def test_a_stop_changes_no_bit_of_averages_in_eight_bits(
    workshop: Workshop, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    model = {
        **workshop.pipeline.train.model.to_dict(),
        "width": 64,
        "head_size": 32,
        "mlp_width": 96,
    }
    changed = with_phase(
        workshop.cached().changed(model=model, validate_every=None),
        optimizer={"state_bits": 8},
        num_images=48,
    )
    whole = run(changed.changed(checkpoint_sec=1e7).job(tmp_path / "whole"))
    assert any(name.endswith("qmap1") for name in whole.state.optimizers.tensors()), (
        "some tensors are large enough"
    )
    job = changed.job(tmp_path / "stopped")
    assert Trainer(job, StopAfter(3), "cpu").run() is False
    assert_same_bits(run(job), whole)


def spoil(workshop: Workshop, *keys: str) -> Workshop:
    name = "encode.16px"
    return replace(
        workshop,
        inputs={
            **workshop.inputs,
            name: write_latents(workshop.store, workshop.inputs["filter"], keys),
        },
    )


def test_a_step_without_a_finite_loss_is_skipped_and_counted(
    workshop: Workshop, tmp_path: Path
) -> None:
    job = spoil(workshop, KEYS[3]).job(tmp_path)
    trainer = run(job)
    # 96 images are 3.2 epochs of 30: three or four of the steps meet that picture.
    assert 1 <= trainer.state.position.skipped <= 4
    assert lines(job)[-1]["skipped_steps"] == trainer.state.position.skipped
    assert all(torch.isfinite(value).all() for value in all_tensors(trainer).values())
    assert losses(job).count(None) == trainer.state.position.skipped
    told = [incident for line in lines(job) for incident in line.get("incidents", [])]
    assert [incident["what"] for incident in told] == [
        "not finite"
    ] * trainer.state.position.skipped
    assert all(KEYS[3] in incident["keys"] for incident in told)
    assert [incident["step"] for incident in told] == [
        number + 1 for number, loss in enumerate(losses(job)) if loss is None
    ]


def test_many_such_steps_in_a_row_end_it_with_the_batch_named(
    workshop: Workshop, tmp_path: Path
) -> None:
    trainer = Trainer(spoil(longer(workshop, 160), *KEYS).job(tmp_path), StopRequest(), "cpu")
    start = {
        name: value.clone() for name, value in trainer.state.trainable.model.state_dict().items()
    }
    with pytest.raises(HdmError, match="10 steps in a row") as caught:
        trainer.run()
    assert any(key in caught.value.what for key in KEYS)
    assert "step 10, images 72 to 80" in caught.value.what
    assert all(
        torch.equal(value, start[name])
        for name, value in trainer.state.trainable.model.state_dict().items()
    )


def longer(workshop: Workshop, num_images: int) -> Workshop:
    """Of so many images in whole batches, with checkpoints at stops alone."""
    phase = {
        **workshop.pipeline.model_dump(mode="json")["train"]["phases"][0],
        "num_images": num_images,
        "micro_batch": None,
    }
    return workshop.changed(phases=[phase], checkpoint_sec=1e7, validate_every=None)


class Diverging(Trainer):
    """A trainer whose weights overflow in its fifth step."""

    def step(self) -> None:
        if self.state.position.step == 4:
            with torch.no_grad():
                for parameter in self.state.trainable.model.parameters():
                    parameter.fill_(1e38)
        super().step()


@pytest.mark.parametrize("stopped_at", [(), (4, 2, 1)], ids=["straight", "stopped"])
def test_weights_that_overflow_are_those_of_the_last_good_checkpoint_again(
    workshop: Workshop, tmp_path: Path, stopped_at: tuple[int, ...]
) -> None:
    job = longer(workshop, 160).job(tmp_path)
    Trainer(job, StopAfter(3), "cpu").run()
    kept = checkpoint.newest(Path(job.scratch))
    assert kept
    assert kept.path.name == "checkpoint-00000003"
    for step in stopped_at:
        assert not Diverging(job, StopAfter(step), "cpu").run()
    trainer = Diverging(job, Finished(), "cpu")
    with pytest.raises(Stopped):
        trainer.run()
    assert trainer.state.position.num_images_seen == 160, "the clock does not go back"
    assert trainer.state.position.skipped == 10
    told = [
        (incident["what"], incident["step"])
        for line in lines(job)
        for incident in line.get("incidents", [])
    ]
    assert told == [*(("not finite", step) for step in range(5, 15)), ("went back", 14)]
    # What comes after is what a training from those weights makes of the batches that come after.
    naive = Trainer(longer(workshop, 160).job(tmp_path / "naive"), StopRequest(), "cpu")
    naive.state.load_tensors(kept)
    naive.state.position = replace(naive.state.position, step=14, num_images_seen=112)
    while naive.state.position.step < 20:
        naive.step()
    assert_same_bits(trainer, naive)


class Exploding(Trainer):
    """A trainer whose weights are so large, from a step on, that no loss is finite."""

    explodes_at = 0

    def step(self) -> None:
        if self.state.position.step == self.explodes_at:
            with torch.no_grad():
                for parameter in self.state.trainable.model.parameters():
                    parameter.fill_(1e38)
        super().step()


def exploding(job: Job, step: int) -> Trainer:
    trainer = Exploding(job, StopRequest(), "cpu")
    trainer.explodes_at = step
    return trainer


@pytest.mark.parametrize("last", [4, 2, 1])
def test_a_training_that_explodes_in_its_last_steps_is_refused(
    workshop: Workshop, tmp_path: Path, last: int
) -> None:
    """Averages may be whole still; the weights are not, even where too few steps are left to be
    many.
    """
    job = longer(workshop, 160).job(tmp_path)
    assert not Trainer(job, StopAfter(7), "cpu").run()
    for attempt in (20 - last, None):  # the same command again says the same, without training
        trainer = Trainer(job, StopRequest(), "cpu") if attempt is None else exploding(job, attempt)
        with pytest.raises(HdmError, match="training exploded before its end") as caught:
            trainer.run()
        assert caught.value.exit_code == 1
        assert f"resume_from={job.digest}@7" in (caught.value.do or "")
        assert "checkpoint-00000007" in (caught.value.do or "")
        assert '.resume_allow=["train.phases.0.optimizer.learning_rate"]' in (caught.value.do or "")
        assert not (job.result / "summary.json").exists()


def test_three_of_four_skipped_steps_are_an_explosion(workshop: Workshop, tmp_path: Path) -> None:
    job = longer(workshop, 32).job(tmp_path)
    with pytest.raises(
        HdmError, match=r"3 of its last 4 steps .* its weights have a loss of nan"
    ) as caught:
        exploding(job, 1).run()
    assert "there is no good checkpoint to go on from" in (caught.value.do or "")


@pytest.mark.parametrize("rates", [{"learning_rate": 0.2}, {"muon_learning_rate": 5.0}], ids=str)
def test_a_rate_at_which_losses_explode_and_stay_finite(
    workshop: Workshop, tmp_path: Path, rates: dict[str, float]
) -> None:
    """At a constant rate: they are tens to millions of times that of predicting nothing, to the
    end.
    """
    optimizer = {
        "kind": "muon" if "muon_learning_rate" in rates else "adamw",
        "schedule": "constant",
        "warmup_images": 16,
        **rates,
    }
    job = with_phase(longer(workshop.cached(), 160), optimizer=optimizer).job(tmp_path)
    assert not Trainer(job, StopAfter(1), "cpu").run()
    trainer = Trainer(job, StopRequest(), "cpu")
    with pytest.raises(HdmError, match="training exploded before its end") as caught:
        trainer.run()
    assert trainer.state.position.skipped == 0, "no loss was not finite"
    assert "of its last 10 steps had more than 1.5 times the loss of predicting nothing" in (
        caught.value.what
    )
    assert f"resume_from={job.digest}@1 " in (caught.value.do or "")
    assert not (job.result / "summary.json").exists()


@pytest.mark.parametrize("which", ["weights", "averages"])
def test_an_explosion_that_no_step_tells_of(workshop: Workshop, tmp_path: Path, which: str) -> None:
    """In the last step of all, or in averages of weights that have come back since."""
    job = longer(workshop.cached(), 32).job(tmp_path)
    assert not Trainer(job, StopAfter(2), "cpu").run()
    trainer = Trainer(job, Finished(), "cpu")
    with pytest.raises(Stopped):
        trainer.run()
    model = (
        trainer.state.trainable.model if which == "weights" else trainer.state.trainable.averaged
    )
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(30)
    trainer.ranks.stop = StopRequest()
    with pytest.raises(HdmError, match=f"exploded before its end: its {which} have a loss") as told:
        trainer.run()
    assert f"resume_from={job.digest}@2 " in (told.value.do or ""), "not from where it ended"


class Fading(Trainer):
    """A trainer whose weights come to nothing in its 45th step of 50, as after a step that was far
    too long.
    """

    def step(self) -> None:
        super().step()
        if self.state.position.step == 45:
            with torch.no_grad():
                for parameter in self.state.trainable.model.parameters():
                    parameter.mul_(0.01)


@pytest.mark.parametrize("rate", [0.01, 0.0001])
def test_an_explosion_that_fell_back_to_predicting_nothing(
    workshop: Workshop, tmp_path: Path, rate: float
) -> None:
    """No loss is more than that of zeros; where next to nothing was known before, nothing was
    lost.
    """
    optimizer = {"kind": "adamw", "learning_rate": rate, "warmup_images": 16}
    job = with_phase(longer(workshop.cached(), 400), optimizer=optimizer).job(tmp_path)
    assert not Trainer(job, StopAfter(7), "cpu").run()
    if rate < 0.001:
        assert Fading(job, StopRequest(), "cpu").run()
        return
    for kind in (Fading, Trainer):  # the same command again says the same, without training
        trainer = kind(job, StopRequest(), "cpu")
        with pytest.raises(HdmError, match=r"its last weights explain .*% of what they") as caught:
            trainer.run()
        assert not trainer.state.position.exploded
        assert caught.value.exit_code == 1
        assert f"resume_from={job.digest}@7 " in (caught.value.do or "")
        assert not (job.result / "summary.json").exists()


def test_weights_that_are_not_finite_do_not_come_out(workshop: Workshop, tmp_path: Path) -> None:
    """Of a training without held-out pictures to notice it, spoilt by its last step."""
    job = longer(workshop.changed(ema_lengths=[]), 32).job(tmp_path)
    trainer = Trainer(job, StopRequest(), "cpu")
    trainer.state.position = replace(trainer.state.position, step=4, num_images_seen=32)
    next(trainer.state.trainable.model.parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(HdmError, match="its weights are not finite"):
        trainer.run()
    assert checkpoint.newest(Path(job.scratch), lambda state: state["good"]) is None


def test_the_best_weights_outlive_an_explosion_after_them(
    workshop: Workshop, tmp_path: Path
) -> None:
    job = longer(workshop, 96).job(tmp_path)
    kept = replace(workshop, pipeline=workshop.changed(keep="best", validate_every=2).pipeline).job(
        tmp_path / "best"
    )
    assert exploding(kept, 9).run()
    assert json.loads((kept.result / "summary.json").read_bytes())["best_step"] <= 8, (
        "after step 10 the averages are no worse, beside weights that have exploded"
    )
    for name in ("weights", "ema"):
        tensors = load_file(kept.result / f"{name}.safetensors")
        assert all(torch.isfinite(value).all() for value in tensors.values())
    with pytest.raises(HdmError, match="exploded"):
        exploding(job, 9).run()


def test_going_back_is_done_once(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = longer(workshop, 240).job(tmp_path)
    Trainer(job, StopAfter(3), "cpu").run()
    losses = Denoising.losses
    monkeypatch.setattr(
        Denoising,
        "losses",
        lambda denoising, part: tuple(value * torch.nan for value in losses(denoising, part)),
    )
    with pytest.raises(HdmError, match="going back to a checkpoint had not helped"):
        Trainer(job, StopRequest(), "cpu").run()


def test_a_loss_that_stands_out_is_flagged_with_its_pictures(
    workshop: Workshop,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spoilt(denoising: Denoising, example: Example, now: Position) -> torch.Tensor:
        means = backward(denoising, example, now)
        return means * 50 if now.step == 70 else means

    backward = Denoising.backward
    monkeypatch.setattr(Denoising, "backward", spoilt)
    job = longer(workshop, 800).job(tmp_path)
    Trainer(job, StopAfter(65), "cpu").run()  # what is usual is known across a stop
    trainer = run(job)
    assert lines(job)[-1]["loss_spikes"] == 1
    (told,) = [incident for line in lines(job) for incident in line.get("incidents", [])]
    assert (told["what"], told["step"], told["num_images_seen"]) == ("loss spike", 71, 568)
    assert set(told["keys"]) == set(trainer.prefetcher.make(560).batch.keys)
    assert "images 560 to 568" in caplog.text


@pytest.mark.parametrize("called", ["train.8px", START])
def test_the_next_phase_starts_from_the_averaged_weights(
    workshop: Workshop, straight: Trainer, tmp_path: Path, called: str
) -> None:
    """That of the same pipeline, or of one that starts from another's."""
    identity = replace(workshop.identity, name="train.8px", config={"made": called})
    with workshop.store.draft(identity) as draft:
        for name, model in (
            ("weights", straight.state.trainable.model),
            ("ema", straight.state.trainable.averaged),
        ):
            from safetensors.torch import save_file

            with draft.write(f"{name}.safetensors") as file:
                save_file(model.state_dict(), file.path)
        before = draft.commit()
    job = replace(workshop, inputs={**workshop.inputs, called: before}).job(tmp_path)
    trainer = Trainer(job, StopRequest(), "cpu")
    averaged = load_file(read_output(before.path).file("ema.safetensors"))
    assert all(
        torch.equal(value, averaged[name])
        for name, value in trainer.state.trainable.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("channels", 8, "latents have 4 channels, the model 8"),
        ("text_width", 24, "embeddings are 16 wide, the model reads 24"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_the_first_step(
    workshop: Workshop, tmp_path: Path, field: str, value: int, message: str
) -> None:
    model = {**workshop.pipeline.train.model.to_dict(), field: value}
    with pytest.raises(InputError, match=message):
        Trainer(workshop.changed(model=model).job(tmp_path), StopRequest(), "cpu")


def test_a_checkpoint_of_another_configuration_is_refused(
    workshop: Workshop, tmp_path: Path
) -> None:
    Trainer(workshop.job(tmp_path), StopAfter(1), "cpu").run()

    def other() -> Trainer:
        return Trainer(workshop.changed(seed=1).job(tmp_path), StopRequest(), "cpu")

    with pytest.raises(InputError, match="another configuration: config changed"):
        other()


def _of_the_accelerator() -> torch.Tensor:
    raise torch.OutOfMemoryError("the device is full")


def _of_the_cpu() -> torch.Tensor:
    return torch.empty(1 << 55, dtype=torch.uint8)  # more than any machine's address space


@pytest.mark.parametrize("allocation", [_of_the_accelerator, _of_the_cpu])
def test_memory_that_does_not_hold_a_step_ends_it_with_what_would_fit(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allocation: Callable[[], torch.Tensor],
) -> None:
    monkeypatch.setattr(Denoising, "losses", lambda denoising, part: allocation())
    with pytest.raises(
        DoesNotFitError, match=r"micro_batch 3; at most [\d.]+ GB were in use"
    ) as caught:
        train(workshop.job(tmp_path), StopRequest())
    assert "set micro_batch: 1, or micro_batch: 3 with checkpoint_blocks: 1.0" in (
        caught.value.do or ""
    )


def test_memory_that_does_not_hold_the_model_is_told_of_too(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "to_device", lambda *arguments: _of_the_accelerator())
    with pytest.raises(
        DoesNotFitError, match=r"does not hold the model and its averages; at most [\d.]+ GB"
    ):
        train(workshop.job(tmp_path), StopRequest())


def test_an_error_that_is_not_of_memory_stays_what_it_is(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Denoising, "losses", lambda denoising, part: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        train(workshop.job(tmp_path), StopRequest())
