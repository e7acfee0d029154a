"""XUT, the Cross-U-Transformer of HDM (arXiv 2509.06068): velocity of a noisy latent, given text.

Written from the paper's formulas. What differs from a textbook diffusion transformer, as published:
- image and text tokens form one sequence, and a token's position is that of its patch in the
  picture;
- encoder and decoder form a U whose decoder stages cross-attend to an encoder stage of the same
  length;
- one modulation serves all blocks, and each block carries its modulated norm onward instead of the
  raw stream;
- no norm before the output. The last three have variants: see `XUTConfig`.

Shapes: B batch, C channels, H W latent size, p patch size, L = (H/p)·(W/p) image tokens, T text
tokens, S = L + T, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.errors import InputError
from hdm.models.denoiser import Denoiser, register
from hdm.models.layers import (
    AspectEmbedding,
    Block,
    Conditions,
    ModulationNetwork,
    PatchEmbedding,
    PatchOutput,
    RMSNorm,
    TimestepEmbedding,
)
from hdm.models.tread import gather, kept_rows, scatter
from hdm.positions import full_map, to_patch_grid


class Link(NamedTuple):
    """A block with its skips: `reads` is the encoder stage whose state it cross-attends to,
    `writes` the stage whose state it produces.
    """

    block: Block
    reads: int | None = None
    writes: int | None = None


class Stage(nn.ModuleList):
    """A sequence of blocks; the first cross-attends to a skip if the stage is built with one."""

    def __init__(self, config: XUTConfig, count: int, *, cross: bool = False) -> None:
        super().__init__(Block(config, cross=cross and i == 0) for i in range(count))

    def links(self, reads: int | None = None, writes: int | None = None) -> Iterator[Link]:
        """The blocks in execution order: the first may read a state, the last may produce one."""
        blocks = cast("list[Block]", list(self))
        for block in blocks:
            yield Link(
                block,
                reads if block is blocks[0] else None,
                writes if block is blocks[-1] else None,
            )


class Trunk(nn.Module):
    """Plain blocks before or after the U."""

    def __init__(self, config: XUTConfig, count: int) -> None:
        super().__init__()
        self.blocks = Stage(config, count)


class Backbone(nn.Module):
    """The U: `depth` encoder stages, then `depth` decoder stages whose first block cross-attends to
    an encoder stage.
    """

    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        self.mirrored = config.skips == "mirrored"
        self.enc_blocks = nn.ModuleList(
            Stage(config, config.enc_blocks) for _ in range(config.depth)
        )
        self.dec_blocks = nn.ModuleList(
            Stage(config, config.dec_blocks, cross=True) for _ in range(config.depth)
        )

    def links(self) -> Iterator[Link]:
        encoder = cast("list[Stage]", list(self.enc_blocks))
        decoder = cast("list[Stage]", list(self.dec_blocks))
        # All decoder stages of the published weights read the last encoder stage; the paper's text
        # describes mirrored ones.
        last = len(encoder) - 1
        for i, stage in enumerate(encoder):
            yield from stage.links(writes=i if self.mirrored or i == last else None)
        for i, stage in enumerate(decoder):
            yield from stage.links(reads=last - i if self.mirrored else last)


class XUT(Denoiser):
    """The denoiser. Parameters carry the published files' names, less the prefix `unet.model.`."""

    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        self.architecture = config
        width = config.width
        # Layers draw their initial weights in this order, so the order is part of what a seed
        # means.
        self.in_patch = PatchEmbedding(config.channels, width, config.patch_size)
        self.ctx_proj = nn.Linear(config.text_width, width)
        self.time_emb = TimestepEmbedding(width)
        if config.aspect_embedding:
            self.addon_info_embs_proj = AspectEmbedding(width)
        if config.modulation == "shared":
            self.shared_adaln_attn = ModulationNetwork(width, shared=True)
            self.shared_adaln_xattn = ModulationNetwork(width, shared=True)
            self.shared_adaln_ffw = ModulationNetwork(width, shared=True)
        self.prev_tread_trns = Trunk(config, config.prev_blocks)
        self.backbone = Backbone(config)
        self.post_tread_trns = Trunk(config, config.post_blocks)
        self.final_norm = RMSNorm(width) if config.final_norm else None
        self.out_patch = PatchOutput(width, config.channels, config.patch_size)

    def blocks(self) -> Iterator[Block]:
        """All transformer blocks in execution order."""
        return (link.block for link in self.links())

    def links(self) -> Iterator[Link]:
        return itertools.chain(
            self.prev_tread_trns.blocks.links(),
            self.backbone.links(),
            self.post_tread_trns.blocks.links(),
        )

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        *,
        positions: Tensor | None = None,
        log_aspect: Tensor | None = None,
        text_mask: Tensor | None = None,
        kept: Tensor | None = None,
        route: tuple[int, int] | None = None,
    ) -> Tensor:
        """Predict the velocity `noise - latent`.

        Args:
            latent: noisy latent (B, C, H, W).
            timestep: (B,) in [0, 1]; 1 is pure noise.
            text: text embedding (B, T, text_width).
            positions: (y, x) of each latent pixel, (H·W, 2) or (B, H·W, 2), or of each patch, (L,
                2) or (B, L, 2), row-major; None: the whole picture, made at patch resolution.
            log_aspect: ln(width / height) of the picture, (B,); None: a square.
            text_mask: (B, T) bool, False at padding; used where the configuration says `masked`.
                None: no padding.
            kept: image tokens that pass through the route, (B, K) int64 (`tread.draw_kept`); None:
                all.
            route: (start, end), the blocks that see only the kept tokens, counted in execution
                order, end exclusive; None: the whole U, as published. Along the route, a dropped
                token keeps the state that it had at the start.

        Returns:
            (B, C, H, W).

        Raises:
            InputError: the patch does not divide the size, a width, count or shape does not fit, or
                the route is empty or too long.
        """
        height, width = latent.shape[-2:]
        self._check(latent, text)
        image = self.in_patch(latent)
        num_image = image.shape[1]
        num_text = text.shape[1]
        # Image tokens come first in the sequence, on which all code that leaves out text relies.
        z = torch.cat((image, self.ctx_proj(text)), 1)
        given = self._conditions(
            timestep,
            log_aspect,
            self._places(positions, latent, num_text),
            self._mask(text_mask, num_image),
        )

        rows = None if kept is None else kept_rows(kept, num_image, num_text)
        # Text has nothing to say after the last attention.
        z = self._blocks(z, given, rows, self.architecture.tread_route(route), num_image)[
            :, :num_image
        ]
        if self.final_norm is not None:
            z = self.final_norm(z)
        velocity: Tensor = self.out_patch(z, height, width)
        return velocity

    def _blocks(
        self,
        z: Tensor,
        given: Conditions,
        rows: Tensor | None,
        route: tuple[int, int],
        num_image: int,
    ) -> Tensor:
        """All blocks; those on the route see only the tokens at `rows` (None: all)."""
        # On the route, blocks see the kept image tokens and all text tokens. A dropped token waits
        # at the start of the route and joins again at its end.
        links = list(self.links())
        states: dict[int, Tensor] = {}
        if rows is not None:
            start, end = route
            z = _run(links[:start], z, given, states)
            # A skip that crosses a border of the route: on the inside without the dropped tokens,
            # on the outside with what these were before the route.
            inside = {stage: gather(state, rows) for stage, state in states.items()}
            routed = _run(links[start:end], gather(z, rows), _only(given, rows), inside)
            links = links[end:]
            for stage in {link.reads for link in links}:
                if stage in inside and stage not in states:
                    states[stage] = scatter(z, rows, inside[stage])
            z = scatter(z, rows, routed)
        return _run(links, z, given, states, num_out=num_image)

    def _conditions(
        self, timestep: Tensor, log_aspect: Tensor | None, positions: Tensor, mask: Tensor | None
    ) -> Conditions:
        embedding = self.time_emb(timestep)
        if self.architecture.aspect_embedding:
            embedding = embedding + self.addon_info_embs_proj(
                # A square has ln 1 = 0.
                torch.zeros_like(timestep) if log_aspect is None else log_aspect
            )
        if self.architecture.modulation == "per_block":
            return Conditions(embedding, embedding, embedding, positions, mask)
        attn = self.shared_adaln_attn(embedding)
        xattn = self.shared_adaln_xattn(embedding)
        mlp = self.shared_adaln_ffw(embedding)
        return Conditions(attn, xattn, mlp, positions, mask)

    def _places(self, positions: Tensor | None, latent: Tensor, num_text: int) -> Tensor:
        """(B or 1, S, 2): the patches' positions, then (0, 0) for each text token, so that rotation
        leaves text unchanged.
        """
        height, width = latent.shape[-2:]
        p = self.architecture.patch_size
        num_image = height * width // p**2
        if positions is None:
            positions = full_map(height // p, width // p, self.architecture.positions).to(
                latent.device
            )
        # The map has a row for each latent pixel, not for each patch.
        elif positions.shape[-2] == height * width:
            positions = to_patch_grid(positions, height, width, p)
        if positions.shape[-2:] != (num_image, 2) or (
            positions.ndim == 3 and len(positions) not in (1, len(latent))
        ):
            raise InputError(
                f"positions of shape {tuple(positions.shape)} do not fit latents of"
                f" {tuple(latent.shape)}, patch {p}"
            )
        return F.pad(positions.float().view(-1, num_image, 2), (0, 0, 0, num_text))

    def _mask(self, text_mask: Tensor | None, num_image: int) -> Tensor | None:
        # The published weights were trained on padded texts and attend to the padding.
        if text_mask is None or self.architecture.text_mask == "padded":
            return None
        return F.pad(text_mask, (num_image, 0), value=True)[:, None, None]

    def _check(self, latent: Tensor, text: Tensor) -> None:
        p = self.architecture.patch_size
        if latent.shape[1] != self.architecture.channels:
            raise InputError(
                f"the latent has {latent.shape[1]} channels, the model"
                f" {self.architecture.channels}",
                do="use its autoencoder",
            )
        if latent.shape[2] % p or latent.shape[3] % p:
            height, width = latent.shape[2:]
            raise InputError(
                f"a latent of {height}×{width} cannot be cut into patches of {p}",
                do=f"use multiples of {p}",
            )
        if text.shape[-1] != self.architecture.text_width:
            raise InputError(
                f"the text embedding is {text.shape[-1]} wide, the model wants"
                f" {self.architecture.text_width}",
                do="use its text encoder",
            )
        if len(text) != len(latent):
            raise InputError(f"{len(latent)} latents and {len(text)} text embeddings")


register(XUTConfig, XUT)


def _run(
    links: list[Link],
    z: Tensor,
    given: Conditions,
    states: dict[int, Tensor],
    num_out: int | None = None,
) -> Tensor:
    """Pass all tokens through some blocks, whose last may return only the first num_out; `states`
    holds the encoder stages' states, (B, S, D).
    """
    for number, (block, reads, writes) in enumerate(links, 1):
        # Cross-attention joins queries and keys of the same tokens, so such a block has to return
        # all of them.
        alone = num_out if reads is None and number == len(links) else None
        z = block(z, given, None if reads is None else states[reads], alone)
        if writes is not None:
            states[writes] = z
    return z


def _only(given: Conditions, rows: Tensor) -> Conditions:
    """The conditions of the tokens at `rows` (see `tread.kept_rows`)."""
    positions = given.positions.expand(len(rows), -1, -1)
    mask = given.mask if given.mask is None else gather(given.mask[:, 0, 0], rows)[:, None, None]
    return given._replace(positions=gather(positions, rows), mask=mask)
