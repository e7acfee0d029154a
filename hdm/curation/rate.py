"""The aesthetic head's score of every embedding. No picture is decoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from hdm import parts
from hdm.curation.embed import NAME as EMBEDDINGS
from hdm.curation.embed import vectors_in
from hdm.curation.settings import Pipeline
from hdm.data.tables import RATINGS, num_shards, read_table, shard_name, write_table
from hdm.models.aesthetic import AestheticHead, check_head, load_aesthetic_head
from hdm.models.components import resolve, weights_digest
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Identity, Output, Outputs, Store

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
    # Part of the digest only where it is set, so that digests from before the setting stay the
    # same.
    config = {}
    if resolved.aesthetic_head_activation is not None:
        config["aesthetic_head_activation"] = resolved.aesthetic_head_activation
    weights = {"aesthetic_head": weights_digest(resolved.need("aesthetic_head"))}
    return Identity(NAME, SCHEMA, config, dict(inputs), weights)


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Score every embedding.

    Returns:
        An output of `aesthetic-*.parquet` (RATINGS), cut like the download.
    """
    return parts.make_output(
        Rating(pipeline, inputs[EMBEDDINGS]), store, identity, pipeline.execution
    )


@dataclass(frozen=True)
class Rating(Step[int, AestheticHead]):
    """Scores embeddings, table by table."""

    pipeline: Pipeline
    embeddings: Output

    what = "rate"
    unit = "tables"

    def plan(self) -> Iterator[Part[int]]:
        for number in range(num_shards(self.embeddings, "embeddings")):
            reads = {EMBEDDINGS: (shard_name("embeddings", number),)}
            yield Part(number, {NAME: (shard_name("aesthetic", number),)}, reads=reads)

    @contextmanager
    def open(self) -> Iterator[AestheticHead]:
        resolved = resolve(self.pipeline.components)
        head = resolved.need("aesthetic_head")
        yield load_aesthetic_head(head, resolved.aesthetic_head_activation)

    def make_part(
        self, part: Part[int], folders: Folders, tools: AestheticHead, bar: Tracker
    ) -> None:
        table = read_table(self.embeddings.file(shard_name("embeddings", part.task)))
        keys, vectors = vectors_in(table)
        scores = list(tools(vectors)) if len(vectors) else []
        rows = {"key": keys, "aesthetic": scores}
        name = shard_name("aesthetic", part.task)
        write_table(folders[NAME], name, RATINGS, rows, {"items": len(scores)})
        bar.advance()
