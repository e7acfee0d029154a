"""Captions of tags in training: what a batch holds at a position is that caption, drawn for that
position.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hdm.caption_text.tag_form import TagDraws, drawn_captions
from hdm.config import Pipeline
from hdm.data.captions import captions_by_key
from hdm.data.loader import Loader
from hdm.encoding import tokens
from hdm.errors import ConfigError
from hdm.keys import Key
from hdm.models.text_encoder import load_tokenizer
from hdm.models.word_tokens import WordTokens
from hdm.training import assembly
from tests.training.workshop import KEYS, NUM_PICTURES, WORDS, Workshop, write_captions

FORM = "{0} ||| {1} $$ red %% square $$ blue $$ circle"
DRAWS = {"tag_drop": 0.25, "group_drop": 0.3, "tag_shuffle": True}


@pytest.fixture(scope="module")
def tagged(workshop: Workshop) -> Workshop:
    captions = write_captions(workshop.store, FORM)
    identity = tokens.identify(workshop.pipeline, {"caption": captions.digest})
    made = tokens.make(workshop.pipeline, identity, {"caption": captions}, workshop.store)
    return replace(workshop, inputs={**workshop.inputs, "caption": captions, "encode.tokens": made})


def texts(batch: Any) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(batch.token_ids, batch.text_mask, strict=True)]


def loader(workshop: Workshop, folder: Path, rank: int = 0, world_size: int = 1) -> Loader:
    found = assembly.training_loader(workshop.job(folder), rank, world_size)
    assert isinstance(found, Loader)
    return found


def test_a_batch_holds_what_is_drawn_for_its_positions(tagged: Workshop, tmp_path: Path) -> None:
    changed = tagged.changed(**DRAWS, caption_dropout=0.2)
    tokenizer = load_tokenizer(str(changed.pipeline.components.text_encoder))
    words = {
        key: (WORDS[number % 2], WORDS[2 + number // 2 % 2])
        for number, key in enumerate(KEYS[:NUM_PICTURES])
    }
    draws = TagDraws(0.25, 0.3, True, changed.pipeline.train.seed)
    one, seen, empty = loader(changed, tmp_path), set(), 0
    for start in (0, 8, 80, 24, 8):
        batch = one.batch(start)
        for place, (key, found) in enumerate(zip(batch.keys, texts(batch), strict=True)):
            caption = FORM.format(*words[Key(key)])
            wanted = drawn_captions([caption], draws, [start + place])[0]
            dropped = found == tokenizer.token_ids([""], 8)[0]
            assert dropped or found == tokenizer.token_ids([wanted], 8)[0]
            seen.add(wanted)
            empty += dropped
    assert len(seen) > 20, "they differ from one position to another"
    assert 0 < empty < 20
    pair = [loader(changed, tmp_path, rank, 2).batch(8) for rank in range(2)]
    whole = one.batch(8).token_ids
    assert whole is not None
    halves = [part.token_ids for part in pair if part.token_ids is not None]
    assert torch.equal(torch.cat(halves), whole)


def test_a_batch_tokenizes_its_own_captions_and_no_others(
    tagged: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    tokenized = WordTokens.__call__

    def counted(self: WordTokens, captions: list[str]) -> list[np.ndarray]:
        counts.append(len(captions))
        return tokenized(self, captions)

    monkeypatch.setattr(WordTokens, "__call__", counted)
    one = loader(tagged.changed(**DRAWS), tmp_path)
    one.batch(0)
    one.batch(8)
    assert counts == [8, 8]


def test_everywhere_else_a_caption_has_all_its_tags(tagged: Workshop, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tagged.pipeline.components.text_encoder))
    found = captions_by_key(tagged.inputs["caption"], KEYS[:1])[KEYS[0]]
    assert found == ["red, circle, red, square, blue, circle"]
    batch = assembly.measured_loader(tagged.changed(**DRAWS).job(tmp_path), "validation", 4).batch(
        0
    )
    numbers = [KEYS.index(Key(key)) for key in batch.keys]
    plain = [f"{WORDS[n % 2]}, {WORDS[2 + n // 2 % 2]}, red, square, blue, circle" for n in numbers]
    assert texts(batch) == tokenizer.token_ids(plain, 8)


def test_a_cache_of_text_embeddings_is_refused(tagged: Workshop) -> None:
    values = tagged.changed(**DRAWS).pipeline.model_dump(mode="json")
    with pytest.raises(ConfigError, match="drawn anew"):
        Pipeline.model_validate({**values, "encode": {**values["encode"], "text_embeddings": True}})
