"""Golden files of any size: the oracle's outputs and gradients, computed in float64 from weights
and inputs rounded to float32.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.model_files.weights import Weights, save_weights
from hdm.models.xut import XUT
from tests.models import oracle

PREFIX = "unet.model."
# The kinds of weights whose gradients the given file holds. Others, of rotary tables above all, are
# sums that nearly cancel: float32 holds them to 1e-4 alone.
GRADIENTS = re.compile(r"in_patch\.proj\.|shared_adaln_attn\.3\.|.*\.(attn\.qkv|xattn\.kv)\.weight")


def save_model(path: Path, model: XUT) -> None:
    """As our own files of weights are."""
    save_weights(path, Weights(model.config, model.state_dict()))


def drawn(config: XUTConfig) -> XUT:
    """A model whose every tensor matters, with spreads as in the given golden file: matrices
    1/√inputs, biases 0.1, norms 1 ± 0.2.
    """
    model, random = XUT(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if name.endswith("freqs"):
                parameter.add_(noise * 0.05)
            elif parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(noise * 0.1 if name.endswith("bias") else 1 + 0.2 * noise)
    return model


def published_form(config: XUTConfig, rate: float) -> dict[str, Any]:
    """As the golden file words it."""
    return {
        "patch_size": config.patch_size,
        "input_dim": config.channels,
        "dim": config.width,
        "ctx_dim": config.text_width,
        "ctx_size": 16,
        "heads": config.num_heads,
        "dim_head": config.head_size,
        "mlp_dim": config.mlp_width,
        "depth": config.depth,
        "enc_blocks": config.enc_blocks,
        "dec_blocks": config.dec_blocks,
        "addon_info_embs_dim": 1 if config.aspect_embedding else None,
        "tread_config": {
            "prev_trns_depth": config.prev_blocks,
            "post_trns_depth": config.post_blocks,
            "dropout_ratio": rate,
        },
    }


def box(height: int, width: int) -> Tensor:
    """The full picture's map by its definition, float64."""
    longest = max(height, width)
    return torch.tensor(
        [
            [(2 * y + 1 - height) / longest, (2 * x + 1 - width) / longest]
            for y in range(height)
            for x in range(width)
        ]
    ).double()


def on_patches(positions: Tensor, height: int, width: int, patch: int) -> Tensor:
    if patch == 1:
        return positions
    planes = positions.view(-1, height, width, 2).permute(0, 3, 1, 2)
    small = F.interpolate(
        planes, (height // patch, width // patch), mode="bilinear", antialias=True
    )
    return small.flatten(2).transpose(1, 2).reshape(*positions.shape[:-2], -1, 2)


def golden(
    config: XUTConfig,
    *,
    height: int,
    width: int,
    rate: float = 0.5,
    batch: int = 2,
    num_text: int = 3,
    per_sample: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """All tensors of a golden file.

    Args:
        height, width: of the latent.
        per_sample: a position map for each sample.
    """
    model, random = drawn(config), torch.Generator().manual_seed(1)
    p = config.patch_size
    num_tokens = height * width // p**2
    pixels = box(height, width)
    if per_sample:
        pixels = pixels + torch.rand(batch, 1, 2, generator=random)
    keep = torch.stack(
        [torch.randperm(num_tokens, generator=random) for _ in range(batch)]
    ) >= math.floor(num_tokens * rate)
    given = {
        "in.x": torch.randn(batch, config.channels, height, width, generator=random),
        "in.t": torch.rand(batch, generator=random),
        "in.ctx": torch.randn(batch, num_text, config.text_width, generator=random),
        "in.log_aspect": torch.full((batch,), math.log(width / height)),
        "in.pos": pixels.float(),
        "in.pos_camera": ((pixels + torch.tensor([0.2, -0.1])) / 1.3).float(),
        "in.target": torch.randn(batch, config.channels, height, width, generator=random),
        "in.tread_keep": keep.to(torch.uint8),
    }  # fmt: skip
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {
        **{PREFIX + name: tensor for name, tensor in state.items()},
        **given,
        **computed(config, state, given, keep),
    }


def computed(
    config: XUTConfig, state: dict[str, Tensor], given: dict[str, Tensor], keep: Tensor
) -> dict[str, Tensor]:
    """Outputs and gradients, by the oracle in float64: of weights named as XUT names them, inputs
    `in.*` and the mask of kept tokens.
    """
    weights = {
        name: tensor.double().requires_grad_(name != "time_emb.freqs")
        for name, tensor in state.items()
    }
    exact = {name: tensor.double() for name, tensor in given.items()}
    latent, p = exact["in.x"].requires_grad_(), config.patch_size
    height, width = latent.shape[2:]

    def predict(positions: Tensor, keep: Tensor | None = None) -> Tensor:
        predicted: Tensor = oracle.xut(
            weights,
            config,
            latent,
            exact["in.t"],
            exact["in.ctx"],
            positions,
            exact["in.log_aspect"],
            keep=keep,
        )
        return predicted

    at = {name: on_patches(exact[name], height, width, p) for name in ("in.pos", "in.pos_camera")}
    plain = predict(at["in.pos"])
    loss = (plain - exact["in.target"]).square().mean()
    loss.backward()
    gradients = {
        f"grad.{name}": tensor.grad for name, tensor in weights.items() if GRADIENTS.match(name)
    }
    with torch.no_grad():
        outputs = {
            "out.plain": plain,
            "out.no_pos": predict(box(height // p, width // p)),
            "out.camera": predict(at["in.pos_camera"]),
            "out.tread": predict(at["in.pos"], keep),
            "out.loss": loss,
            "out.grad_x": latent.grad,
        }
    found = {**gradients, **outputs}
    return {name: value.detach().float() for name, value in found.items() if value is not None}


def write(path: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None) -> Path:
    metadata = {} if config is None else {"config": json.dumps(config)}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        path,
        metadata={**metadata, "prefix": PREFIX},
    )
    return path


def official(config: XUTConfig, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of a published file: the denoiser beside a text encoder and an autoencoder."""
    model = {
        PREFIX + name: tensor.detach().to(dtype)
        for name, tensor in drawn(config).state_dict().items()
    }
    others = {
        "te.embed.weight": torch.randn(5, 2),
        "te.norm.weight": torch.ones(2),
        "vae.conv.weight": torch.randn(3, 3),
    }
    return {
        **model,
        **others,
        "vae_mean": torch.zeros(1, 4, 1, 1),
        "vae_std": torch.ones(1, 4, 1, 1),
    }
