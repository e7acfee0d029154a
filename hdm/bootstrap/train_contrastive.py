"""Train a small open_clip CoCa: it embeds pictures and captions in one space, captions pictures,
and encodes technical quality in its embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdm.bootstrap.examples import Example
from hdm.bootstrap.learning import Place, Training, halve
from hdm.bootstrap.lessons import batch_items
from hdm.bootstrap.pace import Schedule
from hdm.bootstrap.quality_head import spoiled
from hdm.bootstrap.train_text_encoder import tokenized
from hdm.files import write_json
from hdm.measuring import Measure, balance, share
from hdm.models.contrastive import Contrastive

SIZE_PX = 64
PATCH = 8
CONTEXT = 32
WIDTH = 128
BATCH = 32
LEARNING_RATE = 2e-3
MUON_RATE = 6e-3
CAPTION_WEIGHT = 2.0
QUALITY_WEIGHT = 4.0
SPOILED = 0.25  # share of the pictures
# Squashed, not cropped: captions may mention what is at the edges.
PREPROCESS = {
    "size": SIZE_PX,
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's configuration of the model, as `open_clip_config.json` holds it."""
    tower = {
        "width": WIDTH,
        "heads": 4,
        "layers": 2,
        "context_length": CONTEXT,
        "vocab_size": vocabulary,
    }
    return {
        "embed_dim": WIDTH,
        "init_logit_scale": float(np.log(10)),
        # Below zero, since most pairs of a batch do not match (SigLIP, arXiv 2303.15343, begins at
        # -10).
        "init_logit_bias": -8.0,
        "vision_cfg": {
            "image_size": SIZE_PX,
            "patch_size": PATCH,
            "width": WIDTH,
            "head_width": 32,
            "layers": 3,
            "mlp_ratio": 3.0,
            "attentional_pool": True,
            "attn_pooler_queries": 16,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
        "text_cfg": {
            **tower,
            "mlp_ratio": 3.0,
            "embed_cls": True,
            "output_tokens": True,
            "pad_id": 0,
        },
        "multimodal_cfg": {**tower, "attn_pooler_heads": 4},
    }


def new_contrastive(tokenizer: Any) -> Contrastive:
    """An untrained CoCa with its tokenizer and preprocessing."""
    from open_clip import CoCa
    from open_clip.model import set_model_preprocess_cfg

    model = CoCa(**model_config(len(tokenizer)))
    # open_clip leaves the decoder's read-out uninitialised.
    nn.init.normal_(model.text_decoder.text_projection, std=WIDTH**-0.5)
    set_model_preprocess_cfg(model, PREPROCESS)
    return Contrastive(model, _OpenClipTokenizer(tokenizer), "cpu")


class _OpenClipTokenizer:
    """Behaves like open_clip's wrapper of a transformers tokenizer in a model's folder."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> Tensor:
        ids = tokenized(self.tokenizer, [" ".join(text.split()) for text in texts], CONTEXT)
        return F.pad(ids, (0, CONTEXT - ids.shape[1]), value=self.tokenizer.pad_token_id)


def train_contrastive(
    tokenizer: Any, examples: Sequence[Example], num_images: int, seed: int, place: Place
) -> tuple[Contrastive, Schedule]:
    """Train a CoCa to tell matching captions from others, to write captions, and to see whether a
    picture is spoiled; return its schedule too.

    Args:
        tokenizer: from `train_tokenizer`.
        examples: captioned pictures; each time one of the captions is chosen at random.
        num_images: images seen, repetitions counted.
        seed: of weights, order and draws.
        place: where checkpoints are, and how long it may take.
    """
    torch.manual_seed(seed)
    contrastive = new_contrastive(tokenizer)
    model = contrastive.model.train()
    # Tokenise every caption once; a step picks one for each picture.
    ids = [contrastive.tokenizer(list(example.captions)) for example in examples]
    batch_size = min(BATCH, len(examples))
    training = Training(
        model,
        num_images,
        batch_size,
        LEARNING_RATE,
        MUON_RATE,
        place,
        embeddings=("embedding", "query", "conv1", "text_decoder.text_projection"),
    )

    def loss(step: int) -> tuple[Tensor, str]:
        rng = np.random.default_rng((seed, step))
        items = batch_items(len(examples), batch_size, seed, step)
        # All randomness of a step: which pictures are spoiled and how, and which caption counts.
        strengths = np.where(rng.random(batch_size) < SPOILED, rng.uniform(0.3, 1, batch_size), 0)
        pictures = []
        for item, strength in zip(items, strengths, strict=True):
            pictures.append(spoiled(examples[item].pixels, strength, rng))
        texts = torch.stack([ids[item][rng.integers(len(ids[item]))] for item in items])
        return _loss(contrastive, pictures, texts, torch.from_numpy(strengths).float())

    schedule = training.run(loss, "contrastive", "images")
    model.eval().requires_grad_(False)
    return contrastive, schedule


def _loss(
    contrastive: Contrastive, pictures: list[np.ndarray], texts: Tensor, strengths: Tensor
) -> tuple[Tensor, str]:
    # Padding is cut off and put back: the class token has the last position.
    texts = texts[:, : int((texts != 0).sum(1).max())]
    texts = F.pad(texts, (0, CONTEXT - texts.shape[1]))
    out = contrastive.model(contrastive.pixels(pictures), texts)
    # (B, B): pictures by captions. Only the diagonal matches.
    cosines = out["image_features"] @ out["text_features"].T
    fit = _sigmoid_loss(cosines * out["logit_scale"] + out["logit_bias"])
    words = F.cross_entropy(out["logits"].flatten(0, 1), out["labels"].flatten(), ignore_index=0)
    # The rating is read from a fixed direction: a learned read-out would go to zero before the
    # embedding holds anything to read.
    rated = 0.5 - 2 * out["image_features"][:, 0]
    wrong = (rated - strengths).square().mean()
    return (
        fit + CAPTION_WEIGHT * words + QUALITY_WEIGHT * wrong,
        f"fit {fit.item():.3f} words {words.item():.3f} quality {wrong.item():.3f}",
    )


def _sigmoid_loss(logits: Tensor) -> Tensor:
    """SigLIP's loss (arXiv 2303.15343): each pair is judged by itself as matching or not, so that
    one threshold serves all captions.
    """
    signs = 2 * torch.eye(len(logits)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def save_contrastive(contrastive: Contrastive, tokenizer: Any, folder: Path) -> None:
    """Write open_clip_config.json, open_clip_model.safetensors in 16 bits, and the tokenizer's
    files.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    config = model_config(len(tokenizer))
    # open_clip takes any name here to mean that the tokenizer is in the same folder.
    config["text_cfg"]["hf_tokenizer_name"] = "this folder"
    write_json(
        folder / "open_clip_config.json",
        {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": PREPROCESS},
    )
    halved = halve(contrastive.model).state_dict()
    # safetensors refuses tensors that are not contiguous.
    weights = {name: value.contiguous() for name, value in halved.items()}
    save_file(weights, folder / "open_clip_model.safetensors", metadata={"format": "pt"})


class ContrastiveQuality(Measure):
    """How well the best threshold separates captions from those of other held-out pictures.

    The result holds the threshold (a cosine), and the shares of matching pairs above it and of
    other pairs below it.
    """

    def __init__(self, contrastive: Contrastive, examples: Sequence[Example]) -> None:
        super().__init__(len(examples))
        self.contrastive = contrastive
        self.examples = examples
        self.images: list[np.ndarray] = []
        self.texts: list[np.ndarray] = []

    def add(self, items: Sequence[int]) -> None:
        pixels = [self.examples[item].pixels for item in items]
        captions = [self.examples[item].captions[0] for item in items]
        self.images.append(self.contrastive.embed_images(pixels))
        self.texts.append(self.contrastive.embed_texts(captions))

    def result(self) -> dict[str, Any]:
        cosines = np.concatenate(self.images) @ np.concatenate(self.texts).T
        fitting = np.diag(cosines)
        others = cosines[~np.eye(len(cosines), dtype=bool)]
        # There are N² cosines; a few hundred quantiles find the threshold as well.
        candidates = np.quantile(np.concatenate([fitting, others]), np.linspace(0, 1, 513))
        best = float(candidates[int(np.argmax(balance(fitting, others, candidates)))])
        return {
            "threshold": round(best, 4),
            "fitting_above": share(fitting >= best),
            "others_below": share(others < best),
        }
