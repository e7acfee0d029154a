"""A phase that is finished and then damaged: training is not what that costs, unless the weights
are gone.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hdm.errors import DamagedError
from hdm.evaluation.painting import Painter
from hdm.model_files.opening import open_model
from hdm.store import Output, Store
from hdm.training import phase
from hdm.training.process.guard import StopRequest
from hdm.training.trainer import Trainer
from tests.store_as_of_old import as_of_old
from tests.training.here import train_here
from tests.training.workshop import Workshop

COMPANIONS = ("generated.png", "model.json", "metrics.jsonl", "manifest.json")
SNAPSHOT = "ema-0.1-00000008.safetensors"


@pytest.fixture(scope="module")
def finished(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    here = workshop.cached().changed(checkpoint_sec=1e4)
    here = here.elsewhere(tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(phase, "run_training", train_here)
        here.train()
    return here


@pytest.fixture
def copy(finished: Workshop, tmp_path: Path) -> Workshop:
    shutil.copytree(finished.store.root, tmp_path / "store")
    return finished.elsewhere(tmp_path / "store")


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files that an output consists of."""
    names = [
        record["name"] for record in json.loads((folder / "manifest.json").read_bytes())["files"]
    ]
    return {name: (folder / name).read_bytes() for name in names}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def found_or_made(workshop: Workshop) -> Output:
    """As a run does it."""
    return Store(workshop.store.root).find(workshop.identity) or workshop.train()


def was_trained_again(workshop: Workshop, finished: Workshop) -> bool:
    """Each training process appends to timing.jsonl."""
    timing = [(here.folder / "timing.jsonl").read_bytes() for here in (workshop, finished)]
    return timing[0] != timing[1]


@pytest.fixture
def mended_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase, "make_companions", train_here)


def test_a_process_of_its_own_mends_without_training(copy: Workshop, finished: Workshop) -> None:
    assert_mended(copy, finished, "generated.png")


@pytest.mark.usefixtures("mended_here")
@pytest.mark.parametrize("name", COMPANIONS)
def test_a_flipped_bit_beside_the_weights_costs_no_training(
    copy: Workshop, finished: Workshop, name: str
) -> None:
    assert_mended(copy, finished, name)


def assert_mended(copy: Workshop, finished: Workshop, name: str) -> None:
    flip(copy.folder / name)
    output = found_or_made(copy)
    assert contents(output.path) == contents(finished.folder)
    assert output.summary == json.loads((finished.folder / "manifest.json").read_bytes())["summary"]
    assert not was_trained_again(copy, finished)
    assert (copy.folder / f"{name}.damaged").exists()
    assert not (copy.folder / ".scratch").exists()


@pytest.mark.usefixtures("mended_here")
@pytest.mark.parametrize("name", COMPANIONS)
def test_nor_does_it_in_an_output_of_an_older_release(
    copy: Workshop, finished: Workshop, name: str
) -> None:
    as_of_old(copy.folder)
    flip(copy.folder / name)
    output = found_or_made(copy)
    assert not was_trained_again(copy, finished)
    made, whole = contents(output.path), contents(finished.folder)
    # Without a copy, the line of metrics that cannot be read is gone; whatever else there is comes
    # back.
    different = {key for key in whole if made.get(key) != whole[key]}
    assert different <= ({"metrics.jsonl"} if name == "metrics.jsonl" else set())
    assert output.counts["images_seen"] == 96


@pytest.mark.usefixtures("mended_here")
def test_what_only_training_could_make_again_is_left_out_and_named(
    copy: Workshop, finished: Workshop
) -> None:
    flip(copy.folder / SNAPSHOT)
    output = found_or_made(copy)
    assert not was_trained_again(copy, finished)
    whole = contents(finished.folder)
    del whole[SNAPSHOT]
    assert contents(output.path) == whole
    assert output.summary["lost"] == [SNAPSHOT]
    assert SNAPSHOT not in output.summary["milestones"]
    assert Store(copy.store.root).find(copy.identity) == output


def test_lost_weights_are_trained_again_which_is_said_before(
    copy: Workshop,
    finished: Workshop,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(phase, "run_training", train_here)
    flip(copy.folder / "ema.safetensors")
    with caplog.at_level(logging.WARNING):
        output = found_or_made(copy)
    assert "ema.safetensors damaged; the phase is trained again from its start" in caplog.text
    assert was_trained_again(copy, finished)
    assert contents(output.path) == contents(finished.folder)


def test_weights_beyond_the_start_up_check_are_compared_when_they_are_read(
    copy: Workshop, tmp_path: Path
) -> None:
    """One bit of a tensor, which no file format notices: neither the next phase nor a sampler may
    take it.
    """
    path = copy.folder / "ema.safetensors"
    flip(path)
    before = Store(copy.store.root, verify_bytes=0).find(copy.identity)
    assert before is not None
    job = replace(copy, inputs={**copy.inputs, "train.8px": before}).job(tmp_path)
    with pytest.raises(DamagedError, match=r"ema\.safetensors"):
        Trainer(job, StopRequest(), "cpu")
    with pytest.raises(DamagedError, match=r"ema\.safetensors"):
        open_model(copy.folder)


def test_two_bits_of_averages_of_more_than_a_gigabyte(copy: Workshop, tmp_path: Path) -> None:
    """A look at the output, as at the start of a run, does not read so much; whoever uses it
    does.
    """
    identity = replace(copy.identity, name="train.8px", config={"made": "here"})
    header = b'{"whole":{"dtype":"U8","shape":[1073741824],"data_offsets":[0,1073741824]}}'
    with copy.store.draft(identity) as draft:
        draft.write_json("model.json", json.loads((copy.folder / "model.json").read_bytes()))
        with draft.write("ema.safetensors") as file, file.path.open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            stream.truncate(8 + len(header) + (1 << 30))  # a hole: nothing but zeros
        path = draft.commit().file("ema.safetensors")
    with path.open("r+b") as stream:
        for place in (1 << 29, 1 << 30):
            stream.seek(place)
            stream.write(b"\x01")
    before = copy.store.find(identity)
    assert before is not None
    job = replace(copy, inputs={**copy.inputs, "train.8px": before}).job(tmp_path / "job")
    painter = Painter(copy.pipeline, before, job.autoencoder)
    for use in (
        lambda: Trainer(job, StopRequest(), "cpu"),
        lambda: open_model(before.path),
        lambda: painter.paint(["red circle"], [0]),
    ):
        with pytest.raises(DamagedError, match=r"not what was written.*ema\.safetensors"):
            use()


def test_a_damaged_header_is_damage(copy: Workshop, tmp_path: Path) -> None:
    path = copy.folder / "ema.safetensors"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    before = Store(copy.store.root, verify_bytes=0).find(copy.identity)
    assert before is not None
    job = replace(copy, inputs={**copy.inputs, "train.8px": before}).job(tmp_path)
    with pytest.raises(DamagedError, match=r"ema\.safetensors"):
        Trainer(job, StopRequest(), "cpu")
