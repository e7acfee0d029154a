"""Try again what failed in a finished download: another `download.generation`, written into the
user's own pipelines.yaml, so that every later command means the same download.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from hdm.acquisition import download
from hdm.definitions import FILE_NAME, Entry, definitions, own_file
from hdm.errors import ConfigError, DamagedError, counted
from hdm.files import written_aside
from hdm.pipelines import load_pipeline
from hdm.store import Store, read_output

FIELD = "generation"


def retry_failed(name: str, overrides: Iterable[str], file: Path | None, store: Store) -> str:
    """Make the next run of a pipeline try the failed URLs of its download again, if that is
    finished and has any.

    Args:
        name: entry under `pipelines:`.
        overrides: `stage.field=value`.
        file: the user's own pipelines.yaml; None: found as `hdm.definitions.own_file` does.
        store: with the download.

    Returns:
        What was changed, or why nothing was: a sentence.

    Raises:
        ConfigError: the source is no list of URLs, or the generation has to be written by hand.
        InputError: the source cannot be read.
    """
    overrides = list(overrides)
    pipeline = load_pipeline(name, overrides, file)
    identity = download.identify(pipeline, {})
    if identity.config["kind"] != "urls":
        raise ConfigError(
            f"--retry-failed is for lists of URLs, and the source of {name} is none",
            where="download.source",
            do="mend the source and run again: what has changed makes another download",
        )
    try:
        counts = read_output(store.folder(identity)).counts
    except (FileNotFoundError, DamagedError):
        return "this download is not finished, so this run goes on with it"
    if not counts["failed"]:
        return "nothing failed in this download, so there is nothing to try again"
    generation = pipeline.download.generation + 1
    path = _write(name, overrides, file, generation)
    reasons = []
    for status, count in counts.items():
        if status.startswith("failed_"):
            reasons.append(f"{count:,} {status.removeprefix('failed_')}")
    urls = counted(counts["failed"], "URL is", "URLs are")
    return (
        f"{urls} tried again ({', '.join(reasons)}): download.generation of {name} is now"
        f" {generation} in {path}"
    )


def _write(name: str, overrides: list[str], file: Path | None, generation: int) -> Path:
    """Write the generation into the user's own file; returns its path."""
    own = own_file(file)
    entry = definitions("pipelines", file)[name]
    if own is None or entry.path != own:
        raise ConfigError(
            f"{name} is an entry of the package, whose file stays as it is",
            where=entry.path,
            do=f"write into your own {FILE_NAME}, below `pipelines:`:"
            f" `{name}: {{extends: {name}, download: {{{FIELD}: {generation}}}}}`",
        )
    # As it is: other line ends would be other text.
    text = own.read_bytes().decode()
    changed = _changed(text, entry, name, generation)
    if changed is None or _effective(name, overrides, changed) != generation:
        raise ConfigError(
            f"download.{FIELD} of {name} cannot be written here without changing anything else, or"
            " something overrides it",
            where=f"{own}:{entry.line}",
            do=f"set it to {generation} by hand: `download: {{{FIELD}: {generation}, …}}`, or where"
            f" it is set now (--set, HDM__download__{FIELD})",
        )
    path = own.resolve()  # what a link leads to, not the link
    with written_aside(path) as temporary:
        temporary.write_bytes(changed.encode())
        shutil.copymode(path, temporary)
    return own


def _effective(name: str, overrides: list[str], text: str) -> int | None:
    """The generation of a pipeline if its file had this text; None if it were refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        path.write_bytes(text.encode())
        # It would name a file that is gone by then.
        with contextlib.suppress(ConfigError):
            return load_pipeline(name, overrides, path).download.generation
    return None


def _changed(text: str, entry: Entry, name: str, generation: int) -> str | None:
    """The text in which an entry's download has that generation, and nothing else is different;
    None if this cannot change it.
    """
    with contextlib.suppress(KeyError, StopIteration, TypeError, ValueError, YAMLError):
        changed = _edited(text, entry.values, generation)
        wanted = _plain(text)
        wanted["pipelines"][name].setdefault("download", {})[FIELD] = generation
        # What is written in other ways (aliases, merged mappings) shows here.
        if _plain(changed) == wanted:
            return changed
    return None


def _edited(text: str, entry: CommentedMap, generation: int) -> str:
    """The text with the generation at the place where the entry has it, or could have it."""
    number = str(generation)
    section = entry.get("download")
    if section is None and "download" in entry:
        raise ValueError("a section that holds nothing has no place for a key")
    if section is None:
        return _before_first_key(text, entry, f"download: {{{FIELD}: {number}}}")
    if FIELD not in section:
        return _before_first_key(text, section, f"{FIELD}: {number}")
    start = _position(text, *section.lc.value(FIELD))
    return text[:start] + re.sub(r"\A\d+", number, text[start:])


def _before_first_key(text: str, mapping: CommentedMap, line: str) -> str:
    """The text with another key in a mapping, written as its others are."""
    row, column = mapping.lc.key(next(iter(mapping)))
    start = _position(text, row, column)
    end = "\r\n" if "\r\n" in text else "\n"
    between = ", " if mapping.fa.flow_style() else end + " " * column
    return text[:start] + line + between + text[start:]


def _position(text: str, row: int, column: int) -> int:
    """The place of a row and column, both from 0."""
    lines = text.split("\n")
    return sum(len(line) + 1 for line in lines[:row]) + column


def _plain(text: str) -> Any:
    """The values of a YAML text, each alias as a copy."""
    return json.loads(json.dumps(YAML(typ="safe").load(text), default=str))
