"""`hdm bootstrap`: trains small components on scenes, or on any local source that a download can
read.
"""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hdm.acquisition.inventory import Inventory, summary_lines
from hdm.acquisition.items import Unreadable, Url
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from hdm.bootstrap.bootstrapping import bootstrap
from hdm.bootstrap.examples import Example
from hdm.bootstrap.settings import BootstrapSettings
from hdm.demo.bootstrap import SceneQuality, scene_examples
from hdm.errors import InputError
from hdm.pictures.decoding import Asked, Decoders, pixels
from hdm.pictures.reading import BadImage
from hdm.pictures.settings import ImageSettings
from hdm.pipelines import source_settings

SCENES = "scenes"
NUM_SCENES = 12_000
SCENES_MEASURED = 400

log = logging.getLogger(__name__)


def bootstrap_from(
    source: str,
    out: Path,
    settings: BootstrapSettings = BootstrapSettings(),
    given: Mapping[str, Any] = MappingProxyType({}),
    *,
    overrides: Sequence[str] = (),
    begun: float | None = None,
) -> dict[str, Any]:
    """Train tokenizer, language model, autoencoder, CoCa and quality head on a source, and write
    them to a folder.

    Args:
        source: "scenes", or captioned pictures on this machine: a folder, WebDataset tars, a data
            set.
        out: a new folder, or one where the same call was stopped or killed.
        settings: how to train; without `max_pictures`, all pictures are used, or 12,000 scenes.
        given: settings of the source by name, as {"download.encoding": "cp1251"}.
        overrides: the same as text, as `download.encoding=cp1251`; `given` comes before them.
        begun: when the minutes began, on the clock of `time.monotonic`; None: now.

    Returns:
        What `components.json` holds: components, recipe, measured quality, and every file's size
        and sha256.

    Raises:
        InputError: the source is missing, is to be fetched, or has too few captioned pictures; or
            `out` holds something.
        SavedOnSignal: SIGTERM or Ctrl-C arrived; the same call continues.
    """
    options = settings.model_dump()
    if source == SCENES:
        # How many there are is part of the scenes; all are used.
        number = options.pop("max_pictures") or NUM_SCENES
        return bootstrap(
            scene_examples(number, settings.size_px),
            out,
            source=source,
            check=partial(SceneQuality, count=SCENES_MEASURED),
            begun=begun,
            **options,
        )
    written = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    pipeline = source_settings([*overrides, *written, f"download.source={json.dumps(source)}"])
    examples = local_pictures(pipeline.download, pipeline.images)
    return bootstrap(examples, out, source=Path(source).name, begun=begun, **options)


def local_pictures(
    settings: DownloadSettings, images: ImageSettings, captioned: bool = True
) -> Iterator[Example]:
    """The readable pictures of a local source. The numbers of unreadable ones and of those without
    a caption are logged at the end.

    Args:
        settings: the source and its captions.
        images: how files become RGB.
        captioned: leave out pictures without a caption; otherwise their caption is empty.

    Raises:
        InputError: the source is a list of URLs, or more than `max_lost_captions` of its captions
            do not arrive.
    """
    _, reader = open_source(settings.source, settings.kind, settings)
    if reader.fetched:
        raise InputError(
            "pictures on this machine are read here, not URLs",
            where=settings.source,
            do="download them first, or name a folder",
        )
    left_out: Counter[str] = Counter()
    inventory = Inventory()
    # Captions in the order of the requests, which is that of the answers.
    waiting: deque[tuple[str, ...]] = deque()

    def asked() -> Iterator[Asked]:
        for item in reader.items(inventory):
            inventory.arrived(item)
            # Checked as they arrive, so that lost captions stop the command before it trains.
            if captioned:
                inventory.check(settings.max_lost_captions, settings.source)
            if item.load is None or (captioned and not item.captions):
                left_out["without a caption" if captioned else "unreadable"] += 1
                continue
            try:
                data = item.load()  # here: its bytes can only be had before the next item is taken
                if isinstance(data, Url):
                    raise Unreadable(
                        "on_the_web", "pictures on this machine are read here, not URLs"
                    )
            except Unreadable as error:
                left_out[error.status] += 1
                continue
            waiting.append(item.captions)
            yield Asked(item.key, partial(bytes, data), len(data))

    try:
        with Decoders(images, pixels) as decoders:
            # One more than there are processes: all are busy while the caller uses a picture.
            for answer in decoders.map(asked(), ahead=decoders.count + 1):
                captions = waiting.popleft()
                try:
                    yield Example(captions, answer.result().arrays[0])
                except BadImage as error:
                    left_out[error.status] += 1
        if captioned:
            inventory.check(settings.max_lost_captions, settings.source)
        for line in summary_lines(inventory.to_json()):
            log.info("%s", line)
    finally:  # also where the caller takes only the first pictures
        if left_out:
            log.warning(
                "left out: %s",
                ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()),
            )
