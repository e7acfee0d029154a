"""`hdm weights`: what it says and its exit codes, on files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from hdm.cli import app
from tests.models import golden_files

GIVEN = Path(__file__).parent / "golden/xut_small.safetensors"


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
    bad = golden_files.write(tmp_path / "bad.safetensors", {**given, "out.tread": given["out.tread"] * 1.001}, None)
    code, shown = weights("check", GIVEN, bad)
    assert code == 1
    assert "1 tensors differ by more than 1e-05: out.tread (1.0e-03)" in shown
    assert "✗" in next(line for line in shown.splitlines() if line.startswith("out.tread") and "9.99e-04" in line)


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
def test_check_refuses_what_is_no_golden_file(tmp_path: Path, name: str, content: bytes | None, exit_code: int, said: str) -> None:
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
