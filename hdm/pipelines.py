"""Reading pipelines.yaml: all errors are reported at once, each with file and line.

Later sources override earlier ones: the defaults in each package's `settings.py`, the extended
entry, the entry, `HDM__stage__field=value`, `--set stage.field=value`.
"""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from hdm.config import Pipeline
from hdm.definitions import FILE_NAME, Entry, definitions, read_yaml
from hdm.errors import ConfigError, counted
from hdm.redaction import holds_secret, redacted_value
from hdm.secrets import ADVICE

ENVIRONMENT = "HDM__"


def load_pipeline(
    name: str,
    overrides: Iterable[str] = (),
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Pipeline:
    """The pipeline `name` with every setting resolved, including the pipelines that `train.mix` and
    `train.start` name.

    Args:
        name: entry under `pipelines:`.
        overrides: `stage.field=value`, values in YAML; they do not apply to the other pipelines.
        file: the user's own pipelines.yaml; None: found as `hdm.definitions.own_file` does.
        environment: where `HDM__stage__field` is looked up; None: os.environ.

    Raises:
        ConfigError: all mistakes at once, each with its file and line and the nearest known name.
    """
    entries = definitions("pipelines", file)
    variables = _from_environment(environment)
    return _with_others(_resolved(entries, name, variables, overrides), entries, variables, ())


def _with_others(
    pipeline: Pipeline,
    entries: Mapping[str, Entry],
    variables: list[tuple[str, str]],
    trail: tuple[str, ...],
) -> Pipeline:
    """A pipeline with the others that it names. The one that it starts from is resolved with its
    own others too, because its identity depends on them.

    Args:
        trail: the chain of pipelines that start from each other, up to this one.
    """
    train = pipeline.train
    mixed = {one.pipeline: _resolved(entries, one.pipeline, variables, ()) for one in train.mix}
    start = train.start.pipeline if train.start else None
    if start is not None:
        if start in trail:
            raise ConfigError(
                f"pipelines start from each other: {' → '.join((*trail, start))}",
                where="train.start.pipeline",
                do="start one of them from weights on disk, or from new ones",
            )
        other = _resolved(entries, start, variables, ())
        mixed[start] = _with_others(other, entries, variables, (*trail, start))
    return pipeline.model_copy(update={"mixed": mixed})


def _resolved(
    entries: Mapping[str, Entry],
    name: str,
    variables: list[tuple[str, str]],
    overrides: Iterable[str],
) -> Pipeline:
    # Layers from the weakest to the strongest.
    chain = _extended(entries, name)
    layers = [_Layer(entry.values, _Places(entry.path, entry.values)) for entry in chain]
    layers += [_assignment(key, value, "environment") for key, value in variables]
    layers += [_assignment(*_split(text), "--set") for text in overrides]
    return _validated(layers, name)


def source_settings(overrides: Iterable[str]) -> Pipeline:
    """A pipeline of defaults except for its source, for commands that read a source but run no
    pipeline.

    Args:
        overrides: `download.field=value` or `images.field=value`, values in YAML.

    Raises:
        ConfigError: as `load_pipeline`, or a setting belongs to another section.
    """
    settings = list(map(_split, overrides))
    for key, _ in settings:
        if key.partition(".")[0] not in ("download", "images"):
            raise ConfigError(
                f"--set {key}: only settings of the source are used here",
                do="set fields of download and images, for example --set download.encoding=cp1251",
            )
    return _validated([_assignment(*setting, "--set") for setting in settings], "source")


def _validated(layers: list[_Layer], name: str) -> Pipeline:
    """The pipeline that results from layers of settings; later layers override earlier ones."""
    values: dict[str, Any] = {}
    for layer in layers:
        _merge(values, layer.values, layer.places)
    values.pop("extends", None)
    # Before validation, whose errors would repeat the value.
    _refuse_secrets(values, layers)
    try:
        return Pipeline.model_validate({**values, "name": name})
    except ValidationError as error:
        raise ConfigError(
            "\n".join(_explain(problem, layers) for problem in error.errors())
        ) from error
    except ConfigError as error:  # settings that contradict each other; the first field is located
        first = str(error.where).partition(",")[0]
        place = _place(tuple(int(k) if k.isdigit() else k for k in first.split(".")), layers)
        raise ConfigError(
            error.what, where=f"{place}: {error.where}" if place else error.where, do=error.do
        ) from error


def pipeline_names(file: Path | None = None) -> dict[str, str]:
    """Name → description of every entry."""
    names = {}
    for name, entry in definitions("pipelines", file).items():
        names[name] = str(entry.values.get("description", ""))
    return names


class _Places:
    """Line numbers of a YAML mapping's keys."""

    def __init__(self, path: Path, entry: CommentedMap) -> None:
        self.path = path
        self.entry = entry

    def find(self, location: tuple[str | int, ...]) -> str | None:
        """The line of a location, or of the list or value around it that replaces what weaker
        sources have there; None if the entry leaves it to them.
        """
        node: Any = self.entry
        line: int | None = None
        is_merged = True
        for step in location:
            if isinstance(node, CommentedMap) and step in node:
                # A key that YAML's `<<` brings in has no line of its own.
                if step in (node.lc.data or {}):
                    line = node.lc.key(step)[0] + 1
            elif isinstance(node, list) and isinstance(step, int) and step < len(node):
                line = node.lc.item(step)[0] + 1  # type: ignore[attr-defined]
            elif is_merged and isinstance(node, CommentedMap):
                return None
            else:
                break
            node = node[step]
            # Mappings are merged with those of weaker sources, but not those in a list.
            is_merged = is_merged and isinstance(node, CommentedMap)
        return f"{self.path}:{line}" if line else str(self.path)

    def __str__(self) -> str:
        return str(self.path)


class _Source:
    """The origin of a value from the command line or the environment."""

    def __init__(self, origin: str, keys: tuple[str, ...]) -> None:
        self.origin = origin
        self.keys = keys

    def find(self, location: tuple[str | int, ...]) -> str | None:
        """This origin, if the location is the value, a part of it, or a section around it: errors
        may name any of these.
        """
        named = tuple(str(step) for step in location)
        common = min(len(named), len(self.keys))
        return str(self) if named and named[:common] == self.keys[:common] else None

    def __str__(self) -> str:
        return f"{self.origin} {'.'.join(self.keys)}"


class _Layer:
    def __init__(self, values: Mapping[str, Any], places: _Places | _Source) -> None:
        self.values = values
        self.places = places


def _extended(entries: Mapping[str, Entry], name: str) -> list[Entry]:
    """The entry and everything it extends, the most basic first.

    An entry that extends its own name extends the package's entry, which it replaces.
    """
    chain = [_entry(entries, name)]
    names = [name]
    while (extended := chain[0].values.get("extends")) is not None:
        names.append(str(extended))
        below = chain[0].below if names[-1] == names[-2] else None
        entry = below or _entry(entries, names[-1], where=chain[0].path)
        if any(entry is one for one in chain):
            raise ConfigError(
                f"pipelines extend each other in a circle: {' → '.join(names)}",
                where=chain[0].path,
            )
        chain.insert(0, entry)
    return chain


def _entry(entries: Mapping[str, Entry], name: str, where: Path | None = None) -> Entry:
    if name in entries:
        return entries[name]
    raise ConfigError(
        f"no pipeline is called {name!r}{did_you_mean(name, entries)}",
        where=where or Path.cwd() / FILE_NAME,
        do=f"there are: {', '.join(entries)}",
    )


def _from_environment(environment: Mapping[str, str] | None) -> list[tuple[str, str]]:
    variables = os.environ if environment is None else environment
    found = []
    for key, value in variables.items():
        if key.startswith(ENVIRONMENT):
            field = key.removeprefix(ENVIRONMENT).replace("__", ".")
            found.append((field, value))
    # Sorted: a mapping is applied before its own fields, whatever the environment's order.
    return sorted(found)


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text!r} is not FIELD=VALUE",
            do="write for example --set filter.min_aesthetic=5.5",
        )
    return key.strip(), value


def _assignment(key: str, value: str, origin: str) -> _Layer:
    keys = tuple(key.split("."))
    try:
        parsed = read_yaml(YAML(typ="safe"), value, f"{origin} {key}")
    except (YAMLError, ValueError) as error:
        raise ConfigError(
            f"the value of {key} is not YAML: {_shown(value)}", where=origin
        ) from error
    # A command line has no comments: colours (#ffffff) and folder names contain the sign.
    if "#" in value and not isinstance(parsed, dict | list) and value.strip()[0] not in "\"'":
        parsed = value.strip()
    nested: Any = parsed
    for step in reversed(keys):
        nested = {step: nested}
    return _Layer(nested, _Source(origin, keys))


def _merge(
    into: dict[str, Any], values: Mapping[str, Any], origin: _Places | _Source, above: str = ""
) -> None:
    """Merge mappings, and replace everything else; in a list, `phases.0.batch_size` names an
    element.

    Args:
        into: the mapping that is changed.
        values: the mapping that is merged into it.
        origin: where the values come from.
        above: the path to both, ending in a dot.
    """
    for key, value in values.items():
        there = into.get(key)
        path = f"{above}{key}"
        if not isinstance(value, Mapping):
            into[key] = value
        elif isinstance(there, list):
            into[key] = _merged_list(there, value, origin, path)
        else:
            merged = dict(there) if isinstance(there, Mapping) else {}
            _merge(merged, value, origin, f"{path}.")
            into[key] = merged


def _merged_list(
    there: list[Any], values: Mapping[str, Any], origin: _Places | _Source, path: str
) -> list[Any]:
    """A copy of a list, with new values at the positions that a mapping names."""
    items = list(there)
    for step, item in values.items():
        if not re.fullmatch("[0-9]+", str(step)) or int(step) >= len(items):
            raise ConfigError(
                f"{path} has {counted(len(items), 'entry', 'entries')}, "
                f"so there is no {path}.{step}; they are counted from 0",
                where=origin,
            )
        position = int(step)
        if isinstance(item, Mapping) and isinstance(items[position], Mapping):
            merged = dict(items[position])
            _merge(merged, item, origin, f"{path}.{step}.")
            items[position] = merged
        else:
            items[position] = item
    return items


def _explain(problem: Mapping[str, Any], layers: list[_Layer]) -> str:
    location = tuple(problem["loc"])
    place = _place(location, layers)
    dotted = ".".join(str(step) for step in location)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _fields_at(location[:-1])
        message = f"unknown key {dotted}{did_you_mean(str(location[-1]), known)}"
    elif problem["type"] == "missing":
        # A missing field has no line, but its section has.
        place = place or _place(location[:-1], layers)
        message = f"{dotted} is missing"
    elif problem["type"] == "literal_secret":
        # Without the value, which is the secret.
        message = f"{dotted}: {problem['msg']}"
    elif problem["type"] == "string_type":
        # YAML reads 2024 as a number.
        message = (
            f"{dotted} = {_shown(problem.get('input'))}: must be text; write it in quotes inside"
            " the shell's, as '\"2024\"'"
        )
    else:
        complaint = problem["msg"].removeprefix("Value error, ")
        message = f"{dotted} = {_shown(problem.get('input'))}: {complaint}"
    return f"{place or 'pipelines.yaml'}: {message}"


def _refuse_secrets(
    values: Any, layers: list[_Layer], location: tuple[str | int, ...] = ()
) -> None:
    """Refuse secrets that are written out, because settings are stored in many places.

    Raises:
        ConfigError: a value contains a secret; the error does not repeat it.
    """
    if isinstance(values, str) and holds_secret(values):
        dotted = ".".join(str(step) for step in location)
        raise ConfigError(
            f"{_place(location, layers)}: {dotted} spells a secret out "
            "(a user name or a query in an address, or a token)",
            do=ADVICE,
        )
    if isinstance(values, Mapping):
        for key, value in values.items():
            # Descriptions are prose.
            if (*location, key) != ("description",):
                _refuse_secrets(value, layers, (*location, key))
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            _refuse_secrets(value, layers, (*location, number))


def _place(location: tuple[str | int, ...], layers: list[_Layer]) -> str | None:
    """Where the effective value came from: file and line, or the option or variable."""
    for layer in reversed(layers):  # the last layer overrides the others
        found = layer.places.find(location)
        if found:
            return found
    return None


def _shown(value: Any) -> str:
    """A value for an error message, at most a line long and without secrets."""
    return reprlib.repr(redacted_value(value))


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    """The known keys at a location in the configuration."""
    owner: Any = Pipeline
    for step in location:
        if isinstance(step, int):  # an element of a list has the type that the list's field names
            continue
        fields = getattr(owner, "model_fields", {})
        annotation = fields[step].annotation if step in fields else None
        owner = _settings_class(annotation)
    return list(getattr(owner, "model_fields", None) or getattr(owner, "__dataclass_fields__", {}))


def _settings_class(annotation: Any) -> type | None:
    """The class with fields that an annotation names, alone or as in `tuple[Phase, ...]`."""
    for candidate in (annotation, *get_args(annotation)):
        if not isinstance(candidate, type):
            continue
        # Settings are pydantic models; the denoiser's sizes are a dataclass.
        if issubclass(candidate, BaseModel) or hasattr(candidate, "__dataclass_fields__"):
            return candidate
    return None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that names the nearest known word, if one is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]}?" if near else ""
