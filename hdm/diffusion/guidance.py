"""XUT's velocity under classifier-free guidance (arXiv 2207.12598), in an interval of time
(2404.07724), with TREAD on its branches.

Shapes: B batch, C channels, H W latent size, L image tokens, T text tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hdm.errors import InputError
from hdm.models.denoiser import Denoiser
from hdm.models.tread import draw_kept, num_kept


class Text(NamedTuple):
    """A text embedding (B, T, D) and its mask (B, T) bool, False at padding; mask None: no
    padding.
    """

    embedding: Tensor
    mask: Tensor | None = None

    def rows(self, rows: Sequence[int] | slice) -> Text:
        """Some of its texts."""
        return Text(self.embedding[rows], None if self.mask is None else self.mask[rows])

    def expand(self, batch: int) -> Text:
        """One text repeated for the whole batch, or all as they are."""
        count = len(self.embedding)
        if count not in (1, batch):
            raise InputError(
                f"{batch} prompts and {count} negative prompts",
                do="give one for all, or one a prompt",
            )
        return Text(
            self.embedding.expand(batch, -1, -1),
            None if self.mask is None else self.mask.expand(batch, -1),
        )

    def valid(self) -> Tensor:
        """The mask, all True where there is none."""
        return (
            torch.ones_like(self.embedding[..., 0], dtype=torch.bool)
            if self.mask is None
            else self.mask
        )

    def padded(self, length: int) -> Text:
        """With masked padding up to `length` tokens."""
        missing = length - self.embedding.shape[1]
        return Text(F.pad(self.embedding, (0, 0, 0, missing)), F.pad(self.valid(), (0, missing)))


@dataclass(eq=False)
class GuidedVelocity:
    """The velocity negative + scale·(prompt - negative), as a function of (latent, timestep).

    Both branches go through the model as one batch where that changes nothing: they keep equally
    many image tokens (then the same ones), and their texts are equally long or their padding is
    masked.

    Args:
        model: the denoiser.
        prompt, negative: texts of the two branches, B each.
        positions: (L, 2), of the patches.
        log_aspect: ln(width / height) of the picture.
        scale: 1 is no guidance: the prompt's branch alone.
        interval: times, both ends included, between which there is guidance; outside it is the
            prompt's branch alone.
        tread_rates: share of the image tokens dropped in the prompt's and in the negative branch,
            anew at each call.
        generators: one a sample, which alone decides what that sample drops.
    """

    model: Denoiser
    prompt: Text
    negative: Text
    _: KW_ONLY
    positions: Tensor
    log_aspect: float
    scale: float
    interval: tuple[float, float]
    tread_rates: tuple[float, float]
    generators: Sequence[torch.Generator]

    def __post_init__(self) -> None:
        kept, kept_negative = [num_kept(len(self.positions), rate) for rate in self.tread_rates]
        self.same_kept = kept == kept_negative
        # Texts stay the same over all steps, so they are joined once.
        self.both = self._together() if self.same_kept and self.scale != 1 else None

    def __call__(self, latent: Tensor, timestep: Tensor) -> Tensor:
        kept = self._draw_kept(self.tread_rates[0])
        if not self._guides(timestep):
            return self._predict(latent, timestep, self.prompt, kept)
        if self.both is not None:
            # Both branches drop the same tokens, so that they differ by the prompt alone.
            twice = None if kept is None else kept.repeat(2, 1)
            with_prompt, without = self._predict(
                latent.repeat(2, 1, 1, 1), timestep.repeat(2), self.both, twice
            ).chunk(2)
        else:
            with_prompt = self._predict(latent, timestep, self.prompt, kept)
            kept = kept if self.same_kept else self._draw_kept(self.tread_rates[1])
            without = self._predict(latent, timestep, self.negative, kept)
        return without + self.scale * (with_prompt - without)

    def _guides(self, timestep: Tensor) -> bool:
        if self.scale == 1 or self.interval == (0.0, 1.0):
            # Without reading the time, for which an accelerator would have to be waited for.
            return self.scale != 1
        first, last = self.interval
        # All samples of a batch share one time.
        return first <= timestep[0].item() <= last

    def _predict(self, latent: Tensor, timestep: Tensor, text: Text, kept: Tensor | None) -> Tensor:
        log_aspect = timestep.new_full(timestep.shape, self.log_aspect)
        # Guidance scales up the difference of two close predictions, which 16 bits would round
        # away.
        return self.model(
            latent,
            timestep,
            text.embedding,
            positions=self.positions,
            log_aspect=log_aspect,
            text_mask=text.mask,
            kept=kept,
        ).float()

    def _draw_kept(self, rate: float) -> Tensor | None:
        kept = []
        # One draw a sample: a picture does not depend on the others of its batch.
        for generator in self.generators:
            tokens = draw_kept(1, len(self.positions), rate, generator)
            if tokens is not None:
                kept.append(tokens.to(self.positions.device))
        return torch.cat(kept) if kept else None

    def _together(self) -> Text | None:
        length = max(self.prompt.embedding.shape[1], self.negative.embedding.shape[1])
        # Masked padding changes no result, so both branches can have the longer text's length.
        if self.model.config.text_mask == "masked":
            texts = self.prompt.padded(length), self.negative.padded(length)
            return Text(
                torch.cat([text.embedding for text in texts]),
                torch.cat([text.valid() for text in texts]),
            )
        # Without masks the model attends to padding, so only texts of equal length may share a
        # batch.
        if self.prompt.embedding.shape == self.negative.embedding.shape:
            return Text(torch.cat((self.prompt.embedding, self.negative.embedding)))
        return None
