"""`hdm run emoji` without a network, with few steps: pictures and TAEF2 from `../shared`, the
demo's text encoder.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdm.emoji.catalogue import questions, training_pictures
from hdm.evaluation.choosing import CHOICES, PAGE
from hdm.evaluation.report import write_report
from hdm.models.components import components_folder
from hdm.pipelines import load_pipeline
from hdm.scoring.metrics import read_finding
from hdm.stages import run
from hdm.store import Store
from hdm.training import phase
from tests.training.here import train_here

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
IMAGES, TAEF2 = DATA / "emoji" / "noto128" / "images", DATA / "autoencoder" / "taesd"
pytestmark = pytest.mark.skipif(
    not (IMAGES.is_dir() and TAEF2.is_dir()), reason="needs ../shared/data"
)
ASKED, ITEMS = 3, 24


def test_a_short_run_ends_with_a_page_to_choose_names_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phase, "run_training", train_here)
    settings = {
        "download.source": IMAGES,
        "download.max_items": ITEMS,
        "components.text_encoder": components_folder("demo") / "text_encoder",
        "components.autoencoder": TAEF2,
        "train.model.text_width": 128,
        "train.phases.0.num_images": 32,
        "train.phases.0.batch_size": 8,
        "evaluate.num_images": ASKED,
        "evaluate.steps": 2,
        "threads": 1,
    }
    pipeline = load_pipeline("emoji", [f"{name}={value}" for name, value in settings.items()])
    made = list(run(pipeline, Store(tmp_path / "store")))
    outputs = {one.output.name: one.output for one in made}
    assert outputs["filter"].counts["kept"] == ITEMS  # no skin tone is a copy
    told = read_finding(outputs["evaluate.copies"]).details[CHOICES]
    for name, asked in questions(pipeline.evaluate.seed).items():
        assert [(one["prompt"], tuple(one["choices"])) for one in told[name]] == [
            (question.name, question.choices) for question in asked[:ASKED]
        ]
        sheet = np.asarray(Image.open(outputs["evaluate.images"].file(f"sheet-{name}.png")))
        assert sheet.shape[1] >= ASKED * 128
        assert (sheet[130:] < 128).any()  # the names below the pictures
    trained = {picture.captions[0] for picture in training_pictures()[:ITEMS]}
    assert {one["nearest"]["caption"] for entries in told.values() for one in entries} <= trained
    (tmp_path / "report").mkdir()
    page = write_report(pipeline, made, tmp_path / "report")
    assert f'href="{PAGE}"' in page.read_text()
    asked_on_page = re.findall(r'"right": \d', (tmp_path / "report" / PAGE).read_text())
    assert len(asked_on_page) == 2 * ASKED
