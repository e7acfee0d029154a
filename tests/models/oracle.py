"""XUT as plainly as it can be written, with torch's own functions over named tensors. The truth
that the model is held to.

What the published weights compute, and the variants of `XUTConfig` in their plainest form. Works in
the dtype of its inputs, on any device. It is also what `bench/model.py` compares with: a
straightforward eager implementation.

Shapes: B batch, L image tokens, T text tokens, S = L + T, D width, N heads, K head size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from hdm.architecture import XUTConfig


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)


def rms_norm(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight, eps=1e-6)


def rotated(features, table, positions):
    """features (B, N, S, K), table (N, K/4, 2), positions (B, S, 2)."""
    angles = (positions[:, None, :, None] * torch.exp(table)[:, None]).flatten(-2)
    cos, sin = torch.cos(angles), torch.sin(angles)
    u, v = features[..., 0::2], features[..., 1::2]
    return torch.stack((u * cos - v * sin, v * cos + u * sin), -1).flatten(-2)


def attention(w, name, config: XUTConfig, q, k, v, positions, valid):
    """q, k, v (B, S, D), valid (B, S) bool: keys that may be attended to; None: all."""
    q, k, v = (
        x.unflatten(-1, (config.num_heads, config.head_size)).transpose(1, 2) for x in (q, k, v)
    )
    if config.qk_norm:
        q, k = rms_norm(q, w[f"{name}.q_norm.weight"]), rms_norm(k, w[f"{name}.k_norm.weight"])
    q, k = (rotated(x, w[f"{name}.rope.freqs"], positions) for x in (q, k))
    mask = None if valid is None else valid[:, None, None]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return linear(w, f"{name}.out", mixed.transpose(1, 2).flatten(2))


def block(w, name, config: XUTConfig, z, modulations, embedding, positions, valid, skip=None):
    def normed(part):
        if config.modulation == "per_block":
            net = f"{name}.{part}_pre_norm.adaln"
            values = linear(w, f"{net}.2", F.mish(layer_norm(w, f"{net}.0", embedding)))
        else:
            values = modulations[part]
        scale, shift, gate = values[:, None].chunk(3, -1)
        return rms_norm(z, w[f"{name}.{part}_pre_norm.norm.weight"]) * (1 + scale) + shift, 1 + gate

    def onward(m):
        return m if config.residual == "published" else z

    m, g = normed("attn")
    q, k, v = linear(w, f"{name}.attn.qkv", m).chunk(3, -1)
    z = onward(m) + g * attention(w, f"{name}.attn", config, q, k, v, positions, valid)
    if skip is not None:
        m, g = normed("xattn")
        k, v = linear(w, f"{name}.xattn.kv", skip).chunk(2, -1)
        z = onward(m) + g * attention(
            w, f"{name}.xattn", config, linear(w, f"{name}.xattn.q", m), k, v, positions, valid
        )
    m, g = normed("mlp")
    a, b = linear(w, f"{name}.mlp.w12", m).chunk(2, -1)
    return onward(m) + g * linear(w, f"{name}.mlp.w3", F.silu(a) * b)


def block_names(config: XUTConfig) -> list[tuple[str, int | None, int | None]]:
    """(name, encoder stage whose state it reads, encoder stage that it ends) of each block, in the
    order in which they run.
    """
    names: list[tuple[str, int | None, int | None]] = [
        (f"prev_tread_trns.blocks.{i}", None, None) for i in range(config.prev_blocks)
    ]
    for i in range(config.depth):
        last = config.enc_blocks - 1
        names += [
            (f"backbone.enc_blocks.{i}.{j}", None, i if j == last else None)
            for j in range(config.enc_blocks)
        ]
    for i in range(config.depth):
        stage = config.depth - 1 if config.skips == "last" else config.depth - 1 - i
        names += [
            (f"backbone.dec_blocks.{i}.{j}", stage if j == 0 else None, None)
            for j in range(config.dec_blocks)
        ]
    return names + [(f"post_tread_trns.blocks.{i}", None, None) for i in range(config.post_blocks)]


def xut(
    w,
    config: XUTConfig,
    latent,
    timestep,
    text,
    positions=None,
    log_aspect=None,
    text_mask=None,
    keep=None,
    route=None,
):
    """The whole batch.

    positions (L, 2) or (B, L, 2) on the patch grid; keep (B, L) bool, as many in each row; None:
    all. route (start, end): the blocks that see the kept tokens alone; None: the U. A token that
    they do not see has, all the while, the state it had before them.
    """
    batch, channels, height, width = latent.shape
    p, d = config.patch_size, config.width
    image = (
        F.conv2d(latent, w["in_patch.proj.weight"], w["in_patch.proj.bias"], stride=p)
        .flatten(2)
        .transpose(1, 2)
    )
    num_image, num_text = image.shape[1], text.shape[1]
    z = torch.cat((image, linear(w, "ctx_proj", text)), 1)

    index = torch.arange(d // 2, dtype=timestep.dtype, device=timestep.device)
    freqs = w.get("time_emb.freqs", torch.exp(-math.log(10000) * index / (d // 2))[None])
    angles = 1000 * timestep[:, None] * freqs
    embedding = F.mish(
        linear(w, "time_emb.proj.0", torch.cat((torch.cos(angles), torch.sin(angles)), -1))
    )
    if config.aspect_embedding:
        hidden = F.mish(linear(w, "addon_info_embs_proj.0", log_aspect[:, None]))
        embedding = embedding + linear(w, "addon_info_embs_proj.2", hidden)
    modulations = {}
    if config.modulation == "shared":
        for part, net in {
            "attn": "shared_adaln_attn",
            "xattn": "shared_adaln_xattn",
            "mlp": "shared_adaln_ffw",
        }.items():
            modulations[part] = linear(
                w, f"{net}.3", F.mish(linear(w, f"{net}.1", layer_norm(w, f"{net}.0", embedding)))
            )

    place = torch.cat(
        (positions.expand(batch, num_image, 2), positions.new_zeros(batch, num_text, 2)), 1
    )
    valid = None
    if config.text_mask == "masked" and text_mask is not None:
        valid = torch.cat((text_mask.new_ones(batch, num_image), text_mask), 1)

    u = config.prev_blocks + config.depth * (config.enc_blocks + config.dec_blocks)
    start, end = (None, None) if keep is None else route or (config.prev_blocks, u)
    names = block_names(config)
    states: dict[int | None, torch.Tensor] = {}
    for number, (name, reads, ends) in enumerate(names):
        if number == start:
            inside = torch.cat((keep, keep.new_ones(batch, num_text)), 1)
            everything = z, place, valid, states
            z = z[inside].view(batch, -1, z.shape[-1])
            place = place[inside].view(batch, -1, 2)
            valid = None if valid is None else valid[inside].view(batch, -1)
            states = {stage: state[inside].view(z.shape) for stage, state in states.items()}
        z = block(w, name, config, z, modulations, embedding, place, valid, states.get(reads))
        if ends is not None:
            states[ends] = z
        if number + 1 == end:
            whole, place, valid, before = everything
            z = whole.masked_scatter(inside[..., None], z)
            states = {
                stage: whole.masked_scatter(inside[..., None], state)
                for stage, state in states.items()
            } | before

    tokens = z[:, :num_image]
    if config.final_norm:
        tokens = rms_norm(tokens, w["final_norm.weight"])
    patches = linear(w, "out_patch.proj", tokens).view(
        batch, height // p, width // p, p, p, channels
    )
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, height, width)
