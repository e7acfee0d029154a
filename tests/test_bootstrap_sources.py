from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hdm.acquisition.settings import DownloadSettings
from hdm.bootstrap_sources import bootstrap_from, local_pictures
from hdm.commands.cli import app
from hdm.errors import ConfigError, InputError
from hdm.pictures.settings import ImageSettings
from tests.acquisition.test_inventory import jpeg_of_scans


def test_a_folder_with_captions_in_a_metadata_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, colour in (
        ("a.png", (255, 0, 0, 255)),
        ("b.png", (0, 0, 0, 0)),
        ("c.png", (0, 0, 255, 255)),
    ):
        Image.new("RGBA", (20, 16), colour).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    rows = [
        {"file_name": "a.png", "name": "red"},
        {"file_name": "b.png", "name": "nothing"},
        {"file_name": "broken.png", "name": "half"},
    ]
    (tmp_path / "names.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = DownloadSettings(source=str(tmp_path), caption_column="name", metadata="names.jsonl")
    found = list(local_pictures(settings, ImageSettings(matte="#102030")))
    assert [example.captions for example in found] == [("red",), ("nothing",)]
    np.testing.assert_array_equal(found[0].pixels[0, 0], (255, 0, 0))
    np.testing.assert_array_equal(found[1].pixels[0, 0], (0x10, 0x20, 0x30))
    assert "1 without a caption" in caplog.text
    assert "1 corrupt" in caplog.text
    assert len(list(local_pictures(settings, ImageSettings(), captioned=False))) == 3


def test_a_jpeg_of_very_many_scans_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (20, 16)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(jpeg_of_scans(2000))
    settings = DownloadSettings(source=str(tmp_path))
    assert len(list(local_pictures(settings, ImageSettings(), captioned=False))) == 1
    assert "1 too_many_scans" in caplog.text


def test_urls_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://pictures.example/1.jpg\n")
    with pytest.raises(InputError, match="not URLs"):
        list(local_pictures(DownloadSettings(source=str(tmp_path / "list.txt")), ImageSettings()))


def test_lost_captions_stop_it_where_captions_are_wanted(tmp_path: Path) -> None:
    Image.new("RGB", (20, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a fox\nan animal")
    (tmp_path / "b.txt").write_text("a dog")
    settings = DownloadSettings(source=str(tmp_path))
    with pytest.raises(InputError, match=r"b\.txt: it lies beside pictures"):
        list(local_pictures(settings, ImageSettings()))
    assert len(list(local_pictures(settings, ImageSettings(), captioned=False))) == 1
    allowed = settings.model_copy(update={"max_lost_captions": 1})
    (example,) = local_pictures(allowed, ImageSettings())
    assert example.captions == ("a fox", "an animal")


def test_its_settings_are_those_of_a_download(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (20, 16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("狐".encode("shift_jis"))
    out = tmp_path / "out"
    with caplog.at_level("INFO"), pytest.raises(InputError):  # one picture is too few to train on
        bootstrap_from(str(tmp_path), out, overrides=["download.encoding=shift_jis"])
    assert "captions: 1 caption arrived (0 in a guessed encoding" in caplog.text
    options = ["bootstrap", "--source", str(tmp_path), "--out", str(out)]
    assert CliRunner().invoke(app, [*options, "--set", "download.encodng=x"]).exit_code == 2
    for setting, said in (
        ("train.seed=1", "only settings of the source"),
        ("download.encodng=x", "did you mean encoding"),
    ):
        with pytest.raises(ConfigError, match=said):
            bootstrap_from(str(tmp_path), out, overrides=[setting])
