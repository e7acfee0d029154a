"""Measure every downloaded picture once: size, sharpness, noise, fingerprint, embedding, scores. What to keep is decided elsewhere."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hdm.config import ImageSettings, Pipeline
from hdm.curation.fingerprints import fingerprint
from hdm.curation.quality import noise, sharpness, to_grey
from hdm.data.images import BadImage, decode
from hdm.data.shards import ImageReader
from hdm.data.tables import MEASURES, num_shards, read_table, read_tables, shard_name, write_table
from hdm.data.wording import normal_caption
from hdm.errors import ConfigError, DamagedError
from hdm.models.components import resolve, weights_digest
from hdm.models.contrastive import AestheticHead, Contrastive, load_aesthetic_head, load_contrastive
from hdm.models.devices import Batches, choose_device
from hdm.progress import Tracker, track
from hdm.store import Draft, Identity, Output, Store

log = logging.getLogger(__name__)

SCHEMA = 3
EMBED_SIDE_PX = 768  # no contrastive model looks closer; larger pictures wait for theirs reduced


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the measures depend on: the download, how pictures are decoded, and the models that score them. No threshold.

    Raises:
        ConfigError: an aesthetic head without a contrastive model.
        InputError: a model is not on this machine.
    """
    resolved = resolve(pipeline.components)
    if resolved.aesthetic_head and not resolved.contrastive:
        raise ConfigError(
            "components.aesthetic_head scores the embeddings of components.contrastive, which is not set",
            do="name the contrastive model that the head was trained for, or leave the head out",
        )
    models = {"contrastive": resolved.contrastive, "aesthetic_head": resolved.aesthetic_head}
    weights = {name: weights_digest(reference) for name, reference in models.items() if reference}
    return Identity(
        "filter.measures",
        SCHEMA,
        {"images": pipeline.images.result_fields()},
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


def _look(data: bytes, key: str, captions: list[str], settings: ImageSettings) -> _Look:
    """Everything that pixels alone say."""
    try:
        pixels = decode(data, settings).pixels
    except BadImage as error:
        return _Look({"key": key, "decoded": error.status}, captions, None)
    grey = to_grey(pixels)
    row = {
        "key": key,
        "decoded": "ok",
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "sharpness": sharpness(grey),
        "noise": noise(grey),
        **asdict(fingerprint(pixels)),
    }
    return _Look(row, captions, _reduced(pixels))


def _reduced(pixels: np.ndarray) -> np.ndarray:
    factor = min(pixels.shape[:2]) // EMBED_SIDE_PX
    return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels


class _Measurer:
    """Reads and decodes in threads, one batch ahead of the models."""

    def __init__(self, pipeline: Pipeline, download: Output) -> None:
        self.images, self.download, self.reader = pipeline.images, download, ImageReader(download)
        self.batches = Batches(pipeline.filter.batch_size, "filter.device")
        self.batch_size = pipeline.filter.batch_size
        self.contrastive, self.head = _load_models(pipeline)
        self.threads = ThreadPoolExecutor(
            pipeline.threads or os.cpu_count(), thread_name_prefix="measure"
        )

    def __enter__(self) -> _Measurer:
        return self

    def __exit__(self, *_: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        self.reader.close()

    def write_shard(self, draft: Draft, number: int, bar: Tracker) -> None:
        """Write the tables of one shard of the download."""
        looks: list[_Look] = []
        for batch in self._batches(number):
            self._embed([look for look in batch if look.picture is not None])
            looks += batch
            bar.advance(len(batch))
        rows = {name: [look.row.get(name) for look in looks] for name in MEASURES.names}
        decoded = sum(look.row["decoded"] == "ok" for look in looks)
        if self.contrastive:
            _write_embeddings(
                draft,
                number,
                self.contrastive.embed_size,
                [look for look in looks if look.embedding],
            )
        counts = {
            "items": len(looks),
            "decoded": decoded,
            "undecodable": len(looks) - decoded,
            "captions_cut": sum(look.num_cut for look in looks),
        }
        write_table(draft, shard_name("measures", number), MEASURES, rows, counts)

    def _batches(self, number: int) -> Iterator[list[_Look]]:
        columns = ["key", "status", "captions", "sha256", "offset", "bytes"]
        samples = read_table(self.download.file(shard_name("samples", number)), columns).to_pylist()
        items = [sample for sample in samples if sample["status"] == "ok"]
        ahead: list[Future[_Look]] = []
        for start in range(0, len(items), self.batch_size):
            submitted = [
                self.threads.submit(self._read, number, item)
                for item in items[start : start + self.batch_size]
            ]
            if ahead:
                yield [future.result() for future in ahead]
            ahead = submitted
        if ahead:
            yield [future.result() for future in ahead]

    def _read(self, number: int, item: Mapping[str, Any]) -> _Look:
        data = self.reader.read(number, item["offset"], item["bytes"])
        if hashlib.sha256(data).hexdigest() != item["sha256"]:
            tar = self.download.path / shard_name("images", number, "tar")
            raise DamagedError(
                f"the bytes of picture {item['key']} are not what was downloaded",
                where=tar,
                do="run the same command again",
            )
        captions = [text for text in map(normal_caption, item["captions"]) if text]
        return _look(data, item["key"], captions, self.images)

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
    return contrastive, load_aesthetic_head(
        resolved.aesthetic_head
    ) if resolved.aesthetic_head else None


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
