"""Lightning checkpoints: what is read from them, and what is never run."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from hdm.errors import DamagedError, InputError
from hdm.model_files.lightning import EMA, read_checkpoint
from tests.model_files import golden_files
from tests.model_files.golden_files import PREFIX
from tests.small_models import SMALL


def checkpoint(state: dict[str, torch.Tensor], **more: object) -> dict[str, object]:
    return {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": collections.OrderedDict(state),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
        "hyper_parameters": {"lr": 1e-3},
        **more,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_denoiser_is_found_bit_by_bit(tmp_path, dtype):
    state = golden_files.official(SMALL, dtype)
    torch.save(checkpoint(state), tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert found.config == SMALL
    assert found.passed_over == {"te": 2, "vae": 1, "vae_mean": 1, "vae_std": 1}
    for name, tensor in found.tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, state[PREFIX + name]), name
    assert len(found.tensors) == len(state) - 5


def test_a_state_without_the_rest_and_an_old_file_are_read_too(tmp_path):
    state = golden_files.official(SMALL)
    torch.save(state, tmp_path / "bare.ckpt", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "bare.ckpt").config == SMALL


@pytest.mark.parametrize("form", ["beside", "inside", "renamed"])
def test_averaged_weights_are_taken_where_they_are_asked_for(tmp_path, form):
    state = golden_files.official(SMALL)
    average = {
        name: tensor + 1
        for name, tensor in state.items()
        if name.startswith(PREFIX) and name != f"{PREFIX}time_emb.freqs"
    }
    if form == "beside":
        saved = checkpoint(state, ema_state_dict=average)
    elif form == "inside":
        saved = checkpoint(
            {**state, **{f"ema.module.{name}": tensor for name, tensor in average.items()}}
        )
    else:
        saved = checkpoint({**state, **{f"ema_{name}": tensor for name, tensor in average.items()}})
    torch.save(saved, tmp_path / "a.ckpt")
    plain, averaged = (
        read_checkpoint(tmp_path / "a.ckpt"),
        read_checkpoint(tmp_path / "a.ckpt", ema=True),
    )
    assert plain.passed_over[EMA] == len(average)
    assert plain.tensors.keys() == averaged.tensors.keys()
    for name, tensor in plain.tensors.items():
        assert torch.equal(tensor, state[PREFIX + name])
        assert torch.equal(averaged.tensors[name], average.get(PREFIX + name, tensor)), name


def test_averages_that_are_missing_are_told(tmp_path):
    state = golden_files.official(SMALL)
    torch.save(checkpoint(state), tmp_path / "none.ckpt")
    with pytest.raises(InputError, match="no averaged weights"):
        read_checkpoint(tmp_path / "none.ckpt", ema=True)
    torch.save(
        checkpoint(state, ema_state_dict={f"{PREFIX}ctx_proj.bias": torch.zeros(32)}),
        tmp_path / "few.ckpt",
    )
    with pytest.raises(InputError, match="tensors have no average"):
        read_checkpoint(tmp_path / "few.ckpt", ema=True)


class Trap:
    """Unpickled without care it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path, zipped):
    trap = tmp_path / "sprung"
    torch.save(
        checkpoint(golden_files.official(SMALL), callbacks=Trap(trap)),
        tmp_path / "a.ckpt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(InputError, match=r"cannot be opened without running code from it: .*mkdir"):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not trap.exists()


def test_what_is_no_checkpoint_is_told(tmp_path):
    path = tmp_path / "a.ckpt"
    with pytest.raises(InputError, match="no such checkpoint"):
        read_checkpoint(path)
    torch.save(checkpoint(golden_files.official(SMALL)), path)
    for content in (
        path.read_bytes()[:-2000],
        b"no pickle at all",
        b"",
        pickle.dumps([1, 2], protocol=2),
    ):
        path.write_bytes(content)
        with pytest.raises((DamagedError, InputError), match=r"a\.ckpt"):
            read_checkpoint(path)
    torch.save([torch.zeros(2)], path)
    with pytest.raises(InputError, match="holds a list, not named tensors"):
        read_checkpoint(path)
    torch.save(checkpoint({"te.embed.weight": torch.zeros(2)}), path)
    with pytest.raises(InputError, match=r"no tensor's name begins with unet\.model\."):
        read_checkpoint(path)
