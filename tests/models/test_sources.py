"""What training wrote, read again, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hdm.architecture import XUTConfig
from hdm.errors import DamagedError, InputError
from hdm.models.sources import read_source
from hdm.models.xut import XUT

CONFIG = XUTConfig(
    width=8,
    num_heads=2,
    head_size=4,
    mlp_width=8,
    text_width=8,
    depth=1,
    enc_blocks=1,
    dec_blocks=1,
    prev_blocks=1,
    post_blocks=1,
)


def test_a_model_that_was_written_is_read(tmp_path: Path) -> None:
    models = {"weights": XUT(CONFIG), "ema": XUT(CONFIG)}
    for name, model in models.items():
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    (tmp_path / "model.json").write_text(json.dumps({"xut": CONFIG.to_dict(), "resolution": 64}))
    for raw, name in ((False, "ema"), (True, "weights")):
        found = read_source(tmp_path, raw=raw)
        assert found.told["resolution"] == 64
        state = found.weights.model().state_dict()
        assert all(
            torch.equal(value, state[key]) for key, value in models[name].state_dict().items()
        )


def test_a_model_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither model.json"):
        read_source(tmp_path)
    with pytest.raises(InputError, match="no such weights file"):
        read_source(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text(json.dumps({"xut": CONFIG.to_dict()}))
    with pytest.raises(InputError, match="no such weights file"):
        read_source(tmp_path)
    (tmp_path / "ema.safetensors").write_bytes(b"\x80\x04 a pickle, say")
    with pytest.raises(DamagedError):
        read_source(tmp_path)
    tensors = XUT(CONFIG).state_dict()
    tensors["ctx_proj.weight"] = torch.zeros(8, 5)
    save_file(tensors, tmp_path / "ema.safetensors")
    with pytest.raises(InputError, match=r"ctx_proj.weight.*\(8, 5\).*\(8, 8\)"):
        read_source(tmp_path)
