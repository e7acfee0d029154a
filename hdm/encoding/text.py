"""Token ids to text embeddings, cut to their real length, in 16 bits. A table a shard of captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hdm.config import Pipeline
from hdm.data.captions import EMPTY_TEXT, TEXT, text_metadata
from hdm.data.pages import group_rows, paged_writer
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.errors import ConfigError, HdmError
from hdm.models.components import resolve, weights_digest
from hdm.models.devices import Batches, choose_device
from hdm.models.text_encoder import TextEncoder, load_text_encoder
from hdm.progress import track
from hdm.store import Draft, Identity, Output, Store

SCHEMA = 1

TokenIds = Sequence[int]


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the text embeddings depend on: the token ids and the text encoder.

    Raises:
        InputError: the text encoder is not on this machine.
    """
    weights = weights_digest(resolve(pipeline.components).need("text_encoder"))
    return Identity("encode.text", SCHEMA, {"dtype": "float16"}, inputs, {"text_encoder": weights})


def make(pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store) -> Output:
    """Text embeddings of every caption in `text-<n>.parquet`, and the empty caption's in `empty.parquet`.

    Raises:
        ConfigError: the text encoder's width is not the one that the model expects.
        HdmError: an embedding is not finite in 16 bits.
        DoesNotFitError: a single caption does not fit in the device's memory.
    """
    tokens = inputs["encode.tokens"]
    reference = resolve(pipeline.components).need("text_encoder")
    encoder = load_text_encoder(reference, choose_device(pipeline.encode.device, "the text encoder"))
    _check_width(encoder, reference, pipeline)
    stage = _TextStage(encoder, Batches(pipeline.encode.batch_size, "encode.device"), identity.weights)
    with store.draft(identity) as draft, track("text", tokens.counts.get("captions", 0), "captions") as bar:
        if not draft.has(EMPTY_TEXT):
            empty = pa.table({"key": [""], "index": [0], "token_ids": [tokens.summary["empty"]]})
            stage.write(draft, EMPTY_TEXT, empty, {})
        for number in range(num_shards(tokens, "tokens")):
            table = read_table(tokens.file(shard_name("tokens", number)))
            if not draft.has(shard_name("text", number)):
                stage.write(draft, shard_name("text", number), table, {"captions": len(table)})
            bar.advance(len(table))
        return draft.commit({"width": encoder.width})


def _check_width(encoder: TextEncoder, reference: str, pipeline: Pipeline) -> None:
    expected = pipeline.train.model.text_width
    if encoder.width != expected:
        raise ConfigError(
            f"the text encoder {reference} gives embeddings of width {encoder.width}, the model takes {expected}",
            where="train.model.text_width",
            do=f"set train.model.text_width={encoder.width}, or name another components.text_encoder",
        )


class _TextStage:
    """The text encoder at work on one table after the other."""

    def __init__(self, encoder: TextEncoder, batches: Batches, weights: Mapping[str, str]) -> None:
        self.encoder, self.batches, self.weights = encoder, batches, weights

    def write(self, draft: Draft, name: str, tokens: pa.Table, counts: Mapping[str, int]) -> None:
        lengths = [len(ids) for ids in tokens.column("token_ids").to_pylist()]
        rows = group_rows(len(tokens), 4 + 2 * self.encoder.width * max(lengths, default=1))
        with draft.write(name) as file:
            with paged_writer(file.path, TEXT, text_metadata(self.encoder.width, self.weights)) as writer:
                for start in range(0, len(tokens), rows):
                    writer.write_table(self.encode(tokens.slice(start, rows)), row_group_size=rows)
            file.counts.update({**counts, "bytes": 2 * self.encoder.width * sum(lengths)})

    def encode(self, tokens: pa.Table) -> pa.Table:
        """The text embeddings of one row group."""
        token_ids = tokens.column("token_ids").to_pylist()
        # Those of like length together: little padding, and none of it is stored.
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        found: list[bytes] = [b""] * len(token_ids)
        for row, embedding in zip(order, self._embeddings([token_ids[row] for row in order]), strict=True):
            if not np.isfinite(embedding).all():
                raise HdmError(f"the text embedding of caption {token_ids[row]} is not finite in 16 bits", do="use another text encoder")
            found[row] = embedding.tobytes()
        columns = {"key": tokens.column("key"), "index": tokens.column("index"), "length": [len(ids) for ids in token_ids]}
        return pa.table({**columns, "embedding": found}).cast(TEXT)

    def _embeddings(self, token_ids: Sequence[TokenIds]) -> Iterator[np.ndarray]:
        for batch, embedded in self.batches.run(token_ids, self._run):
            for ids, embedding in zip(batch, embedded.half().cpu().numpy(), strict=True):
                yield embedding[: len(ids)]

    def _run(self, token_ids: Sequence[TokenIds]) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in token_ids])
        padded = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.int64)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
        return self.encoder.encode(padded, torch.arange(padded.shape[1]) < lengths[:, None])
