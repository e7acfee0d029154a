"""Golden files: our own computation against float64 by the oracle, over sizes that the given file
does not have.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hdm.architecture import XUTConfig
from hdm.errors import InputError
from hdm.model_files.golden import compare, relative_error
from hdm.model_files.weights import read_weights
from hdm.models.xut import XUT
from tests.model_files import golden_files
from tests.small_models import SMALL, changes

GIVEN = Path(__file__).parents[1] / "golden/xut_small.safetensors"
NO_ASPECT = replace(SMALL, aspect_embedding=False)
OTHERS = [
    (SMALL, dict(height=4, width=8)),
    (replace(SMALL, patch_size=1, channels=16), dict(height=5, width=2, rate=0.25)),
    (
        replace(SMALL, depth=3, dec_blocks=3, mlp_width=40),
        dict(height=4, width=4, rate=0.75, batch=1),
    ),
    (
        replace(SMALL, enc_blocks=2, prev_blocks=0, post_blocks=2, text_width=7),
        dict(height=8, width=2, rate=0.0, num_text=1),
    ),
    (
        replace(SMALL, width=48, num_heads=12, head_size=4, prev_blocks=2, post_blocks=0),
        dict(height=2, width=6, per_sample=True),
    ),
    (
        replace(SMALL, width=64, num_heads=1, head_size=64, patch_size=3, channels=2),
        dict(height=6, width=9, batch=3),
    ),
    (replace(NO_ASPECT, depth=2), dict(height=6, width=4)),
    # Long and wide enough for the attention and the products that large models take.
    (
        replace(SMALL, width=96, num_heads=3, head_size=32, mlp_width=288),
        dict(height=20, width=16, rate=0.25),
    ),
]


@pytest.mark.parametrize(
    ("config", "shape"), OTHERS, ids=[changes(config, SMALL) for config, _ in OTHERS]
)
def test_every_output_and_every_gradient_of_other_sizes_is_the_oracles(config, shape, tmp_path):
    tensors = golden_files.golden(config, **shape)
    if not config.aspect_embedding:
        del tensors["in.log_aspect"]
    path = golden_files.write(
        tmp_path / "a.safetensors",
        tensors,
        golden_files.published_form(config, shape.get("rate", 0.5)),
    )
    found = {comparison.name: comparison for comparison in compare(path)}
    assert found.keys() == {name for name in tensors if name.startswith(("out.", "grad."))}
    assert {
        f"out.{name}" for name in ("plain", "no_pos", "camera", "tread", "loss", "grad_x")
    } < found.keys()
    num_blocks = (
        config.prev_blocks
        + config.depth * (config.enc_blocks + config.dec_blocks)
        + config.post_blocks
    )
    assert sum(name.startswith("grad.") for name in found) == num_blocks + config.depth + 4
    assert all(comparison.holds for comparison in found.values()), max(
        found.values(), key=lambda comparison: comparison.error
    )


def test_a_file_without_words_for_its_model_is_told_from_its_shapes(tmp_path):
    tensors = golden_files.golden(SMALL, height=4, width=2)
    silent = golden_files.write(tmp_path / "silent.safetensors", tensors, None)
    brief = golden_files.write(
        tmp_path / "brief.safetensors",
        tensors,
        {"dim": 32, "tread_config": None, "something_new": [1]},
    )
    assert all(comparison.holds for path in (silent, brief) for comparison in compare(path))


@pytest.fixture(scope="module")
def given() -> dict[str, torch.Tensor]:
    return load_file(GIVEN)


def test_the_oracle_makes_the_given_file(given):
    state = {
        name.removeprefix("unet.model."): tensor
        for name, tensor in given.items()
        if name.startswith("unet.model.")
    }
    inputs = {name: tensor for name, tensor in given.items() if name.startswith("in.")}
    found = golden_files.computed(
        read_weights(GIVEN).config, state, inputs, given["in.tread_keep"].bool()
    )
    assert found.keys() == {name for name in given if name.startswith(("out.", "grad."))}
    for name, tensor in found.items():
        assert relative_error(tensor, given[name], name, GIVEN) < 1e-7, name


def test_a_fresh_models_frequencies_of_time_are_the_published_ones(given):
    fresh = XUT(replace(SMALL, width=64, num_heads=4)).time_emb.freqs
    torch.testing.assert_close(fresh, given["unet.model.time_emb.freqs"], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("out.camera", {"out.camera"}),
        ("grad.in_patch.proj.weight", {"grad.in_patch.proj.weight"}),
        ("in.tread_keep", {"out.tread"}),
        ("in.pos_camera", {"out.camera"}),
    ],
)
def test_a_changed_tensor_fails_and_is_named(given, name, failing, tmp_path):
    changed = given[name].clone()
    changed[0] = changed[0].flip(0)
    path = golden_files.write(tmp_path / "a.safetensors", {**given, name: changed}, None)
    assert {found.name for found in compare(path) if not found.holds} == failing


def test_a_change_just_above_the_limit_fails_and_one_just_below_does_not(given, tmp_path):
    direction = torch.randn(given["out.plain"].shape, generator=torch.Generator().manual_seed(0))
    direction *= given["out.plain"].norm() / direction.norm()
    for size, failing in ((1.2e-5, ["out.plain"]), (0.8e-5, [])):
        path = golden_files.write(
            tmp_path / "a.safetensors",
            {**given, "out.plain": given["out.plain"] + size * direction},
            None,
        )
        assert [found.name for found in compare(path) if not found.holds] == failing


def test_one_changed_weight_fails_all_that_it_reaches(given, tmp_path):
    name = "unet.model.post_tread_trns.blocks.1.mlp.w3.bias"
    changed = given[name].clone()
    changed[0] += 1e-3
    found = compare(golden_files.write(tmp_path / "a.safetensors", {**given, name: changed}, None))
    assert {"out.plain", "out.tread", "out.no_pos", "out.camera", "out.grad_x"} <= {
        each.name for each in found if not each.holds
    }


def test_what_is_not_a_number_or_zero_is_not_passed(given, tmp_path):
    bad = {
        "out.plain": given["out.plain"] * torch.nan,
        "out.camera": torch.zeros_like(given["out.camera"]),
    }
    found = compare(golden_files.write(tmp_path / "a.safetensors", {**given, **bad}, None))
    assert {each.name for each in found if not each.holds} == set(bad)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out.plane": torch.zeros(1)}, "no output is called out.plane"),
        ({"grad.nothing": torch.zeros(1)}, "grad.nothing: the model has no such weight"),
        ({"in.target": None}, "there is no in.target"),
        ({"in.t": torch.zeros(2)}, r"in.t is \(2,\), beside this in.x it has to be \(3,\)"),
        ({"in.ctx": torch.zeros(3, 7, 47)}, "text embedding is 47 wide, the model wants 48"),
        ({"in.tread_keep": torch.ones(3, 24).tril(1)}, "tokens of different samples"),
        (
            {"out.tread": torch.zeros(3, 4, 12, 9)},
            r"out.tread is \(3, 4, 12, 9\), the model's \(3, 4, 12, 8\)",
        ),
    ],
)
def test_a_file_that_is_not_quite_golden_is_told(given, change, said, tmp_path):
    changed = {name: tensor for name, tensor in {**given, **change}.items() if tensor is not None}
    with pytest.raises(InputError, match=said):
        compare(golden_files.write(tmp_path / "a.safetensors", changed, None))


def test_weights_alone_are_no_golden_file(given, tmp_path):
    weights = {name: tensor for name, tensor in given.items() if name.startswith("unet.model.")}
    with pytest.raises(InputError, match="holds no outputs"):
        compare(golden_files.write(tmp_path / "a.safetensors", weights, None))


def test_words_and_tensors_that_contradict_each_other_are_refused(given, tmp_path):
    widths: dict[str, Any] = dict(width=64, num_heads=4, head_size=16, mlp_width=96, text_width=48)
    config = XUTConfig(**widths, depth=2, dec_blocks=2, post_blocks=2)
    said = golden_files.published_form(config, 0.5)
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"mlp_dim": 80},
            r"backbone\.dec_blocks\.0\.0\.mlp\.w12\.bias is \(192,\), the model's \(160,\)",
        ),
        ({"heads": 8, "dim_head": 8}, r"attn\.rope\.freqs is \(4, 4, 2\), the model's \(8, 2, 2\)"),
        ({"depth": 3}, r"dec_blocks\.2\.0\.attn\.out\.bias is absent, the model's \(64,\)"),
        (
            {"addon_info_embs_dim": None},
            r"addon_info_embs_proj\.0\.bias is \(64,\), the model's absent",
        ),
        (
            {"tread_config": {"post_trns_depth": 1}},
            r"post_tread_trns\.blocks\.1\.attn\.out\.bias is \(64,\), the model's absent",
        ),
        ({"dim": 65}, "width 65 is not num_heads 4"),
        ({"heads": "4"}, "sizes have to be whole numbers"),
        ({"tread_config": 0.5}, "tread_config is 0.5"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            compare(golden_files.write(tmp_path / "a.safetensors", given, {**said, **change}))
