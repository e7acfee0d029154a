"""A home-made text-to-image model: download, filter, caption, encode, train, evaluate.

The library works from a notebook with neither Prefect nor MLflow; `flows` and `tasks` add those.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdm.loading import load as load_text_to_image
    from hdm.model_files.opening import open_model
    from hdm.pipelines import load_pipeline
    from hdm.stages import run
    from hdm.store import Store

__all__ = ["Store", "load_pipeline", "load_text_to_image", "open_model", "run"]

_WHERE = {
    "Store": ("hdm.store", "Store"),
    "load_pipeline": ("hdm.pipelines", "load_pipeline"),
    "load_text_to_image": ("hdm.loading", "load"),
    "open_model": ("hdm.model_files.opening", "open_model"),
    "run": ("hdm.stages", "run"),
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: most of what imports this package needs no torch.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
