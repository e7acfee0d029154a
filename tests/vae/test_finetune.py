"""Training: what it changes, and that nothing which happens to it changes a byte."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from hdm.errors import ConfigError, HdmError, InputError, SavedOnSignal
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import resolve
from hdm.models.settings import Components
from hdm.models.small_autoencoder import new_autoencoder
from hdm.training.settings import Optimizer
from hdm.vae import finetune
from hdm.vae.finetune import Finetuning, Place, make_batch
from hdm.vae.run import Pictures, run, write_autoencoder
from hdm.vae.settings import VaeSettings

MUON = Optimizer(kind="muon", learning_rate=2e-3, muon_learning_rate=0.01, weight_decay=0.0)
BRIEF = VaeSettings(
    num_images=96, batch_size=8, size_px=32, optimizer=MUON, ema_decay=0.5, checkpoint_sec=1e7
)


def trained(
    scenes: list[np.ndarray], where: Path, settings: VaeSettings = BRIEF
) -> dict[str, bytes]:
    """Weights and metrics of a run to the end."""
    torch.manual_seed(0)
    model = new_autoencoder(4, (8, 8, 8))
    where.mkdir(exist_ok=True)
    Finetuning(model, scenes, settings, Place(where, where / "scratch", "digest")).run()
    weights = write_autoencoder(model, where / "written") / "diffusion_pytorch_model.safetensors"
    return {"weights": weights.read_bytes(), "metrics": (where / "metrics.jsonl").read_bytes()}


def test_every_picture_comes_once_before_any_comes_again() -> None:
    flat = [np.full((32, 40, 3), number, np.uint8) for number in range(24)]
    settings = BRIEF.model_copy(update={"batch_size": 8})
    seen = [
        ((make_batch(flat, settings, step).image[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
        for step in range(6)
    ]
    epochs = [[place for batch in part for place in batch] for part in (seen[:3], seen[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 2
    assert epochs[0] != epochs[1]


def test_stopped_by_a_signal_and_killed_it_ends_in_the_same_bytes(
    scenes: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = trained(scenes, tmp_path / "undisturbed")

    def stopping(pictures: list[np.ndarray], settings: VaeSettings, step: int) -> finetune.Batch:
        if step == 9:  # after those that are looked at before the first step
            os.kill(os.getpid(), signal.SIGTERM)
        return make_batch(pictures, settings, step)

    here = tmp_path / "disturbed"
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "make_batch", stopping)
        with pytest.raises(SavedOnSignal):
            trained(scenes, here)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    saved = int(next((here / "scratch").glob("checkpoint-*")).name[-8:])
    assert 8 <= saved < 12

    def dying(pictures: list[np.ndarray], settings: VaeSettings, step: int) -> finetune.Batch:
        if step == 11:
            raise KeyboardInterrupt
        return make_batch(pictures, settings, step)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "make_batch", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(scenes, here)
    (here / "metrics.jsonl").write_bytes((here / "metrics.jsonl").read_bytes()[:-5])
    assert trained(scenes, here) == undisturbed
    assert json.loads(undisturbed["metrics"].splitlines()[-1])["num_images_seen"] == 96


def test_a_checkpoint_of_another_run_is_refused(scenes: list[np.ndarray], tmp_path: Path) -> None:
    trained(scenes, tmp_path, BRIEF.model_copy(update={"num_images": 8}))
    with pytest.raises(ConfigError, match="of other settings"):
        Finetuning(
            new_autoencoder(4, (8, 8, 8)),
            scenes,
            BRIEF,
            Place(tmp_path, tmp_path / "scratch", "another"),
        )


def test_a_loss_that_is_not_finite_ends_it(scenes: list[np.ndarray], tmp_path: Path) -> None:
    model = new_autoencoder(4, (8, 8, 8))
    with torch.no_grad():
        model.decoder.conv_out.bias[0] = float("nan")
    with pytest.raises(HdmError, match="not finite at step 0"):
        Finetuning(model, scenes, BRIEF, Place(tmp_path, tmp_path, "digest")).run()


class Fading(Finetuning):
    """A training whose decoder forgets all in its third step of four, as after a step that was far
    too long.
    """

    def step(self) -> None:
        super().step()
        if self.position.step == 3:
            with torch.no_grad():
                self.model.decoder.conv_out.weight.zero_()


FOUR_STEPS = VaeSettings(num_images=32, batch_size=8, size_px=32, checkpoint_sec=1e7)


def test_weights_that_forgot_what_they_knew_are_refused(
    scenes: list[np.ndarray], tmp_path: Path
) -> None:
    """The loss is finite, and no more than that of a grey picture. The same training left alone
    comes out.
    """
    reference = resolve(Components(folder="demo")).need("autoencoder")

    def training(kind: type[Finetuning], where: Path) -> Finetuning:
        where.mkdir(exist_ok=True)
        place = Place(where, where / "scratch", "digest")
        return kind(load_autoencoder(reference).model, scenes, FOUR_STEPS, place)

    training(Finetuning, tmp_path / "whole").run()
    for kind in (Fading, Finetuning):  # the same command again says the same
        with pytest.raises(HdmError, match="exploded before its end: its last weights explain"):
            training(kind, tmp_path / "fading").run()


def test_of_weights_that_knew_little_nothing_is_lost(
    scenes: list[np.ndarray], tmp_path: Path
) -> None:
    place = Place(tmp_path, tmp_path / "scratch", "digest")
    Fading(new_autoencoder(4, (8, 8, 8)), scenes, FOUR_STEPS, place).run()


def test_equivariance_falls_and_the_picture_stays(scenes: list[np.ndarray], tmp_path: Path) -> None:
    """From one start, with and without the term, for equally many images."""
    torch.manual_seed(0)
    start = write_autoencoder(new_autoencoder(8, (16, 16)), tmp_path / "start")
    pictures, after = Pictures(scenes[8:], scenes[:8]), {}
    for weight in (0.0, 1.0):
        settings = VaeSettings(
            num_images=640,
            size_px=16,
            equivariance_weight=weight,
            optimizer=Optimizer(learning_rate=5e-3),
        )
        found = run(
            str(start),
            pictures,
            settings,
            Place(tmp_path, tmp_path / f"tuned-{weight}", f"tuned-{weight}"),
        )
        after[weight] = found["after"]
        assert found["after"]["psnr_db"] > found["before"]["psnr_db"] + 5
    # Error of transformed latents, decoded, against that of pictures that only come back.
    plain, tuned = (
        after[weight]["equivariance_decoded"] / after[weight]["reconstructed"]
        for weight in (0.0, 1.0)
    )
    assert plain > 1.05
    assert tuned < plain - 0.1
    assert after[1.0]["equivariance_latent"] < 0.92 * after[0.0]["equivariance_latent"]


def test_pictures_that_are_too_few_or_squares_that_do_not_fit(
    scenes: list[np.ndarray], tmp_path: Path
) -> None:
    settings, place = (
        VaeSettings(scratch=True, num_images=8, size_px=36),
        Place(tmp_path, tmp_path, "digest"),
    )
    with pytest.raises(InputError, match="multiple of 8"):
        run(None, Pictures(scenes[8:], scenes[:8]), settings, place)
    with pytest.raises(InputError, match="3 pictures to learn from"):
        run(None, Pictures(scenes[:3], scenes[3:]), settings, place)


def test_weights_that_explode_in_the_last_step_are_refused(
    scenes: list[np.ndarray], tmp_path: Path
) -> None:
    class Exploding(Finetuning):
        def step(self) -> None:
            super().step()
            if self.position.step == self.num_steps:
                next(self.model.parameters()).data.fill_(torch.inf)

    settings = BRIEF.model_copy(update={"num_images": 16, "ema_decay": 0.0})
    training = Exploding(
        new_autoencoder(4, (8, 8, 8)),
        scenes,
        settings,
        Place(tmp_path, tmp_path / "scratch", "digest"),
    )
    with pytest.raises(HdmError, match="exploded in its last step"):
        training.run()
