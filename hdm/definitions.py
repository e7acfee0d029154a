"""The files that define pipelines and labs: the package's, and the user's own.

A user's pipelines.yaml adds entries to the package's. An entry of the same name replaces the
package's entry, and may extend it: `demo: {extends: demo, …}`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from hdm.errors import ConfigError

FILE_NAME = "pipelines.yaml"
NAME_PATTERN = r"^[^\W_][\w.-]{0,63}$"
"""The form of names of pipelines and labs, which become folders, MLflow experiments and registered
models.
"""
SECTIONS = ("pipelines", "labs", "deployments")
MAX_VALUES = 1_000_000
"""In a YAML text, repetitions by `*` counted each time: nine lines of them can stand for billions.
"""


@dataclass(frozen=True)
class Entry:
    """A file's entry under one name.

    Args:
        path: the file.
        line: line of the name, from 1.
        values: the entry's content.
        below: the package's entry of the same name, which this one replaces.
    """

    path: Path
    line: int
    values: CommentedMap
    below: Entry | None = None


def packaged_file() -> Path:
    """The pipelines.yaml of the installed package, or of the project's folder."""
    package = Path(__file__).resolve().parent
    installed = package / FILE_NAME
    return installed if installed.is_file() else package.parent / FILE_NAME


def own_file(given: Path | None = None) -> Path | None:
    """The user's own file: the given one, else pipelines.yaml in the working folder, else None.

    Raises:
        ConfigError: the given file does not exist.
    """
    path = given or Path(FILE_NAME)
    if path.is_file():
        # In the project's own folder, the package's file does not add to itself.
        return None if path.resolve() == packaged_file() else path
    if given is not None:
        fault = "this is a folder" if given.is_dir() else "this is no regular file"
        raise ConfigError(
            fault if given.exists() else "there is no such file",
            where=given,
            do="name a pipelines.yaml; hdm init writes one to begin with",
        )
    return None


def definitions(section: str, given: Path | None = None) -> dict[str, Entry]:
    """Every entry of a section, the package's first.

    Args:
        section: pipelines or labs.
        given: the user's own file; None: found as `own_file` does.

    Raises:
        ConfigError: a file is not YAML or has none of the sections, or a name breaks the rule.
    """
    entries = read_section(packaged_file(), section)
    own = own_file(given)
    if own is not None:
        for name, entry in read_section(own, section).items():
            entries[name] = Entry(entry.path, entry.line, entry.values, below=entries.get(name))
    return entries


def read_section(path: Path, section: str) -> dict[str, Entry]:
    """The entries of one file; none if it lacks the section.

    Raises:
        ConfigError: as `definitions`.
    """
    document = _document(path)
    entries = document.get(section)
    if entries is None:
        return {}
    if not isinstance(entries, CommentedMap):
        raise ConfigError(f"`{section}:` is not a mapping of names to entries", where=path)
    own_entries = {}
    for name, values in entries.items():
        # ruamel counts lines from 0.
        line = entries.lc.key(name)[0] + 1
        if not re.fullmatch(NAME_PATTERN, str(name)):
            raise ConfigError(
                f"{name!r} cannot be a name under `{section}:`",
                where=f"{path}:{line}",
                do="use up to 64 letters, digits, '.', '_' and '-', a letter or digit first",
            )
        if not isinstance(values, CommentedMap | None):
            raise ConfigError(
                f"{section}.{name} is not a mapping of settings", where=f"{path}:{line}"
            )
        own_entries[str(name)] = Entry(path, line, values or CommentedMap())
    return own_entries


def has_deployments(path: Path) -> bool:
    """Whether the file defines deployments for Prefect."""
    return bool(_document(path).get("deployments"))


def read_yaml(yaml: YAML, text: str, where: object) -> Any:
    """The value of a user's YAML text.

    Raises:
        ConfigError: it is nested too deeply, contains itself, or expands to too many values by
            aliases.
        YAMLError, ValueError: it is not YAML, or holds an impossible number or date.
    """
    try:
        value = yaml.load(text)
        count = _count(value, {})
    except RecursionError as error:
        fault = "a setting is nested too deeply, or contains itself"
        raise ConfigError(fault, where=where, do="write it without YAML's & and *") from error
    if count > MAX_VALUES:
        raise ConfigError(
            f"written out, it holds more than {MAX_VALUES:,} values",
            where=where,
            do="write it without YAML's & and *",
        )
    return value


def _count(value: Any, known: dict[int, int]) -> int:
    """The number of values after expanding all aliases.

    Args:
        value: whose values to count.
        known: the counts of the mappings and lists visited so far, by `id`.
    """
    if not isinstance(value, dict | list):
        return 1
    # By identity: an alias is the same object, counted once and added wherever it occurs.
    if id(value) not in known:
        held = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(one, known) for one in held)
    return known[id(value)]


def _document(path: Path) -> Mapping[str, object]:
    try:
        # Cached by the text, so an edited file is parsed again.
        document = _parsed(path, path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"not YAML: {error}", where=path) from error
    if not isinstance(document, dict) or not any(section in document for section in SECTIONS):
        raise ConfigError(
            "there is no `pipelines:` mapping",
            where=path,
            do="hdm init shows what such a file looks like",
        )
    return document


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, text: str) -> Any:
    """The file's document, cached, so callers must not change it.

    Parsing with line numbers takes 60 ms; `hdm lab` and `hdm gc` ask for dozens of pipelines.
    """
    return read_yaml(YAML(), text, path)
