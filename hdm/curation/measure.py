"""Measure every downloaded picture once: size, sharpness, noise, fingerprint, embedding, scores. What to keep is decided elsewhere."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hdm.config import Pipeline
from hdm.curation.fingerprints import RECORD
from hdm.curation.look import look as look_at
from hdm.data.decoding import Answer, Asked, Decoders, picture_cost
from hdm.data.images import BadImage
from hdm.data.shards import ImageReader
from hdm.data.tables import MEASURES, num_shards, read_table, read_tables, shard_name, write_table
from hdm.data.wording import normal_caption
from hdm.models.aesthetic import AestheticHead, check_head, load_aesthetic_head
from hdm.models.components import resolve, weights_digest
from hdm.models.contrastive import Contrastive, load_contrastive
from hdm.models.devices import choose_device, stage_batches
from hdm.progress import Tracker, track
from hdm.store import Draft, Identity, Output, Store

log = logging.getLogger(__name__)

SCHEMA = 4


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the measures depend on: the download, how pictures are decoded, and the models that score them. No threshold.

    Raises:
        ConfigError: an aesthetic head without the contrastive model that it was trained for.
        InputError: a model is not on this machine.
    """
    resolved = resolve(pipeline.components)
    check_head(resolved)
    models = {"contrastive": resolved.contrastive, "aesthetic_head": resolved.aesthetic_head}
    named = resolved.aesthetic_head_activation
    activation = {} if named is None else {"aesthetic_head_activation": named}
    weights = {name: weights_digest(reference) for name, reference in models.items() if reference}
    return Identity(
        "filter.measures",
        SCHEMA,
        {"images": pipeline.images.result_fields(), **activation},
        dict(inputs),
        weights,
    )


def make(
    pipeline: Pipeline, identity: Identity, inputs: Mapping[str, Output], store: Store
) -> Output:
    """Measure every item that was downloaded.

    Returns:
        An output of `measures-*.parquet` (MEASURES) and, where there is a contrastive model, `embeddings-*.parquet`: key and
        unit embedding (float16) of every picture that can be decoded.
    """
    download = inputs["download"]
    with store.draft(identity) as draft:
        shards = num_shards(download, "samples")
        missing = [
            number
            for number in range(shards)
            if not all(map(draft.has, _file_names(number, identity)))
        ]
        if missing:
            total = sum(_num_items(download, number) for number in missing)
            with (
                _Measurer(pipeline, download) as measurer,
                track("measure", total, "pictures") as bar,
            ):
                for number in missing:
                    measurer.write_shard(draft, number, bar)
        output = draft.commit()
    if cut := output.counts.get("captions_cut", 0):
        log.warning(
            "%d given captions are longer than the contrastive model reads; their similarity is that of their beginnings",
            cut,
        )
    return output


def read_fingerprints(measures: Output) -> np.ndarray:
    """The fingerprints of all decodable pictures in order: (N,) RECORD."""
    parts = [np.zeros(0, RECORD)]
    for number in range(num_shards(measures, "measures")):
        path = measures.file(shard_name("measures", number))
        column = read_table(path, ["fingerprint"]).column("fingerprint").drop_null()
        parts.append(np.frombuffer(b"".join(column.to_pylist()), RECORD))
    return np.concatenate(parts)


def read_embeddings(measures: Output) -> tuple[list[str], np.ndarray]:
    """Keys and embeddings, (N, E) float32 of unit length up to 16-bit rounding, of all decodable pictures in order.

    An output made without a contrastive model gives ([], an array of shape (0, 0)).
    """
    if not num_shards(measures, "embeddings"):
        return [], np.zeros((0, 0), np.float32)
    table = read_tables(measures, "embeddings").combine_chunks()
    width = table.schema.field("embedding").type.byte_width // 2
    vectors = np.frombuffer(b"".join(table.column("embedding").to_pylist()), "<f2").reshape(
        -1, width
    )
    return table.column("key").to_pylist(), vectors.astype(np.float32)


def _file_names(number: int, identity: Identity) -> list[str]:
    kinds = ["measures", "embeddings"] if "contrastive" in identity.weights else ["measures"]
    return [shard_name(kind, number) for kind in kinds]


def _num_items(download: Output, number: int) -> int:
    statuses = (
        read_table(download.file(shard_name("samples", number)), ["status"])
        .column("status")
        .to_pylist()
    )
    return statuses.count("ok")


@dataclass
class _Look:
    """One picture: its row of MEASURES, its captions, and, while it waits for its embedding, its pixels."""

    row: dict[str, Any]
    captions: list[str]
    picture: np.ndarray | None
    embedding: bytes | None = None
    num_cut: int = 0


def _look(item: Mapping[str, Any], answer: Future[Answer]) -> _Look:
    captions = [text for text in map(normal_caption, item["captions"]) if text]
    try:
        found = answer.result()
    except BadImage as refusal:
        return _Look({"key": item["key"], "decoded": refusal.status}, captions, None)
    row = {"key": item["key"], "decoded": "ok", **found.facts}
    row["fingerprint"] = bytes.fromhex(row["fingerprint"])
    return _Look(row, captions, found.arrays[0] if found.arrays else None)


class _Measurer:
    """Reads, decodes and measures in processes, ahead of the models."""

    def __init__(self, pipeline: Pipeline, download: Output) -> None:
        self.download, self.reader = download, ImageReader(download)
        self.batch_size = pipeline.filter.batch_size
        self.contrastive, self.head = _load_models(pipeline)
        device = self.contrastive.device if self.contrastive else "cpu"
        self.batches = stage_batches(self.batch_size, device, pipeline.threads, "filter.device")
        self.decoders = Decoders(pipeline.images, look_at, pipeline.threads)

    def __enter__(self) -> _Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.decoders.__exit__(None, None, None)
        self.reader.close()

    def write_shard(self, draft: Draft, number: int, bar: Tracker) -> None:
        """Write the tables of one shard of the download."""
        looks: list[_Look] = []
        for batch in self._batches(number):
            self._embed([look for look in batch if look.picture is not None])
            looks += batch
            bar.advance(len(batch))
        rows = {name: [look.row.get(name) for look in looks] for name in MEASURES.names}
        found = Counter(look.row["decoded"] for look in looks)
        decoded = found.pop("ok", 0)
        if self.contrastive:
            _write_embeddings(
                draft,
                number,
                self.contrastive.embed_size,
                [look for look in looks if look.embedding],
            )
        refused = {f"undecodable_{status}": count for status, count in sorted(found.items())}
        counts = {
            "items": len(looks),
            "decoded": decoded,
            "undecodable": len(looks) - decoded,
            "captions_cut": sum(look.num_cut for look in looks),
            **refused,
        }
        write_table(draft, shard_name("measures", number), MEASURES, rows, counts)

    def _batches(self, number: int) -> Iterator[list[_Look]]:
        columns = ["key", "status", "captions", "sha256", "offset", "bytes", "width", "height"]
        samples = read_table(self.download.file(shard_name("samples", number)), columns).to_pylist()
        items = [sample for sample in samples if sample["status"] == "ok"]
        asked = (self._asked(number, item) for item in items)
        # One batch waits for the models while the next one is decoded.
        answers = self.decoders.map(asked, ahead=2 * self.batch_size)
        looks = (_look(item, answer) for item, answer in zip(items, answers, strict=True))
        while batch := list(islice(looks, self.batch_size)):
            yield batch

    def _asked(self, number: int, item: Mapping[str, Any]) -> Asked:
        place = (number, item["offset"], item["bytes"], item["sha256"])
        return Asked(
            item["key"],
            partial(self.reader.read, *place),
            picture_cost(item["width"], item["height"], item["bytes"]),
            {"keep_pixels": self.contrastive is not None},
        )

    def _embed(self, looks: list[_Look]) -> None:
        """Fill in what the contrastive model says, and let go of the pixels."""
        if self.contrastive:
            for batch, embeddings in self.batches.run(looks, self._embeddings):
                self._score(batch, embeddings)
        for look in looks:
            look.picture = None

    def _embeddings(self, looks: Sequence[_Look]) -> np.ndarray:
        assert self.contrastive is not None
        return self.contrastive.embed_images(
            [look.picture for look in looks if look.picture is not None]
        )

    def _score(self, looks: Sequence[_Look], embeddings: np.ndarray) -> None:
        assert self.contrastive is not None
        owners = [number for number, look in enumerate(looks) for _ in look.captions]
        captions = [caption for look in looks for caption in look.captions]
        texts = self.contrastive.embed_texts(captions)
        similarities = (embeddings[owners] * texts).sum(axis=1)
        for number, similarity in zip(owners, similarities, strict=True):
            row = looks[number].row
            row["clip_similarity"] = max(similarity, row.get("clip_similarity", similarity))
        for number, cut in zip(owners, self.contrastive.are_cut(captions), strict=True):
            looks[number].num_cut += cut
        if self.head:
            for look, score in zip(looks, self.head(embeddings), strict=True):
                look.row["aesthetic"] = score
        for look, embedding in zip(looks, embeddings.astype("<f2"), strict=True):
            look.embedding = embedding.tobytes()


def _load_models(pipeline: Pipeline) -> tuple[Contrastive | None, AestheticHead | None]:
    resolved = resolve(pipeline.components)
    if not resolved.contrastive:
        return None, None
    contrastive = load_contrastive(
        resolved, choose_device(pipeline.filter.device, "the contrastive model")
    )
    if not resolved.aesthetic_head:
        return contrastive, None
    return contrastive, load_aesthetic_head(
        resolved.aesthetic_head, resolved.aesthetic_head_activation
    )


def _write_embeddings(draft: Draft, number: int, width: int, looks: Sequence[_Look]) -> None:
    schema = pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("embedding", pa.binary(width * 2), nullable=False),
        ]
    )
    columns = [[look.row["key"] for look in looks], [look.embedding for look in looks]]
    table = pa.table(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)],
        schema=schema,
    )
    with draft.write(shard_name("embeddings", number)) as file:
        # Vectors do not compress, and stored plain they can be read where they lie.
        pq.write_table(
            table, file.path, compression="none", use_dictionary=False, write_page_checksum=True
        )
        file.counts["embeddings"] = len(looks)
