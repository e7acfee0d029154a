"""Encode token ids to text embeddings without padding, in 16 or 8 bits; one table for each shard of
captions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from hdm import parts
from hdm.data.captions import EMPTY_TEXT, TEXT, text_metadata
from hdm.data.pages import group_rows, paged_writer
from hdm.data.tables import num_shards, read_table, shard_name
from hdm.data.text_form import TextForm
from hdm.encoding.settings import Pipeline
from hdm.errors import HdmError
from hdm.models.components import resolve, weights_digest
from hdm.models.devices import choose_devices, stage_batches
from hdm.models.text_encoder import check_text_width, load_text_encoder
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Draft, Folder, Identity, Output, Outputs, Store

NAME = "encode.text"
SCHEMA = 2
MEASURED_CAPTIONS = 64
log = logging.getLogger(__name__)

TokenIds = Sequence[int]


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the text embeddings depend on: the token ids, the text encoder, and how they are stored.

    Raises:
        InputError: the text encoder is not on this machine.
    """
    weights = weights_digest(resolve(pipeline.components).need("text_encoder"))
    config = {"dtype": pipeline.encode.text_dtype}
    return Identity(NAME, SCHEMA, config, inputs, {"text_encoder": weights})


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Text embeddings of every caption in `text-<n>.parquet`, and the empty caption's in
    `empty.parquet`.

    Returns:
        The output; its summary has the width, and `error`: the rounding error in units of a
        channel's standard deviation, median of the channels.

    Raises:
        ConfigError: the text encoder's width is not the one that the model expects.
        HdmError: an embedding is not finite in 16 bits.
        DoesNotFitError: a single caption does not fit in the device's memory.
    """
    step = EncodingText(pipeline, inputs["encode.tokens"], identity.weights)
    step.encoder.check()
    step.announce()
    return parts.make_output(step, store, identity, pipeline.execution)


@dataclass(frozen=True)
class EncodingText(Step[int | None, "_Encoder"]):
    """Embed captions, table by table; the part None is the empty caption."""

    pipeline: Pipeline
    tokens: Output
    weights: Mapping[str, str]

    what = "text"
    unit = "captions"

    @cached_property
    def encoder(self) -> _Encoder:
        return _Encoder(self.pipeline, self.weights)

    def announce(self) -> None:
        captions = self.tokens.counts.get("captions", 0)
        total = self.tokens.counts.get("tokens", 0) * self.encoder.form.token_bytes
        log.info(
            "text: %d captions, %.1f MB of embeddings, %d bytes a caption",
            captions,
            total / 1e6,
            total / max(captions, 1),
        )

    def plan(self) -> Iterator[Part[int | None]]:
        # The empty caption serves guidance and dropped captions.
        yield Part(None, {NAME: (EMPTY_TEXT,)}, 0)
        for number in range(num_shards(self.tokens, "tokens")):
            tokens = shard_name("tokens", number)
            captions = self.tokens.counts_of(tokens).get("captions", 0)
            reads = {"encode.tokens": (tokens,)}
            yield Part(number, {NAME: (shard_name("text", number),)}, captions, reads)

    def open(self) -> AbstractContextManager[_Encoder]:
        return nullcontext(self.encoder)

    def make_part(
        self, part: Part[int | None], folders: Folders, tools: _Encoder, bar: Tracker
    ) -> None:
        # None stands for the empty caption.
        if part.task is None:
            ids = [self.tokens.summary["empty"]]
            empty = pa.table({"key": [""], "index": [0], "token_ids": ids})
            tools.write(folders[NAME], EMPTY_TEXT, empty, {})
            return
        table = read_table(self.tokens.file(shard_name("tokens", part.task)))
        name = shard_name("text", part.task)
        tools.write(folders[NAME], name, table, {"captions": len(table)})
        bar.advance(len(table))

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        error = self.encoder.storing_error(self.tokens)
        files = sum(record.bytes for record in draft.records.values())
        log.info(
            "text: made %.1f MB of embeddings in %.1f MB of files; "
            "storing them in %s costs %.2g %% of a channel's standard deviation",
            draft.counts()["bytes"] / 1e6,
            files / 1e6,
            self.encoder.form.dtype,
            100 * error,
        )
        return {"width": self.encoder.form.width, "error": error}


class _Encoder:
    """Encodes one table after the other by the text encoder."""

    def __init__(self, pipeline: Pipeline, weights: Mapping[str, str]) -> None:
        self.reference = resolve(pipeline.components).need("text_encoder")
        self.expected = pipeline.train.model
        device = choose_devices(pipeline.encode.device, "the text encoder")[0]
        self.encoder = load_text_encoder(self.reference, device)
        self.form = TextForm(self.encoder.width, pipeline.encode.text_dtype)
        self.batches = stage_batches(
            pipeline.encode.batch_size, self.encoder.device, pipeline.threads, "encode.device"
        )
        self.weights = weights

    def check(self) -> None:
        """Raise a ConfigError if its width is not the one that the model expects."""
        check_text_width(self.encoder.width, self.reference, self.expected)

    def write(self, folder: Folder, name: str, tokens: pa.Table, counts: Mapping[str, int]) -> None:
        lengths = [len(ids) for ids in tokens.column("token_ids").to_pylist()]
        # The longest caption sets the number of rows, so that no row group exceeds its limit.
        rows = group_rows(len(tokens), 4 + self.form.token_bytes * max(lengths, default=1))
        with folder.write(name) as file:
            with paged_writer(
                file.path, TEXT, text_metadata(self.form.width, self.weights, self.form.dtype)
            ) as writer:
                for start in range(0, len(tokens), rows):
                    writer.write_table(self.encode(tokens.slice(start, rows)), row_group_size=rows)
            file.counts.update({**counts, "bytes": self.form.token_bytes * sum(lengths)})

    def encode(self, tokens: pa.Table) -> pa.Table:
        """The text embeddings of one row group."""
        token_ids = tokens.column("token_ids").to_pylist()
        # Captions of similar length go together, so that little padding is computed.
        order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
        by_length = self._embeddings([token_ids[row] for row in order])
        packed: list[bytes] = [b""] * len(token_ids)
        for row, embedding in zip(order, by_length, strict=True):
            # Training reads 16 bits from both forms, and one infinite value would spoil every batch
            # with this caption.
            if not (np.abs(embedding) <= np.finfo(np.float16).max).all():
                raise HdmError(
                    f"the text embedding of caption {token_ids[row]} is not finite in 16 bits",
                    do="use another text encoder",
                )
            packed[row] = self.form.pack(embedding).tobytes()
        columns = {
            "key": tokens.column("key"),
            "index": tokens.column("index"),
            "length": [len(ids) for ids in token_ids],
        }
        return pa.table({**columns, "embedding": packed}).cast(TEXT)

    def storing_error(self, tokens: Output) -> float:
        """Rounding error of the first captions: root mean square difference in units of the
        standard deviation, by channel; the median of the channels.
        """
        table = read_table(tokens.file(shard_name("tokens", 0)), ["token_ids"])
        first = table.column("token_ids")[:MEASURED_CAPTIONS].to_pylist()
        if not first:
            return 0.0
        # A few captions suffice for an estimate.
        exact = np.concatenate(list(self._embeddings(first)))
        squares = np.square(self.form.unpack(self.form.pack(exact)) - exact).mean(0)
        spread = exact.std(0)
        # A constant channel has no scale to compare with.
        ratios = np.sqrt(squares[spread > 0]) / spread[spread > 0]
        return float(f"{np.median(ratios):.2g}") if len(ratios) else 0.0

    def _embeddings(self, token_ids: Sequence[TokenIds]) -> Iterator[np.ndarray]:
        for batch, embedded in self.batches.run(token_ids, self._run):
            for ids, embedding in zip(batch, embedded.float().cpu().numpy(), strict=True):
                # Padding is not stored: it would be most of the bytes.
                yield embedding[: len(ids)]

    def _run(self, token_ids: Sequence[TokenIds]) -> Tensor:
        lengths = torch.tensor([len(ids) for ids in token_ids])
        padded = torch.zeros(len(token_ids), int(lengths.max()), dtype=torch.int64)
        for row, ids in enumerate(token_ids):
            padded[row, : len(ids)] = torch.tensor(ids)
        return self.encoder.encode(padded, torch.arange(padded.shape[1]) < lengths[:, None])
