from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hdm.architecture import XUTConfig
from hdm.errors import ConfigError, InputError
from hdm.model_files.weights import read_weights
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from hdm.positions import crop_map, full_map, to_patch_grid
from tests.models import oracle
from tests.small_models import SMALL, changes, shaken

GOLDEN = Path(__file__).parents[1] / "golden/xut_small.safetensors"
TINY = replace(SMALL, depth=2, dec_blocks=2)


def relative_error(ours: torch.Tensor | None, wanted: torch.Tensor | None) -> float:
    assert ours is not None
    assert wanted is not None
    error: float = ((ours - wanted).norm() / wanted.norm()).item()
    return error


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


@pytest.fixture
def model():
    return read_weights(GOLDEN).model()


def call(model, golden, positions="in.pos", **given):
    where = golden[positions] if positions else None
    return model(
        golden["in.x"],
        golden["in.t"],
        golden["in.ctx"],
        positions=where,
        log_aspect=golden["in.log_aspect"],
        **given,
    )


def test_the_golden_file_names_every_tensor_of_the_model(golden, model):
    names = {name.removeprefix("unet.model.") for name in golden if name.startswith("unet.model.")}
    assert names == set(model.state_dict())


def test_outputs_are_those_of_the_published_code(golden, model):
    keep = golden["in.tread_keep"].bool()
    kept = keep.nonzero()[:, 1].view(len(keep), -1)
    with torch.no_grad():
        outputs = {
            "plain": call(model, golden),
            "no_pos": call(model, golden, positions=None),
            "camera": call(model, golden, positions="in.pos_camera"),
            "tread": call(model, golden, kept=kept),
        }
    for name, ours in outputs.items():
        assert relative_error(ours, golden[f"out.{name}"]) < 1e-5, name


def test_gradients_are_those_of_the_published_code(golden, model):
    golden["in.x"].requires_grad_().grad = None
    loss = (call(model, golden) - golden["in.target"]).square().mean()
    loss.backward()
    assert relative_error(loss.detach(), golden["out.loss"]) < 1e-5
    assert relative_error(golden["in.x"].grad, golden["out.grad_x"]) < 1e-5
    parameters = dict(model.named_parameters())
    names = [name for name in golden if name.startswith("grad.")]
    assert len(names) == 15
    for name in names:
        assert relative_error(parameters[name.removeprefix("grad.")].grad, golden[name]) < 1e-5, (
            name
        )


def test_the_golden_file_says_which_model_it_is(model):
    with safe_open(GOLDEN, "pt") as file:
        assert '"dim": 64' in file.metadata()["config"]
    assert model.config == replace(
        XUTConfig(),
        width=64,
        num_heads=4,
        head_size=16,
        mlp_width=96,
        text_width=48,
        depth=2,
        dec_blocks=2,
        post_blocks=2,
    )


@pytest.mark.parametrize(
    ("name", "parameters"), [("small", 237_290_128), ("base", 343_176_208), ("large", 555_628_816)]
)
def test_the_published_sizes(name, parameters):
    with torch.device("meta"):
        model = XUT(XUTConfig.preset(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


VARIANTS = [
    TINY,
    replace(TINY, residual="prenorm"),
    replace(TINY, skips="mirrored"),
    replace(TINY, qk_norm=True),
    replace(TINY, rope="log_spaced"),
    replace(TINY, text_mask="masked"),
    replace(TINY, modulation="per_block"),
    replace(TINY, final_norm=True),
    replace(TINY, aspect_embedding=False),
    replace(TINY, positions="area"),
    replace(
        TINY, patch_size=1, channels=3, enc_blocks=2, dec_blocks=1, prev_blocks=0, post_blocks=0
    ),
    replace(TINY, patch_size=3, depth=3, residual="prenorm", modulation="per_block").recommended(),
]


def some_inputs(config: XUTConfig, batch: int = 3) -> dict[str, Any]:
    p, generator = config.patch_size, torch.Generator().manual_seed(1)
    height, width = 3 * p, 2 * p
    maps = [crop_map(6 * p, 5 * p, top, 1, height, width, config.positions) for top in range(batch)]
    return dict(
        latent=torch.randn(batch, config.channels, height, width, generator=generator),
        timestep=torch.rand(batch, generator=generator),
        text=torch.randn(batch, 5, config.text_width, generator=generator),
        positions=to_patch_grid(torch.stack(maps), height, width, p),
        log_aspect=torch.randn(batch, generator=generator),
        text_mask=torch.arange(5) < torch.tensor([5, 2, 3])[:batch, None],
    )


def as_positional(given: dict[str, Any]) -> tuple[Any, ...]:
    return given["latent"], given["timestep"], given["text"]


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        pytest.param(TINY, 0.0, id="all-tokens"),
        *(pytest.param(config, 0.5, id=changes(config, TINY)) for config in VARIANTS),
    ],
)
def test_outputs_and_gradients_are_the_oracles(config, rate):
    model, given = shaken(config), some_inputs(config, batch=2)
    kept = draw_kept(2, 6, rate, torch.Generator().manual_seed(2))
    latent, timestep, text = as_positional(given)
    rest = {name: given[name] for name in ("positions", "log_aspect", "text_mask")}
    ours = model(latent, timestep, text, **rest, kept=kept)
    ours.square().mean().backward()

    weights = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in model.state_dict().items()
    }
    keep = None if kept is None else torch.zeros(2, 6, dtype=torch.bool).scatter(1, kept, True)
    exact = {
        name: value if value.dtype == torch.bool else value.double()
        for name, value in given.items()
    }
    wanted = oracle.xut(weights, config, **exact, keep=keep)
    wanted.square().mean().backward()

    assert relative_error(ours, wanted) < 1e-5
    for name, parameter in model.named_parameters():
        if weights[name].grad is None:
            assert parameter.grad is None or not parameter.grad.any(), name
        else:
            assert relative_error(parameter.grad, weights[name].grad) < 1e-4, (
                name
            )  # float32's, through many layers


ROUTES = [(0, 2), (1, 2), (2, 4), (0, 3), (3, 6), (2, 8), (0, 8), (7, 8)]
"""Over prev 0, encoder 1 2, decoder 3-4 5-6, post 7: borders before, between and after the stages
that skips join.
"""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("skips", ["last", "mirrored"])
def test_any_route_is_the_oracle_s(route, skips):
    config = replace(TINY, skips=skips, text_mask="masked")
    model, given = shaken(config), some_inputs(config, batch=2)
    kept = draw_kept(2, 6, 0.5, torch.Generator().manual_seed(3))
    rest = {name: given[name] for name in ("positions", "log_aspect", "text_mask")}
    ours = model(*as_positional(given), **rest, kept=kept, route=route)
    ours.square().mean().backward()
    weights = {
        name: tensor.detach().double().requires_grad_()
        for name, tensor in model.state_dict().items()
    }
    assert kept is not None
    keep = torch.zeros(2, 6, dtype=torch.bool).scatter(1, kept, True)
    exact = {
        name: value if value.dtype == torch.bool else value.double()
        for name, value in given.items()
    }
    wanted = oracle.xut(weights, config, **exact, keep=keep, route=route)
    wanted.square().mean().backward()
    assert relative_error(ours, wanted) < 1e-5
    for name in (
        "in_patch.proj.weight",
        "backbone.enc_blocks.0.0.attn.qkv.weight",
        "backbone.enc_blocks.1.0.mlp.w3.weight",
    ):
        assert relative_error(model.get_parameter(name).grad, weights[name].grad) < 1e-4, name


def test_the_whole_u_is_the_route_that_was_published():
    model, given = shaken(TINY), as_positional(some_inputs(TINY))
    kept = draw_kept(3, 6, 0.5, torch.Generator().manual_seed(4))
    with torch.no_grad():
        published = model(*given, kept=kept)
        assert torch.equal(model(*given, kept=kept, route=(1, 7)), published)
        assert not torch.allclose(model(*given, kept=kept, route=(2, 7)), published)
        assert torch.equal(model(*given, route=(2, 7)), model(*given))  # nothing is dropped


@pytest.mark.parametrize("route", [(2, 2), (3, 2), (-1, 4), (0, 9)])
def test_a_route_that_is_empty_or_too_long_is_refused(route):
    with pytest.raises(InputError, match="reaches beyond the 8 blocks"):
        XUT(TINY)(*as_positional(some_inputs(TINY)), route=route)


def test_padding_is_as_if_it_were_not_there_where_it_is_masked():
    given = some_inputs(TINY)
    latent, timestep, text = as_positional(given)
    rest = dict(positions=given["positions"][1], log_aspect=given["log_aspect"][1:2])
    masked, padded = shaken(replace(TINY, text_mask="masked")), shaken(TINY)
    with torch.no_grad():
        cut = masked(latent[1:2], timestep[1:2], text[1:2, :2], **rest)
        torch.testing.assert_close(
            masked(
                latent[1:2], timestep[1:2], text[1:2], text_mask=given["text_mask"][1:2], **rest
            ),
            cut,
        )
        torch.testing.assert_close(padded(latent[1:2], timestep[1:2], text[1:2, :2], **rest), cut)
        attended = padded(
            latent[1:2], timestep[1:2], text[1:2], text_mask=given["text_mask"][1:2], **rest
        )
    assert relative_error(attended, cut) > 1e-3


def test_positions_may_be_given_on_either_grid_or_not_at_all():
    model, given = shaken(TINY).eval(), some_inputs(TINY)
    inputs = as_positional(given)
    pixels = full_map(6, 4)
    with torch.no_grad():
        on_pixels = model(*inputs, positions=pixels)
        assert torch.equal(on_pixels, model(*inputs, positions=to_patch_grid(pixels, 6, 4, 2)))
        torch.testing.assert_close(on_pixels, model(*inputs, positions=pixels.expand(3, -1, -1)))
        assert torch.equal(model(*inputs), model(*inputs, positions=full_map(3, 2)))
        assert torch.equal(model(*inputs), model(*inputs, log_aspect=torch.zeros(3)))


def test_a_fresh_model_predicts_next_to_nothing_and_is_unmodulated():
    torch.manual_seed(0)
    model, given = XUT(TINY), some_inputs(TINY)
    with torch.no_grad():
        first = model(*as_positional(given))
        later = model(
            given["latent"], 1 - given["timestep"], given["text"], log_aspect=given["log_aspect"]
        )
    assert first.std() < 0.02
    assert torch.equal(first, later)


def test_errors_say_what_does_not_fit():
    model, given = XUT(TINY), some_inputs(TINY)
    latent, timestep, text = as_positional(given)
    with pytest.raises(InputError, match="5×4 cannot be cut into patches of 2"):
        model(latent[:, :, :5], timestep, text)
    with pytest.raises(InputError, match="text embedding is 9 wide, the model wants 10"):
        model(latent, timestep, text[..., :9])
    with pytest.raises(InputError, match="3 channels, the model 4"):
        model(latent[:, :3], timestep, text)
    with pytest.raises(InputError, match="3 latents and 2 text"):
        model(latent, timestep, text[:2])
    with pytest.raises(InputError, match="positions of shape"):
        model(latent, timestep, text, positions=full_map(3, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 40},
        {"head_size": 6, "num_heads": 2, "width": 12},
        {"enc_blocks": 0},
        {"post_blocks": -1},
    ],
)
def test_sizes_that_make_no_model_are_refused(changes):
    with pytest.raises(ConfigError):
        replace(TINY, **changes)


def test_autocast_keeps_the_stream_in_float32_and_stays_near():
    model, given = shaken(TINY), some_inputs(TINY)
    with torch.no_grad():
        exact = model(*as_positional(given))
        with torch.autocast("cpu", torch.bfloat16):
            near = model(*as_positional(given))
            norm = model.get_submodule("prev_tread_trns.blocks.0.attn_pre_norm")
            stream, gate = norm(
                torch.ones(3, 5, 32).bfloat16(), model.shared_adaln_attn(torch.ones(3, 32))
            )
    assert stream.dtype == gate.dtype == torch.float32
    assert 1e-5 < relative_error(near.float(), exact) < 0.1
