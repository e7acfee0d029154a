"""What a lab consists of: every training once, in a balanced order, and mistakes told before
anything is trained.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from hdm.errors import ConfigError
from hdm.lab.grid import Lab, lab_names, load_lab, plan_grid


def test_settings_that_are_the_same_training_are_one_cell_and_seeds_come_one_after_the_other(
    small: Lab, file: Path
) -> None:
    cells = plan_grid(small, file=file).cells()
    settings = ["baseline", "residual/published", "tread/off", "tread/on", "crop/centre"]
    assert [cell.name for cell in cells] == [
        f"{name} seed {seed}" for seed in (0, 1) for name in settings
    ]
    for done in range(len(cells)):  # wherever it is interrupted
        counts = Counter(cell.setting for cell in cells[:done])
        assert (
            max(counts.values(), default=0) - min((counts[name] for name in settings), default=0)
            <= 1
        )


def test_a_cell_is_the_pipeline_with_the_labs_the_comparisons_and_its_own_settings(
    small: Lab, file: Path
) -> None:
    grid = plan_grid(small, file=file, overrides=["train.phases.0.num_images=100"])
    train = grid.pipeline(grid.cell("tread", "on", 1)).train
    assert (train.seed, train.ema_decay, train.model.patch_size) == (1, 0.5, 1)
    assert train.phases[0].tread_schedule == ((0, 0.5), (0.75, 0))
    assert train.phases[0].num_images == 100, (
        "what is asked for on the command line is over the lab's"
    )
    assert grid.cell("tread", "on", 1).own == {
        "train.model.patch_size": 1,
        "train.phases.0.tread_schedule": [[0, 0.5], [0.75, 0]],
    }
    assert grid.pipeline(grid.cell("residual", "prenorm", 0)) == grid.pipeline(
        grid.cell("crop", "shifted", 0)
    )


def test_a_part_of_it(small: Lab, file: Path) -> None:
    assert [cell.name for cell in plan_grid(small, ["crop"], 1, file=file).cells()] == [
        "baseline seed 0",
        "crop/centre seed 0",
    ]


def test_mistakes_name_what_there_is(small: Lab, file: Path) -> None:
    with pytest.raises(
        ConfigError, match="no comparison 'residul'; did you mean residual"
    ) as caught:
        plan_grid(small, ["residul"], file=file)
    assert "residual, tread, crop" in str(caught.value)
    with pytest.raises(
        ConfigError,
        match=r"no lab is called 'smal'; did you mean small.*[\s\S]*small, wrong",
    ):
        load_lab("smal", file)
    with pytest.raises(
        ConfigError,
        match=r"residual/published of the lab wrong: .*unknown key train\.model\.residuals",
    ):
        plan_grid(load_lab("wrong", file), file=file)
    with pytest.raises(ConfigError, match=r"labs\.alone\.comparisons\.residual\.settings"):
        load_lab("alone", file)
    with pytest.raises(ConfigError, match="trains 2 phases"):
        plan_grid(load_lab("two_phases", file), file=file)


def test_the_shipped_labs_can_be_trained() -> None:
    for name in lab_names():
        assert plan_grid(load_lab(name)).cells()
