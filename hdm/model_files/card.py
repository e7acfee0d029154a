"""The card of a model: what its files say of it beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from hdm.architecture import XUTConfig
from hdm.encoding.settings import EncodeSettings
from hdm.errors import InputError
from hdm.files import write_json
from hdm.model_files.file_names import CARD
from hdm.models.components import read_json
from hdm.values import faults_of

MAX_TOKENS: int = EncodeSettings.model_fields["max_tokens"].default


@dataclass(frozen=True)
class BaseCard:
    """The model that an adapter was trained on.

    Args:
        digest: of its tensors, as `model_digest` has it.
        output: of the training that made it, as train.64px/DIGEST; None: weights from elsewhere.
    """

    digest: str
    output: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """What is known of a denoiser. A bare weights file says its configuration alone.

    Args:
        config: its architecture.
        resolution: shorter side in pixels that it was last trained at; None where nothing says.
        max_tokens: captions are cut to so many.
        components: sha256 of the text encoder and the autoencoder that it was trained with, as
            `weights_digest` has it, by component.
        component_names: of those that have a name on every machine.
        ema_length: σ_rel of the average, where `hdm ema` chose it.
        base: of an adapter; None: the files hold a whole model.
    """

    config: XUTConfig
    resolution: int | None = None
    max_tokens: int = MAX_TOKENS
    components: Mapping[str, str] = field(default_factory=dict)
    component_names: Mapping[str, str] = field(default_factory=dict)
    ema_length: float | None = None
    base: BaseCard | None = None

    def write(self, folder: Path) -> None:
        """Write `model.json`, as `read_card` reads it."""
        # Cards of whole models as training wrote them have neither field, so they keep their bytes.
        length = {} if self.ema_length is None else {"ema_length": self.ema_length}
        base = {} if self.base is None else {"base": asdict(self.base)}
        values = {
            "xut": self.config.to_dict(),
            "resolution": self.resolution,
            "max_tokens": self.max_tokens,
            "components": dict(self.components),
            "component_names": dict(self.component_names),
        }
        write_json(folder / CARD, values | length | base)


class _Written(TypedDict, total=False):
    """A card's values in JSON; others are passed over."""

    xut: dict[str, Any]
    resolution: int | None
    max_tokens: int | None
    components: dict[str, str]
    component_names: dict[str, str]
    ema_length: float | None
    base: BaseCard


def read_card(folder: Path, do: str = "train again, or name another folder") -> ModelCard:
    """The card in what training wrote.

    Args:
        folder: of the phase's output.
        do: what the error tells the reader to do.

    Raises:
        InputError: there is none, or it is no card.
    """
    path = folder / CARD
    written = _checked(read_json(path, do), path, do)
    if "xut" not in written:
        raise InputError("does not say the model's configuration, xut", where=path, do=do)
    return _card(written, XUTConfig.from_dict(written["xut"]))


def card_of(values: Mapping[str, Any], config: XUTConfig, path: Path, do: str) -> ModelCard:
    """A card from the values that a file gives.

    Args:
        values: named as in `model.json`; others are passed over.
        config: the architecture.
        path: of the file, for the error.
        do: what the error tells the reader to do.

    Raises:
        InputError: a value is not what it has to be.
    """
    return _card(_checked(values, path, do), config)


def _checked(values: Mapping[str, Any], path: Path, do: str) -> _Written:
    try:
        # Unknown fields are passed over: a later version may have written them.
        return TypeAdapter(_Written).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(faults_of(error)[0], where=path, do=do) from error


def _card(written: _Written, config: XUTConfig) -> ModelCard:
    return ModelCard(
        config,
        written.get("resolution"),
        # A card may leave it out.
        written.get("max_tokens") or MAX_TOKENS,
        written.get("components", {}),
        written.get("component_names", {}),
        written.get("ema_length"),
        written.get("base"),
    )
