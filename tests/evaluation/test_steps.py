"""Steps of the filter, of captions and of the evaluation make the same bytes from their copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hdm.captioning import caption
from hdm.captioning.caption import Captioning
from hdm.curation import decide, rate
from hdm.curation.decide import Deciding
from hdm.curation.embed import Embeddings
from hdm.curation.looking import Looking
from hdm.curation.measure import Measures
from hdm.curation.rate import Rating
from hdm.evaluation.images import Painting
from hdm.store import Identity, Output, Store
from tests.evaluation.conftest import Gallery
from tests.steps import contents, made_elsewhere


def identified(gallery: Gallery, stage: Any, *names: str) -> Identity:
    digests = {name: gallery.inputs[name].digest for name in names}
    identity: Identity = stage.identify(gallery.pipeline, digests)
    return identity


def test_looks_at_pictures_in_other_processes(gallery: Gallery, tmp_path: Path) -> None:
    looks = (Measures(), Embeddings())
    step = Looking(gallery.pipeline, gallery.inputs["download"], looks)
    identities = [identified(gallery, look, "download") for look in looks]
    for again in made_elsewhere(step, tmp_path, *identities, processes=1):
        assert contents(again) == contents(gallery.inputs[again.name])


def test_captions(gallery: Gallery, tmp_path: Path) -> None:
    step = Captioning(gallery.pipeline, gallery.inputs["download"], gallery.inputs["filter"])
    [again] = made_elsewhere(step, tmp_path, identified(gallery, caption, "download", "filter"))
    assert contents(again) == contents(gallery.inputs["caption"])


def test_images(gallery: Gallery, tmp_path: Path) -> None:
    made = gallery.generate()
    step = Painting(gallery.pipeline, gallery.inputs)
    [again] = made_elsewhere(step, tmp_path, gallery.identity)
    assert contents(again) == contents(made)


def test_a_decision(gallery: Gallery, tmp_path: Path) -> None:
    names = ("download", "filter.measures", "filter.contrastive")
    inputs = {name: gallery.inputs[name] for name in names}
    store = Store(tmp_path)
    tables = tuple(decide.joined_tables(inputs))
    step = Deciding(gallery.pipeline.filter, inputs, tables, store, tmp_path / decide.MOVED)
    [again] = made_elsewhere(step, tmp_path, identified(gallery, decide, *names))
    assert contents(again) == contents(gallery.inputs["filter"])


def test_ratings(gallery: Gallery, tmp_path: Path) -> None:
    embeddings = gallery.inputs["filter.contrastive"]
    head = tmp_path / "head.pth"
    torch.save({"weight": torch.linspace(-1, 1, 32)[None], "bias": torch.zeros(1)}, head)
    components = gallery.pipeline.components
    named = {"aesthetic_head": str(head), "aesthetic_head_for": components.contrastive}
    pipeline = gallery.pipeline.model_copy(
        update={"components": components.model_copy(update=named)}
    )
    identity = rate.identify(pipeline, {embeddings.name: embeddings.digest})
    inputs: dict[str, Output] = {embeddings.name: embeddings}
    made = rate.make(pipeline, identity, inputs, Store(tmp_path / "one"))
    [again] = made_elsewhere(Rating(pipeline, embeddings), tmp_path / "two", identity)
    assert contents(again) == contents(made)
