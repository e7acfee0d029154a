"""Denoisers opened from every form in which they lie on disk, and what cannot be opened."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hdm.errors import DamagedError, InputError
from hdm.model_files.card import MAX_TOKENS, ModelCard, read_card
from hdm.model_files.opening import model_config, model_digest, open_model
from hdm.models.xut import XUT
from tests.model_files import golden_files
from tests.small_models import SMALL, TINY

CARD = ModelCard(
    TINY,
    resolution=64,
    max_tokens=77,
    components={"autoencoder": "a" * 64, "text_encoder": "b" * 64},
    component_names={"text_encoder": "org/name"},
)


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_what_training_wrote_is_read_with_its_card(tmp_path: Path) -> None:
    models = {"weights": XUT(TINY), "ema": XUT(TINY)}
    for name, model in models.items():
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    CARD.write(tmp_path)
    for average, name in ((None, "ema"), (True, "ema"), (False, "weights")):
        found = open_model(tmp_path, average=average)
        assert found.kind == "trained"
        assert found.card == CARD
        assert equal(models[name], found.denoiser())
    assert model_config(tmp_path) == TINY
    assert model_digest(tmp_path) == model_digest(tmp_path / "ema.safetensors")


def test_a_diffusers_folder_is_read_with_what_its_index_says(tmp_path: Path) -> None:
    model = XUT(TINY)
    (tmp_path / "transformer").mkdir()
    save_file(model.state_dict(), tmp_path / "transformer/diffusion_pytorch_model.safetensors")
    config = {"_class_name": "XUTTransformer", **TINY.to_dict()}
    (tmp_path / "transformer/config.json").write_text(json.dumps(config))
    index = {"_class_name": "HDMPipeline", "vae": ["diffusers", "AutoencoderKL"], "resolution": 32}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = open_model(tmp_path)
    assert (found.kind, found.card) == ("diffusers", ModelCard(TINY, resolution=32))
    assert equal(model, found.denoiser())
    with pytest.raises(InputError, match="leave out --raw"):
        open_model(tmp_path, average=False)


def test_a_checkpoint_is_read_and_its_average_where_it_is_asked_for(tmp_path: Path) -> None:
    own = golden_files.official(SMALL)
    average = {name: tensor + 1 for name, tensor in own.items()}
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": own, "ema_state_dict": average}, path)
    name = "ctx_proj.bias"
    for asked, state in ((None, own), (False, own), (True, average)):
        found = open_model(path, average=asked)
        assert (found.kind, found.card) == ("checkpoint", ModelCard(SMALL))
        assert torch.equal(found.weights.tensors[name], state[golden_files.PREFIX + name])


def test_a_published_file_is_read_alone_or_in_a_folder_of_its_own(tmp_path: Path) -> None:
    tensors = golden_files.official(SMALL)
    silent = golden_files.write(tmp_path / "silent.safetensors", tensors, None)
    with pytest.raises(InputError, match="does not say its configuration"):
        open_model(silent)
    for path in (silent, str(tmp_path)):
        found = open_model(path, infer=True)
        assert (found.kind, found.card) == ("file", ModelCard(SMALL))
    assert found.card.max_tokens == MAX_TOKENS
    with pytest.raises(InputError, match="leave it out"):
        open_model(silent, average=True, infer=True)


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither model.json"):
        open_model(tmp_path)
    with pytest.raises(InputError, match="no such weights file"):
        open_model(tmp_path / "nowhere")
    ModelCard(TINY).write(tmp_path)
    with pytest.raises(InputError, match="no such weights file"):
        open_model(tmp_path)
    (tmp_path / "ema.safetensors").write_bytes(b"\x80\x04 a pickle, say")
    with pytest.raises(DamagedError):
        open_model(tmp_path)
    tensors = XUT(TINY).state_dict()
    tensors["ctx_proj.weight"] = torch.zeros(8, 5)
    save_file(tensors, tmp_path / "ema.safetensors")
    with pytest.raises(InputError, match=r"ctx_proj.weight.*\(8, 5\).*\(8, 8\)"):
        open_model(tmp_path)


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    for card in (CARD, ModelCard(TINY), replace(CARD, ema_length=0.08)):
        card.write(tmp_path)
        assert read_card(tmp_path) == card
    # As 0.1.0 wrote it, and with a word that a later version may add.
    old = {"xut": TINY.to_dict(), "resolution": 64, "later": [1]}
    (tmp_path / "model.json").write_text(json.dumps(old))
    assert read_card(tmp_path) == ModelCard(TINY, resolution=64)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resolution": 64}, "configuration, xut"),
        ({"xut": TINY.to_dict(), "resolution": "large"}, "resolution: .*integer"),
        ({"xut": TINY.to_dict(), "components": ["demo"]}, "components: .*dictionary"),
        ({"xut": TINY.to_dict(), "components": {"autoencoder": 3}}, "components.autoencoder"),
        ({"xut": {"width": "wide"}}, "width"),
        ({"xut": 7}, "xut"),
    ],
)
def test_a_card_that_is_none_is_refused(values: object, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=said):
        read_card(tmp_path)
