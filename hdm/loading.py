"""From a path to something that makes pictures: what training wrote, a diffusers folder, or a bare
weights file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hdm.child import forget_launchers
from hdm.encoding.settings import EncodeSettings
from hdm.errors import InputError
from hdm.generation.conditioning import Conditioning
from hdm.generation.text_to_image import TextToImage
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import (
    AUTOENCODER_FOLDER,
    DEMO,
    DENOISING,
    locate,
    resolve,
    weights_digest,
)
from hdm.models.components import VAE as FINETUNED
from hdm.models.file_names import MODEL
from hdm.models.settings import Components
from hdm.models.sources import MODEL_INDEX, Source, read_source
from hdm.store import MANIFEST, in_use, read_output

VAE, TEXT_ENCODER, TOKENIZER = "vae", "text_encoder", "tokenizer"
MAX_TOKENS: int = EncodeSettings.model_fields["max_tokens"].default
NAME_THEM = "name them: --components DIR (a folder that `hdm bootstrap` wrote, or demo), or --autoencoder and --text-encoder"


@dataclass(frozen=True)
class Loaded:
    """A text-to-image model, and what its weights say of themselves.

    Args:
        name: of the weights, the same on every machine.
        resolution: shorter side in pixels that they were trained at; None where they do not say.
    """

    text_to_image: TextToImage
    name: str
    resolution: int | None


def load(path: Path, components: Components, device: torch.device) -> Loaded:
    """Load what makes pictures.

    Args:
        path: output folder of a training phase; diffusers folder; or .safetensors file of a
            denoiser.
        components: those named by hand. A bare file needs them; a diffusers folder takes none; what
            training wrote names its own, where it can, and takes only those that it was trained
            with.
        device: where it will run.

    Raises:
        InputError: nothing of that kind is there, components are not to be had, or parts do not fit
            each other.
        DamagedError: a file cannot be read.
    """
    forget_launchers()
    named = {
        name: reference
        for name in DENOISING
        if (reference := getattr(resolve(components), name)) is not None
    }
    source = read_source(path)
    if (path / MODEL).is_file():
        with in_use([path] if (path / MANIFEST).exists() else []):
            pass  # hdm gc shall know
        return _trained(path, source, named, device)
    if (path / MODEL_INDEX).is_file():
        return _diffusers_folder(path, source, named, device)
    return _bare_file(path, source, named, device)


def _trained(
    folder: Path, source: Source, named: Mapping[str, str], device: torch.device
) -> Loaded:
    """What a training phase wrote: model.json tells the digests of its components, and names where
    these are portable.
    """
    told = source.told
    digests, names = (
        told.get("components", {}),
        {**told.get("component_names", {}), **_finetuned(folder)},
    )
    found = {
        component: _own_component(
            component,
            digests.get(component),
            names.get(component, DEMO),
            named.get(component),
            folder,
        )
        for component in DENOISING
    }
    text_to_image = _assembled(source, found, int(told.get("max_tokens", MAX_TOKENS)), device)
    return Loaded(
        text_to_image,
        f"{folder.resolve().parent.name}/{folder.resolve().name}",
        told.get("resolution"),
    )


def _finetuned(folder: Path) -> dict[str, str]:
    """The pipeline's own autoencoder, where it has one and the output lies in its store beside
    it.
    """
    try:
        digest = read_output(folder).inputs[FINETUNED]
    except (FileNotFoundError, KeyError):
        return {}
    place = folder.resolve().parents[1] / FINETUNED / digest / AUTOENCODER_FOLDER
    return {"autoencoder": str(place)} if place.is_dir() else {}


def _own_component(
    component: str, digest: str | None, portable: str, named: str | None, folder: Path
) -> str:
    """The reference of a component that a denoiser was trained with, known by its digest."""
    what = component.replace("_", " ")
    if named is not None:
        if digest is not None and (other := weights_digest(named)) != digest:
            raise InputError(
                f"this is not the {what} that the model was trained with: sha256 {other[:16]}…, not {digest[:16]}…",
                where=named,
                do="name the one that it was trained with",
            )
        return named
    reference = resolve(Components(folder=DEMO)).need(component) if portable == DEMO else portable
    if digest is None or weights_digest(str(locate(reference, download=True))) != digest:
        raise InputError(
            f"the model's {what} is not known here: {portable}'s is another",
            where=folder,
            do=NAME_THEM,
        )
    return reference


def _bare_file(
    path: Path, source: Source, named: Mapping[str, str], device: torch.device
) -> Loaded:
    missing = [component.replace("_", " ") for component in DENOISING if component not in named]
    if missing:
        raise InputError(
            f"a bare weights file has no {' and no '.join(missing)}", where=path, do=NAME_THEM
        )
    return Loaded(_assembled(source, named, MAX_TOKENS, device), path.name, None)


def _diffusers_folder(
    folder: Path, source: Source, named: Mapping[str, str], device: torch.device
) -> Loaded:
    """A pipeline folder with the subfolders transformer, vae, text_encoder and tokenizer; its index
    may tell max_tokens and resolution.
    """
    if named:
        raise InputError(
            "a diffusers folder brings its own components",
            where=folder,
            do="leave out --components and the like",
        )
    told = source.told
    components = {"autoencoder": str(folder / VAE), "text_encoder": str(folder / TEXT_ENCODER)}
    max_tokens, tokenizer = int(told.get("max_tokens") or MAX_TOKENS), str(folder / TOKENIZER)
    text_to_image = _assembled(source, components, max_tokens, device, tokenizer)
    return Loaded(text_to_image, folder.resolve().name, told.get("resolution"))


def _assembled(
    source: Source,
    components: Mapping[str, str],
    max_tokens: int,
    device: torch.device,
    tokenizer: str | None = None,
) -> TextToImage:
    return TextToImage(
        source.weights.model().to(device).eval().requires_grad_(False),
        Conditioning(components["text_encoder"], device, torch.float32, max_tokens, tokenizer),
        load_autoencoder(components["autoencoder"], str(device)),
        decode_batch=1,
    )
