"""The published form of a configuration, and what shapes tell."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from hdm.architecture import PRESETS, XUTConfig
from hdm.errors import InputError
from hdm.model_files.published import from_published, to_published
from hdm.model_files.weights import read_weights
from hdm.models.xut import XUT
from tests.model_files import golden_files
from tests.model_files.test_golden import GIVEN, OTHERS
from tests.small_models import SMALL, changes


def empty(config: XUTConfig) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return XUT(config).state_dict()


PUBLISHED = [XUTConfig.preset(name) for name in PRESETS] + [config for config, _ in OTHERS]


@pytest.mark.parametrize(
    "config", PUBLISHED, ids=[f"{config.width}:{changes(config, SMALL)}" for config in PUBLISHED]
)
def test_shapes_tell_the_whole_configuration(config):
    assert from_published({}, empty(config)) == config


@pytest.mark.parametrize("config", PUBLISHED[:4])
def test_the_published_form_comes_back(config):
    values = to_published(config, 0.25)
    assert values is not None
    assert values["tread_config"]["dropout_ratio"] == 0.25
    assert from_published(json.loads(json.dumps(values)), empty(config)) == config
    without = to_published(config)
    assert without is not None
    assert "dropout_ratio" not in without["tread_config"]


def test_what_is_written_has_the_given_files_words(tmp_path):
    with safe_open(GIVEN, "pt") as file:
        wanted = json.loads(file.metadata()["config"])
    config = read_weights(GIVEN).config
    ours = to_published(config, 0.5)
    assert ours is not None
    assert {**ours, "ctx_size": 16} == wanted
    golden_files.save_model(tmp_path / "a.safetensors", golden_files.drawn(config))
    assert read_weights(tmp_path / "a.safetensors").said["dim"] == 64


@pytest.mark.parametrize(
    "change",
    [{"residual": "prenorm"}, {"skips": "mirrored"}, {"text_mask": "masked"}, {"qk_norm": True}],
)
def test_a_variant_has_no_published_form(change, tmp_path):
    config = replace(SMALL, **change)
    assert to_published(config) is None
    golden_files.save_model(tmp_path / "a.safetensors", XUT(config))
    assert read_weights(tmp_path / "a.safetensors").config == config


def test_tensors_of_something_else_are_told():
    tensors = empty(SMALL)
    with pytest.raises(InputError, match=r"not a XUT's: none is called attn\.rope\.freqs"):
        from_published({}, {name: tensor for name, tensor in tensors.items() if "rope" not in name})
    with pytest.raises(InputError, match="not a XUT's: rotary table"):
        from_published({}, {**tensors, "in_patch.proj.weight": torch.zeros(32, 4)})
