"""The aesthetic head's score of every embedding. No picture is decoded."""

from __future__ import annotations

from collections.abc import Mapping

from hdm.config import Pipeline
from hdm.curation.embed import NAME as EMBEDDINGS
from hdm.curation.embed import vectors_in
from hdm.data.tables import RATINGS, num_shards, read_table, shard_name, write_table
from hdm.models.aesthetic import check_head, load_aesthetic_head
from hdm.models.components import resolve, weights_digest
from hdm.store import Identity, Output, Store

NAME = "filter.aesthetic"
SCHEMA = 1


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the scores depend on: the embeddings and the head.

    Raises:
        ConfigError: the head was not trained for the contrastive model, or there is none.
        InputError: the head is not named, or not on this machine.
    """
    resolved = resolve(pipeline.components)
    check_head(resolved)
    named = resolved.aesthetic_head_activation
    activation = {} if named is None else {"aesthetic_head_activation": named}
    weights = {"aesthetic_head": weights_digest(resolved.need("aesthetic_head"))}
    return Identity(NAME, SCHEMA, activation, dict(inputs), weights)


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
) -> Output:
    """Score every embedding.

    Returns:
        An output of `aesthetic-*.parquet` (RATINGS), cut like the download.
    """
    embeddings = inputs[EMBEDDINGS]
    resolved = resolve(pipeline.components)
    head = load_aesthetic_head(resolved.need("aesthetic_head"), resolved.aesthetic_head_activation)
    with store.draft(identity) as draft:
        for number in range(num_shards(embeddings, "embeddings")):
            name = shard_name("aesthetic", number)
            if draft.has(name):
                continue
            path = embeddings.file(shard_name("embeddings", number))
            keys, vectors = vectors_in(read_table(path))
            scores = list(head(vectors)) if len(vectors) else []
            rows = {"key": keys, "aesthetic": scores}
            write_table(draft, name, RATINGS, rows, {"items": len(scores)})
        return draft.commit()
