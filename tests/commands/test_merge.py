"""`hdm merge`: files with adapters in them, against products computed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from hdm.commands.cli import app
from hdm.model_files.adapter import read_adapter
from hdm.model_files.card import ModelCard
from hdm.model_files.merging import merge_file
from hdm.model_files.opening import Addition, model_digest, open_model
from hdm.options import scaled_path
from tests.model_files.test_adapter import lora, opened, write, write_base
from tests.small_models import SMALL, shaken


def hdm(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["merge", *map(str, words)])
    return result.exit_code, result.output


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """In 16 bits, as published files are."""
    path = write_base(tmp_path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({name: value.half() for name, value in load_file(path).items()}, path, metadata)
    return path


def test_a_file_is_the_base_with_the_products_in_it(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "one", "lora")
    code, said = hdm(base, "--lora", f"{tmp_path / 'one'}:0.5", "--out", tmp_path / "out")
    assert code == 0, said
    (file,) = (tmp_path / "out").glob("*.safetensors")
    before, after = load_file(base), load_file(file)
    assert before.keys() == after.keys()
    layers = read_adapter(tmp_path / "one").layers
    for name, value in after.items():
        assert value.dtype == torch.float16
        layer = name.removeprefix("unet.model.").removesuffix(".weight")
        if layer in layers and name.endswith(".weight"):
            wanted = before[name].double() + lora(tmp_path / "one", layer, 0.5 * 2 / 4)
            # Half a unit in the last of 16 bits' places.
            assert (value.double() - wanted).abs().max() <= wanted.abs().max() * 2**-11
        else:
            assert torch.equal(value, before[name]), name
    assert f"merged into {len(layers)} tensors" in said
    with safe_open(file, "pt") as opened_file:
        metadata = opened_file.metadata()
    assert [(one["name"], one["scale"]) for one in json.loads(metadata["merged"])] == [
        ("base.safetensors", 1.0),
        ("one", 0.5),
    ]
    assert json.loads(metadata["merged"])[0]["digest"] == model_digest(base)
    assert open_model(tmp_path / "out").card.config == SMALL


def test_a_training_s_output_keeps_its_card_and_several_are_merged_in_order(
    tmp_path: Path,
) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    ModelCard(SMALL, resolution=64, components={"text_encoder": "abc"}).write(trained)
    save_file(shaken(SMALL).state_dict(), trained / "ema.safetensors")
    for name, method in {"one": "lora", "two": "dora", "three": "ia3"}.items():
        write(tmp_path / name, method)
    given = [f"{tmp_path / 'one'}:0.5", tmp_path / "two", f"{tmp_path / 'three'}:-1"]
    options = [word for one in given for word in ("--lora", one)]
    code, said = hdm(trained, *options, "--out", tmp_path / "out")
    assert code == 0, said
    found = open_model(tmp_path / "out")
    assert found.card == open_model(trained).card
    by_hand = opened(
        trained,
        Addition(tmp_path / "one", 0.5),
        Addition(tmp_path / "two"),
        Addition(tmp_path / "three", -1.0),
    )
    assert all(torch.equal(value, by_hand[name]) for name, value in found.weights.tensors.items())


def test_the_file_is_laid_out_as_the_library_would(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    tensors: dict[str, Tensor] = {
        "a": torch.randn(3), "b.weight": torch.randn(4, 5), "c": torch.arange(3),
        "d": torch.randn(7).bfloat16(), "e": torch.tensor([True, False, True]),
        "f": torch.tensor(2.5, dtype=torch.float64),
    }  # fmt: skip
    save_file(tensors, base)
    assert merge_file(base, [], tmp_path / "out.safetensors", []) == 0
    save_file(tensors, tmp_path / "theirs.safetensors", {"merged": "[]"})
    ours = (tmp_path / "out.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()


def test_what_cannot_be_merged_is_refused(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "one", "lora")
    options = ["--lora", tmp_path / "one", "--out"]
    for given, message in {
        tmp_path / "one": "is an adapter itself",
        tmp_path / "nothing.safetensors": "no such weights file",
        tmp_path / "a.ckpt": "neither an output of training nor a safetensors file",
    }.items():
        if given.suffix == ".ckpt":
            given.write_bytes(b"")
        code, said = hdm(given, *options, tmp_path / "out")
        assert code == 2, said
        assert message in said
        assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    assert "is there already" in hdm(base, *options, tmp_path / "there")[1]
    small = {name: value[:4] for name, value in load_file(base).items() if value.ndim > 1}
    save_file(small, tmp_path / "small.safetensors")
    code, said = hdm(tmp_path / "small.safetensors", *options, tmp_path / "out")
    assert code == 2
    assert "the adapter is for another base" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [("a", "a", 1.0), ("a:0.5", "a", 0.5), ("a:b", "a:b", 1.0), ("a:nan", "a:nan", 1.0)],
)
def test_a_scale_stands_behind_the_path(text: str, path: str, scale: float) -> None:
    assert scaled_path(text) == (Path(path), scale)


def test_a_path_that_exists_with_its_colon_has_no_scale(tmp_path: Path) -> None:
    path = tmp_path / "half:0.5"
    path.mkdir()
    assert scaled_path(str(path)) == (path, 1.0)
    assert scaled_path(f"{path}:0.3") == (path, 0.3)
