"""Every command, option and setting that the documents and the errors name exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.told_commands import (
    PROJECT,
    advice,
    command_lines,
    inline_code,
    problem,
    problems_of_advice,
)

PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
SOURCES = sorted(
    path for part in ("hdm", "tasks", "flows") for path in (PROJECT / part).rglob("*.py")
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    wrong = {line: found for line in command_lines(page) if (found := problem(line))}
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_in_its_prose_exists(page: Path) -> None:
    wrong = [told for code in inline_code(page) for told in problems_of_advice(code)]
    assert not wrong, "\n".join(wrong)


def test_the_readme_shows_commands() -> None:
    assert {"make demo", "hdm serve", ". .venv/bin/activate"} <= {
        line.partition("#")[0].strip() for line in command_lines(PAGES[0])
    }


def test_what_errors_advise_exists() -> None:
    found = [(source, *one) for source in SOURCES for one in advice(source)]
    assert len(found) > 200
    wrong = [
        f"{source.relative_to(PROJECT)}:{line}: {told}"
        for source, line, text in found
        for told in problems_of_advice(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("start it with hdm serv", "no command hdm serv"),
        ("hdm sample --weight DIR", "hdm sample has no option --weight"),
        ("give --componentes DIR", "an option --componentes"),
        ("set --set filter.min_aesthetics=5", "did you mean min_aesthetic?"),
        ("raise train.phases.0.batch_sizes", "unknown key"),
        ("hdm vae nothing", "no command hdm nothing"),
    ],
)
def test_advice_that_cannot_be_followed_is_seen(text: str, told: str) -> None:
    assert any(told in found for found in problems_of_advice(text))
