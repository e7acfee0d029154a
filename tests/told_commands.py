"""Commands, options and settings as documents and messages name them, held against the command line
and the configuration.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from ruamel.yaml import YAML
from typer.core import TyperGroup

from flows.cli import app
from hdm.errors import ConfigError
from hdm.pipelines import load_pipeline
from hdm.scoring.metrics import SEEN, output_name
from hdm.stages import SCORED_BY

PROJECT = Path(__file__).parents[1]
UsageError: Any = typer.BadParameter.__mro__[1]  # typer brings its own click, or did not yet
COMMANDS = typer.main.get_command(app)
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
HOLE = "1"  # in place of what is filled in at run time: it is a name, a path and a number
SECTIONS = "components|download|images|filter|caption|vae|encode|train|evaluate"
FIELD = re.compile(rf"(?<![\w./-])(?:{SECTIONS})(?:\.[a-z_0-9]+)+(?![\w/])")
EVALUATION = {*SEEN, *(output_name(module.METRIC) for module in SCORED_BY)}
OUTPUT = re.compile(r"\.(\d+px|measures|tokens|text|features|jsonl|json|npz|pt)$")


def command_lines(page: Path) -> list[str]:
    """The commands in a page's fenced blocks, one a line, without their comments."""
    found = []
    for block in FENCE.findall(page.read_text(encoding="utf-8")):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            for part in line.split(" && "):
                if part.split(" ")[0] in ("hdm", "make", "prefect", "."):
                    found.append(part)
    return found


def inline_code(page: Path) -> list[str]:
    """What a page's prose sets as code."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))


def problem(line: str) -> str | None:
    """Why a command line cannot be what it says, or None."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        rules = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        return next((f"no target {word}" for word in words[1:2] if word not in rules), None)
    if words[:3] == ["prefect", "deployment", "run"]:
        return None if words[3] in deployments() else f"no deployment {words[3]}"
    if words[0] != "hdm":
        return None
    return _parsed(COMMANDS, words[1:]) or next(filter(None, map(_setting, _settings(words))), None)


def deployments() -> list[str]:
    """The names of the deployments in pipelines.yaml."""
    entries = YAML(typ="safe").load((PROJECT / "pipelines.yaml").read_text())["deployments"]
    return [entry["name"] for entry in entries]


def _parsed(command: Any, words: list[str]) -> str | None:
    if isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        below = command.commands.get(words[0])
        return _parsed(below, words[1:]) if below else f"no command {words[0]}"
    try:
        command.make_context("hdm", list(words))
    except UsageError as error:
        message: str = error.format_message()
        return message
    except typer.Exit:  # --help and --version
        return None
    return None


def _settings(words: list[str]) -> list[str]:
    return [after for word, after in pairwise(words) if word == "--set"]


def _setting(text: str) -> str | None:
    """Whether that field exists; whether the value fits is another matter."""
    try:
        load_pipeline("demo", [text if "=" in text else f"{text}=null"], PROJECT / "pipelines.yaml")
    except ConfigError as error:
        return str(error) if "unknown key" in str(error) else None
    return None


def advice(source: Path) -> Iterator[tuple[int, str]]:
    """Line and text of what a module's errors say to do (`do=` and constants that it names), with
    holes filled.
    """
    tree = ast.parse(source.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "do":
            value = node.value
            if isinstance(value, ast.Name):
                value = constants.get(value.id, value)
            yield node.value.lineno, "".join(_texts(value))


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from [HOLE] if isinstance(value, ast.FormattedValue) else _texts(value)
    else:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                yield from _texts(child)
                yield " "


def problems_of_advice(text: str) -> Iterator[str]:
    """What a piece of advice names and does not exist: commands, their options, settings."""
    options = {option for command in _every(COMMANDS) for option in _options(command)}
    for named in re.finditer(r"(?<![\w/-])hdm ([a-z][\w-]*)([^,;:()`→]*)", text):
        command: Any = COMMANDS
        words = [named[1], *named[2].split()]
        while isinstance(command, TyperGroup) and words:
            word = words.pop(0)
            command = command.commands.get(word)
            if command is None:
                yield f"there is no command hdm {word}"
        if command is not None:
            unknown = set(re.findall(r"(?<!\S)--[a-z-]+", named[2])) - _options(command)
            yield from (f"hdm {named[1]} has no option {option}" for option in sorted(unknown))
    for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
        if option not in options and not re.search(
            rf"(prefect|hf|pip|huggingface)[^;,]*{option}", text
        ):
            yield f"no command has an option {option}"
    for field in FIELD.findall(text):
        is_output = OUTPUT.search(field) or field in EVALUATION
        known = not is_output and f".{HOLE}" not in field.replace(".0", "")
        if known and (wrong := _setting(field.rstrip("."))):
            yield wrong


def _every(command: Any) -> Iterator[Any]:
    yield command
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            yield from _every(below)


def _options(command: Any) -> set[str]:
    names = [name for parameter in command.params for name in parameter.opts]
    return {"--help", *(name for name in names if name.startswith("-"))}
