"""Options that are made from settings: the settings' types, bounds, defaults and words."""

from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import field_validator
from typer.testing import CliRunner

from hdm import values
from hdm.errors import ConfigError
from hdm.options import Options, Shown, numbers, with_settings
from hdm.settings import Settings


class Inner(Settings):
    kind: Literal["plain", "fancy"] = "plain"
    """Which sort."""
    untold: int = 1


class Outer(Settings):
    count: values.Count = 7
    """How many."""
    minutes: values.Minutes | None = None
    """How long; None: as long as it takes."""
    span: tuple[values.Share, values.Share] = (0.25, 1.0)
    """From and to."""
    fast: bool = False
    """Whether to hurry."""
    inner: Inner = Inner(untold=5)

    @field_validator("span")
    @classmethod
    def _rising(cls, span: tuple[float, float]) -> tuple[float, float]:
        if span[0] > span[1]:
            raise ValueError("the first must not be greater")
        return span


SHOWN = (
    Shown("count", "--number"),
    Shown("minutes"),
    Shown("span", read=lambda text: numbers(text, "FROM,TO", 2), metavar="FROM,TO"),
    Shown("fast"),
    Shown("inner.kind", "--kind"),
)


def called(*words: str, only_given: bool = False) -> tuple[Any, str, int, Exception | None]:
    """What a command's function gets, what is printed, and how it ends."""
    app, taken = typer.Typer(), []

    @app.command()
    @with_settings(settings=Options(Outer, *SHOWN, only_given=only_given))
    def command(*, name: Annotated[str, typer.Option(help="A name.")] = "x", settings: Any) -> None:
        taken.append((name, settings))

    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    error = done.exception if isinstance(done.exception, Exception) else None
    return taken[0] if taken else None, done.output, done.exit_code, error


def test_without_options_the_settings_are_at_their_defaults() -> None:
    assert called()[0] == ("x", Outer())


def test_options_set_fields_and_leave_the_others() -> None:
    words = [
        "--name",
        "y",
        "--number",
        "3",
        "--minutes",
        "1.5",
        "--span",
        "0.5,0.75",
        "--fast",
        "--kind",
        "fancy",
    ]
    expected = Outer(
        count=3, minutes=1.5, span=(0.5, 0.75), fast=True, inner=Inner(kind="fancy", untold=5)
    )
    assert called(*words)[0] == ("y", expected)


def test_the_help_has_the_words_defaults_and_choices_of_the_settings() -> None:
    lines = called("--help")[1].splitlines()

    def line(flag: str) -> str:
        return " ".join(next(one for one in lines if f"{flag} " in one).split())

    assert "How many. [default: 7]" in line("--number")
    assert "How long; else as long as it takes." in line("--minutes")
    assert "FROM,TO From and to. [default: 0.25,1]" in line("--span")
    assert "plain|fancy Which sort. [default: plain]" in line("--kind")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--number 0", "'--number': 0: must be a whole number, at least 1"),
        ("--minutes nan", "'--minutes': nan: must be a number"),
        ("--span 0,2", "'--span': 0,2: must be a number, at least 0 and at most 1"),
        ("--span 0;1", "'0;1' is not FROM,TO"),
        ("--kind other", "'plain' or 'fancy'"),
    ],
)
def test_a_wrong_value_is_a_usage_error_of_its_option(words: str, told: str) -> None:
    taken, output, code, _ = called(*words.split())
    assert (taken, code) == (None, 2)
    assert told in " ".join(output.replace("│", " ").split())


def test_values_that_do_not_go_together_are_told() -> None:
    error = called("--span", "1,0.5")[3]
    assert isinstance(error, ConfigError)
    assert "the first must not be greater" in str(error)


def test_only_what_is_given_is_handed_on_where_that_is_wanted() -> None:
    assert called(only_given=True)[0] == ("x", {})
    assert called("--number", "7", only_given=True)[0] == ("x", {"count": 7})
    assert "(7)" in called("--help", only_given=True)[1]
