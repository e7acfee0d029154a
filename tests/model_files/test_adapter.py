"""Adapters as files: ours and peft's, merged into models by formulas written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hdm.errors import DamagedError, InputError
from hdm.model_files.adapter import read_adapter, write_adapter
from hdm.model_files.opening import Addition, model_digest, open_model
from hdm.model_files.weights import Weights, save_weights
from hdm.models.adapters import adapter_tensors, attach, peft_config
from hdm.models.xut import XUT
from tests.models.test_adapters import FIELD, METHODS, settings
from tests.models.test_xut import some_inputs
from tests.small_models import SMALL, shaken

ASKED: dict[str, Any] = {"targets": ["mlp.*", "ctx_proj", "in_patch.proj", "shared_adaln_ffw.1"]}


def write_base(folder: Path) -> Path:
    path = folder / "base.safetensors"
    save_weights(path, Weights(SMALL, shaken(SMALL).state_dict()))
    return path


def write(folder: Path, method: str, base: str = "", **changes: Any) -> XUT:
    """An adapter with values, written to a folder; the model that has it."""
    asked = settings(method, **ASKED, **changes)
    model = shaken(SMALL)
    torch.manual_seed(3)
    chosen = attach(model, asked, FIELD)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.1)
    folder.mkdir(exist_ok=True)
    write_adapter(folder, peft_config(asked, chosen), adapter_tensors(model), base)
    return model.eval()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path)


def opened(base: Path, *adapters: Addition) -> dict[str, Tensor]:
    return dict(open_model(base, adapters=adapters).weights.tensors)


def lora(folder: Path, layer: str, scale: float) -> Tensor:
    """scale · B A of the file."""
    tensors = load_file(folder / "adapter_model.safetensors")
    down, up = (tensors[f"base_model.model.{layer}.lora_{side}.weight"] for side in "AB")
    product: Tensor = up.double().flatten(1) @ down.double().flatten(1)
    return scale * product.view(len(up), *down.shape[1:])


def test_merged_weights_are_the_base_and_scale_times_b_times_a(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "adapter", "lora", rank_pattern={"w12": 2}, alpha_pattern={"w3": 3.0})
    plain = opened(base)
    adapted = {f"{layer}.weight" for layer in read_adapter(tmp_path / "adapter").layers}
    assert len(adapted) > 5
    for wanted in (1.0, 0.3):
        found = opened(base, Addition(tmp_path / "adapter", wanted))
        for name, value in found.items():
            layer = name.removesuffix(".weight")
            if name not in adapted:
                assert torch.equal(value, plain[name]), name
                continue
            rank = 2 if "w12" in name else 4
            alpha = 3.0 if "w3" in name else 2.0
            by_hand = plain[name] + lora(tmp_path / "adapter", layer, wanted * alpha / rank)
            assert (value.double() - by_hand).abs().max() < 1e-6, name


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_computes_what_the_adapted_one_does(
    base: Path, tmp_path: Path, method: str
) -> None:
    adapted = write(tmp_path / "adapter", method)
    found = open_model(base, adapters=[Addition(tmp_path / "adapter")]).denoiser()
    given = some_inputs(SMALL)
    with torch.no_grad():
        torch.testing.assert_close(found(**given), adapted(**given), rtol=1e-4, atol=1e-5)
        assert (found(**given) - shaken(SMALL)(**given)).abs().max() > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_peft_itself_reads_the_folder(tmp_path: Path, method: str) -> None:
    from peft import PeftModel

    adapted = write(tmp_path / "adapter", method)
    theirs: Any = PeftModel.from_pretrained(shaken(SMALL), str(tmp_path / "adapter"))
    given = some_inputs(SMALL)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(**given), adapted(**given))


@pytest.mark.parametrize("method", METHODS)
def test_what_peft_writes_is_read_bit_for_bit(base: Path, tmp_path: Path, method: str) -> None:
    from peft import PeftModel

    write(tmp_path / "adapter", method)
    theirs: Any = PeftModel.from_pretrained(shaken(SMALL), str(tmp_path / "adapter"))
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours, again = read_adapter(tmp_path / "adapter"), read_adapter(tmp_path / "theirs")
    assert again.base is None
    assert ours.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(value, again.tensors[name]) for name, value in ours.tensors.items())
    one = opened(base, Addition(tmp_path / "adapter"))
    two = opened(base, Addition(tmp_path / "theirs"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_dora_and_ia3_scale_between_the_base_and_the_adapted(base: Path, tmp_path: Path) -> None:
    plain = opened(base)
    for method in ("dora", "ia3"):
        write(tmp_path / method, method)
        whole = opened(base, Addition(tmp_path / method))
        half = opened(base, Addition(tmp_path / method, 0.5))
        for name, value in half.items():
            torch.testing.assert_close(value, (plain[name] + whole[name]) / 2)


def test_several_adapters_add_up(base: Path, tmp_path: Path) -> None:
    plain = opened(base)
    write(tmp_path / "one", "lora")
    write(tmp_path / "two", "lokr")
    one = opened(base, Addition(tmp_path / "one", 0.5))
    two = opened(base, Addition(tmp_path / "two"))
    both = opened(base, Addition(tmp_path / "one", 0.5), Addition(tmp_path / "two"))
    for name, value in both.items():
        torch.testing.assert_close(value, one[name] + two[name] - plain[name])


def test_a_file_may_leave_its_folder_and_the_same_makes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, "lora", base="abc")
    files = [tmp_path / name / "adapter_model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    moved = files[0].rename(tmp_path / "moved.safetensors")
    assert read_adapter(moved).config == read_adapter(tmp_path / "two").config
    assert read_adapter(moved).base == "abc"


def test_the_base_is_known_by_its_digest(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "own", "lora", base=model_digest(base))
    opened(base, Addition(tmp_path / "own"))
    assert not caplog.records
    write(tmp_path / "other", "lora", base="0" * 64)
    opened(base, Addition(tmp_path / "other"))
    assert "was trained on other weights" in caplog.text


def test_an_adapter_for_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    write(tmp_path / "adapter", "lora")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for change, message in {
        "name": r"the model has no layer ctx_prj; the nearest is ctx_proj",
        "shape": r"ctx_proj.lora_A.weight is \(4, 11\), and beside ctx_proj of 32 × 10 it is"
        r" \(4, 10\)",
        "rank": r"ctx_proj.lora_A.weight is \(3, 10\), and .* it is \(4, 10\)",
        "lacking": r"ctx_proj.lora_A.weight is absent",
    }.items():
        changed = dict(tensors)
        name = "base_model.model.ctx_proj.lora_A.weight"
        value = changed.pop(name)
        if change == "name":
            changed[name.replace("proj", "prj")] = value
        elif change == "shape":
            changed[name] = torch.zeros(4, 11)
        elif change == "rank":
            changed[name] = value[:3].contiguous()
        save_file(changed, file)
        with pytest.raises(InputError, match="the adapter is for another base: " + message):
            opened(base, Addition(tmp_path / "adapter"))


def test_what_is_no_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no adapter_config"):
        read_adapter(base)
    with pytest.raises(InputError, match="no such weights file"):
        read_adapter(tmp_path / "nothing.safetensors")
    write(tmp_path / "adapter", "lora")
    folder = tmp_path / "adapter"
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "BOFT"}))
    with pytest.raises(InputError, match="an adapter of kind BOFT"):
        read_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 4}))
    with pytest.raises(InputError, match="is no tensor of an adapter of kind LOHA"):
        opened(base, Addition(folder))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DamagedError):
        read_adapter(folder)


WRONG: dict[str, dict[str, Any]] = {
    "rank": {"r": -3},
    "kind": {"peft_type": ["LORA"]},
    "pattern": {"rank_pattern": {"(": 3}},
    "patterns": {"alpha_pattern": [1]},
    "alpha": {"lora_alpha": "much"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_configuration_that_cannot_be_is_refused(
    base: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    write(tmp_path / "adapter", "lora")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    save_file(load_file(file), file, metadata={"adapter": json.dumps({"config": config | wrong})})
    with pytest.raises(InputError, match=r"configuration cannot be used|kind \['LORA'\]"):
        opened(base, Addition(tmp_path / "adapter"))


@pytest.mark.parametrize(("value", "scale"), [(float("nan"), 1.0), (1e30, 1e30)])
def test_weights_that_are_not_finite_are_refused(
    base: Path, tmp_path: Path, value: float, scale: float
) -> None:
    write(tmp_path / "adapter", "lora")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("ctx_proj.lora_B.weight"))
    tensors[name][0, 0] = value
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    save_file(tensors, file, metadata={"adapter": f'{{"config": {config}}}'})
    with pytest.raises(InputError, match=r"makes ctx_proj\.weight infinite or not a number"):
        opened(base, Addition(tmp_path / "adapter", scale))


def test_a_folder_without_an_adapter_is_no_adapter(base: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="this folder has no adapter_model"):
        opened(base, Addition(tmp_path / "model"))
