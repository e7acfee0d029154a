"""Every number on the command line, found by walking the commands: what cannot work is a usage
error, never a traceback.
"""

import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from flows.cli import app
from hdm.errors import ConfigError
from hdm.models.devices import check_device

Command = Callable[..., Any]
QUICK = {"lab": ["--list"]}
"""What keeps a command short where its number is a good one; the others end at a source or weights
that are not there.
"""
STAYS = {"serve"}
"""Commands that would run until they are stopped."""


def commands(of: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Command]]:
    for command in of.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        yield " ".join((*path, name)), command.callback
    for group in of.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, (*path, str(group.name)))


def kinds(annotation: Any) -> set[Any]:
    return set(typing.get_args(annotation)) or {annotation}


def option(name: str, hint: Any) -> str | None:
    """How a parameter is written on the command line; None: it is an argument."""
    found = typing.get_args(hint)[1:] if typing.get_origin(hint) is typing.Annotated else ()
    if any(isinstance(item, typer.models.ArgumentInfo) for item in found):
        return None
    options = [item for item in found if isinstance(item, typer.models.OptionInfo)]
    # typer's first name stands in the place of the default.
    declared = [str(name) for item in options for name in (item.default, *(item.param_decls or ()))]
    names = [name for name in declared if name.startswith("--")]
    return names[0] if names else f"--{name.replace('_', '-')}"


def numbers() -> Iterator[tuple[str, str, list[str]]]:
    """Command, option, and the other arguments that the command needs."""
    for name, callback in commands(app):
        hints = typing.get_type_hints(callback, include_extras=True)
        plain = typing.get_type_hints(callback)
        needed: list[str] = []
        numeric: list[str] = []
        for one in inspect.signature(callback).parameters.values():
            written = option(one.name, hints[one.name])
            if kinds(plain[one.name]) & {int, float}:
                assert written is not None
                numeric.append(written)
            elif one.default is inspect.Parameter.empty:
                needed += ["nowhere"] if written is None else [written, "nowhere"]
        for written in numeric:
            yield name, written, needed


NUMBERS = list(numbers())


def result_of(name: str, arguments: list[str], folder: Path, monkeypatch: Any) -> Any:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HDM_STORE", str(folder / "store"))
    return CliRunner().invoke(app, [*name.split(), *arguments])


def test_the_walk_finds_numbers_of_every_command_that_has_them() -> None:
    found = {(name, written) for name, written, _ in NUMBERS}
    assert {
        ("sample", "--steps"),
        ("plan", "--power-price"),
        ("vae finetune", "--learning-rate"),
        ("weights import", "--tread-rate"),
        ("bootstrap", "--minutes"),
        ("lab", "--seeds"),
        ("ema", "--length"),
    } <= found


@pytest.mark.parametrize(("name", "written", "needed"), NUMBERS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1" + 30 * "0", "-1" + 30 * "0", "9" * 5000]
)
def test_what_is_no_size_of_anything_is_a_usage_error(
    name: str, written: str, needed: list[str], value: str, tmp_path: Path, monkeypatch: Any
) -> None:
    result = result_of(name, [*needed, f"{written}={value}"], tmp_path, monkeypatch)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "Invalid value" in result.output
    assert written in result.output


@pytest.mark.parametrize(("name", "written", "needed"), NUMBERS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_nothing_and_less_end_in_an_error_in_words_or_are_fine(
    name: str, written: str, needed: list[str], value: str, tmp_path: Path, monkeypatch: Any
) -> None:
    if name in STAYS and value == "0":
        pytest.skip("it would serve on any free port")
    result = result_of(
        name, [*needed, *QUICK.get(name, []), f"{written}={value}"], tmp_path, monkeypatch
    )
    assert result.exception is None or isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--size", "50"], "WIDTHxHEIGHT"),
        (["--size", "0x64"], "WIDTHxHEIGHT"),
        (["--camera", "0,0,0"], "zoom"),
        (["--camera", "nan,0,1"], "X,Y,ZOOM"),
        (["--guidance-interval", "1,0"], "guidance interval"),
        (["--guidance-interval", "0;1"], "commas"),
        (["--guidance-interval", "0,2"], "at most 1"),
        (["--tread-rate", "1"], "must be a number"),
    ],
)
def test_texts_that_hold_numbers(
    given: list[str], said: str, tmp_path: Path, monkeypatch: Any
) -> None:
    needed = ["--weights", "nowhere", "--prompt", "a red circle"]
    result = result_of("sample", [*needed, *given], tmp_path, monkeypatch)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize("wrong", ["gpu", "cuda:x", "cuda:-1", "", "cuda:0,cuda:1"])
def test_a_device_that_is_none(wrong: str) -> None:
    with pytest.raises(ConfigError, match="must be auto, cpu, cuda"):
        check_device(wrong, "--device")
