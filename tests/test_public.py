"""What a notebook finds in the package itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

import hdm
from hdm.loading import load
from hdm.model_files.opening import open_model
from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Store


def test_the_package_offers_what_a_notebook_needs() -> None:
    offered = {
        "Store": Store,
        "load_pipeline": load_pipeline,
        "load_text_to_image": load,
        "open_model": open_model,
        "run": run,
    }
    assert {name: getattr(hdm, name) for name in hdm.__all__} == offered
    with pytest.raises(AttributeError, match="nothing"):
        _ = hdm.nothing


def test_torch_is_not_imported_before_it_is_needed() -> None:
    code = "import hdm, sys; assert 'torch' not in sys.modules; print(hdm.open_model.__name__)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "open_model\n"
