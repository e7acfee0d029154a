"""A page on which a person says which of four names a generated picture has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hdm.evaluation.exhibits import data_uri
from hdm.evaluation.nearest import Nearest
from hdm.scoring.judges import PromptSet

CHOICES = "choices"
"""In a metric's details: of each set with choices one entry a picture."""
PAGE = "choose.html"
TEMPLATE = "choose.html.j2"
SHOWN_PX = 128


def entries(prompts: PromptSet, nearest: Sequence[Nearest]) -> list[dict[str, Any]]:
    """What `choices` holds of a set: prompt, the names to choose from, and the nearest training
    picture.
    """
    return [
        {"prompt": text, "choices": list(choices), "nearest": asdict(one)}
        for text, choices, one in zip(prompts.texts, prompts.choices, nearest, strict=True)
    ]


def copies(nearest: Sequence[Nearest]) -> dict[str, Any]:
    """How many pictures of a set are copies of training pictures, and how near they come."""
    distances = sorted(one.distance for one in nearest)
    return {
        "copies": sum(one.copied for one in nearest),
        "total": len(nearest),
        "nearest": distances[0],
        "median": distances[len(distances) // 2],
    }


def questions(
    choices: Sequence[Mapping[str, Any]], pictures: Sequence[Any], training: Sequence[str | None]
) -> list[dict[str, Any]]:
    """What the page needs of a set.

    Args:
        choices: the entries of `choices`.
        pictures: the generated pictures (H, W, 3) uint8.
        training: data URIs of the nearest training pictures.
    """
    return [
        {
            "image": data_uri(picture, SHOWN_PX),
            "choices": entry["choices"],
            "right": entry["choices"].index(entry["prompt"]),
            "nearest": {
                "image": image,
                "caption": entry["nearest"]["caption"],
                "distance": round(entry["nearest"]["distance"], 1),
            },
        }
        for entry, picture, image in zip(choices, pictures, training, strict=True)
    ]
