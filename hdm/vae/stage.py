"""The optional stage `vae`: fine-tune the autoencoder on the kept training pictures and measure it
on those kept out of training.

autoencoder/config.json, autoencoder/diffusion_pytorch_model.safetensors    as diffusers writes them
metrics.jsonl                                                                the losses
quality.json                                                                 before and after
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from functools import partial

import torch

from hdm.errors import ConfigError, InputError, raised_by
from hdm.models.autoencoder import CONFIG, pipeline_latent_shape
from hdm.models.components import AUTOENCODER_FOLDER, VAE, resolve, weights_digest
from hdm.models.contrastive import load_contrastive
from hdm.models.devices import check_device, cpu_threads
from hdm.pictures.decoding import Decoders, pixels
from hdm.store import Identity, Output, Outputs, Store
from hdm.training.process.job import METRICS
from hdm.training.state.optimizers import check_packages
from hdm.vae.finetune import Place
from hdm.vae.kept import KeptPictures, held_out_pictures
from hdm.vae.perceptual import check_perceptual
from hdm.vae.reconstruction import Features
from hdm.vae.run import RESULT, WEIGHTS, Pictures, check_counts, check_squares, collect, run
from hdm.vae.settings import Pipeline, VaeSettings

SCHEMA = 1
QUALITY = "quality.json"
FILES = (f"{AUTOENCODER_FOLDER}/{CONFIG}", f"{AUTOENCODER_FOLDER}/{WEIGHTS}", METRICS, QUALITY)

log = logging.getLogger(__name__)


def identify(pipeline: Pipeline, inputs: Mapping[str, str]) -> Identity:
    """What the fine-tuned autoencoder depends on: settings, pictures, the one that it starts from,
    and what measures it.

    Raises:
        InputError: a model is not on this machine.
    """
    components = resolve(pipeline.components)
    settings = _settings(pipeline)
    weights = (
        {} if settings.scratch else {"autoencoder": weights_digest(components.need("autoencoder"))}
    )
    if components.contrastive:
        # The embeddings measure the quality, which is part of the output.
        weights["contrastive"] = weights_digest(components.contrastive)
    return Identity(
        VAE,
        SCHEMA,
        {**settings.result_fields(), "images": pipeline.images.result_fields()},
        dict(inputs),
        weights,
    )


def preflight(pipeline: Pipeline, made: Outputs) -> Iterator[InputError]:
    """Report the problems of the stage `vae`."""
    settings = _settings(pipeline)
    yield from raised_by(
        partial(identify, pipeline, {}),
        partial(check_device, settings.device, "vae.device"),
        partial(check_packages, settings.optimizer, "vae.optimizer.state_bits"),
        partial(_squares_fit, pipeline),
    )
    if settings.perceptual_weight:
        yield from raised_by(check_perceptual)
    if "filter" in made:
        counts = made["filter"].counts
        # `held_out_pictures` makes the same choice.
        unseen = counts["held_out"] or counts["validation"]
        yield from raised_by(partial(check_counts, counts["train"], unseen))


def _squares_fit(pipeline: Pipeline) -> None:
    shape = pipeline_latent_shape(pipeline)
    if shape is not None:
        check_squares(_settings(pipeline).size_px, shape.downscale)


def make(pipeline: Pipeline, identity: Identity, inputs: Outputs, store: Store) -> Output:
    """Fine-tune, measure and commit.

    Returns:
        The output; its summary holds the quality before and after.

    Raises:
        SavedOnSignal: stopped by SIGTERM or Ctrl-C; run again to go on.
        InputError: too few pictures, or squares that do not fit the autoencoder.
    """
    settings = _settings(pipeline)
    download = inputs["download"]
    filter = inputs["filter"]
    reference = None if settings.scratch else resolve(pipeline.components).need("autoencoder")
    with (
        Decoders(pipeline.images, pixels, pipeline.threads) as decoders,
        store.draft(identity) as draft,
        cpu_threads(pipeline.threads),
    ):
        pictures = Pictures(
            KeptPictures(download, filter, "train", decoders),
            held_out_pictures(download, filter, decoders, settings.num_measured),
        )
        # Every file is there, so only the manifest was lost: nothing has to be trained again.
        if all(map(draft.has, FILES)):
            quality = json.loads((draft.path / QUALITY).read_bytes())
        else:
            if f"{AUTOENCODER_FOLDER}/{WEIGHTS}" in draft.lost:
                log.warning("vae: the weights are damaged; the autoencoder is trained again")
            place = Place(draft.path, draft.scratch, identity.digest)
            features = _features(pipeline, settings.device)
            quality = run(reference, pictures, settings, place, features)
            collect(draft, place.scratch / RESULT, settings, AUTOENCODER_FOLDER)
            draft.write_json(QUALITY, quality, copied=True)
        return draft.commit(
            {**quality, "pictures": len(pictures.train), "measured": len(pictures.held_out)}
        )


def _settings(pipeline: Pipeline) -> VaeSettings:
    if pipeline.vae is None:
        raise ConfigError(
            "this pipeline has no stage vae",
            where="vae",
            do="configure it, for example --set vae.num_images=24000",
        )
    return pipeline.vae


def _features(pipeline: Pipeline, device: str) -> Features | None:
    """The contrastive model's embeddings, where the pipeline names one."""
    components = resolve(pipeline.components)
    if not components.contrastive:
        return None
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_contrastive(components, device).embed_images
