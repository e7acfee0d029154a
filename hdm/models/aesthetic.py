"""Aesthetic heads: from a contrastive model's embedding of a picture to a score of about 0 to 10.

A head fits only the embeddings of the model that it was trained for; on those of another model of
the same width it may invert the ranking. An MLP's file also does not record whether there are
activations between its layers. Published files are recognised by their sha256; for others, settings
must supply both.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hdm.errors import ConfigError, InputError, Refusal
from hdm.files import sha256_file
from hdm.models.components import Resolved, locate

NO_ACTIVATION = "none"
RELU = "relu"


@dataclass(frozen=True)
class PublishedHead:
    """The facts about a published file: its name, the model that it was trained for, and the
    activation between its layers.
    """

    name: str
    trained_for: str
    activation: str = NO_ACTIVATION


PUBLISHED = {
    "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba": PublishedHead(
        "sa_0_4_vit_l_14_linear.pth", "ViT-L-14/openai"
    ),
    "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f": PublishedHead(
        "sa_0_4_vit_b_32_linear.pth", "ViT-B-32/openai"
    ),
    "8ad3923d7ecf019df20ecd2ab5542a3075fbba0278d239c0371345f3d7fcbde0": PublishedHead(
        "sa_0_4_vit_b_16_linear.pth", "ViT-B-16/openai"
    ),
    "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0": PublishedHead(
        "sac+logos+ava1-l14-linearMSE.pth", "ViT-L-14/openai"
    ),
}
"""By sha256: LAION-AI/aesthetic-predictor and christophschuhmann/improved-aesthetic-predictor."""

# timm publishes OpenAI's weights under names of its own.
_HUB = {
    "timm/vit_large_patch14_clip_224.openai": "vit-l-14/openai",
    "timm/vit_base_patch32_clip_224.openai": "vit-b-32/openai",
    "timm/vit_base_patch16_clip_224.openai": "vit-b-16/openai",
}


class AestheticHead:
    """Computes a score from an embedding: linear layers, with or without ReLU between them.

    Attributes:
        embed_size: width of the embeddings it reads.
    """

    def __init__(
        self, layers: list[tuple[np.ndarray, np.ndarray]], activation: str = NO_ACTIVATION
    ) -> None:
        self.layers = layers
        self.activation = activation
        self.embed_size = layers[0][0].shape[1]

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Scores (B,) float32 of unit embeddings (B, embed_size); about 0 to 10.

        Raises:
            InputError: the embeddings are of another width.
        """
        if embeddings.shape[-1] != self.embed_size:
            raise InputError(
                f"the aesthetic head reads embeddings of {self.embed_size} numbers; the contrastive"
                f" model gives {embeddings.shape[-1]}",
                do=(
                    "name the head that was trained for this contrastive model in"
                    " components.aesthetic_head"
                ),
            )
        values = embeddings.astype(np.float32)
        for number, (weight, bias) in enumerate(self.layers):
            # Activations stand between layers: none before the first, none after the last.
            if number and self.activation == RELU:
                values = np.maximum(values, 0)
            values = values @ weight.T + bias
        return values[:, 0]


def load_aesthetic_head(path: str | Path, activation: str | None = None) -> AestheticHead:
    """A linear head (`weight`, `bias`) or an MLP (`layers.N.weight`, `layers.N.bias`), as
    safetensors or .pth.

    Args:
        path: the file.
        activation: between the layers of an MLP, `none` or `relu`; None: that of the published
            file.

    Raises:
        InputError: the file is missing, contains more than tensors, or is not such a head.
        ConfigError: it is an unknown MLP and `activation` is None, or a known one with another
            activation.
    """
    file = locate(str(path))
    names = _layer_names(state := _read_tensors(file), file)
    numbers = {name: value.detach().float().numpy() for name, value in state.items()}
    layers = [(numbers[f"{name}weight"], numbers[f"{name}bias"]) for name in names]
    known = PUBLISHED.get(sha256_file(file))
    if known is not None and activation not in (None, known.activation):
        raise ConfigError(
            f"{known.name} has the activation {known.activation!r} between its layers, not"
            f" {activation!r}",
            where="components.aesthetic_head_activation",
            do="leave it out: this file is known",
        )
    # A wrong guess would go unnoticed: without its ReLUs, an MLP's scores were off by 1.5 to 2.7
    # points.
    if known is None and activation is None and len(layers) > 1:
        raise ConfigError(
            f"{file.name} does not say whether ReLUs stand between its {len(layers)} layers",
            where="components.aesthetic_head_activation",
            do=(
                "set it to relu or none, as the head was trained (published files of heads with"
                " ReLU say so in their names)"
            ),
        )
    return AestheticHead(layers, activation or (known.activation if known else NO_ACTIVATION))


def check_head(resolved: Resolved) -> None:
    """Check that the aesthetic head, if there is one, was trained for the contrastive model.

    Raises:
        ConfigError: it was not, or its model is unknown.
        InputError: it is not on this machine, or is not a head.
    """
    head = resolved.aesthetic_head
    contrastive = resolved.contrastive
    named = resolved.aesthetic_head_for
    if head is None:
        return
    if contrastive is None:
        raise ConfigError(
            "components.aesthetic_head scores the embeddings of components.contrastive, which is"
            " not set",
            do="name the contrastive model that the head was trained for, or leave the head out",
        )
    load_aesthetic_head(head, resolved.aesthetic_head_activation)
    known = PUBLISHED.get(sha256_file(locate(head)))
    wanted = known.trained_for if known else named
    if wanted is None:
        raise ConfigError(
            f"nothing says which contrastive model the aesthetic head {head} was trained for",
            where="components.aesthetic_head_for",
            do=(
                "name it there; if it is the one in components.contrastive:"
                f" components.aesthetic_head_for={contrastive}"
            ),
        )
    # Of a folder its name does not tell which model it holds: then the setting may.
    unnamed = known is not None and named is not None and "@" not in contrastive
    if not _same(wanted, contrastive) and not (unnamed and _same(wanted, str(named))):
        alternative = (
            "" if known is None or "@" in contrastive
            else f", or say that it is in that folder with components.aesthetic_head_for={wanted}"
        )  # fmt: skip
        raise ConfigError(
            f"the aesthetic head {known.name if known else head} was trained for {wanted}, and the"
            f" contrastive model is {contrastive}",
            where="components.aesthetic_head, components.contrastive",
            do=(
                "name the head of this model, or set components.contrastive to that"
                f" one{alternative}"
            ),
        )


def _same(one: str, other: str) -> bool:
    return _normal(one) == _normal(other)


def _normal(reference: str) -> str:
    """ARCHITECTURE/tag in lower case, from any spelling; other texts unchanged."""
    plain = _HUB.get(reference, reference)
    # A local model is known by its path alone.
    if Path(plain).expanduser().exists():
        return str(Path(plain).expanduser().resolve())
    # open_clip lists the same weights with and without the activation's suffix.
    return plain.lower().replace("@", "/").replace("-quickgelu", "")


def _layer_names(state: Mapping[str, Tensor], file: Path) -> list[str]:
    """The prefixes of the layers' tensor names, in order.

    Raises:
        InputError: the tensors are not those of a head.
    """
    numbers = []
    for name in state:
        match = re.fullmatch(r"layers\.(\d+)\.weight", name)
        if match:
            numbers.append(int(match[1]))
    # Numbers may have gaps: the published MLPs count dropout layers, which have no tensors.
    names = [f"layers.{number}." for number in sorted(numbers)] or [""]
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    if not _is_chain(shapes, names):
        held = ", ".join(f"{name} {shape}" for name, shape in sorted(shapes.items())[:8])
        raise InputError(
            f"is not an aesthetic head: it holds {held}",
            where=file,
            do=(
                "name a linear head (weight, bias) or an MLP (layers.N.weight, layers.N.bias) whose"
                " last layer gives one number"
            ),
        )
    return names


def _is_chain(shapes: Mapping[str, tuple[int, ...]], names: Sequence[str]) -> bool:
    """Whether the shapes are exactly those of linear layers, each of which reads what the one
    before gives, and the last of which gives one number.
    """
    # The tensors must match exactly: another one would belong to a layer that is not computed here.
    expected = set()
    for name in names:
        expected |= {f"{name}weight", f"{name}bias"}
    if set(shapes) != expected:
        return False
    for name in names:
        weight = shapes[f"{name}weight"]
        if len(weight) != 2 or shapes[f"{name}bias"] != weight[:1]:
            return False
    for before, after in itertools.pairwise(names):
        if shapes[f"{before}weight"][0] != shapes[f"{after}weight"][1]:
            return False
    return shapes[f"{names[-1]}weight"][0] == 1


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    kinds = (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError)
    do = "fetch it again; pickled code is refused"
    with Refusal(*kinds, what="cannot be read as weights", where=file, do=do):
        state: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
