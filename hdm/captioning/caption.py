"""Give every kept picture its captions, from one maker or several in order."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hdm import parts
from hdm.caption_text.cleaning import normal_caption
from hdm.captioning.makers import CoCa, Given, Item, Maker, Template, no_coca
from hdm.captioning.settings import CaptionMaker, Pipeline
from hdm.captioning.vision_language import VisionLanguage
from hdm.closing import Closing
from hdm.data.shards import ImageReader
from hdm.data.tables import CAPTIONS, num_shards, read_table, shard_files, shard_name, write_table
from hdm.errors import InputError, raised_by
from hdm.keys import Key
from hdm.models.components import resolve, weights_digest
from hdm.models.contrastive import can_caption, load_contrastive
from hdm.models.devices import check_device, choose_device, quiet_device, stage_batches
from hdm.parts import Folders, Part, Step
from hdm.pictures.decoding import Asked, Decoders, picture_cost, pixels
from hdm.pictures.reading import BadImage
from hdm.progress import Tracker
from hdm.store import Draft, Folder, Identity, Output, Outputs, Store

NAME = "caption"
SCHEMA = 2
LOOK_SIDE_PX = 1024  # larger pictures are reduced, so that a batch of them fits in memory
Place = tuple[int | None, int | None, str | None]
"""Offset and length in the tar, and sha256; None for a picture that can no longer be downloaded."""
_COMPONENTS = {"coca": "contrastive", "transformers": "captioner"}

log = logging.getLogger(__name__)


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the captions depend on: the makers, the models that they use, and which pictures are
    kept.

    Raises:
        InputError: a maker's model is not configured or not on this machine.
    """
    makers = pipeline.caption.makers
    resolved = resolve(pipeline.components)
    weights = {}
    for settings in makers:
        if settings.kind in _COMPONENTS:
            component = _COMPONENTS[settings.kind]
            # Only models that a maker uses: another captioner in `components` must not change these
            # captions.
            weights[component] = weights_digest(resolved.need(component))
    return Identity(NAME, SCHEMA, pipeline.caption.result_fields(), dict(inputs), weights)


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """Report the problems of the stage `caption`: its models and its device."""
    yield from raised_by(
        partial(identify, pipeline, {}),
        partial(check_device, pipeline.caption.device, "caption.device"),
        partial(_coca_is_one, pipeline),
    )


def _coca_is_one(pipeline: Pipeline) -> None:
    contrastive = resolve(pipeline.components).contrastive
    uses_coca = any(maker.kind == "coca" for maker in pipeline.caption.makers)
    if uses_coca and contrastive is not None and not can_caption(contrastive):
        raise no_coca()


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Caption the kept pictures.

    Returns:
        An output of `captions-*.parquet` (CAPTIONS): a picture's captions are consecutive rows, in
        the order of the makers. Pictures without any caption are left out and counted as
        `uncaptioned`.
    """
    step = Captioning(pipeline, inputs["download"], inputs["filter"])
    return parts.make_output(step, store, identity, pipeline.execution)


@dataclass(frozen=True)
class Captioning(Step[int, "_Captioner"]):
    """Caption kept pictures, shard by shard."""

    pipeline: Pipeline
    download: Output
    scores: Output

    what = NAME
    unit = "pictures"

    def plan(self) -> Iterator[Part[int]]:
        for number in range(num_shards(self.download, "samples")):
            kept = self.scores.counts_of(shard_name("scores", number)).get("kept", 0)
            reads = {
                "download": shard_files(number),
                "filter": (shard_name("scores", number),),
            }
            yield Part(number, {NAME: (shard_name("captions", number),)}, kept, reads)

    def open(self) -> _Captioner:
        return _Captioner(self.pipeline, self.download)

    def make_part(self, part: Part[int], folders: Folders, tools: _Captioner, bar: Tracker) -> None:
        kept = kept_items(self.download, self.scores, part.task)
        tools.write_shard(folders[NAME], part.task, kept, bar)

    def finish(self, draft: Draft) -> Mapping[str, Any]:
        _log_counts(draft.counts())
        return {}


def _log_counts(counts: Mapping[str, int]) -> None:
    given = counts.get("captions_given", 0)
    made_up = counts["captions"] - given
    log.info("captions: %d given, %d made up by models or templates", given, made_up)
    if dropped := counts["given_dropped"]:
        log.warning("%d given captions are empty, damaged or equal to another one", dropped)
    if cut := counts["given_cut"]:
        log.warning("%d given captions are longer than caption.max_chars and were cut", cut)
    if uncaptioned := counts["uncaptioned"]:
        log.warning(
            "%d of %d kept pictures have no caption and are not trained on; a further entry in"
            " caption.makers can make them up",
            uncaptioned,
            counts["items"],
        )


def kept_items(download: Output, scores: Output, number: int) -> list[tuple[Item, Place]]:
    """The kept items of a shard in order, with their captions as given and their place."""
    verdicts = read_table(
        scores.file(shard_name("scores", number)), ["key", "kept", "width", "height"]
    ).to_pylist()
    verdict_of = {verdict["key"]: verdict for verdict in verdicts}
    columns = ["key", "source", "captions", "licence", "offset", "bytes", "sha256"]
    items = []
    for sample in read_table(download.file(shard_name("samples", number)), columns).to_pylist():
        # Joined by key: two outputs need not list pictures in the same order.
        verdict = verdict_of.get(sample["key"])
        if verdict is None or not verdict["kept"]:
            continue
        # The size as measured from the pixels, not the one that a header states.
        fields = {
            "source": sample["source"],
            "licence": sample["licence"],
            "width": verdict["width"],
            "height": verdict["height"],
        }
        item = Item(sample["key"], fields, given=tuple(sample["captions"]))
        place = (sample["offset"], sample["bytes"], sample["sha256"])
        items.append((item, place))
    return items


class _Captioner(Closing):
    """Makers, each loaded when the first picture needs it."""

    def __init__(self, pipeline: Pipeline, download: Output) -> None:
        self.pipeline = pipeline
        self.settings = pipeline.caption
        self.reader = ImageReader(download)
        self.batches = stage_batches(
            self.settings.batch_size,
            quiet_device(self.settings.device),
            pipeline.threads,
            "caption.device",
        )
        self.loaded: dict[int, Maker] = {}
        self.decoders = Decoders(pipeline.images, pixels, pipeline.threads)
        self.undecodable: set[Key] = set()

    def close(self) -> None:
        self.decoders.close()
        self.reader.close()

    def write_shard(
        self,
        folder: Folder,
        shard: int,
        kept: list[tuple[Item, Place]],
        bar: Tracker,
    ) -> None:
        """Write the captions of one shard's kept items."""
        items = []
        places = {}
        # Key → caption → maker: of equal captions of a picture only the first is stored.
        captions: dict[Key, dict[str, str]] = {}
        num_given = 0
        num_cut = 0
        for item, place in kept:
            items.append(self._normalised(item))
            places[item.key] = place
            captions[item.key] = {}
            num_given += len(item.given)
            num_cut += sum(map(self._is_cut, item.given))
        for number, settings in enumerate(self.settings.makers):
            # Asked anew for each maker: `missing` means pictures that earlier makers left without a
            # caption.
            lacking = [item for item in items if not captions[item.key]]
            asked = items if settings.when == "always" else lacking
            for item, texts in self._captions_by(number, asked, shard, places):
                for text in texts:
                    if caption := self._normal(text):
                        captions[item.key].setdefault(caption, settings.kind)
        bar.advance(len(items))
        counts = {
            "given_dropped": num_given - sum(len(item.given) for item in items),
            "given_cut": num_cut,
            "undecodable": len(self.undecodable & captions.keys()),
        }
        _write(folder, shard, captions, counts)

    def _captions_by(
        self, number: int, items: list[Item], shard: int, places: Mapping[Key, Place]
    ) -> Iterator[tuple[Item, list[str]]]:
        """One maker's captions of some items."""
        if not items:
            return
        maker = self._maker(number)

        def work(batch: Sequence[Item]) -> list[list[str]]:
            if not maker.looks:
                return maker.captions(batch)
            with_pixels = self._with_pixels(batch, shard, places)
            decoded = [item for item in with_pixels if item is not None]
            # A picture that can no longer be decoded gets no caption here; the rest of the batch
            # does.
            captions = iter(maker.captions(decoded) if decoded else [])
            return [[] if item is None else next(captions) for item in with_pixels]

        for batch, captions in self.batches.run(items, work):
            yield from zip(batch, captions, strict=True)

    def _maker(self, number: int) -> Maker:
        # Loaded when first needed: with `when: missing` a model may never be.
        if number not in self.loaded:
            self.loaded[number] = _build(self.settings.makers[number], self.pipeline)
        return self.loaded[number]

    def _with_pixels(
        self, items: Sequence[Item], shard: int, places: Mapping[Key, Place]
    ) -> list[Item | None]:
        """The items with their pixels; None for one that can no longer be decoded."""

        def request(item: Item) -> Asked:
            place = places[item.key]
            _, num_bytes, _ = place
            return Asked(
                item.key,
                partial(self.reader.read, shard, *place),
                picture_cost(item.fields["width"], item.fields["height"], num_bytes),
                {"reduced_to_px": LOOK_SIDE_PX},
            )

        with_pixels: list[Item | None] = []
        answers = self.decoders.map(request(item) for item in items)
        for item, answer in zip(items, answers, strict=True):
            try:
                with_pixels.append(replace(item, pixels=answer.result().arrays[0]))
            # The filter decoded it, but limits or libraries may have changed since, or it was gone
            # when its shard was downloaded again.
            except BadImage as refusal:
                log.warning("picture %s is not shown to a captioner: %s", item.key, refusal.message)
                self.undecodable.add(item.key)
                with_pixels.append(None)
        return with_pixels

    def _normalised(self, item: Item) -> Item:
        """An item with its given captions normalised and without repetitions."""
        captions = [self._normal(caption) for caption in item.given]
        given = tuple(dict.fromkeys(caption for caption in captions if caption))
        fields = {**item.fields, "given": given[0] if given else None}
        return replace(item, fields=fields, given=given)

    def _is_cut(self, caption: str) -> bool:
        most = self.settings.max_chars
        # Normalising may shorten a caption, so a long one counts only if it stays too long.
        return len(caption) > most and len(normal_caption(caption, len(caption)) or "") > most

    def _normal(self, caption: str | None) -> str | None:
        return normal_caption(caption, self.settings.max_chars)


def _build(settings: CaptionMaker, pipeline: Pipeline) -> Maker:
    resolved = resolve(pipeline.components)
    if settings.kind == "given":
        return Given(settings)
    if settings.kind == "template":
        return Template(settings)
    device = choose_device(pipeline.caption.device, "the captioner")
    if settings.kind == "coca":
        return CoCa(settings, load_contrastive(resolved, device))
    return VisionLanguage(settings, resolved.need("captioner"), device)


def _write(
    folder: Folder,
    shard: int,
    captions: Mapping[Key, Mapping[str, str]],
    given: Mapping[str, int],
) -> None:
    columns: dict[str, list[Any]] = {name: [] for name in CAPTIONS.names}
    by_maker: Counter[str] = Counter()
    uncaptioned = 0
    for key, maker_of in captions.items():
        uncaptioned += not maker_of
        for index, (caption, maker) in enumerate(maker_of.items()):
            columns["key"].append(key)
            columns["index"].append(index)
            columns["maker"].append(maker)
            columns["caption"].append(caption)
            by_maker[f"captions_{maker}"] += 1
    counts = {
        "items": len(captions),
        "captions": by_maker.total(),
        "uncaptioned": uncaptioned,
        **given,
        **dict(sorted(by_maker.items())),
    }
    write_table(folder, shard_name("captions", shard), CAPTIONS, columns, counts)
