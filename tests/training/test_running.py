"""What a person sees of a training that runs, and asks of it, through the command line."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from flows.cli import app
from hdm.errors import InputError
from hdm.training.process.running import SAVE, ask, progress, trainings
from tests.training.test_phase import start, wait_until
from tests.training.workshop import Workshop


@pytest.fixture
def training(workshop: Workshop, tmp_path: Path) -> Iterator[Workshop]:
    """One that would go on for long, and saves nothing unasked."""
    phases = [
        {**phase.model_dump(mode="json"), "num_images": 10**7}
        for phase in workshop.pipeline.train.phases
    ]
    here = (
        workshop.cached()
        .changed(phases=phases, checkpoint_sec=1e7, validate_every=None)
        .elsewhere(tmp_path / "store")
    )
    flow = start(here, tmp_path / "told.json")
    wait_until(lambda: trainings(here.store.root))
    yield here
    flow.send_signal(signal.SIGTERM)
    flow.communicate(timeout=60)


def hdm(*words: str, store: Path) -> Result:
    return CliRunner().invoke(app, [*words, "--store", str(store)])


def test_saving_and_sampling_are_had_at_once_and_training_goes_on(training: Workshop) -> None:
    root = training.store.root
    saved = hdm("save-now", store=root)
    assert saved.exit_code == 0, saved.output
    checkpoint = Path(saved.stdout.strip())
    assert (checkpoint / "state.json").exists()

    sampled = hdm("sample-now", store=root)
    assert sampled.exit_code == 0, sampled.output
    picture = Path(sampled.stdout.strip().splitlines()[-1])
    assert Image.open(picture).size == (64, 16), "four prompts at 16 px"
    assert int(picture.stem) >= int(checkpoint.name[11:]), "of the weights as they are now"

    wait_until(
        lambda: (
            (now := progress(trainings(root)[0])) and now.num_images_seen > 8 * int(picture.stem)
        )
    )
    status = hdm("status", store=root).stdout
    assert re.search(
        r"small train\.16px +[\d,]+ of 10,000,000 images \(0%\), [\d.]+ images/s, "
        r"loss [\d.]+, done in about \d+ min",
        status,
    )


def test_where_nothing_trains_a_wish_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    result = hdm("save-now", store=tmp_path)
    assert isinstance(result.exception, (InputError, SystemExit))
    job = workshop.job(tmp_path / "ended")
    with pytest.raises(InputError, match="ended before"):
        ask(job, SAVE, timeout_sec=5.0)
    assert not list(Path(job.scratch).glob("now-*")), "the wish does not wait for the next run"
