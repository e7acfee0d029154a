"""Alignment to cached features: the loss, what it moves, and that a training with it is as
resumable as one without.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hdm.data.latent_files import LatentFormat, LatentWriter, latent_file_name
from hdm.errors import ConfigError, InputError
from hdm.keys import Key
from hdm.models.execution import compile_blocks, recompute_activations
from hdm.models.xut import XUT
from hdm.store import Identity
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import newest_checkpoint
from hdm.training.techniques.alignment import Aligned, cosines
from hdm.training.trainer import Trainer
from tests.training.test_trainer import (
    StopAfter,
    _fresh_process,  # noqa: F401
    assert_same_bits,
    lines,
    losses,
    run,
    with_phase,
)
from tests.training.workshop import CHANNELS, KEYS, SIDE, TEXT_WIDTH, Workshop, lively

WIDTH = 6


def with_features(workshop: Workshop, **train: Any) -> Workshop:
    """The same with features that say which of four kinds a picture is and where in it each of them
    lies.
    """
    filter = workshop.inputs["filter"]
    identity = Identity("encode.features", 1, {}, {"filter": filter.digest})
    made = workshop.store.find(identity)
    if made is None:
        with workshop.store.draft(identity) as draft:
            for number, (height, width) in enumerate([(4, 4), (4, 8)]):
                keys = KEYS[number::2]
                kinds = torch.nn.functional.one_hot(
                    torch.tensor([KEYS.index(key) % 4 for key in keys]), 4
                ).float()
                y, x = torch.meshgrid(
                    torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
                )
                places = torch.stack((y, x)).expand(len(keys), -1, -1, -1)
                grid = torch.cat((kinds[:, :, None, None].expand(-1, -1, height, width), places), 1)
                form = LatentFormat(
                    WIDTH,
                    height,
                    width,
                    "float16",
                    56,
                    14,
                    {"class": "Dinov2Model", "weights": "0"},
                )
                name = latent_file_name(height, width, 0, "features")
                with draft.write(name) as file, LatentWriter(file.path, form, len(keys)) as writer:
                    writer.add([Key(key) for key in keys], grid, [(1, 1)] * len(keys))
            made = draft.commit()
    values = workshop.pipeline.model_dump(mode="json")
    values["encode"] |= {"features": True}
    values["train"] |= {"align_weight": 0.5, "validate_every": None, **train}
    changed = replace(workshop, pipeline=type(workshop.pipeline).model_validate(values))
    return replace(changed, inputs={**workshop.inputs, "encode.features": made}).cached()


def call(kept: Tensor | None = None, **more: Any) -> dict[str, Any]:
    """What a model of the workshop is called with."""
    drawn = torch.Generator().manual_seed(3)
    given = {
        "latent": torch.randn((3, CHANNELS, SIDE, SIDE), generator=drawn),
        "timestep": torch.tensor([0.1, 0.5, 0.9]),
    }
    return {**given, "text": torch.randn((3, 5, TEXT_WIDTH), generator=drawn), "kept": kept, **more}


def aligned(workshop: Workshop, block: int) -> Aligned:
    return lively(Aligned(XUT(workshop.pipeline.train.model), block, WIDTH))


def forward(module: Aligned, given: dict[str, Any], features: Tensor) -> tuple[Tensor, Tensor]:
    named = {
        name: value for name, value in given.items() if name not in ("latent", "timestep", "text")
    }
    output: tuple[Tensor, Tensor] = module(
        given["latent"], given["timestep"], given["text"], features=features, **named
    )
    return output


def test_cosines_are_those_of_a_loop() -> None:
    drawn = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn((2, 3, 5), generator=drawn) for _ in range(2))
    for sample in range(2):
        each = []
        for token in range(3):
            one, two = ours[sample, token].tolist(), theirs[sample, token].tolist()
            dot = sum(a * b for a, b in zip(one, two, strict=True))
            each.append(
                dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in two))
            )
        assert cosines(ours, theirs)[sample].item() == pytest.approx(sum(each) / 3, rel=1e-5)


@pytest.mark.parametrize("block", [0, 1, 2, 3])
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("execution", ["plain", "recomputed", "compiled"])
def test_it_compares_what_the_block_leaves_of_the_tokens_it_saw(
    workshop: Workshop, block: int, routed: bool, execution: str
) -> None:
    """By hand: the blocks are called one after the other by the model, and each one's result is
    written down.
    """
    module = aligned(workshop, block)
    kept = torch.tensor([[0, 3, 7], [1, 2, 15], [4, 5, 6]]) if routed else None
    given = call(kept)
    states: list[Tensor] = []
    for one in module.model.blocks():
        inner = one.forward

        def written(*args: Any, inner: Any = inner) -> Tensor:
            states.append(inner(*args))
            return states[-1]

        one.forward = written
    velocity = module.model(**given)
    for one in module.model.blocks():
        del one.forward
    features = torch.randn((3, 16, WIDTH), generator=torch.Generator().manual_seed(1))
    inside = routed and 1 <= block < 3  # the route is the U, blocks 1 and 2
    seen = (
        torch.stack([features[sample][kept[sample]] for sample in range(3)])
        if inside and kept is not None
        else features
    )
    found = module.projector(states[block][:, : seen.shape[1]])
    truth = [
        [(torch.dot(a, b) / a.norm() / b.norm()).item() for a, b in zip(*pair, strict=True)]
        for pair in zip(found, seen, strict=True)
    ]
    if execution == "compiled":
        compile_blocks(module.model, backend="eager")
    elif execution == "recomputed":
        recompute_activations(module.model, 1.0)
    predicted, cosine = forward(module, given, features)
    torch.testing.assert_close(
        cosine, torch.tensor([sum(row) / len(row) for row in truth]), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(predicted, velocity)
    assert not any(one._forward_hooks for one in module.model.blocks()), (
        "the model alone is as it was"
    )


@pytest.mark.parametrize("block", [0, 2])
def test_it_moves_the_blocks_up_to_the_chosen_one(workshop: Workshop, block: int) -> None:
    module = aligned(workshop, block)
    _, cosine = forward(module, call(), torch.randn(3, 16, WIDTH))
    cosine.sum().backward()
    moved = [
        any(value.grad is not None and value.grad.any() for value in one.parameters())
        for one in module.model.blocks()
    ]
    assert moved == [number <= block for number in range(4)]


def test_it_rises_in_a_short_training_and_off_it_is_not_told(
    workshop: Workshop, tmp_path: Path
) -> None:
    quick = {"kind": "adamw", "learning_rate": 5e-3}
    longer = with_phase(
        with_features(workshop),
        num_images=1280,
        batch_size=16,
        micro_batch=None,
        tread_rate=0,
        optimizer=quick,
    )
    job = longer.job(tmp_path / "on")
    trainer = run(job)
    rising = [line["alignment"] for line in lines(job) if "alignment" in line]
    # The same answer for every token is worth 0.5 at most: what is beyond it was told by the noisy
    # latent, its positions and the caption.
    assert rising[0] < 0.3 < 0.6 < rising[-1]
    assert set(trainer.state.trainable.model.state_dict()) == set(
        XUT(longer.pipeline.train.model).state_dict()
    )
    job = with_phase(workshop.cached(), num_images=8).job(tmp_path / "off")
    run(job)
    assert "alignment" not in lines(job)[0]
    assert not any(name.startswith("align") for name in workshop.identity.config), (
        "digests without it are as they were"
    )


def projector(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{name} {key}": value
        for name, values in trainer.state.tensors().items()
        if name.startswith("projector")
        for key, value in values.items()
    }


def test_a_stop_changes_no_bit(workshop: Workshop, tmp_path: Path) -> None:
    changed = with_phase(with_features(workshop), num_images=64)
    whole = run(changed.changed(checkpoint_sec=1e7).job(tmp_path / "whole"))
    job = changed.job(tmp_path / "stopped")
    for times in (3, 2):
        assert Trainer(job, StopAfter(times), "cpu").run() is False
    again = run(job)
    assert_same_bits(again, whole)
    assert all(
        torch.equal(value, projector(whole)[name]) for name, value in projector(again).items()
    )
    assert (tmp_path / "stopped/metrics.jsonl").read_bytes() == (
        tmp_path / "whole/metrics.jsonl"
    ).read_bytes()
    found = newest_checkpoint(Path(job.scratch))
    assert found is not None
    assert {path.name for path in found.glob("projector*")} == {
        "projector.safetensors",
        "projector_optimizer.safetensors",
    }


@pytest.mark.parametrize("changes", [{"precision": "bfloat16"}, {}])
def test_how_a_batch_is_cut_does_not_matter(
    workshop: Workshop, tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = []
    for micro_batch in (None, 3):
        job = with_phase(
            with_features(workshop, **changes), num_images=24, micro_batch=micro_batch
        ).job(tmp_path / str(micro_batch))
        run(job)
        found.append([line["alignment"] for line in lines(job)] + losses(job))
    assert found[0] == pytest.approx(
        found[1], rel=2e-2 if changes else 1e-3, abs=1e-2 if changes else 1e-5
    )


def test_two_processes_do_as_one(workshop: Workshop, tmp_path: Path) -> None:
    changed = with_phase(with_features(workshop), num_images=24)
    alone = changed.job(tmp_path / "alone")
    run(alone)
    pair = changed.changed(num_processes=2).elsewhere(tmp_path / "store")
    metrics = pair.train().file("metrics.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, metrics) if "alignment" in line]
    for name in ("loss", "alignment", "grad_norm"):
        assert [line[name] for line in told] == pytest.approx(
            [line[name] for line in lines(alone) if "loss" in line], rel=2e-3
        ), name


def test_without_features_it_says_what_to_run(workshop: Workshop, tmp_path: Path) -> None:
    changed = with_features(workshop)
    inputs = {name: output for name, output in changed.inputs.items() if name != "encode.features"}
    with pytest.raises(InputError) as caught:
        Trainer(replace(changed, inputs=inputs).job(tmp_path), StopRequest(), "cpu")
    assert "hdm run small --until encode" in (caught.value.do or "")
    with pytest.raises(ConfigError, match=r"encode\.features"):
        workshop.changed(align_weight=0.5)
    with pytest.raises(ConfigError, match="no block 4"):
        with_features(workshop, align_block=4)
