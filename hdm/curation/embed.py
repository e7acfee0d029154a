"""The contrastive model's embedding of every picture, and its similarity to its captions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdm.curation.downloaded import Picture
from hdm.curation.looking import Look
from hdm.curation.settings import Pipeline
from hdm.data.tables import SIMILARITIES, num_shards, read_tables, shard_name, write_table
from hdm.keys import FIELD, Key
from hdm.models.components import resolve, weights_digest
from hdm.models.contrastive import Contrastive, load_contrastive
from hdm.models.devices import Batches, choose_device, stage_batches
from hdm.store import Folder, Identity, Output

log = logging.getLogger(__name__)

NAME = "filter.contrastive"
SCHEMA = 1
NUMBER = np.dtype("<f4")
"""Stored embeddings have 32 bits, so that scores computed from them equal those computed from the
model's own.
"""


class Embeddings(Look):
    """Similarities in `contrastive-*.parquet` (SIMILARITIES); key and unit embedding (float32) of
    every picture that can be decoded in `embeddings-*.parquet`.
    """

    name = NAME
    what = "embed"
    kinds = ("contrastive", "embeddings")

    def identify(self, pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
        """What embeddings depend on: the download, how pictures are decoded, and the model.

        Raises:
            InputError: the model is not named, or not on this machine.
        """
        model = resolve(pipeline.components).need("contrastive")
        return Identity(
            NAME,
            SCHEMA,
            {"images": pipeline.images.result_fields()},
            dict(inputs),
            {"contrastive": weights_digest(model)},
        )

    def load(self, pipeline: Pipeline) -> _Embedder:
        device = choose_device(pipeline.filter.device, "the contrastive model")
        model = load_contrastive(resolve(pipeline.components), device)
        size = pipeline.filter.batch_size
        return _Embedder(
            model, stage_batches(size, model.device, pipeline.threads, "filter.device")
        )

    def tell(self, counts: Mapping[str, int]) -> None:
        if cut := counts.get("captions_cut", 0):
            log.warning(
                "%d given captions are longer than the contrastive model reads; "
                "their similarity is that of their beginnings",
                cut,
            )


def read_embeddings(output: Output) -> tuple[list[Key], np.ndarray]:
    """Keys and embeddings of all decodable pictures in order.

    Returns:
        N keys, and (N, E) float32 of unit length.
    """
    if not num_shards(output, "embeddings"):
        return [], np.zeros((0, 0), np.float32)
    return vectors_in(read_tables(output, "embeddings"))


def vectors_in(table: pa.Table) -> tuple[list[Key], np.ndarray]:
    """Keys and embeddings of one table of embeddings, in order: N keys, and (N, E) float32."""
    width = table.schema.field("embedding").type.byte_width // NUMBER.itemsize
    numbers = np.frombuffer(b"".join(table.column("embedding").to_pylist()), NUMBER)
    return table.column("key").to_pylist(), numbers.reshape(-1, width)


@dataclass
class _Result:
    """The model's result for one picture; similarity is None without a caption."""

    embedding: bytes
    similarity: float | None = None
    num_cut: int = 0


@dataclass(frozen=True)
class _Embedder:
    model: Contrastive
    batches: Batches

    def note(self, batch: Sequence[Picture]) -> Mapping[Key, _Result]:
        decoded = [picture for picture in batch if picture.pixels is not None]
        results: dict[Key, _Result] = {}
        # Only the images: a batch of them is halved where it does not fit on the device.
        for part, embeddings in self.batches.run(decoded, self._embed):
            results |= _compare(self.model, part, embeddings)
        return results

    def _embed(self, pictures: Sequence[Picture]) -> np.ndarray:
        return self.model.embed_images([one.pixels for one in pictures if one.pixels is not None])

    def write(
        self, folder: Folder, number: int, pictures: Sequence[Picture], noted: Mapping[Key, _Result]
    ) -> None:
        _write_similarities(folder, number, pictures, noted)
        _write_embeddings(folder, number, self.model.embed_size, noted)


def _compare(
    model: Contrastive, pictures: Sequence[Picture], embeddings: np.ndarray
) -> dict[Key, _Result]:
    """Compare each picture with its captions; the most similar caption counts."""
    results = {}
    owners: list[Key] = []
    rows: list[int] = []
    captions: list[str] = []
    for row, picture in enumerate(pictures):
        results[picture.key] = _Result(embeddings[row].astype(NUMBER).tobytes())
        owners += [picture.key] * len(picture.captions)
        rows += [row] * len(picture.captions)
        captions += picture.captions
    # All captions of the batch in one call of the model.
    similarities = (embeddings[rows] * model.embed_texts(captions)).sum(axis=1)
    for key, similarity in zip(owners, similarities.tolist(), strict=True):
        best = results[key].similarity
        results[key].similarity = similarity if best is None else max(best, similarity)
    for key, is_cut in zip(owners, model.are_cut(captions), strict=True):
        results[key].num_cut += is_cut
    return results


def _write_similarities(
    folder: Folder, number: int, pictures: Sequence[Picture], results: Mapping[Key, _Result]
) -> None:
    similarities = []
    for picture in pictures:
        result = results.get(picture.key)  # none, where the pixels cannot be had
        similarities.append(result.similarity if result is not None else None)
    rows: dict[str, Sequence[Any]] = {
        "key": [picture.key for picture in pictures],
        "decoded": [picture.decoded for picture in pictures],
        "clip_similarity": similarities,
    }
    cut = sum(result.num_cut for result in results.values())
    counts = {"items": len(pictures), "captions_cut": cut}
    write_table(folder, shard_name("contrastive", number), SIMILARITIES, rows, counts)


def _write_embeddings(
    folder: Folder, number: int, width: int, results: Mapping[Key, _Result]
) -> None:
    vector = pa.binary(width * NUMBER.itemsize)
    schema = pa.schema([FIELD, pa.field("embedding", vector, nullable=False)])
    keys = pa.array(list(results), pa.string())
    vectors = pa.array([result.embedding for result in results.values()], vector)
    # Vectors as bytes of fixed width: pyarrow takes many times as long to read lists of floats.
    table = pa.table([keys, vectors], schema=schema)
    with folder.write(shard_name("embeddings", number)) as file:
        # Vectors do not compress, and uncompressed ones can be read in place.
        pq.write_table(
            table, file.path, compression="none", use_dictionary=False, write_page_checksum=True
        )
        file.counts["embeddings"] = len(results)
