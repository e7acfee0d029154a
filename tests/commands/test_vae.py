"""`hdm vae`: from a folder of pictures to an autoencoder's folder, and what is said of mistakes."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from flows.cli import app
from hdm.acquisition.settings import DownloadSettings
from hdm.bootstrap_sources import local_pictures
from hdm.demo.bootstrap import scene_examples
from hdm.errors import SavedOnSignal
from hdm.models.autoencoder import load_autoencoder
from hdm.pictures.settings import ImageSettings
from hdm.vae import finetune

BRIEF = ("--images", "24", "--size-px", "32", "--device", "cpu", "--channels", "4")


def hdm(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["vae", *words])
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures without captions, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, example in enumerate(scene_examples(24, 40)):
        Image.fromarray(example.pixels).save(folder / f"{number:02d}.png")
    (folder / "broken.png").write_bytes((folder / "00.png").read_bytes()[:60])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "timing.jsonl"
    }


def test_stopped_and_run_again_the_folder_is_the_same(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("finetune", "--source", str(pictures), "--scratch", *BRIEF)
    code, shown = hdm(*words, "--out", str(tmp_path / "one"))
    assert code == 0, shown
    assert "PSNR" in shown
    record = json.loads((tmp_path / "one" / "finetune.json").read_text())
    assert (record["data"]["train"], record["data"]["held_out"]) == (22, 2)
    assert record["quality"]["before"] is None
    assert str(tmp_path) not in json.dumps(record)
    autoencoder = load_autoencoder(str(tmp_path / "one"))
    assert (autoencoder.channels, autoencoder.downscale) == (4, 8)

    make_batch = finetune.make_batch

    def stopping(*arguments: object) -> finetune.Batch:
        if arguments[2] == 2:
            raise SavedOnSignal("stopped")
        return make_batch(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "make_batch", stopping)
        assert hdm(*words, "--out", str(tmp_path / "two"))[0] == 75
    assert hdm(*words, "--out", str(tmp_path / "two"))[0] == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")

    code, shown = hdm(*words, "--out", str(tmp_path / "one"))
    assert code == 2
    assert "holds something already" in shown


def test_minutes_become_a_plan_that_is_kept(pictures: Path, tmp_path: Path) -> None:
    code, shown = hdm(
        "finetune",
        "--source",
        str(pictures),
        "--scratch",
        *BRIEF,
        "--minutes",
        "0.01",
        "--out",
        str(tmp_path / "there"),
    )
    assert code == 0, shown
    record = json.loads((tmp_path / "there" / "finetune.json").read_text())
    seen = json.loads((tmp_path / "there" / "metrics.jsonl").read_text().splitlines()[-1])[
        "num_images_seen"
    ]
    assert 0 <= seen - record["settings"]["num_images"] < 8


def test_pictures_above_the_usual_number_are_left_out_with_a_word(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hdm.vae_sources.MAX_PICTURES", 20)
    words = ("finetune", "--source", str(pictures), "--scratch", *BRIEF)
    code, shown = hdm(*words, "--out", str(tmp_path / "there"))
    assert code == 0, shown
    assert "only the first 20 pictures are used" in shown
    record = json.loads((tmp_path / "there" / "finetune.json").read_text())
    assert record["data"]["train"] + record["data"]["held_out"] == 20


def test_what_could_not_be_read_is_said_even_if_the_rest_is_not_read(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for name in ("b.png", "c.png", "d.png"):
        (tmp_path / name).write_bytes((pictures / "00.png").read_bytes())
    settings = DownloadSettings(source=str(tmp_path))
    assert len(list(islice(local_pictures(settings, ImageSettings(), False), 2))) == 2
    assert "left out: 1 not_image" in caplog.text


def test_measure_tells_how_pictures_come_back(pictures: Path) -> None:
    demo = Path(finetune.__file__).parents[1] / "demo" / "components" / "autoencoder"
    code, shown = hdm(
        "measure",
        "--source",
        str(pictures),
        "--autoencoder",
        str(demo),
        "--size-px",
        "40",
        "--images",
        "8",
    )
    assert code == 0, shown
    autoencoder = load_autoencoder(str(demo))
    from hdm.pixels import to_image
    from hdm.vae.squares import middle_square

    image = to_image(
        np.stack([middle_square(example.pixels, 40) for example in scene_examples(8, 40)])
    )
    error = (autoencoder.decode(autoencoder.encode(image)) - image).square().flatten(1).mean(
        1
    ).numpy() / 4
    assert f"PSNR, dB {np.mean(-10 * np.log10(error)):.4g}" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --autoencoder NAME or --scratch"),
        (("--scratch", "--autoencoder", "x"), "give --autoencoder NAME or --scratch"),
        (("--scratch", "--optimizer", "adam"), "'--optimizer'"),
        (("--autoencoder", "nowhere/at/all"), "there is no model nowhere/at/all"),
        (("--scratch", "--source", "/not/there"), "the source is not there"),
    ],
)
def test_mistakes(words: tuple[str, ...], said: str, pictures: Path, tmp_path: Path) -> None:
    code, shown = hdm("finetune", "--source", str(pictures), "--out", str(tmp_path / "out"), *words)
    assert code == 2
    assert said in shown
