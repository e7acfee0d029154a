"""Captions to text embeddings: the last hidden state, after the final norm, of a transformers
language model.

The text tower of a CoCa (a folder with open_clip_config.json) serves too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.errors import ConfigError, InputError, Refusal
from hdm.models.components import hushed, locate, read_json

_OPEN_CLIP = "open_clip_config.json"
_ANOTHER = "name another in components.text_encoder"


class Tokenizer:
    """A transformers tokenizer that never returns an empty list.

    Attributes:
        pad_id: pads a batch; masked, so its value does not affect the encoder.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        token_ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
        # Some tokenizers (Qwen3's) add nothing to "": one token then stands for the empty caption.
        self.empty = [next((token for token in token_ids if token is not None), 0)]
        # Prefer padding, then end, then begin. The mask hides the token, but the embedding layer
        # has to know its id.
        self.pad_id: int = next((token for token in reversed(token_ids) if token is not None), 0)

    @property
    def largest_id(self) -> int:
        """The largest token id that it may return."""
        vocabulary: dict[str, int] = self.tokenizer.get_vocab()
        return max(vocabulary.values())

    def token_ids(self, captions: list[str], max_tokens: int) -> list[list[int]]:
        """The token ids of each caption, including special tokens, truncated to `max_tokens`; at
        least one each.
        """
        if not captions:
            return []
        encoded = self.tokenizer(captions, truncation=True, max_length=max_tokens)["input_ids"]
        # An empty sequence would have no hidden state.
        return [list(ids) or list(self.empty) for ids in encoded]


class TextEncoder(nn.Module):
    """A language model without its head.

    Attributes:
        width: of a text embedding.
    """

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model = model
        self.width = width

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """The text embedding of a batch.

        Args:
            token_ids: (B, T) int64, padded on the right.
            text_mask: (B, T) bool, True where a token is real.

        Returns:
            (B, T, width) float32, zero where masked.
        """
        token_ids = token_ids.to(self.device)
        text_mask = text_mask.to(self.device)
        hidden = self._hidden(token_ids, text_mask)
        return hidden.float() * text_mask.to(hidden.device).unsqueeze(-1)

    def _hidden(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        # No token is generated after these, so keys and values are not cached.
        output = self.model(input_ids=token_ids, attention_mask=text_mask.long(), use_cache=False)
        hidden: Tensor = output.last_hidden_state
        return hidden


class TowerEncoder(TextEncoder):
    """The causal text tower of a CoCa; its token states get the tower's final norm, as its class
    token does.
    """

    def _hidden(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        tower: Any = self.model
        embedded = (
            tower.token_embedding(token_ids) + tower.positional_embedding[: token_ids.shape[1]]
        )
        # Causal, and padding lies on the right: no real token sees a masked one.
        length = token_ids.shape[1]
        states = tower.transformer(embedded, attn_mask=tower.attn_mask[:length, :length])
        hidden: Tensor = tower.ln_final(states)
        return hidden


def load_tokenizer(reference: str) -> Tokenizer:
    """The tokenizer of a text encoder.

    Raises:
        InputError: it is missing or cannot be read.
    """
    from transformers import AutoTokenizer

    folder = locate(reference, download=True)
    do = "put tokenizer.json and tokenizer_config.json beside the model"
    with Refusal(OSError, ValueError, what="there is no tokenizer", where=folder, do=do):
        return Tokenizer(AutoTokenizer.from_pretrained(str(folder), local_files_only=True))


def num_embeddings(reference: str) -> int:
    """The size of a text encoder's vocabulary, from its configuration alone.

    Raises:
        InputError: it is missing, or has no configuration that can be read.
    """
    from transformers import AutoConfig

    folder = locate(reference, download=True)
    if (folder / _OPEN_CLIP).is_file():
        return int(read_json(folder / _OPEN_CLIP, _ANOTHER)["model_cfg"]["text_cfg"]["vocab_size"])
    what = "the text encoder has no configuration"
    with Refusal(OSError, ValueError, AttributeError, what=what, where=folder, do=_ANOTHER):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        return int(config.get_text_config().vocab_size)


def text_width(reference: str) -> int | None:
    """The width of a text encoder's embeddings, from its configuration alone; None if it does not
    record it.

    Raises:
        InputError: it is not on this machine, or has no configuration that can be read.
    """
    folder = locate(reference)
    file = _OPEN_CLIP if (folder / _OPEN_CLIP).is_file() else "config.json"
    config = read_json(folder / file, _ANOTHER)
    of_text = (
        config.get("model_cfg", {}).get("text_cfg", {})
        if file == _OPEN_CLIP
        else config.get("text_config", config)
    )
    width = of_text.get("width" if file == _OPEN_CLIP else "hidden_size")
    return width if isinstance(width, int) else None


def check_text_width(width: int, reference: str, model: XUTConfig) -> None:
    """Raise a ConfigError if a denoiser expects embeddings of another width."""
    if width != model.text_width:
        raise ConfigError(
            f"the text encoder {reference} gives embeddings of width {width}, the model takes"
            f" {model.text_width}",
            where="train.model.text_width",
            do=f"set train.model.text_width={width}, or name another components.text_encoder",
        )


def load_text_encoder(
    reference: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> TextEncoder:
    """The text encoder in a local folder or on the hub, frozen.

    Args:
        reference: see `hdm.models.components`.
        device: where it runs.
        dtype: of its weights there; embeddings are float32 in any case.

    Raises:
        InputError: it is missing or cannot be loaded.
    """
    folder = locate(reference, download=True)
    encoder = _tower(folder) if (folder / _OPEN_CLIP).is_file() else _language_model(folder)
    return encoder.to(device, dtype).eval().requires_grad_(False)


def _language_model(folder: Path) -> TextEncoder:
    from transformers import AutoModel

    what = "the text encoder cannot be loaded"
    with (
        Refusal(OSError, ValueError, RuntimeError, what=what, where=folder, do=_ANOTHER),
        hushed("transformers"),
    ):
        # No code from a hub, no pickle.
        model = AutoModel.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    # Multimodal models nest their language model's configuration.
    config = model.config.get_text_config()
    return TextEncoder(model, config.hidden_size)


def _tower(folder: Path) -> TextEncoder:
    from hdm.models.contrastive import load_open_clip

    model, _ = load_open_clip(str(folder))
    # In a bidirectional tower, real tokens would attend to padding (see `_hidden`).
    if not hasattr(model, "text") or getattr(model.text, "attn_mask", None) is None:
        raise InputError(
            "has no causal text tower",
            where=folder,
            do="name a language model or a CoCa in components.text_encoder",
        )
    return TowerEncoder(model.text, model.text.width)
