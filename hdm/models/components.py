"""The models that a pipeline uses: their files on this machine, and the digests of their weights.

Everywhere, a model reference is one string: a local folder or file; `org/name` or
`org/name@revision` on the Hugging Face hub; or open_clip's `ARCHITECTURE@tag`, such as
`ViT-L-14@openai`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from hdm.errors import DamagedError, InputError
from hdm.files import canonical_json, explain_read_error, sha256_file
from hdm.models.settings import Components
from hdm.store import Outputs, checked, read_output

MANIFEST = "components.json"
DEMO = "demo"
VAE = "vae"
FETCH_AGAIN = "fetch or write it again"
AUTOENCODER_FOLDER = "autoencoder"
"""The output of the stage that fine-tunes the autoencoder, and the folder in it that holds it."""

DENOISING = ("text_encoder", "autoencoder")
"""The components that a trained denoiser cannot do without."""

# What loading reads; anything else in a hub repository (other formats, pictures, code) is neither
# fetched nor hashed.
FILES = (
    "*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "open_clip_pytorch_model.bin",
    "*.pth",
)
MEND = (
    "restore the file from a copy or run `hdm bootstrap` again; if you changed it on purpose,"
    f" remove its entry under `files` in {MANIFEST}"
)
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")
_FILE_SUFFIXES = (".safetensors", ".pth", ".bin", ".pt")


@dataclass(frozen=True)
class Resolved:
    """References of a pipeline's models, and the facts about its aesthetic head; None where it
    names none.
    """

    contrastive: str | None = None
    autoencoder: str | None = None
    text_encoder: str | None = None
    captioner: str | None = None
    aesthetic_head: str | None = None
    aesthetic_head_for: str | None = None
    aesthetic_head_activation: str | None = None
    vision: str | None = None

    def need(self, component: str) -> str:
        """The reference of one component.

        Raises:
            InputError: the pipeline names none.
        """
        reference: str | None = getattr(self, component)
        if reference is None:
            raise InputError(
                f"this pipeline names no {component}",
                where=f"components.{component}",
                do=(
                    f"set components.{component}, or components.folder=DIR after `hdm bootstrap"
                    " --source PICTURES --out DIR`"
                ),
            )
        return reference


def resolve(components: Components) -> Resolved:
    """The references of all components: those of `components.folder`, overridden by individually
    named ones.

    Raises:
        InputError: the folder is missing, or `hdm bootstrap` did not write it.
    """
    # Components that are named one by one override those of the folder.
    references = _in_folder(components.folder) if components.folder else {}
    for name in (field.name for field in fields(Resolved)):
        named = getattr(components, name)
        if named is not None:
            references[name] = named
    if components.contrastive and components.contrastive_pretrained:
        references["contrastive"] = f"{components.contrastive}@{components.contrastive_pretrained}"
    if not components.contrastive and not components.aesthetic_head and "contrastive" in references:
        references.setdefault("aesthetic_head_for", references["contrastive"])  # trained together
    return Resolved(**references)


def is_named(components: Components, component: str) -> bool:
    """Whether a pipeline names a component; False if its folder of components is missing."""
    try:
        return getattr(resolve(components), component) is not None
    except InputError:  # which the stage's preflight reports
        return False


def autoencoder_in(inputs: Outputs, components: Components) -> str:
    """The autoencoder that a stage uses: the fine-tuned one if it is among the inputs, else the one
    that the pipeline names.

    Raises:
        InputError: there is none.
    """
    return (
        str(inputs[VAE].path / AUTOENCODER_FOLDER)
        if VAE in inputs
        else resolve(components).need("autoencoder")
    )


def autoencoder_weights(inputs: Mapping[str, str], components: Components) -> dict[str, str]:
    """The autoencoder's part of a stage's identity: the digest of its weights; none for a
    fine-tuned one, which is an input with its own digest.

    Raises:
        InputError: it is not on this machine.
    """
    return (
        {}
        if VAE in inputs
        else {"autoencoder": weights_digest(resolve(components).need("autoencoder"))}
    )


def portable_names(components: Components) -> dict[str, str]:
    """Names of text encoder and autoencoder that are valid on every machine: hub names, and "demo"
    for the package's.
    """
    names = {}
    for component in DENOISING:
        named = getattr(components, component)
        if named is None and components.folder == DEMO:
            names[component] = DEMO
        # `org/name` may also be a local folder, which other machines do not have.
        elif named is not None and _HUB_NAME.fullmatch(named) and not Path(named).exists():
            names[component] = named
    return names


def components_folder(name: str) -> Path:
    """The folder of components called `name`: "demo" is the one in the package, anything else a
    path.
    """
    return (
        Path(__file__).parents[1] / "demo" / "components"
        if name == DEMO
        else Path(name).expanduser()
    )


def _in_folder(name: str) -> dict[str, str]:
    folder = components_folder(name)
    listed = read_json(
        folder / MANIFEST,
        do=(
            "name a folder that `hdm bootstrap --source … --out DIR` wrote"
            if name != DEMO
            else "install the package again: it ships them"
        ),
    )
    # These two are facts about a head, not files.
    known = {field.name for field in fields(Resolved)} - {
        "aesthetic_head_for",
        "aesthetic_head_activation",
    }
    return {
        key: str(folder / path)
        for key, path in _entries(listed, "components", str, folder / MANIFEST).items()
        if key in known
    }


def _entries(listed: dict[str, Any], field: str, kind: type[Entry], path: Path) -> dict[str, Entry]:
    """A field of `components.json` that maps names to entries; an InputError if it holds something
    else.
    """
    entries = listed.get(field, {})
    if isinstance(entries, dict) and all(isinstance(entry, kind) for entry in entries.values()):
        return entries
    raise InputError(
        f"{field} is not what `hdm bootstrap` writes there",
        where=path,
        do="put the folder back as it was, or make it again",
    )


Entry = TypeVar("Entry")


def read_json(path: Path, do: str) -> dict[str, Any]:
    """A JSON object from a model's folder.

    Args:
        do: the error's advice.

    Raises:
        InputError: the file is missing, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path.name}", where=path, do=do) from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read as JSON: {error}", where=path, do=do) from error
    if not isinstance(value, dict):
        raise InputError("is not a JSON object", where=path, do=do)
    return value


def locate(reference: str, download: bool = False) -> Path:
    """The local folder (or file) behind a reference.

    Args:
        reference: see the module's text.
        download: fetch a hub model that is not in the local cache; False: never use the network.

    Raises:
        InputError: it is not on this machine (and could not be fetched); the error names model,
            revision and what to do.
        DamagedError: a file is not what `hdm bootstrap` or the stage `vae` wrote.
    """
    path = Path(reference).expanduser()
    # A local folder comes before a hub model of the same name.
    if path.exists():
        # Without this check, a flipped bit would only change the digest, and all later stages would
        # be made again with it.
        _check_record(path)
        return path
    if "/" not in reference and "@" in reference:
        return _open_clip_weights(reference, download)
    if reference.endswith(_FILE_SUFFIXES) or not _HUB_NAME.fullmatch(reference):
        raise InputError(
            f"there is no model {reference}",
            where=path.absolute(),
            do="put it there, or name another in `components`",
        )
    return _hub_snapshot(reference, download)


def _check_record(path: Path) -> None:
    """Compare a component's files with the record beside it: `components.json`, or the manifest of
    an output.

    Raises:
        DamagedError: one is missing or not what was written.
    """
    record = path.absolute().parent / MANIFEST
    if record.is_file():
        do = (
            "install the package again: it ships them"
            if record.parent == components_folder(DEMO)
            else MEND
        )
        # The record covers all components of the folder; only this one's files are compared.
        for name, entry in _entries(read_json(record, do), "files", dict, record).items():
            if name.split("/")[0] == path.name:
                _check_file(record.parent / name, entry.get("sha256"), do)
        return
    # The stage `vae` writes its autoencoder into an output, whose manifest has the hashes.
    with contextlib.suppress(FileNotFoundError):
        output = read_output(path.absolute().parent)
        for file in output.files:
            if file.name.split("/")[0] == path.name:
                checked(output.path / file.name)


def _check_file(path: Path, sha256: object, do: str) -> None:
    if not path.is_file() or _sha256_of(path) != sha256:
        raise DamagedError(
            f"a component's file is not what {MANIFEST} beside it says", where=path, do=do
        )


def _hub_snapshot(reference: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = reference.partition("@")
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=list(FILES), local_files_only=True
            )
        )
    except OSError:  # not in the cache; huggingface_hub's own error for it is an OSError too
        pass
    if download and not os.environ.get("HF_HUB_OFFLINE"):
        return _fetched(
            reference,
            lambda: snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)),
        )
    raise _absent(reference, "it is not in the local cache")


def _open_clip_weights(reference: str, download: bool) -> Path:
    """The weights of open_clip's ARCHITECTURE@tag, where tag may also be a file."""
    from open_clip.pretrained import (
        download_pretrained,
        get_pretrained_cfg,
        list_pretrained_tags_by_model,
    )

    architecture, _, tag = reference.partition("@")
    if Path(tag).is_file():
        return Path(tag)
    entry = get_pretrained_cfg(architecture, tag)
    if not entry:
        tags = (
            ", ".join(list_pretrained_tags_by_model(architecture))
            or "none: is the architecture spelled right?"
        )
        raise InputError(
            f"open_clip knows no weights {tag!r} of {architecture}",
            do=f"components.contrastive_pretrained may be: {tags}",
        )
    cached = _cached_open_clip(entry)
    if cached is not None:
        return cached
    if download and not os.environ.get("HF_HUB_OFFLINE"):
        return _fetched(reference, lambda: download_pretrained(entry))
    raise _absent(reference, "it is not in the local cache")


def _cached_open_clip(entry: dict[str, Any]) -> Path | None:
    """The path where open_clip's own download stores the weights, if they are there."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, filename = entry.get("hf_hub", "").rpartition("/")
    names = [filename] if filename else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    for name in names if repository else []:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    # open_clip stores OpenAI's weights that are not on the hub in this folder.
    url = Path("~/.cache/clip").expanduser() / Path(entry.get("url") or "-").name
    return url if url.is_file() else None


def _fetched(reference: str, fetch: Any) -> Path:
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(fetch())
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, RuntimeError) as error:
        # Errors from the hub fill pages; the first line says what happened.
        raise _absent(reference, str(error).strip().splitlines()[0]) from error


def _absent(reference: str, reason: str) -> InputError:
    name, _, revision = reference.partition("@")
    if "/" not in name:
        command = f'python -c "import open_clip; open_clip.create_model({name!r}, {revision!r})"'
    else:
        command = f"hf download {name}" + (f" --revision {revision}" if revision else "")
    return InputError(
        f"model {name}, revision {revision or 'main'}, is not on this machine: {reason}",
        do=f"with a network run `{command}`, or name a local folder in `components`",
    )


def weights_digest(reference: str) -> str:
    """sha256 over a model's weights and configuration files on this machine.

    Returns:
        64 hex digits; equal for equal file names and contents, so that a folder may move.

    Raises:
        InputError: the model is not on this machine; the error says what to run. Nothing is
            downloaded here.
    """
    path = locate(reference)
    # Names are relative to the folder, so that it may move without a new digest.
    files = [path] if path.is_file() else _files_in(path)
    if not files:
        raise InputError(
            "there are no weights",
            where=path,
            do="put the model's .safetensors and .json files there",
        )
    contents = {file.relative_to(path).as_posix() or file.name: _sha256_of(file) for file in files}
    # An open_clip weights file does not record its architecture.
    architecture = reference.partition("@")[0] if "/" not in reference and "@" in reference else ""
    return hashlib.sha256(canonical_json([architecture, contents])).hexdigest()


def _files_in(folder: Path) -> list[Path]:
    found: set[Path] = set()  # patterns may overlap
    for pattern in FILES:
        found.update(folder.glob(f"**/{pattern}"))
    return sorted(found)


def _sha256_of(path: Path) -> str:
    try:
        state = path.stat()
        return _sha256(str(path), state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise explain_read_error(error, path) from error


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, changed_ns: int) -> str:
    """Cached by size and modification time, so that a process hashes gigabytes only once."""
    return sha256_file(Path(path))


@contextlib.contextmanager
def hushed(library: str) -> Iterator[None]:
    """Suppress the progress bars of transformers and diffusers while loading or saving, because
    they break the lines of logs.
    """
    # transformers and diffusers both have this module, with the same functions.
    logging = importlib.import_module(f"{library}.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
