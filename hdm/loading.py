"""From a path to something that makes pictures: what training wrote, a diffusers folder, or a bare
weights file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hdm.child import forget_launchers
from hdm.errors import InputError
from hdm.generation.conditioning import Conditioning
from hdm.generation.text_to_image import TextToImage
from hdm.model_files.opening import Addition, open_model
from hdm.model_files.stored import StoredModel
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
from hdm.models.settings import Components
from hdm.store import MANIFEST, in_use, read_output

VAE = "vae"
TEXT_ENCODER = "text_encoder"
TOKENIZER = "tokenizer"
NAME_THEM = (
    "name them: --components DIR (a folder that `hdm bootstrap` wrote, or demo), or --autoencoder"
    " and --text-encoder"
)


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


def load(
    path: Path,
    components: Components,
    device: torch.device,
    adapters: Sequence[Addition] = (),
) -> Loaded:
    """Load what makes pictures.

    Args:
        path: output folder of a training phase; diffusers folder; or .safetensors file of a
            denoiser.
        components: those named by hand. A bare file needs them; a diffusers folder takes none; what
            training wrote names its own, where it can, and takes only those that it was trained
            with.
        device: where it will run.
        adapters: merged into the denoiser.

    Raises:
        InputError: nothing of that kind is there, components are not to be had, or parts do not fit
            each other.
        DamagedError: a file cannot be read.
    """
    # Variables left over from a launcher would make Accelerate wait for processes that do not
    # exist.
    forget_launchers()
    resolved = resolve(components)
    named = {}
    for name in DENOISING:
        # A denoiser cannot do without these two; other components of the folder are not loaded.
        reference = getattr(resolved, name)
        if reference is not None:
            named[name] = reference
    model = open_model(path, adapters=adapters)
    outputs = [path, *(addition.path for addition in adapters)]
    with in_use([output for output in outputs if (output / MANIFEST).exists()]):
        pass  # marks the outputs as used, so that `hdm gc` keeps them
    if model.kind == "trained":
        return _trained(path, model, named, device)
    if model.kind == "diffusers":
        return _diffusers_folder(path, model, named, device)
    # Bare files, checkpoints included, do not record what they were trained with.
    return _bare_file(path, model, named, device)


def _trained(
    folder: Path, model: StoredModel, named: Mapping[str, str], device: torch.device
) -> Loaded:
    """What a training phase wrote: its card has the digests of its components, and names where
    these are portable.
    """
    card = model.card
    names = {**card.component_names, **_finetuned(folder)}
    # Another autoencoder or text encoder of the same shapes would load without an error, and draw
    # something else.
    components = {}
    for component in DENOISING:
        components[component] = _own_component(
            component,
            card.components.get(component),
            names.get(component, DEMO),
            named.get(component),
            folder,
        )
    text_to_image = _assembled(model, components, device)
    return Loaded(
        text_to_image,
        f"{folder.resolve().parent.name}/{folder.resolve().name}",
        card.resolution,
    )


def _finetuned(folder: Path) -> dict[str, str]:
    """The pipeline's own autoencoder, where it has one and the output lies in its store beside
    it.
    """
    try:
        digest = read_output(folder).inputs[FINETUNED]
    except (FileNotFoundError, KeyError):
        return {}
    # STORE/train.64px/DIGEST: the store is two levels up.
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
                f"this is not the {what} that the model was trained with: sha256 {other[:16]}…, not"
                f" {digest[:16]}…",
                where=named,
                do="name the one that it was trained with",
            )
        return named
    # A card records only names that are valid on every machine, and no paths.
    reference = resolve(Components(folder=DEMO)).need(component) if portable == DEMO else portable
    # The name may stand for other weights here, such as those of another release.
    if digest is None or weights_digest(str(locate(reference, download=True))) != digest:
        raise InputError(
            f"the model's {what} is not known here: {portable}'s is another",
            where=folder,
            do=NAME_THEM,
        )
    return reference


def _bare_file(
    path: Path, model: StoredModel, named: Mapping[str, str], device: torch.device
) -> Loaded:
    missing = [component.replace("_", " ") for component in DENOISING if component not in named]
    if missing:
        raise InputError(
            f"a bare weights file has no {' and no '.join(missing)}", where=path, do=NAME_THEM
        )
    return Loaded(_assembled(model, named, device), path.name, model.card.resolution)


def _diffusers_folder(
    folder: Path, model: StoredModel, named: Mapping[str, str], device: torch.device
) -> Loaded:
    """A pipeline folder with the subfolders transformer, vae, text_encoder and tokenizer."""
    # Other components would silently change what the folder draws.
    if named:
        raise InputError(
            "a diffusers folder brings its own components",
            where=folder,
            do="leave out --components and the like",
        )
    components = {"autoencoder": str(folder / VAE), "text_encoder": str(folder / TEXT_ENCODER)}
    text_to_image = _assembled(model, components, device, str(folder / TOKENIZER))
    return Loaded(text_to_image, folder.resolve().name, model.card.resolution)


def _assembled(
    model: StoredModel,
    components: Mapping[str, str],
    device: torch.device,
    tokenizer: str | None = None,
) -> TextToImage:
    text_encoder = components["text_encoder"]
    max_tokens = model.card.max_tokens
    return TextToImage(
        model.denoiser().to(device).eval().requires_grad_(False),
        Conditioning(text_encoder, device, torch.float32, max_tokens, tokenizer),
        load_autoencoder(components["autoencoder"], str(device)),
        decode_batch=1,
    )
