import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hdm.errors import DamagedError, InputError
from hdm.model_files.weights import Weights, read_weights, save_weights
from hdm.models.xut import XUT
from tests.model_files.golden_files import save_model
from tests.small_models import SMALL

CONFIG = SMALL.recommended()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return XUT(CONFIG)


def test_weights_come_back_as_they_were(model, tmp_path):
    save_model(tmp_path / "a.safetensors", model)
    again = read_weights(tmp_path / "a.safetensors").model()
    assert again.config == CONFIG
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in again.parameters())
    save_weights(tmp_path / "b.safetensors", Weights(CONFIG, again.state_dict()))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_other_parts_of_a_published_file_are_passed_over(model, tmp_path):
    save_model(tmp_path / "a.safetensors", model)
    tensors = load_file(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata = file.metadata()
    extra = {"te.embed.weight": torch.zeros(2), "vae_mean": torch.zeros(4)}
    half = {name: tensor.half() for name, tensor in tensors.items()}
    save_file({**half, **extra}, tmp_path / "b.safetensors", metadata=metadata)
    again = read_weights(tmp_path / "b.safetensors").model()
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float32}


def test_weights_of_another_shape_are_refused_by_name(model, tmp_path):
    save_weights(
        tmp_path / "a.safetensors", Weights(replace(CONFIG, text_width=12), model.state_dict())
    )
    with pytest.raises(
        InputError, match=r"unet\.model\.ctx_proj\.weight is \(32, 10\), the model's \(32, 12\)"
    ):
        read_weights(tmp_path / "a.safetensors")
    save_weights(
        tmp_path / "b.safetensors", Weights(replace(CONFIG, final_norm=False), model.state_dict())
    )
    with pytest.raises(InputError, match=r"final_norm\.weight is \(32,\), the model's absent"):
        read_weights(tmp_path / "b.safetensors")


def test_files_that_cannot_be_read_are_named(model, tmp_path):
    with pytest.raises(InputError, match="no such weights"):
        read_weights(tmp_path / "none.safetensors")
    torch.save({"config": {}}, tmp_path / "pickled.ckpt")
    with pytest.raises(InputError, match="can run code"):
        read_weights(tmp_path / "pickled.ckpt")
    (tmp_path / "renamed.safetensors").write_bytes((tmp_path / "pickled.ckpt").read_bytes())
    with pytest.raises(DamagedError, match=r"renamed\.safetensors"):
        read_weights(tmp_path / "renamed.safetensors")
    save_model(tmp_path / "whole.safetensors", model)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-9])
    with pytest.raises(DamagedError, match=r"cut\.safetensors"):
        read_weights(tmp_path / "cut.safetensors")
    save_file(
        {"unet.model.x": torch.zeros(1)},
        tmp_path / "silent.safetensors",
        metadata={"other": json.dumps({})},
    )
    with pytest.raises(InputError, match="does not say its configuration"):
        read_weights(tmp_path / "silent.safetensors")
