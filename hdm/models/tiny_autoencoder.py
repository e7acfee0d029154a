"""The tiny autoencoders of the TAESD family with a pooled branch (FLUX.2's), and the formats in
which they are published.

Their repository has NAME_encoder.pth and NAME_decoder.pth, each an nn.Sequential's state; the hub's
`madebyollin/taef2` has one NAME.safetensors with both under diffusers' names, without a
config.json. Beside the .pth files there may be a config.json with latents_mean and latents_std,
which the published files lack.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from diffusers.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hdm.errors import InputError, Refusal
from hdm.models.components import FETCH_AGAIN

# These are the sizes of the published weights, which come without a configuration.
POOLED_CHANNELS = 256
POOLED_GROUPS = 4
STATISTICS = ("latents_mean", "latents_std")  # diffusers' own class has none by channel
_Tensors = dict[str, Tensor]


class PooledBlock(AutoencoderTinyBlock):
    """A block whose input has a wider, per-pixel branch added before the convolutions."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__(channels, channels, activation)
        self.pool = nn.Sequential(
            nn.Conv2d(channels, POOLED_CHANNELS, 1, bias=False),
            nn.GroupNorm(POOLED_GROUPS, POOLED_CHANNELS),
            nn.ReLU(),
            nn.Conv2d(POOLED_CHANNELS, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pool(x))


class PooledAutoencoderTiny(AutoencoderTiny):
    """diffusers' AutoencoderTiny with pooled blocks in the last encoder stage and the first decoder
    stage.

    Args:
        config: AutoencoderTiny's own, latents_mean and latents_std.
    """

    def __init__(self, **config: Any) -> None:
        own = {name: value for name, value in config.items() if name not in STATISTICS}
        super().__init__(**own)  # type: ignore[no-untyped-call]
        model: Any = self  # diffusers sets its attributes where a type checker does not see them
        last = model.config.num_encoder_blocks[-1]
        first = model.config.num_decoder_blocks[0]
        model.register_to_config(**{name: config.get(name) for name in STATISTICS})
        encoder = model.encoder.layers
        decoder = model.decoder.layers
        # Around the blocks: in the encoder the output layer behind, in the decoder an input layer
        # and its activation before.
        _pool(encoder, range(len(encoder) - 1 - last, len(encoder) - 1), model.config)
        _pool(decoder, range(2, 2 + first), model.config)


def _pool(layers: nn.Sequential, places: range, config: Any) -> None:
    for place in places:
        layers[place] = PooledBlock(config.encoder_block_out_channels[-1], config.act_fn)


def load_pooled(folder: Path, config: Mapping[str, Any]) -> Any:
    """The pooled autoencoder that `save_pretrained` wrote to a folder, in float32.

    Args:
        config: what its config.json says.

    Raises:
        InputError: weights and configuration do not belong together, or cannot be read.
    """
    # diffusers writes down more than it takes.
    known = {
        *inspect.signature(AutoencoderTiny.__init__).parameters,
        *STATISTICS,
    }
    model: Any = PooledAutoencoderTiny(
        **{name: value for name, value in config.items() if name in known}
    )
    kinds = (OSError, RuntimeError, SafetensorError)
    with Refusal(*kinds, what="the autoencoder cannot be loaded", where=folder, do=FETCH_AGAIN):
        weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
        model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model


def load_published(folder: Path, single: Path | None) -> Any:
    """The tiny autoencoder in a folder's published files, pooled or plain, in float32.

    Args:
        single: the file that holds both halves; None: there are two .pth files.

    Raises:
        InputError: they hold something else, or do not match.
    """
    encoder, decoder = _of_one(single) if single else _of_two(folder)
    try:
        channels = {
            "the encoder": _last(encoder, "weight").shape[0],
            "the decoder": decoder["0.weight"].shape[1],
        }
    except (KeyError, ValueError) as error:
        raise _not_tiny(folder, str(error)) from error
    if len(set(channels.values())) > 1:
        raise InputError(
            f"latent channels differ: {channels}", where=folder, do="take both files from one place"
        )
    pooled = any(".pool." in key for key in encoder)
    model: Any = (PooledAutoencoderTiny if pooled else AutoencoderTiny)(
        latent_channels=channels["the encoder"]
    )
    for part, state in ((model.encoder, encoder), (model.decoder, decoder)):
        try:
            part.layers.load_state_dict({key: value.float() for key, value in state.items()})
        except RuntimeError as error:
            raise _not_tiny(folder, str(error)) from error
    return model


def _not_tiny(folder: Path, why: str) -> InputError:
    return InputError(
        f"is not a tiny autoencoder: {why}",
        where=folder,
        do="name a diffusers autoencoder's folder",
    )


def _of_one(file: Path) -> tuple[_Tensors, _Tensors]:
    """The state dictionaries of encoder and decoder, with diffusers' layer numbers."""
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error
    parts: dict[str, _Tensors] = {"encoder.layers.": {}, "decoder.layers.": {}}
    for key, value in state.items():
        for start, part in parts.items():
            if key.startswith(start):
                part[key.removeprefix(start)] = value
    return parts["encoder.layers."], parts["decoder.layers."]


def _of_two(folder: Path) -> tuple[_Tensors, _Tensors]:
    encoder = _state(next(folder.glob("*_encoder.pth")))
    decoder = _state(next(folder.glob("*_decoder.pth")))
    # The decoder's first layer, a clamp, has a place in the file's count and none in diffusers'.
    renumbered = {}
    for key, value in decoder.items():
        layer, _, name = key.partition(".")
        renumbered[f"{int(layer) - 1}.{name}"] = value
    return encoder, renumbered


def _last(state: _Tensors, kind: str) -> Tensor:
    return state[f"{max(int(key.partition('.')[0]) for key in state)}.{kind}"]


def _state(path: Path) -> _Tensors:
    try:
        state: _Tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise _unreadable(path, error) from error
    return state


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot be read as weights: {str(error).splitlines()[0]}", where=path, do="fetch it again"
    )
