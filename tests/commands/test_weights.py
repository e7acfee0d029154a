"""`hdm weights`: what it says and its exit codes, on files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from hdm.commands.cli import app
from hdm.models.xut import XUT
from tests.model_files import golden_files
from tests.small_models import SMALL

GIVEN = Path(__file__).parents[1] / "golden/xut_small.safetensors"


def weights(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["weights", *map(str, words)])
    return result.exit_code, result.output


def test_check_prints_every_tensor_and_passes() -> None:
    code, shown = weights("check", GIVEN)
    assert code == 0
    compared = [name for name in load_file(GIVEN) if name.startswith(("out.", "grad."))]
    lines = {line.split()[0]: line for line in shown.splitlines() if "✓" in line}
    assert lines.keys() == set(compared)
    assert all(float(line.split()[1]) < 1e-5 for line in lines.values())


def test_check_fails_and_names_what_differs(tmp_path: Path) -> None:
    given = load_file(GIVEN)
    bad = golden_files.write(
        tmp_path / "bad.safetensors", {**given, "out.tread": given["out.tread"] * 1.001}, None
    )
    code, shown = weights("check", GIVEN, bad)
    assert code == 1
    assert "1 tensors differ by more than 1e-05: out.tread (1.0e-03)" in shown
    assert "✗" in next(
        line for line in shown.splitlines() if line.startswith("out.tread") and "9.99e-04" in line
    )


@pytest.mark.parametrize(
    ("name", "content", "exit_code", "said"),
    [
        ("none.safetensors", None, 2, "no such weights file"),
        ("text.safetensors", b"no weights", 5, "not a whole safetensors file"),
        ("cut.safetensors", GIVEN.read_bytes()[:-100], 5, "not a whole safetensors file"),
        ("head.safetensors", GIVEN.read_bytes()[:500], 5, "not a whole safetensors file"),
        ("pickle.ckpt", b"", 2, "can run code"),
    ],
)
def test_check_refuses_what_is_no_golden_file(
    tmp_path: Path, name: str, content: bytes | None, exit_code: int, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, shown = weights("check", tmp_path / name)
    assert (code, said in shown) == (exit_code, True), shown
    assert str(tmp_path / name) in shown.replace("\n", "")


def test_check_names_both_shapes_of_weights_that_do_not_fit(tmp_path: Path) -> None:
    given = load_file(GIVEN)
    other = {**given, "unet.model.ctx_proj.weight": torch.zeros(32, 48)}
    code, shown = weights("check", golden_files.write(tmp_path / "a.safetensors", other, None))
    assert code == 2
    assert "unet.model.ctx_proj.weight is (32, 48), the model's (64, 48)" in shown


def raw(path: Path) -> dict[str, tuple[torch.dtype, bytes]]:
    """The denoiser's tensors as bytes."""
    tensors = {
        name: tensor for name, tensor in load_file(path).items() if name.startswith("unet.model.")
    }
    return {
        name: (tensor.dtype, tensor.flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def configuration(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["config"])
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_import_then_export_keeps_every_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    said = {**golden_files.published_form(SMALL, 0.5), "something_else": 1}
    official = golden_files.write(
        tmp_path / "official.safetensors", golden_files.official(SMALL, dtype), said
    )
    code, shown = weights("import", official, "--out", tmp_path / "in")
    assert code == 0
    assert "passed over: 2 of te, 1 of vae, 1 of vae_mean, 1 of vae_std" in shown
    assert "width 32 = 2 × 16, feed-forward 24, text 10" in shown
    parameters = sum(parameter.numel() for parameter in XUT(SMALL).parameters())
    kind = str(dtype).removeprefix("torch.")
    assert f"{parameters:,} parameters in {len(raw(official))} tensors {kind}" in shown
    assert (
        weights(
            "export", tmp_path / "in/official.safetensors", "--out", tmp_path / "out.safetensors"
        )[0]
        == 0
    )
    for path in (tmp_path / "in/official.safetensors", tmp_path / "out.safetensors"):
        assert raw(path) == raw(official)
        assert load_file(path).keys() == raw(official).keys()
        assert configuration(path) == said


def test_a_silent_file_and_a_checkpoint_are_imported_by_their_shapes(tmp_path: Path) -> None:
    tensors = golden_files.official(SMALL, torch.bfloat16)
    silent = golden_files.write(tmp_path / "silent.safetensors", tensors, None)
    torch.save(
        {
            "state_dict": tensors,
            "ema_state_dict": {name: tensor * 2 for name, tensor in tensors.items()},
        },
        tmp_path / "a.ckpt",
    )
    assert weights("export", silent, "--out", tmp_path / "x.safetensors")[0] == 2
    code, shown = weights(
        "import", silent, "--out", tmp_path / "one.safetensors", "--tread-rate", "0.25"
    )
    assert (code, "inferred from the shapes" in shown) == (0, True)
    code, shown = weights("import", tmp_path / "a.ckpt", "--out", tmp_path / "two.safetensors")
    assert (code, "--ema takes them" in shown) == (0, True)
    assert (
        weights("import", tmp_path / "a.ckpt", "--out", tmp_path / "three.safetensors", "--ema")[0]
        == 0
    )
    assert raw(tmp_path / "one.safetensors") == raw(tmp_path / "two.safetensors") == raw(silent)
    assert torch.equal(
        load_file(tmp_path / "three.safetensors")["unet.model.ctx_proj.weight"],
        tensors["unet.model.ctx_proj.weight"] * 2,
    )
    wanted = {
        name: value
        for name, value in golden_files.published_form(SMALL, 0.25).items()
        if name != "ctx_size"
    }
    assert configuration(tmp_path / "one.safetensors") == wanted
    del wanted["tread_config"]["dropout_ratio"]
    assert configuration(tmp_path / "two.safetensors") == wanted


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (
            ["import", "GIVEN", "--out", "OUT", "--tread-rate", "1.0"],
            2,
            "1.0 must be at least 0 and less than 1",
        ),
        (["import", "GIVEN", "--out", "OUT", "--ema"], 2, "--ema is for checkpoints"),
        (["import", "none.ckpt", "--out", "OUT"], 2, "no such checkpoint"),
        (["export", "GIVEN", "--out", "GIVEN"], 2, "is there already"),
        (["export", "GIVEN"], 2, "nothing to write"),
        (["export", "GIVEN", "--diffusers", "OUT"], 2, "--components DIR, or demo"),
        (
            ["export", "GIVEN", "--diffusers", "OUT", "--components", "demo"],
            2,
            "autoencoder has 8 channels, the model 4",
        ),
        (["export", "GIVEN", "--out", "OUT", "--raw"], 2, "leave out --raw"),
        (["export", "none", "--out", "OUT"], 2, "no such weights file"),
    ],
)
def test_mistakes_are_told(words: list[str], exit_code: int, said: str, tmp_path: Path) -> None:
    out = tmp_path / "new.safetensors"
    code, shown = weights(*({"GIVEN": GIVEN, "OUT": out}.get(word, word) for word in words))
    assert (code, said in shown.replace("\n", " ")) == (exit_code, True), shown
    assert not out.exists()


def test_a_model_goes_to_a_diffusers_folder_and_back(tmp_path: Path) -> None:
    config = replace(SMALL, text_width=128, channels=8).recommended()
    model = golden_files.drawn(config)
    golden_files.save_model(tmp_path / "a.safetensors", model)
    code, shown = weights(
        "export",
        tmp_path / "a.safetensors",
        "--diffusers",
        tmp_path / "folder",
        "--components",
        "demo",
    )
    assert code == 0, shown
    assert weights("export", tmp_path / "folder", "--out", tmp_path / "b.safetensors")[0] == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
