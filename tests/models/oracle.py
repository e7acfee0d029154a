"""XUT as plainly as it can be written: sums over named tensors, one sample at a time. The truth that the model is held to.

Only what the published weights compute, and the variants of `XUTConfig` in their plainest form. Works in the dtype of its inputs.
"""

from __future__ import annotations

import math

import torch

from hdm.architecture import XUTConfig


def linear(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def mish(x):
    return x * torch.tanh(torch.log1p(torch.exp(x)))


def rms_norm(x, weight):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def layer_norm(w, name, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]


def rotated(features, table, positions):
    """features (S, k) of one head, table (k/4, 2), positions (S, 2)."""
    out = features.clone()
    for j in range(table.shape[0]):
        for axis in range(2):
            angle = positions[:, axis] * torch.exp(table[j, axis])
            first = 2 * (2 * j + axis)
            u, v = features[:, first], features[:, first + 1]
            out[:, first] = u * torch.cos(angle) - v * torch.sin(angle)
            out[:, first + 1] = v * torch.cos(angle) + u * torch.sin(angle)
    return out


def attention(w, name, config: XUTConfig, q, k, v, positions, valid):
    heads = []
    for i, (qi, ki, vi) in enumerate(zip(*(x.split(config.head_size, 1) for x in (q, k, v)), strict=True)):
        if config.qk_norm:
            qi, ki = rms_norm(qi, w[f"{name}.q_norm.weight"]), rms_norm(ki, w[f"{name}.k_norm.weight"])
        table = w[f"{name}.rope.freqs"][i]
        qi, ki = rotated(qi, table, positions), rotated(ki, table, positions)
        scores = (qi @ ki.T / math.sqrt(config.head_size)).masked_fill(~valid, -math.inf)
        heads.append(torch.softmax(scores, -1) @ vi)
    return linear(w, f"{name}.out", torch.cat(heads, 1))


def block(w, name, config: XUTConfig, z, modulations, embedding, positions, valid, skip=None):
    def normed(part):
        if config.modulation == "per_block":
            net = f"{name}.{part}_pre_norm.adaln"
            values = linear(w, f"{net}.2", mish(layer_norm(w, f"{net}.0", embedding)))
        else:
            values = modulations[part]
        scale, shift, gate = values.chunk(3)
        return rms_norm(z, w[f"{name}.{part}_pre_norm.norm.weight"]) * (1 + scale) + shift, 1 + gate

    def onward(m):
        return m if config.residual == "published" else z

    m, g = normed("attn")
    q, k, v = linear(w, f"{name}.attn.qkv", m).chunk(3, 1)
    z = onward(m) + g * attention(w, f"{name}.attn", config, q, k, v, positions, valid)
    if skip is not None:
        m, g = normed("xattn")
        k, v = linear(w, f"{name}.xattn.kv", skip).chunk(2, 1)
        z = onward(m) + g * attention(w, f"{name}.xattn", config, linear(w, f"{name}.xattn.q", m), k, v, positions, valid)
    m, g = normed("mlp")
    a, b = linear(w, f"{name}.mlp.w12", m).chunk(2, 1)
    return onward(m) + g * linear(w, f"{name}.mlp.w3", a * torch.sigmoid(a) * b)


def shared_modulation(w, embedding):
    found = {}
    for part, name in {"attn": "shared_adaln_attn", "xattn": "shared_adaln_xattn", "mlp": "shared_adaln_ffw"}.items():
        found[part] = linear(w, f"{name}.3", mish(linear(w, f"{name}.1", layer_norm(w, f"{name}.0", embedding))))
    return found


def one_sample(w, config: XUTConfig, latent, timestep, text, positions, log_aspect, text_mask, keep):
    """latent (C, H, W), timestep (), text (T, …), positions on the patch grid (L, 2), text_mask (T,), keep (L,) bool."""
    channels, height, width = latent.shape
    p, d = config.patch_size, config.width
    rows, columns = height // p, width // p
    image = []
    for row in range(rows):
        for column in range(columns):
            patch = latent[:, row * p : (row + 1) * p, column * p : (column + 1) * p]
            image.append((w["in_patch.proj.weight"] * patch).sum((1, 2, 3)) + w["in_patch.proj.bias"])
    num_image, num_text = len(image), len(text)
    z = torch.cat((torch.stack(image), linear(w, "ctx_proj", text)))

    index = torch.arange(d // 2, dtype=latent.dtype)
    # The published files carry these rounded to float32, which 1000·t makes visible.
    freqs = w.get("time_emb.freqs", torch.exp(-math.log(10000) * index / (d // 2))[None])
    angles = 1000 * timestep * freqs[0]
    embedding = mish(linear(w, "time_emb.proj.0", torch.cat((torch.cos(angles), torch.sin(angles)))))
    if config.aspect_embedding:
        embedding = embedding + linear(w, "addon_info_embs_proj.2", mish(linear(w, "addon_info_embs_proj.0", log_aspect[None])))
    modulations = shared_modulation(w, embedding) if config.modulation == "shared" else {}

    place = torch.cat((positions, positions.new_zeros(num_text, 2)))
    valid = torch.ones(num_image + num_text, dtype=torch.bool)
    if config.text_mask == "masked":
        valid[num_image:] = text_mask

    def run(name, z, at, skip=None):
        return block(w, name, config, z, modulations, embedding, place[at], valid[at], skip)

    everything = torch.arange(num_image + num_text)
    for i in range(config.prev_blocks):
        z = run(f"prev_tread_trns.blocks.{i}", z, everything)

    inside = torch.cat((keep, torch.ones(num_text, dtype=torch.bool)))
    u, states = z[inside], []
    for i in range(config.depth):
        for j in range(config.enc_blocks):
            u = run(f"backbone.enc_blocks.{i}.{j}", u, inside)
        states.append(u)
    for i in range(config.depth):
        skip = states[-1] if config.skips == "last" else states[config.depth - 1 - i]
        for j in range(config.dec_blocks):
            u = run(f"backbone.dec_blocks.{i}.{j}", u, inside, skip if j == 0 else None)
    z = z.clone()
    z[inside] = u

    for i in range(config.post_blocks):
        z = run(f"post_tread_trns.blocks.{i}", z, everything)
    tokens = z[:num_image]
    if config.final_norm:
        tokens = rms_norm(tokens, w["final_norm.weight"])
    tokens = linear(w, "out_patch.proj", tokens)
    out = latent.new_zeros(channels, height, width)
    for n, token in enumerate(tokens):
        row, column = n // columns * p, n % columns * p
        out[:, row : row + p, column : column + p] = token.view(p, p, channels).permute(2, 0, 1)
    return out


def xut(w, config: XUTConfig, latent, timestep, text, positions, log_aspect, text_mask=None, keep=None):
    """The whole batch. positions (L, 2) or (B, L, 2) on the patch grid; keep (B, L) bool; None: all."""
    batch, length = len(latent), positions.shape[-2]
    positions = positions.expand(batch, length, 2)
    text_mask = torch.ones(text.shape[:2], dtype=torch.bool) if text_mask is None else text_mask
    keep = torch.ones(batch, length, dtype=torch.bool) if keep is None else keep
    inputs = zip(latent, timestep, text, positions, log_aspect, text_mask, keep, strict=True)
    return torch.stack([one_sample(w, config, *sample) for sample in inputs])
