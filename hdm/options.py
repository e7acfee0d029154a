"""Options that several commands have, and options that are made from settings."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from hdm.errors import ConfigError
from hdm.settings import Settings
from hdm.values import Within, faults_of

S = TypeVar("S", bound=Settings)
Command = Callable[..., None]

File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        envvar="HDM_PIPELINES",
        help="Your own pipelines.yaml; else the one of this folder, if there is one.",
    ),
]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="a.b=c", help="A setting; may be given several times.")
]

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Prefect's own log.")]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", help="Folder of outputs; else HDM_STORE, else ./store.")
]


def number(kind: Any, *names: str, **rest: Any) -> Any:
    """A typer option for one of the numbers of `hdm.values`, as `number(Count, help="Pictures.")`.

    Args:
        kind: an annotated int or float; the parameter itself is a plain int or float, or None
            beside it.
        names: of the option, if the parameter's own will not do.
        rest: what `typer.Option` takes.
    """
    bounds = next(item for item in get_args(kind) if isinstance(item, Within))

    def check(value: float | None) -> float | None:
        # NaN is in no range, which a comparison with typer's own min and max would miss.
        if value is not None and value not in bounds:
            raise typer.BadParameter(f"{value} must be {bounds}")
        return value

    return typer.Option(*names, callback=check, **rest)


def numbers(text: str, form: str, *counts: int) -> list[float]:
    """Several numbers of one option, with commas between them.

    Args:
        form: what the option takes, as FROM,TO.
        counts: how many numbers there may be.

    Raises:
        ValueError: there is something else.
    """
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts:
        raise ValueError(f"is not {form}: numbers with commas between them, no spaces")
    return found


def scaled_path(text: str) -> tuple[Path, float]:
    """A path and its scale, of PATH or PATH:SCALE; 1 where there is none. What exists as it is
    written has a colon of its own.
    """
    if Path(text).exists():
        return Path(text), 1.0
    path, _, scale = text.rpartition(":")
    with contextlib.suppress(ValueError):
        found = float(scale)
        if path and math.isfinite(found):
            return Path(path), found
    # The colon is the path's own, or there is none.
    return Path(text), 1.0


@dataclass(frozen=True)
class Shown:
    """How a setting appears on a command line. Its type, bounds, default and, unless said
    otherwise, help are the setting's own.

    Args:
        path: of the field, as `seed` or `optimizer.kind`.
        flag: of the option; None: the field's name.
        panel: the heading above it in the help; None: the general one.
        help: None: the field's documentation.
        metavar: what stands for the value in the help; None: its type, or the words to choose from.
        read: converts the text to the value, for an option of several numbers; raises ValueError.
    """

    path: str
    flag: str | None = None
    panel: str | None = None
    help: str | None = None
    metavar: str | None = None
    read: Callable[[str], Any] | None = None


class Options(Generic[S]):
    """The options made from one class of settings.

    Args:
        owner: the settings.
        shown: its fields that are options; the others keep their defaults.
        only_given: an option that is not given is None, and `values` leaves it out; the help still
            shows the setting's default.
    """

    def __init__(self, owner: type[S], *shown: Shown, only_given: bool = False) -> None:
        self.owner = owner
        self.shown = shown
        self.only_given = only_given

    def parameters(self, prefix: str) -> dict[str, inspect.Parameter]:
        """Path → the parameter of a command."""
        found = {}
        for one in self.shown:
            found[one.path] = inspect.Parameter(
                f"{prefix}_{one.path.replace('.', '_')}",
                inspect.Parameter.KEYWORD_ONLY,
                default=None if self.only_given else _default(self.owner, one.path),
                annotation=_annotation(self.owner, one, self.only_given),
            )
        return found

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """By path, those that are not None."""
        return {path: value for path, value in given.items() if value is not None}

    def settings(self, given: Mapping[str, Any]) -> S:
        """The settings with what was given.

        Raises:
            ConfigError: values that do not go together.
        """
        # On top of all defaults, so that rules between fields are checked too.
        found = self.owner().model_dump()
        for path, value in given.items():
            *above, last = path.split(".")
            place = found
            for step in above:
                place = place[step]
            place[last] = value
        try:
            return self.owner.model_validate(found)
        except ValidationError as error:
            faults = "; ".join(faults_of(error))
            raise ConfigError(faults, do="see the command's --help") from error


def with_settings(**groups: Options[Any]) -> Callable[[Command], Command]:
    """Give a command the options of settings, and the command's function the settings.

    Args:
        groups: parameter of the function → options that take its place. It gets the settings, or
            with `only_given` a dictionary.
    """

    def decorate(command: Command) -> Command:
        made = {name: options.parameters(name) for name, options in groups.items()}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            for name, options in groups.items():
                taken = {path: given.pop(one.name) for path, one in made[name].items()}
                read = options.values if options.only_given else options.settings
                given[name] = read(taken)
            command(**given)

        # Annotations are texts, whose names only the command's own module knows.
        hints = typing.get_type_hints(command, include_extras=True)
        shown: list[inspect.Parameter] = []
        for one in inspect.signature(command).parameters.values():
            if one.name in made:
                shown += made[one.name].values()
            else:
                # A signature lets only keyword-only parameters without a default follow others.
                kind = inspect.Parameter.KEYWORD_ONLY
                shown.append(one.replace(kind=kind, annotation=hints[one.name]))
        # typer reads both.
        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in shown}
        return run

    return decorate


def _field(owner: type[BaseModel], path: str) -> tuple[FieldInfo, Any]:
    """A field, and its type with its bounds."""
    *above, last = path.split(".")
    for step in above:
        nested = owner.model_fields[step].annotation
        assert isinstance(nested, type)
        owner = nested
    return owner.model_fields[last], typing.get_type_hints(owner, include_extras=True)[last]


def _default(owner: type[Settings], path: str) -> Any:
    value: Any = owner()
    for step in path.split("."):
        value = getattr(value, step)
    return _written(value) if isinstance(value, tuple) else value


def _written(numbers: tuple[float, ...]) -> str:
    """Several numbers as one option takes them."""
    return ",".join(f"{number:g}" for number in numbers)


def _annotation(owner: type[Settings], shown: Shown, only_given: bool) -> Any:
    """What typer reads: the type of the parameter, and an option that checks its value."""
    field, hint = _field(owner, shown.path)
    kind = _plain_kind(field.annotation)
    default = _default(owner, shown.path)
    flag = shown.flag or f"--{shown.path.replace('_', '-')}"
    option = typer.Option(
        flag,
        callback=_check(hint, shown.read),
        help=shown.help or _help(field),
        rich_help_panel=shown.panel,
        metavar=shown.metavar or _choice(field.annotation),
        # With `only_given` the option's own default is None; the help shows the setting's.
        show_default=str(default) if only_given and default is not None else True,
    )
    return Annotated[kind | None if only_given or default is None else kind, option]


def _help(field: FieldInfo) -> str:
    """The field's documentation, with "else" for "None": on a command line, an option is left out
    instead.
    """
    text = " ".join((field.description or "").split())
    return text.replace("; None: ", "; else ").replace(". None: ", ". Else ")


def _choice(annotation: Any) -> str | None:
    words = get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
    return "|".join(map(str, words)) or None


def _plain_kind(annotation: Any) -> Any:
    """The type that typer parses: text for a choice of words and for several numbers."""
    if typing.get_origin(annotation) is Annotated:
        return _plain_kind(get_args(annotation)[0])
    others = [kind for kind in get_args(annotation) if kind is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(others) == 1:
        return _plain_kind(others[0])
    return annotation if annotation in (bool, int, float) else str


def _check(hint: Any, read: Callable[[str], Any] | None) -> Callable[[Any], Any]:
    """A callback that reads the option's text and validates it by the field's type."""
    adapter: TypeAdapter[Any] = TypeAdapter(hint)

    def check(value: Any) -> Any:
        if value is None:
            return None
        try:
            return adapter.validate_python(read(value) if read else value)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise typer.BadParameter(f"{value}: {message}") from error
        except ValueError as error:
            raise typer.BadParameter(f"{value!r} {error}") from error

    return check
