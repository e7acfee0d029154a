"""A lab of two comparisons, written down as a person would."""

from __future__ import annotations

from pathlib import Path

import pytest

from hdm.lab.grid import Lab, load_lab

TEXT = """\
pipelines:
  mine:
    train:
      phases:
        - {resolution: 64, num_images: 1000, batch_size: 10, tread_rate: 0.0}
  longer:
    train:
      phases:
        - {resolution: 64, num_images: 1000, batch_size: 10}
        - {resolution: 128, num_images: 1000, batch_size: 10}
labs:
  small:
    description: two questions
    pipeline: mine
    seeds: 2
    given: {train.ema_decay: 0.5, train.phases.0.num_images: 400}
    comparisons:
      residual:
        question: which one?
        settings:
          prenorm: {}
          published: {train.model.residual: published}
      tread:
        given: {train.model.patch_size: 1}
        settings:
          "off": {}
          "on": {train.phases.0.tread_schedule: [[0, 0.5], [0.75, 0]]}
        losses_compare: false
      crop:
        settings:
          shifted: {}
          centre: {train.crop: centre}
  wrong:
    pipeline: mine
    comparisons:
      residual: {settings: {prenorm: {}, published: {train.model.residuals: published}}}
  alone:
    pipeline: mine
    comparisons: {residual: {settings: {prenorm: {}}}}
  two_phases:
    pipeline: longer
    comparisons: {crop: {settings: {shifted: {}, centre: {train.crop: centre}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def small(file: Path) -> Lab:
    return load_lab("small", file)
