"""Extensions by other packages, found by their entry points.

A package says in its pyproject.toml, for example,

    [project.entry-points."hdm.stages"]
    mosaic = "my_package.mosaic:STAGE"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hdm.errors import ConfigError

STAGES = "hdm.stages"
"""Each entry point names a `hdm.stage_work.AddedStage`."""
DENOISERS = "hdm.denoisers"
"""Each entry point names a configuration class, whose module registers the denoiser."""
MODULES = "hdm.extensions"
"""Each entry point names a module that registers criteria, metrics, judges or sets of prompts."""


@cache
def extensions(group: str) -> dict[str, Any]:
    """The objects that a group's entry points name, by entry point name, sorted.

    Raises:
        ConfigError: one cannot be imported.
    """
    # The order of installation differs between machines.
    points = sorted(entry_points(group=group), key=lambda point: point.name)
    return {point.name: _loaded(point) for point in points}


def _loaded(point: EntryPoint) -> Any:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        package = point.dist.name if point.dist else "an installed package"
        raise ConfigError(
            f"{package} adds {point.value}, which cannot be imported: {error}",
            where=f"entry point {point.name} of {point.group}",
            do=f"install another version of {package}, or uninstall it",
        ) from error
