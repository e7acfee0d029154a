"""Write placeholder inputs of one training phase with the shapes of the real ones, so that training
can be measured before they exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hdm.config import Pipeline
from hdm.data.captions import EMPTY_TEXT, TEXT, text_metadata
from hdm.data.latent_files import LatentFormat, LatentWriter, latent_file_name
from hdm.data.pages import paged_writer
from hdm.data.tables import CAPTIONS, SCORES, TOKENS, write_table
from hdm.keys import key_text
from hdm.models.components import resolve
from hdm.models.vision import vision_sizes
from hdm.store import Identity, Output, Store
from hdm.training.settings import Phase

Rows = dict[str, Sequence[Any]]
# Noise and empty captions: time and memory of a step depend on shapes alone.
NUM_PICTURES = 64
KEYS = [key_text(number) for number in range(NUM_PICTURES)]


@dataclass(frozen=True)
class Rehearsal:
    """Writes the inputs of a phase into its own store.

    Args:
        store: an empty store.
        pipeline, phase: as configured.
        downscale: of the autoencoder.
    """

    store: Store
    pipeline: Pipeline
    phase: Phase
    downscale: int

    @property
    def num_tokens(self) -> int:
        """Tokens of every caption: the maximum."""
        return self.phase.max_tokens or self.pipeline.encode.max_tokens

    def inputs(self) -> dict[str, Output]:
        """The inputs by name, as training needs them."""
        filter = self._filter()
        captions = self._captions()
        tokens = self._tokens(captions)
        outputs = [filter, captions, tokens, self._latents(filter)]
        outputs += [self._text(tokens)] if self.pipeline.encode.text_embeddings else []
        outputs += [self._features(filter)] if self.pipeline.train.align_weight else []
        return {output.name: output for output in outputs}

    def _table(
        self, identity: Identity, name: str, schema: pa.Schema, rows: Rows, **summary: Any
    ) -> Output:
        with self.store.draft(identity) as draft:
            write_table(draft, name, schema, rows, {})
            return draft.commit(summary)

    def _filter(self) -> Output:
        # Training reads only the columns below; the table has to have all of them.
        rows: Rows = {name: [None] * NUM_PICTURES for name in SCORES.names}
        rows |= {
            "key": KEYS,
            "decoded": ["ok"] * NUM_PICTURES,
            "kept": [True] * NUM_PICTURES,
            "split": ["train"] * NUM_PICTURES,
        }
        return self._table(Identity("filter", 1, {}), "scores-00000.parquet", SCORES, rows)

    def _captions(self) -> Output:
        rows: Rows = {
            "key": KEYS,
            "index": [0] * NUM_PICTURES,
            "maker": ["given"] * NUM_PICTURES,
            "caption": [""] * NUM_PICTURES,
        }
        return self._table(Identity("caption", 1, {}), "captions-00000.parquet", CAPTIONS, rows)

    def _tokens(self, captions: Output) -> Output:
        identity = Identity(
            "encode.tokens", 1, {"max_tokens": self.num_tokens}, {"caption": captions.digest}
        )
        rows: Rows = {
            "key": KEYS,
            "index": [0] * NUM_PICTURES,
            "token_ids": [[1] * self.num_tokens] * NUM_PICTURES,
        }
        return self._table(identity, "tokens-00000.parquet", TOKENS, rows, empty=[0], pad_id=0)

    def _latents(self, filter: Output) -> Output:
        side = self.phase.resolution // self.downscale
        channels = self.pipeline.train.model.channels
        statistics = {
            "class": "made up",
            "weights": "",
            "scale": [1.0] * channels,
            "shift": [0.0] * channels,
        }
        form = LatentFormat(
            channels,
            side,
            side,
            self.pipeline.encode.dtype,
            self.phase.resolution,
            self.downscale,
            statistics,
        )
        return self._grids(f"encode.{self.phase.name}", filter, form)

    def _features(self, filter: Output) -> Output:
        width, patch_size = vision_sizes(resolve(self.pipeline.components).need("vision"))
        size_px = self.pipeline.encode.features_px
        side = size_px // patch_size
        return self._grids(
            "encode.features",
            filter,
            LatentFormat(width, side, side, "float16", size_px, patch_size, {"class": "made up"}),
        )

    def _grids(self, name: str, filter: Output, form: LatentFormat) -> Output:
        """A square of noise for each picture."""
        grid = torch.randn(
            NUM_PICTURES,
            form.channels,
            form.height,
            form.width,
            generator=torch.Generator().manual_seed(0),
        )
        with self.store.draft(Identity(name, 1, {}, {"filter": filter.digest})) as draft:
            path = latent_file_name(form.height, form.width, 0)
            with draft.write(path) as file, LatentWriter(file.path, form, NUM_PICTURES) as writer:
                writer.add(KEYS, grid, [(form.resolution, form.resolution)] * NUM_PICTURES)
            return draft.commit()

    def _text(self, tokens: Output) -> Output:
        with self.store.draft(
            Identity("encode.text", 1, {}, {"encode.tokens": tokens.digest})
        ) as draft:
            # The captions' embeddings, and that of the empty text, which dropped captions take.
            for name, keys, length in (
                ("text-00000.parquet", KEYS, self.num_tokens),
                (EMPTY_TEXT, [""], 1),
            ):
                width = self.pipeline.train.model.text_width
                embedding = (
                    np.random.default_rng(0)
                    .standard_normal((length, width))
                    .astype(np.float16)
                    .tobytes()
                )
                rows = {
                    "key": keys,
                    "index": [0] * len(keys),
                    "length": [length] * len(keys),
                    "embedding": [embedding] * len(keys),
                }
                with (
                    draft.write(name) as file,
                    paged_writer(file.path, TEXT, text_metadata(width, {})) as writer,
                ):
                    writer.write_table(pa.table(rows).cast(TEXT))
            return draft.commit()
