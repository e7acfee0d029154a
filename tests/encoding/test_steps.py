"""The encode stage's steps make the same bytes from their copies, in other processes too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hdm.encoding import downscaled, latents, text, tokens
from hdm.encoding.downscaled import Downscaling
from hdm.encoding.latents import EncodingLatents
from hdm.encoding.text import EncodingText
from hdm.encoding.tokens import Tokenizing
from hdm.parts import Step
from hdm.store import Identity, Output
from tests.encoding.conftest import Home
from tests.steps import contents, made_elsewhere

SMALL, LARGE = 16, 32
Given = dict[str, Output]


def identified(home: Home, module: Any, given: Given, *arguments: int) -> Identity:
    digests = {name: output.digest for name, output in given.items()}
    identity: Identity = module.identify(home.pipeline, digests, *arguments)
    return identity


def tokenizing(home: Home) -> tuple[Output, Step[Any, Any], Identity]:
    given = {"caption": home.inputs["caption"]}
    identity = identified(home, tokens, given)
    made = tokens.make(home.pipeline, identity, given, home.store)
    return made, Tokenizing(home.pipeline, given["caption"]), identity


def embedding_text(home: Home) -> tuple[Output, Step[Any, Any], Identity]:
    made, _, _ = tokenizing(home)
    given = {"caption": home.inputs["caption"], "encode.tokens": made}
    identity = identified(home, text, given)
    step = EncodingText(home.pipeline, made, identity.weights)
    return text.make(home.pipeline, identity, given, home.store), step, identity


def encoding(home: Home, size: int = LARGE) -> tuple[Output, Step[Any, Any], Identity]:
    given = {name: home.inputs[name] for name in ("download", "filter")}
    identity = identified(home, latents, given, size)
    made = latents.make(home.pipeline, identity, given, home.store, size)
    return made, EncodingLatents(home.pipeline, given, (size,)), identity


def downscaling(home: Home) -> tuple[Output, Step[Any, Any], Identity]:
    larger, _, _ = encoding(home)
    given = {name: home.inputs[name] for name in ("download", "filter")}
    given[larger.name] = larger
    identity = identified(home, downscaled, given, SMALL, LARGE)
    made = downscaled.make(home.pipeline, identity, given, home.store, SMALL, LARGE)
    return made, Downscaling(home.pipeline, given, SMALL, LARGE), identity


@pytest.mark.parametrize("build", [tokenizing, embedding_text, encoding, downscaling])
def test_a_copy_of_a_step_makes_the_same_bytes(
    home: Home, tmp_path: Path, build: Callable[[Home], tuple[Output, Step[Any, Any], Identity]]
) -> None:
    made, step, identity = build(home)
    [again] = made_elsewhere(step, tmp_path / "elsewhere", identity)
    assert contents(again) == contents(made)


def test_another_process_encodes_the_same_bytes(home: Home, tmp_path: Path) -> None:
    made, step, identity = encoding(home)
    [again] = made_elsewhere(step, tmp_path / "elsewhere", identity, processes=1)
    assert contents(again) == contents(made)
