"""Embeddings of pictures and texts in one space (open_clip's CLIP and CoCa), captions from a CoCa,
and aesthetic heads on the embeddings.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdm.errors import InputError, Refusal
from hdm.models.components import FETCH_AGAIN, Resolved, locate, read_json

CONFIG = "open_clip_config.json"

Embeddings = np.ndarray
"""(B, E) float32, rows of length 1."""


class Contrastive:
    """An open_clip model with its own preprocessing and tokenizer.

    Attributes:
        embed_size: width of an embedding.
        can_caption: whether it is a CoCa.
    """

    def __init__(self, model: Any, tokenizer: Any, device: str) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.model = model
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        # Size, interpolation and mean belong to the weights, not to the architecture.
        self.preprocess = image_transform_v2(
            PreprocessCfg(**model.visual.preprocess_cfg), is_train=False
        )
        self.can_caption = hasattr(model, "text_decoder")
        self.embed_size: int = self._embed_texts([""]).shape[1]

    def pixels(self, pictures: list[np.ndarray]) -> Tensor:
        """The model's input (B, 3, S, S) for pictures of (H, W, 3) uint8 of any size."""
        from PIL import Image

        return torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pictures]).to(
            self.device
        )

    @torch.no_grad()
    def embed_images(self, pictures: list[np.ndarray]) -> Embeddings:
        """Unit embeddings (B, embed_size) float32 of pictures (H, W, 3) uint8, each of its own
        size.
        """
        if not pictures:
            return np.zeros((0, self.embed_size), np.float32)
        embeddings: Tensor = self.model.encode_image(self.pixels(pictures), normalize=True)
        return embeddings.float().cpu().numpy()

    def embed_texts(self, texts: list[str]) -> Embeddings:
        """Unit embeddings (B, embed_size) float32 of texts, truncated to the model's context."""
        return self._embed_texts(texts) if texts else np.zeros((0, self.embed_size), np.float32)

    def are_cut(self, texts: list[str]) -> list[bool]:
        """Whether each text exceeds the model's context, so that `embed_texts` truncates it."""
        return are_cut(self.tokenizer, texts)

    @torch.no_grad()
    def _embed_texts(self, texts: list[str]) -> Embeddings:
        tokens = self.tokenizer(texts).to(self.device)
        embeddings: Tensor = self.model.encode_text(tokens, normalize=True)
        return embeddings.float().cpu().numpy()

    @torch.no_grad()
    def caption(
        self,
        pictures: list[np.ndarray],
        max_tokens: int = 48,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> list[str]:
        """A caption for each picture.

        open_clip's own `generate` needs parts that transformers 5 no longer has.

        Args:
            pictures: (H, W, 3) uint8, each of its own size.
            max_tokens: maximum number of tokens, limited by the model's context.
            temperature: divides the logits when tokens are sampled.
            generator: a CPU generator for sampling; None: take the likeliest token each time.

        Raises:
            InputError: the model is not a CoCa.
        """
        if not self.can_caption:
            raise InputError(
                "this contrastive model cannot caption",
                do="name a CoCa in components.contrastive, or set components.captioner",
            )
        if not pictures:
            return []
        start, end, pad = _special_tokens(self.tokenizer)
        _, image_tokens = self.model._encode_image(self.pixels(pictures))
        tokens = torch.full((len(pictures), 1), start, device=self.device)
        done = torch.zeros(len(pictures), dtype=torch.bool, device=self.device)
        # The end token takes one step more.
        for _ in range(min(max_tokens + 1, self.model.context_length - 1)):
            _, states = self.model._encode_text(tokens)
            logits = self.model.text_decoder(image_tokens, states)[:, -1].float()
            chosen = _choose(logits, temperature, generator).masked_fill(done, pad)
            tokens = torch.cat([tokens, chosen[:, None]], dim=1)
            done |= chosen == end
            if done.all():
                break
        # Drop the start token, and an end token beyond `max_tokens`.
        return [self._text(row, end) for row in tokens[:, 1 : max_tokens + 1].tolist()]

    def _text(self, ids: list[int], end: int) -> str:
        """The words before the end token."""
        ids = ids[: ids.index(end)] if end in ids else ids
        inner = getattr(self.tokenizer, "tokenizer", None)
        text = (
            inner.decode(ids, skip_special_tokens=True)
            if inner is not None
            else self.tokenizer.decode(ids)
        )
        return str(text).strip()


def are_cut(tokenizer: Any, texts: list[str]) -> list[bool]:
    """Whether each text has more tokens than fit in an open_clip tokenizer's context."""
    if not texts:
        return []
    context = tokenizer.context_length
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is not None:
        # transformers warns about long texts unless verbose=False, and long texts are what this
        # looks for.
        return [len(ids) > context for ids in inner(texts, verbose=False)["input_ids"]]
    # open_clip's own pads with 0 and cuts: with room for one more token, only longer texts fill it.
    last: Tensor = tokenizer(texts, context_length=context + 1)[:, -1]
    return [token != 0 for token in last.tolist()]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        return logits.argmax(dim=-1)
    # The CPU draws, so that a seed gives the same captions on every device.
    shares = (logits / temperature).softmax(dim=-1).cpu()
    return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)


def _special_tokens(tokenizer: Any) -> tuple[int, int, int]:
    """Start, end and padding tokens of open_clip's own tokenizer, or of a transformers tokenizer
    that it wraps.
    """
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        # open_clip's own tokenizer pads with 0.
        return tokenizer.sot_token_id, tokenizer.eot_token_id, 0
    # Tokenizers of BERT's kind have class and separator tokens instead of begin and end tokens.
    start = next(
        token
        for token in (inner.bos_token_id, inner.cls_token_id, inner.eos_token_id)
        if token is not None
    )
    end = next(token for token in (inner.eos_token_id, inner.sep_token_id) if token is not None)
    return start, end, inner.pad_token_id if inner.pad_token_id is not None else end


def load_contrastive(resolved: Resolved, device: str = "cpu") -> Contrastive:
    """The contrastive model of a pipeline, in float32, frozen.

    Raises:
        InputError: the pipeline names none, or it is missing or cannot be loaded.
    """
    model, tokenizer = load_open_clip(resolved.need("contrastive"))
    return Contrastive(model.to(device).eval().requires_grad_(False), tokenizer, device)


def can_caption(reference: str) -> bool:
    """Whether a contrastive model is a CoCa, from its configuration alone.

    Raises:
        InputError: it is not on this machine, or has no configuration.
    """
    path = locate(reference)
    if path.is_dir():
        config = read_json(path / CONFIG, "name a folder of open_clip, or ARCHITECTURE@tag")
        return "multimodal_cfg" in config.get("model_cfg", {})
    import open_clip

    return "multimodal_cfg" in (open_clip.get_model_config(reference.partition("@")[0]) or {})


def load_open_clip(reference: str) -> tuple[Any, Any]:
    """open_clip's model (on the CPU) and tokenizer of a folder, a hub name or ARCHITECTURE@tag.

    Raises:
        InputError: it is missing or cannot be loaded.
    """
    import open_clip

    path = locate(reference, download=True)
    # open_clip would otherwise build the model with random weights, and only log a warning.
    if path.is_dir() and not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise InputError(
            "there are no weights", where=path, do="put open_clip_model.safetensors there"
        )
    name = f"local-dir:{path}"
    options = {}
    if path.is_file():
        name, _, tag = reference.partition("@")
        entry = open_clip.get_pretrained_cfg(name, tag) or {}
        # The weights' own preprocessing and activation come with the tag, not with the
        # architecture.
        options = {
            "pretrained": str(path) if not entry else tag,
            "force_quick_gelu": bool(entry.get("quick_gelu")),
        }
    kinds = (OSError, ValueError, RuntimeError, KeyError, TypeError)
    what = "the contrastive model cannot be loaded"
    with Refusal(*kinds, what=what, where=path, do=FETCH_AGAIN), _quiet():
        model = open_clip.create_model(name, weights_only=True, **options)
        tokenizer = open_clip.get_tokenizer(name)
    return model, tokenizer


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip logs every step of its loading to the root logger."""
    root = logging.getLogger()
    before = root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
