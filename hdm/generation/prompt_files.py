"""Prompts from a file."""

from __future__ import annotations

import json
from pathlib import Path

from hdm.errors import InputError, Refusal


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a line each, or in JSONL the field `prompt` (or `text` or `caption`)
    of each object.

    Raises:
        InputError: the file is missing or empty, or a line cannot be read.
    """
    do = "name a UTF-8 text file, or a .jsonl file"
    with Refusal(OSError, UnicodeDecodeError, what="cannot read the prompts", where=path, do=do):
        text = path.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError("there are no prompts", where=path, do="write one a line")
    return (
        [_from_json(line, number, path) for number, line in enumerate(lines, 1)]
        if path.suffix == ".jsonl"
        else lines
    )


def _from_json(line: str, number: int, path: Path) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} is not JSON: {error}", where=path) from error
    # JSON of another type has no fields, and gets the same error.
    fields = value if isinstance(value, dict) else {}
    for name in ("prompt", "text", "caption"):
        prompt = fields.get(name)
        if isinstance(prompt, str):
            return prompt
    raise InputError(f"line {number} has no field prompt, text or caption", where=path)
