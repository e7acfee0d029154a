"""Counted operations of the models beside the denoiser against torch's own counter, run over models
of the same classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hdm.errors import InputError
from hdm.planning import counts
from hdm.planning.counts import LanguageModel, Tower
from tests.small_models import text_config

SDXL = dict(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    latent_channels=4,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
SMALL = dict(
    block_out_channels=(8, 16, 16),
    layers_per_block=1,
    latent_channels=3,
    down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3,
    norm_num_groups=4,
)


def counted(run: Callable[[], Any]) -> int:
    # torch counts the fused attention of accelerators only: on the CPU it is made to run, and so
    # counted, as two products. And with gradients, since without them whole layers may run as one
    # operation.
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        run()
    total: int = counter.get_total_flops()
    return total


@pytest.mark.parametrize("key_heads", [1, 4])
def test_a_language_model_counts_as_torch_counts_it(key_heads: int) -> None:
    from transformers import Qwen3Model

    heads = dict(num_attention_heads=4, num_key_value_heads=key_heads)
    config = text_config(**heads, attn_implementation="sdpa")
    model, ours = Qwen3Model(config), counts.of_language_config(config.to_dict())
    assert ours is not None
    found = counted(lambda: model(input_ids=torch.zeros(1, 11, dtype=torch.int64), use_cache=False))
    assert ours.flops(11) == found
    assert ours.num_weights == sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name
    )


def test_the_published_text_encoder_has_the_parameters_of_its_name() -> None:
    model = counts.PUBLISHED_TEXT["Qwen/Qwen3-0.6B"]
    assert model == LanguageModel(1024, 28, 16, 8, 128, 3072)
    assert model.num_weights + 151_936 * 1024 == pytest.approx(0.6e9, rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        (SMALL, (32, 48)),
        ({**SMALL, "mid_block_add_attention": False, "use_quant_conv": False}, (16, 16)),
        (SDXL, (256, 256)),
        (SDXL, (512, 768)),
    ],
)
def test_an_autoencoder_counts_as_torch_counts_it(
    sizes: dict[str, Any], shape: tuple[int, int]
) -> None:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        model: Any = AutoencoderKL(**sizes)
        picture = torch.zeros(1, 3, *shape)
    ours = counts.of_autoencoder_config(dict(model.config))
    assert ours.flops(*shape) == counted(lambda: model.encode(picture))
    parts = [model.encoder, *([model.quant_conv] if model.quant_conv is not None else [])]
    assert ours.num_weights == sum(
        p.numel() for part in parts for p in part.parameters() if p.ndim > 1
    )
    assert sizes is not SDXL or ours == counts.SDXL_ENCODER


def test_a_contrastive_model_counts_as_torch_counts_it() -> None:
    import open_clip

    vision = dict(image_size=32, patch_size=8, width=32, head_width=8, layers=2, mlp_ratio=3.0)
    words = dict(context_length=12, vocab_size=40, width=24, heads=3, layers=2)
    model = open_clip.CLIP(16, vision, words).eval()
    picture, text = Tower(32, 2, 17, 3.0, 3 * 8**2), Tower(24, 2, 12)
    # The last projection of one token is left out.
    assert (
        picture.flops()
        == counted(lambda: model.encode_image(torch.zeros(1, 3, 32, 32))) - 2 * 32 * 16
    )
    assert (
        text.flops()
        == counted(lambda: model.encode_text(torch.ones(1, 12, dtype=torch.int64))) - 2 * 24 * 16
    )


def test_a_model_that_is_neither_here_nor_published_is_named() -> None:
    with pytest.raises(InputError, match="nobody/knows"):
        counts.language_model("nobody/knows")
