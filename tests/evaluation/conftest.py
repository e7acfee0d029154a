"""A small data set of scenes, really downloaded, measured, filtered and captioned, and a denoiser
that has not learnt anything yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hdm.acquisition import download
from hdm.captioning import caption
from hdm.config import Pipeline
from hdm.curation.outputs import filter_outputs
from hdm.demo.judge import SceneJudge
from hdm.demo.site import serve_scenes
from hdm.models.xut import XUT
from hdm.scoring.metrics import EMBEDDINGS, IMAGES, is_measured
from hdm.stage_work import OutputStep
from hdm.stages import steps
from hdm.store import Identity, Output, Store
from tests.models.conftest import coca_folder, tokenizer_folder  # noqa: F401
from tests.small_models import TRAINED
from tests.training.workshop import TEXT_WIDTH, write_components

SIDE_PX = 16


@dataclass
class Gallery:
    """A pipeline with everything done up to its evaluation."""

    pipeline: Pipeline
    store: Store
    inputs: dict[str, Output]

    @property
    def judge(self) -> SceneJudge | None:
        scenes = self.pipeline.download.kind == "scenes"
        return SceneJudge(self.pipeline.download.scenes) if scenes else None

    @property
    def identity(self) -> Identity:
        """Of the images."""
        return self._identity(self._step(IMAGES), self.inputs)

    def generate(self) -> Output:
        """The images."""
        return self._make(IMAGES, self.inputs)

    def measure(self, metric: str) -> Output:
        """What one metric says of them."""
        return self._make(f"evaluate.{metric}", self.seen())

    def seen(self) -> dict[str, Output]:
        """Everything that metrics may read."""
        made = {**self.inputs, IMAGES: self.generate()}
        if any(step.name == EMBEDDINGS for step in steps(self.pipeline)):
            made[EMBEDDINGS] = self._make(EMBEDDINGS, made)
        return made

    def evaluate(self) -> list[Output]:
        """The images, and what every metric says of them."""
        made = self.seen()
        seen = [output for name, output in made.items() if name not in self.inputs]
        names = [step.name for step in steps(self.pipeline) if is_measured(step.name)]
        return [*seen, *(self._make(name, made) for name in names)]

    def _step(self, name: str) -> OutputStep[Pipeline]:
        return next(step for step in steps(self.pipeline) if step.name == name)

    def _identity(self, step: OutputStep[Pipeline], made: Mapping[str, Output]) -> Identity:
        return step.identify(self.pipeline, {name: made[name].digest for name in step.inputs})

    def _make(self, name: str, made: Mapping[str, Output]) -> Output:
        """An output, unless the store has it."""
        step = self._step(name)
        identity = self._identity(step, made)
        inputs = {needed: made[needed] for needed in step.inputs}
        ready = self.store.find(identity)
        return ready or step.make(self.pipeline, identity, inputs, self.store)

    def changed(self, root: Path, **settings: object) -> Gallery:
        """Another way to evaluate, in a store of its own."""
        values = self.pipeline.model_dump(mode="json")
        values["evaluate"].update(settings)
        return replace(self, pipeline=Pipeline.model_validate(values), store=Store(root))


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory, coca_folder: Path) -> Gallery:  # noqa: F811
    folder = tmp_path_factory.mktemp("gallery")
    components = write_components(folder / "components")
    pipeline = make_pipeline(components, coca_folder)
    store = Store(folder / "store")
    digests: dict[str, str] = {}
    made: dict[str, Output] = {}
    made["download"] = download.make(
        pipeline, download.identify(pipeline, digests), made, store, site=serve_scenes
    )
    stages: list[tuple[str, Any, Sequence[str]]] = [
        *((output.name, output, output.inputs) for output in filter_outputs(pipeline)),
        ("caption", caption, ["download", "filter"]),
    ]
    for name, stage, needs in stages:
        inputs = {need: made[need] for need in needs}
        identity = stage.identify(
            pipeline, {need: output.digest for need, output in inputs.items()}
        )
        made[name] = stage.make(pipeline, identity, inputs, store)
    made[f"train.{SIDE_PX}px"] = write_model(pipeline, store)
    return Gallery(pipeline, store, made)


def make_pipeline(components: Path, coca: Path) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "small",
            "components": {
                "contrastive": str(coca),
                "autoencoder": str(components / "autoencoder"),
                "text_encoder": str(components / "text_encoder"),
            },
            "download": {
                "kind": "scenes",
                "scenes": {"count": 90, "size_px": 32, "faults": 0.2},
                "shard_items": 64,
                "allow_loopback": True,
            },
            "filter": {"min_side_px": 24, "held_out": 0.3, "device": "cpu"},
            "caption": {
                "makers": [
                    {"kind": "given"},
                    {"kind": "template", "template": "a picture", "when": "missing"},
                ],
                "device": "cpu",
            },
            "train": {
                "model": {**TRAINED, "text_width": TEXT_WIDTH, "channels": 4},
                "phases": [{"resolution": SIDE_PX, "num_images": 8, "batch_size": 8}],
            },
            "evaluate": {"prompts": "scenes", "num_images": 70, "steps": 2, "device": "cpu"},
            "threads": 1,
        }
    )


def write_model(pipeline: Pipeline, store: Store) -> Output:
    """What a training phase leaves behind."""
    torch.manual_seed(0)
    model = XUT(pipeline.train.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # as made, it gives zero for everything
    with store.draft(Identity(f"train.{SIDE_PX}px", 1, {})) as draft:
        for name in ("weights.safetensors", "ema.safetensors"):
            with draft.write(name) as file:
                save_file(model.state_dict(), file.path)
        draft.write_json(
            "model.json", {"xut": pipeline.train.model.to_dict(), "resolution": SIDE_PX}
        )
        with draft.write("metrics.jsonl") as file:
            lines = [
                {"step": step, "num_images_seen": 8 * step, "loss": 1 / step, "lr": 0.1}
                for step in range(1, 30)
            ]
            lines.append({"step": 29, "num_images_seen": 232, "validation_loss": 0.1})
            file.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return draft.commit({"steps": 29, "loss": 0.03})
