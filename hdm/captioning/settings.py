"""Where captions come from."""

from __future__ import annotations

from string import Formatter
from typing import Literal, Protocol

from pydantic import model_validator

from hdm import values
from hdm.models.settings import WithComponents
from hdm.pictures.settings import WithImages
from hdm.settings import Settings, runtime

ITEM_FIELDS = ("given", "source", "licence", "width", "height")
"""Fields of a picture that a caption template may name."""


class CaptionMaker(Settings):
    kind: Literal["given", "coca", "transformers", "template"] = "given"
    when: Literal["always", "missing"] = "always"
    """missing: only for pictures that have no caption from earlier makers."""
    count: values.Few = 1
    """Captions for each picture; models decode the first greedily and sample the others."""
    template: str | None = None
    """For template: text with {given} and other fields of the picture, e.g. "an emoji of {given}";
    `|` separates wordings.
    """
    prompt: str | None = None
    """For transformers: the instruction."""
    max_tokens: values.Tokens = 48
    temperature: values.Temperature = 1.0

    @property
    def wordings(self) -> list[tuple[str, tuple[str, ...]]]:
        """Each wording of `template`, and the fields in its braces."""
        wordings = []
        for part in (self.template or "").split("|"):
            wording = part.strip()
            if wording:
                wordings.append((wording, _fields_in(wording)))
        return wordings

    @model_validator(mode="after")
    def _template_can_be_filled(self) -> CaptionMaker:
        if not self.wordings and self.kind == "template":
            raise ValueError(
                'a maker of kind template needs a template, for example "a photo of {given}"'
            )
        return self


def _fields_in(wording: str) -> tuple[str, ...]:
    """The names in braces; `{given.x}` and `{given[0]}` are refused like unknown names.

    Raises:
        ValueError: braces that do not match, a field that pictures do not have, or one with a
            format.
    """
    try:
        parts = list(Formatter().parse(wording))
    except ValueError as error:
        raise ValueError(
            f"caption template {wording!r}: {error}; write {{{{ and }}}} for literal braces"
        ) from error
    names = []
    # Checked when the file is read, not when the first picture meets the template.
    for _, name, form, conversion in parts:
        if name is None:  # literal text
            continue
        if name not in ITEM_FIELDS:
            raise ValueError(
                f"caption template {wording!r}: there is no field {{{name}}}; use"
                f" {', '.join(ITEM_FIELDS)}"
            )
        if form or conversion:
            raise ValueError(f"caption template {wording!r}: write {{{name}}} without a format")
        names.append(name)
    return tuple(names)


class CaptionSettings(Settings):
    makers: tuple[CaptionMaker, ...] = (CaptionMaker(),)
    """Used in this order. Pictures without any caption are counted and not trained on."""
    max_chars: values.Characters = 2000
    batch_size: values.Batch = runtime(64)
    device: values.Device = runtime("auto")


class Pipeline(WithComponents, WithImages, Protocol):
    """The part of a pipeline that this package reads."""

    @property
    def caption(self) -> CaptionSettings: ...
