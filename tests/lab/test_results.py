"""Reading a curve between its points."""

import numpy as np
import pytest

from hdm.lab.cell_results import Result


def test_a_loss_between_two_measured_ones_lies_on_a_straight_line() -> None:
    seen, losses = [32, 64, 128, 300], [4.0, 2.0, 1.0, 0.5]
    result = Result(300, tuple(zip(seen, losses, strict=True)), {})
    for place in np.linspace(32, 300, 29):
        assert result.loss_at(place) == pytest.approx(np.interp(place, seen, losses))
    assert result.loss_at(31) is None
    assert result.loss_at(301) is None
    assert Result(300, ((300, 0.5),), {}).loss_at(100) is None
