"""From captions to what the denoiser reads: by the live text encoder, or from the cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hdm.data.batch import Batch
from hdm.diffusion.guidance import Text
from hdm.models.text_encoder import TextEncoder, Tokenizer, load_text_encoder, load_tokenizer


@dataclass(eq=False)
class Conditioning:
    """Text embeddings of batches and prompts. The text encoder is loaded when it is first needed.

    Args:
        reference: of the text encoder.
        device: where it runs.
        dtype: of its weights.
        max_tokens: prompts are cut to so many.
        tokenizer: reference of the tokenizer, where it does not lie with the text encoder.
    """

    reference: str
    device: torch.device
    dtype: torch.dtype
    max_tokens: int
    tokenizer: str | None = None

    @cached_property
    def encoder(self) -> TextEncoder:
        # Training on cached embeddings never loads the encoder, which takes seconds and gigabytes.
        return load_text_encoder(self.reference, str(self.device), self.dtype)

    def of_batch(self, batch: Batch) -> Tensor:
        """The text embedding of a batch on this device, (b, T, D) float32."""
        # The stage encode cached these embeddings.
        if batch.text is not None:
            return batch.text
        assert batch.token_ids is not None
        return self.encoder.encode(batch.token_ids.long(), batch.text_mask)

    def of_prompts(self, prompts: list[str]) -> Text:
        """The texts of prompts, padded to the longest of them."""
        tokenizer = load_tokenizer(self.tokenizer or self.reference)
        return encode_prompts(tokenizer, self.encoder, prompts, self.max_tokens)


def encode_prompts(
    tokenizer: Tokenizer, encoder: TextEncoder, prompts: list[str], max_tokens: int
) -> Text:
    """The texts of prompts, cut to max_tokens and padded to the longest of them, on the encoder's
    device.
    """
    # Models that attend to padding depend on its length, so texts are padded only to the longest.
    rows = tokenizer.token_ids(prompts, max_tokens)
    longest = max(len(row) for row in rows)
    token_ids = torch.tensor([[*row, *[tokenizer.pad_id] * (longest - len(row))] for row in rows])
    text_mask = torch.tensor([[place < len(row) for place in range(longest)] for row in rows])
    return Text(encoder.encode(token_ids, text_mask), text_mask.to(encoder.device))
