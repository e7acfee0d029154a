"""Captions to token ids: a table a shard of captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow.compute as pc

from hdm.config import Pipeline
from hdm.data.tables import TOKENS, num_shards, read_table, shard_name, write_table
from hdm.data.tag_form import plain_caption
from hdm.errors import InputError
from hdm.models.components import resolve, weights_digest
from hdm.models.text_encoder import Tokenizer, load_tokenizer, num_embeddings
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 1


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the token ids depend on: the captions, the tokenizer, and where captions are cut.

    Raises:
        InputError: the tokenizer is not on this machine.
    """
    tokenizer = weights_digest(resolve(pipeline.components).need("text_encoder"))
    return Identity(
        "encode.tokens",
        SCHEMA,
        {"max_tokens": pipeline.encode.max_tokens},
        inputs,
        {"tokenizer": tokenizer},
    )


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
) -> Output:
    """Token ids of every caption, in `tokens-<n>.parquet`.

    Returns:
        The output; its summary has the empty caption's ids, the pad id, the tokenizer's digest, and
        the longest caption in tokens.

    Raises:
        InputError: the tokenizer is of another model than the text encoder.
    """
    captions = inputs["caption"]
    reference = resolve(pipeline.components).need("text_encoder")
    tokenizer = load_tokenizer(reference)
    _check_fit(tokenizer, reference)
    shards = num_shards(captions, "captions")
    with store.draft(identity) as draft, track("tokens", shards, "shards") as bar:
        for number in range(shards):
            if not draft.has(shard_name("tokens", number)):
                _tokenize(draft, number, captions, tokenizer, pipeline.encode.max_tokens)
            bar.advance()
        return draft.commit(_summary(draft, tokenizer, shards, identity))


def _check_fit(tokenizer: Tokenizer, reference: str) -> None:
    known = num_embeddings(reference)
    if tokenizer.largest_id >= known:
        raise InputError(
            f"the tokenizer gives ids up to {tokenizer.largest_id}, the text encoder has embeddings for {known}",
            where=reference,
            do="put the tokenizer that belongs to the model beside it, or name another components.text_encoder",
        )


def _tokenize(
    draft: Draft, number: int, captions: Output, tokenizer: Tokenizer, max_tokens: int
) -> None:
    table = read_table(captions.file(shard_name("captions", number)), ["key", "index", "caption"])
    token_ids = tokenizer.token_ids(
        [plain_caption(caption) for caption in table.column("caption").to_pylist()], max_tokens
    )
    rows = {
        "key": table.column("key").to_pylist(),
        "index": table.column("index").to_pylist(),
        "token_ids": token_ids,
    }
    counts = {
        "captions": len(token_ids),
        "tokens": sum(map(len, token_ids)),
        # As long as they may be: most of these were cut.
        "full_length": sum(len(ids) == max_tokens for ids in token_ids),
    }
    write_table(draft, shard_name("tokens", number), TOKENS, rows, counts)


def _summary(draft: Draft, tokenizer: Tokenizer, shards: int, identity: Identity) -> dict[str, Any]:
    longest = 0
    for number in range(shards):
        lengths = pc.list_value_length(
            read_table(draft.path / shard_name("tokens", number), ["token_ids"]).column("token_ids")
        )
        longest = max(longest, pc.max(lengths).as_py() or 0)
    empty = tokenizer.token_ids([""], identity.config["max_tokens"])[0]
    return {
        "empty": empty,
        "pad_id": tokenizer.pad_id,
        "tokenizer": identity.weights["tokenizer"],
        "longest": longest,
    }
