"""What is said to fit, against the reckoned memory of what is said."""

from __future__ import annotations

import re

import pytest

from hdm.architecture import XUTConfig
from hdm.training.measures.memory import training_memory
from hdm.training.out_of_memory import Advice
from hdm.training.settings import Phase, TrainSettings

TOKENS = (256, 64)


@pytest.mark.parametrize("room", [8e9, 16e9, 32e9])
def test_what_is_advised_fits_and_one_more_does_not(room: float) -> None:
    settings, phase = (
        TrainSettings(model=XUTConfig.preset("base")),
        Phase(resolution=256, num_images=1, batch_size=256, micro_batch=128),
    )
    told = str(Advice(settings, phase, TOKENS, False, room))
    advised = re.findall(r"micro_batch: (\d+)(?: with checkpoint_blocks: ([\d.]+))?", told)
    assert advised
    for count, share in advised:
        for extra, fits in ((0, True), (1, False)):
            changed = phase.model_copy(
                update={"micro_batch": int(count) + extra, "checkpoint_blocks": float(share or 0)}
            )
            assert (
                training_memory(settings, changed, TOKENS, False).total <= 0.9 * room
            ) == fits or int(count) >= 64


def test_where_not_even_one_image_fits_no_number_is_made_up() -> None:
    settings, phase = (
        TrainSettings(model=XUTConfig.preset("base")),
        Phase(resolution=256, num_images=1, batch_size=256),
    )
    assert "even a micro-batch of 1" in str(Advice(settings, phase, TOKENS, False, 2e9))
