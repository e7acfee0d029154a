"""A home-made text-to-image model: download, filter, caption, encode, train, evaluate.

The library works from a notebook with neither Prefect nor MLflow; `flows` and `tasks` add those.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hdm.loading import load as load_text_to_image
    from hdm.model_files.opening import open_model

__all__ = ["load_text_to_image", "open_model"]

_WHERE = {
    "load_text_to_image": ("hdm.loading", "load"),
    "open_model": ("hdm.model_files.opening", "open_model"),
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: most of what imports this package needs no torch.
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
