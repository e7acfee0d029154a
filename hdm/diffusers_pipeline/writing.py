"""Writing a diffusers folder: the denoiser beside its components' files as they are.

    DIR/model_index.json
    DIR/transformer/    config.json  diffusion_pytorch_model.safetensors
    DIR/vae/            the autoencoder's
    DIR/text_encoder/   the language model's
    DIR/tokenizer/      its tokenizer's

There is no scheduler: times and steps are the sampler's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from hdm.architecture import XUTConfig
from hdm.diffusers_pipeline.denoiser import XUTTransformer
from hdm.diffusers_pipeline.pipeline import HDMPipeline
from hdm.errors import InputError
from hdm.files import aside_of, explain_os_error, write_json
from hdm.generation.conditioning import Conditioning
from hdm.generation.text_to_image import TextToImage
from hdm.model_files.file_names import MODEL_INDEX, TENSORS, TRANSFORMER
from hdm.model_files.stored import StoredModel
from hdm.model_files.weights import Weights
from hdm.models.autoencoder import load_autoencoder, published_statistics
from hdm.models.components import Resolved, locate, read_json, weights_digest
from hdm.models.text_encoder import TowerEncoder, load_tokenizer

RESOLUTION = 1024
"""Side of a picture in pixels where nothing says what a model was trained at: the last of the
published recipe.
"""
TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "*.model",
)


def write_folder(out: Path, model: StoredModel, components: Resolved) -> None:
    """Write a folder that `HDMPipeline.from_pretrained` and `DiffusionPipeline.from_pretrained`
    load.

    Args:
        out: the folder; it is there whole or not at all.
        model: the denoiser.
        components: references of its text encoder and autoencoder.

    Raises:
        InputError: there is something at `out`; a component is missing, does not fit, or is not the
            one trained with.
        HdmError: the folder cannot be written.
    """
    if out.exists():
        raise InputError(
            "is there already", where=out, do="name another folder, or remove it first"
        )
    if type(model.card.config) is not XUTConfig:
        kind = model.card.config.kind
        raise InputError(
            f"a diffusers folder holds an XUT, and this is a denoiser of kind {kind}",
            do="`hdm weights export --out FILE` writes the weights alone",
        )
    _check_trained_with(model, components)
    index = _index(model, components)
    aside = aside_of(out)
    try:
        _write(aside, model.weights, components)
        write_json(aside / MODEL_INDEX, index)
        # The rename makes the folder appear at once, complete.
        aside.rename(out)
    except OSError as error:
        raise explain_os_error(error, out) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_trained_with(model: StoredModel, components: Resolved) -> None:
    """Hold components against the digests that training wrote down."""
    for component, digest in model.card.components.items():
        reference = components.need(component)
        locate(reference, download=True)
        if (here := weights_digest(reference)) != digest:
            raise InputError(
                f"this is not the {component} that the model was trained with: sha256 {here[:16]}…,"
                f" not {digest[:16]}…",
                where=reference,
                do="name the one that it was trained with",
            )


def _index(model: StoredModel, components: Resolved) -> dict[str, Any]:
    """What model_index.json says; the components are loaded for it, so that they are known to
    fit.
    """
    max_tokens = model.card.max_tokens
    conditioning = Conditioning(
        components.need("text_encoder"), torch.device("cpu"), torch.float32, max_tokens
    )
    if isinstance(conditioning.encoder, TowerEncoder):
        raise InputError(
            "the text tower of a CoCa is no model that transformers loads",
            where=components.text_encoder,
            do=(
                "a diffusers folder needs a language model; `hdm weights export --out FILE` writes"
                " the weights alone"
            ),
        )
    autoencoder = load_autoencoder(components.need("autoencoder"))
    # The constructor raises if the three do not fit each other.
    TextToImage(model.denoiser(), conditioning, autoencoder)
    # diffusers does not know our own class of tiny autoencoders, and would need code from us to
    # load it.
    if not hasattr(diffusers, str(autoencoder.identity["class"])):
        raise InputError(
            "is no autoencoder that diffusers loads",
            where=components.autoencoder,
            do="name one in diffusers' form",
        )
    return {
        "_class_name": HDMPipeline.__name__,
        "_diffusers_version": diffusers.__version__,
        "max_tokens": max_tokens,
        "resolution": model.card.resolution or RESOLUTION,
        "text_encoder": ["transformers", type(conditioning.encoder.model).__name__],
        "tokenizer": ["transformers", _tokenizer_class(components.need("text_encoder"))],
        TRANSFORMER: [XUTTransformer.__module__, XUTTransformer.__name__],
        "vae": ["diffusers", autoencoder.identity["class"]],
    }


def _tokenizer_class(reference: str) -> str:
    name = type(load_tokenizer(reference).tokenizer).__name__
    # Transformers 5's name for it, which 4 does not know.
    return "PreTrainedTokenizerFast" if name == "TokenizersBackend" else name


def _write(folder: Path, weights: Weights, components: Resolved) -> None:
    (folder / TRANSFORMER).mkdir(parents=True)
    named = {"_class_name": XUTTransformer.__name__, "_diffusers_version": diffusers.__version__}
    write_json(folder / TRANSFORMER / "config.json", {**named, **weights.config.to_dict()})
    save_file(dict(weights.tensors), folder / TRANSFORMER / TENSORS, metadata={"format": "pt"})
    # The library makes it readable by its owner alone.
    (folder / TRANSFORMER / TENSORS).chmod(0o644)

    reference = components.need("autoencoder")
    autoencoder = locate(reference)
    # Components keep their files' bits. Weights may be split over several files.
    _copy(autoencoder, folder / "vae", ("config.json", "diffusion_pytorch_model*.safetensors*"))
    config = read_json(autoencoder / "config.json", do="name a folder with a diffusers autoencoder")
    # Said aloud, since diffusers takes a scale of its own where a file says none.
    write_json(
        folder / "vae" / "config.json",
        {"scaling_factor": 1.0, **config, **published_statistics(reference, config)},
    )

    language_model = locate(components.need("text_encoder"))
    _copy(language_model, folder / "text_encoder", ("config.json", "model*.safetensors*"))
    config = read_json(language_model / "config.json", do="name a folder with a language model")
    # Its weights may lie there in 16 bits; the denoiser was taught with what they give in 32.
    write_json(folder / "text_encoder" / "config.json", {**config, "dtype": "float32"})
    _copy(language_model, folder / "tokenizer", TOKENIZER_FILES)


def _copy(source: Path, target: Path, patterns: Iterable[str]) -> None:
    target.mkdir()
    found: set[Path] = set()  # patterns may overlap
    for pattern in patterns:
        found.update(source.glob(pattern))
    for path in sorted(found):
        if path.is_file():
            shutil.copyfile(path, target / path.name)
