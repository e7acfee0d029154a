"""A page on which a person chooses which of four names fits a generated picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hdm.evaluation.exhibits import data_uri
from hdm.evaluation.nearest import Nearest
from hdm.scoring.judges import PromptSet

CHOICES = "choices"
"""Key in a metric's details: for each set with choices, one entry for each picture."""
PAGE = "choose.html"
TEMPLATE = "choose.html.j2"
SHOWN_PX = 128


def entries(prompts: PromptSet, nearest: Sequence[Nearest]) -> list[dict[str, Any]]:
    """The entries of `choices` for a set: prompt, names to choose from, nearest picture."""
    entries = []
    for text, choices, one in zip(prompts.texts, prompts.choices, nearest, strict=True):
        entries.append({"prompt": text, "choices": list(choices), "nearest": asdict(one)})
    return entries


def copies(nearest: Sequence[Nearest]) -> dict[str, Any]:
    """Number of a set's pictures that are copies of training pictures, and their distances."""
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
    """The page's data for a set.

    Args:
        choices: the entries of `choices`.
        pictures: the generated pictures (H, W, 3) uint8.
        training: data URIs of the nearest training pictures.
    """
    questions = []
    for entry, picture, image in zip(choices, pictures, training, strict=True):
        nearest = {
            "image": image,
            "caption": entry["nearest"]["caption"],
            "distance": round(entry["nearest"]["distance"], 1),
        }
        questions.append(
            {
                # Within the page, which then needs no other file.
                "image": data_uri(picture, SHOWN_PX),
                "choices": entry["choices"],
                "right": entry["choices"].index(entry["prompt"]),
                "nearest": nearest,
            }
        )
    return questions
