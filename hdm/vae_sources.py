"""`hdm vae`: fine-tunes or measures an autoencoder on scenes, or on any local source that a
download can read.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from hdm.acquisition.settings import DownloadSettings
from hdm.bootstrap_sources import SCENES, local_pictures
from hdm.demo.bootstrap import scene_examples
from hdm.errors import InputError
from hdm.files import canonical_json, read_record, write_json
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import VAE, resolve, weights_digest
from hdm.models.contrastive import load_contrastive
from hdm.models.devices import choose_device
from hdm.models.settings import Components
from hdm.pictures.settings import ImageSettings
from hdm.store import Identity, draft_in
from hdm.vae.finetune import Finetuning, Place
from hdm.vae.reconstruction import Features, measure_quality
from hdm.vae.run import RESULT, Pictures, collect, run, starting_model
from hdm.vae.settings import VaeSettings
from hdm.vae.squares import resized

RECORD = "finetune.json"
PLAN = "plan.json"
MAX_PICTURES = 20_000
NUM_SCENES = 8_000
HELD_OUT = 20  # one picture in this many is kept out of training
PROBE_STEPS = 12  # training is timed for

log = logging.getLogger(__name__)


class _Planned(TypedDict):
    num_images: int


def finetune_from(
    source: str,
    out: Path,
    reference: str | None,
    settings: VaeSettings,
    *,
    minutes: float | None = None,
    max_pictures: int | None = None,
    images: ImageSettings = ImageSettings(),
    contrastive: str | None = "demo",
) -> dict[str, Any]:
    """Fine-tune an autoencoder on a source and write it to a folder, as `components.autoencoder`
    takes it.

    Args:
        source: "scenes", or pictures on this machine: a folder, WebDataset tars, a data set.
        out: a new folder, or one where the same command was stopped.
        reference: the autoencoder to start from; None: a new small one.
        settings: how to fine-tune it.
        minutes: approximate training time, instead of `settings.num_images`.
        max_pictures: use only the first N; None: 8,000 scenes, 20,000 others. They are held
            in memory.
        images: how files become RGB.
        contrastive: a folder that `hdm bootstrap` wrote, whose model the Fréchet distance is
            measured with; None: no such distance.

    Returns:
        The content of `finetune.json`: initial model, settings, data with their digest, quality
        before and after.

    Raises:
        InputError: the source or autoencoder is unavailable or does not fit, or `out` holds
            something else.
        SavedOnSignal: stopped by a signal; the same command continues.
    """
    with draft_in(out, Identity(VAE, 1, {}), RECORD) as draft:
        start = {"class": "new"} if reference is None else _start(reference)
        pictures = _pictures(source, settings, max_pictures, images)
        features = _features(contrastive, settings.device)
        data = {
            "source": Path(source).name,
            "train": len(pictures.train),
            "held_out": len(pictures.held_out),
            "sha256": pictures.digest(),
        }
        settings = _planned(draft.scratch / PLAN, reference, pictures, settings, minutes)
        asked = {"start": start, "settings": settings.result_fields(), "data": data}
        digest = hashlib.sha256(canonical_json(asked)).hexdigest()
        place = Place(out, draft.scratch, digest)
        quality = run(reference, pictures, settings, place, features)
        collect(draft, place.scratch / RESULT, settings)
        record = {**asked, "quality": quality, "frechet_features": contrastive}
        draft.publish(RECORD, record)
    return record


def measure_from(
    source: str,
    reference: str,
    settings: VaeSettings,
    *,
    images: ImageSettings = ImageSettings(),
    contrastive: str | None = "demo",
) -> dict[str, float]:
    """Quality of an autoencoder on the first pictures of a source.

    Args:
        settings: `size_px`, `num_measured` and `device` are read.
        source, reference, images, contrastive: as for `finetune_from`.

    Raises:
        InputError: the source or autoencoder is unavailable, or the size does not fit.
    """
    device = choose_device(settings.device, "measuring the autoencoder")
    autoencoder = load_autoencoder(reference, device)
    size_px = settings.size_px
    if size_px % autoencoder.downscale:
        raise InputError(
            f"{size_px} px are no multiple of the autoencoder's downscale {autoencoder.downscale}",
            do="change --size-px",
        )
    pictures = list(islice(_read(source, size_px, images), settings.num_measured))
    if not pictures:
        raise InputError("the source has no picture that can be read", where=source)
    return measure_quality(autoencoder, pictures, size_px, _features(contrastive, settings.device))


def _start(reference: str) -> dict[str, Any]:
    autoencoder = load_autoencoder(reference)
    return {"class": autoencoder.identity["class"], "weights": weights_digest(reference)}


def _read(source: str, size_px: int, images: ImageSettings) -> Iterator[np.ndarray]:
    """Pictures with a shorter side of at most `size_px`."""
    if source == SCENES:
        examples = scene_examples(NUM_SCENES, size_px)
    else:
        examples = local_pictures(DownloadSettings(source=source), images, captioned=False)
    return (resized(example.pixels, size_px, enlarge=False) for example in examples)


def _pictures(
    source: str, settings: VaeSettings, max_pictures: int | None, images: ImageSettings
) -> Pictures:
    readable = _read(source, settings.size_px, images)
    taken = list(islice(readable, max_pictures or MAX_PICTURES))
    if max_pictures is None and next(readable, None) is not None:
        log.warning(
            "only the first %d pictures are used, since they are held in memory; --max-pictures"
            " takes more",
            len(taken),
        )
    # Every n-th, so that a source in some order loses none of its parts.
    kept = [picture for place, picture in enumerate(taken) if place % HELD_OUT]
    return Pictures(kept, taken[::HELD_OUT][: settings.num_measured])


def _features(contrastive: str | None, device: str) -> Features | None:
    if contrastive is None:
        return None
    model = load_contrastive(
        resolve(Components(folder=contrastive)), choose_device(device, "the contrastive model")
    )
    return model.embed_images


def _planned(
    file: Path,
    reference: str | None,
    pictures: Pictures,
    settings: VaeSettings,
    minutes: float | None,
) -> VaeSettings:
    """The settings with as many images as fit into the minutes, estimated from a few steps. This
    happens once: a resumed run keeps its plan.
    """
    if minutes is None:
        return settings
    if not file.exists():
        device = choose_device(settings.device, "a trial of the training")
        images = PROBE_STEPS * settings.batch_size
        probe = settings.model_copy(update={"num_images": images})
        # The trial writes its checkpoints elsewhere and is thrown away.
        aside = file.parent / "probe"
        training = Finetuning(
            starting_model(reference, settings, device),
            pictures.train,
            probe,
            Place(aside, aside, ""),
        )
        start = time.perf_counter()
        training.run()
        seconds = time.perf_counter() - start
        shutil.rmtree(aside)
        write_json(
            file, {"num_images": max(settings.batch_size, round(60 * minutes / seconds * images))}
        )
    do = f"remove {file.parent} and run the command again: it starts anew"
    planned = read_record(file, _Planned, do)["num_images"]
    log.info("%d images in about %g minutes", planned, minutes)
    return settings.model_copy(update={"num_images": planned})
