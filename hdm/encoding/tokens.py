"""Encode captions to token ids; one table for each shard of captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.compute as pc

from hdm import parts
from hdm.caption_text.tag_form import plain_caption
from hdm.data.tables import TOKENS, num_shards, read_table, shard_name, write_table
from hdm.encoding.settings import Pipeline
from hdm.errors import InputError
from hdm.models.components import resolve, weights_digest
from hdm.models.text_encoder import Tokenizer, load_tokenizer, num_embeddings
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Draft, Folder, Identity, Output, Outputs, Store

NAME = "encode.tokens"
SCHEMA = 1


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the token ids depend on: the captions, the tokenizer, and where captions are cut.

    Raises:
        InputError: the tokenizer is not on this machine.
    """
    # Tokenizer files lie in the text encoder's folder, so the digest covers all of it.
    tokenizer = weights_digest(resolve(pipeline.components).need("text_encoder"))
    config = {"max_tokens": pipeline.encode.max_tokens}
    return Identity(NAME, SCHEMA, config, inputs, {"tokenizer": tokenizer})


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Token ids of every caption, in `tokens-<n>.parquet`.

    Returns:
        The output; its summary has the empty caption's ids, the pad id, the tokenizer's digest, and
        the longest caption in tokens.

    Raises:
        InputError: the tokenizer belongs to another model than the text encoder.
    """
    step = Tokenizing(pipeline, inputs["caption"])
    _check_fit(step.tokenizer, step.reference)
    return parts.make_output(step, store, identity, pipeline.execution)


@dataclass(frozen=True)
class Tokenizing(Step[int, Tokenizer]):
    """Tokenize captions, table by table."""

    pipeline: Pipeline
    captions: Output

    what = "tokens"
    unit = "shards"

    @property
    def reference(self) -> str:
        return resolve(self.pipeline.components).need("text_encoder")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.reference)

    def plan(self) -> Iterator[Part[int]]:
        for number in range(num_shards(self.captions, "captions")):
            reads = {"caption": (shard_name("captions", number),)}
            yield Part(number, {NAME: (shard_name("tokens", number),)}, reads=reads)

    def open(self) -> AbstractContextManager[Tokenizer]:
        return nullcontext(self.tokenizer)

    def make_part(self, part: Part[int], folders: Folders, tools: Tokenizer, bar: Tracker) -> None:
        max_tokens = self.pipeline.encode.max_tokens
        _tokenize(folders[NAME], part.task, self.captions, tools, max_tokens)
        bar.advance()

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        longest = 0
        for name in draft.records:
            token_ids = read_table(draft.path / name, ["token_ids"]).column("token_ids")
            # A shard without captions has no maximum.
            longest = max(longest, pc.max(pc.list_value_length(token_ids)).as_py() or 0)
        max_tokens = draft.identity.config["max_tokens"]
        return {
            "empty": self.tokenizer.token_ids([""], max_tokens)[0],
            "pad_id": self.tokenizer.pad_id,
            "tokenizer": draft.identity.weights["tokenizer"],
            "longest": longest,
        }


def _check_fit(tokenizer: Tokenizer, reference: str) -> None:
    count = num_embeddings(reference)
    # The embedding layer would fail on such an id, in the middle of the next stage.
    if tokenizer.largest_id >= count:
        raise InputError(
            f"the tokenizer gives ids up to {tokenizer.largest_id}, the text encoder has embeddings"
            f" for {count}",
            where=reference,
            do=(
                "put the tokenizer that belongs to the model beside it, or name another"
                " components.text_encoder"
            ),
        )


def _tokenize(
    folder: Folder, number: int, captions: Output, tokenizer: Tokenizer, max_tokens: int
) -> None:
    table = read_table(captions.file(shard_name("captions", number)), ["key", "index", "caption"])
    # Captions made of tags are encoded with all of them; training may draw tags anew instead.
    captions_as_text = list(map(plain_caption, table.column("caption").to_pylist()))
    token_ids = tokenizer.token_ids(captions_as_text, max_tokens)
    rows = {
        "key": table.column("key").to_pylist(),
        "index": table.column("index").to_pylist(),
        "token_ids": token_ids,
    }
    counts = {
        "captions": len(token_ids),
        "tokens": sum(map(len, token_ids)),
        # Captions at the maximum length, most of which were cut.
        "full_length": sum(len(ids) == max_tokens for ids in token_ids),
    }
    write_table(folder, shard_name("tokens", number), TOKENS, rows, counts)
