"""The table against figures worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from hdm.lab.cell_results import Result
from hdm.lab.cost import Cost
from hdm.lab.figure import figure
from hdm.lab.grid import Cell, Comparison, Grid, Lab, plan_grid
from hdm.lab.table import Row, table_rows, to_markdown
from hdm.scoring.metrics import Score

T_2 = 4.302653  # Student's t, 2 degrees of freedom, 97.5 %
SVG = "{http://www.w3.org/2000/svg}"


def line(start: float, end: float, colour: float) -> Result:
    """A held-out loss that falls evenly from 0 to 400 images."""
    losses = tuple((seen, start + (end - start) * seen / 400) for seen in (0, 100, 200, 300, 400))
    shares = {"colour": colour, "place": 1.0, "kind": 0.25}
    scores = {
        name: Score(name, value, None, None, 64, "higher", is_share=True)
        for name, value in shares.items()
    }
    return Result(400, losses, scores)


@pytest.fixture
def grid(small: Lab, file: Path) -> Grid:
    return plan_grid(small, ["residual", "tread"], 3, file=file)


def finished(grid: Grid) -> dict[Cell, Result]:
    """Published is 0.1, 0.2, 0.3 better at the end and 0.3, 0.2, 0.1 less often right in colour;
    both start from 2.
    """
    found = {}
    for seed, (end, colour) in enumerate([(1.0, 0.9), (1.1, 0.8), (1.2, 0.7)]):
        found[grid.cell("residual", "prenorm", seed)] = line(2.0, end, colour)
        found[grid.cell("residual", "published", seed)] = line(
            2.0, end - 0.1 * (seed + 1), colour - 0.1 * (3 - seed)
        )
        found[grid.cell("tread", "off", seed)] = line(2.0, 1.0, 0.5)
        found[grid.cell("tread", "on", seed)] = line(2.0, 1.0, 0.6)
    return found


def rows_of(grid: Grid, results: dict[Cell, Result], ratio: float | None) -> dict[str, Row]:
    costs = (
        {}
        if ratio is None
        else {"residual": {"prenorm": Cost(((0.0, 1.0),)), "published": Cost(((0.0, ratio),))}}
    )
    return {f"{row.comparison}/{row.setting}": row for row in table_rows(grid, results, costs)}


def test_differences_are_paired_by_seed_with_students_interval(grid: Grid) -> None:
    rows = rows_of(grid, finished(grid), None)
    reference, published = rows["residual/prenorm"], rows["residual/published"]
    assert reference.is_reference
    assert reference.loss == pytest.approx(1.1)
    assert reference.scores["colour"] == pytest.approx(0.8)
    assert reference.loss_at_equal_samples is None
    found = published.loss_at_equal_samples
    assert found
    assert found.mean == pytest.approx(-0.2)
    assert found.half == pytest.approx(T_2 * 0.1 / math.sqrt(3), rel=1e-6)
    assert not found.excludes_zero
    assert published.scores_at_equal_samples["colour"].mean == pytest.approx(-0.2)
    assert published.scores_at_equal_samples["place"].half == 0
    assert published.loss_at_equal_time is None, "costs are not known"


@pytest.mark.parametrize(
    ("ratio", "mine", "theirs"),
    [
        (0.5, 400, 200),  # done when the reference is half way
        (2.0, 200, 400),  # half way when the reference is done
        (1.0, 400, 400),
    ],
)
def test_at_equal_time_the_quicker_one_is_done(
    grid: Grid, ratio: float, mine: int, theirs: int
) -> None:
    results = finished(grid)
    found = rows_of(grid, results, ratio)["residual/published"].loss_at_equal_time
    assert found
    differences = [
        (2 + (end - 0.1 * (seed + 1) - 2) * mine / 400) - (2 + (end - 2) * theirs / 400)
        for seed, end in enumerate([1.0, 1.1, 1.2])
    ]
    assert found.mean == pytest.approx(sum(differences) / 3)


def test_losses_of_unlike_latents_are_not_compared(grid: Grid) -> None:
    row = rows_of(grid, finished(grid), None)["tread/on"]
    assert row.loss_at_equal_samples is None
    assert row.scores_at_equal_samples["colour"].mean == pytest.approx(0.1)


def test_of_an_unfinished_lab_only_seeds_that_both_have_are_compared(grid: Grid) -> None:
    results = finished(grid)
    del results[grid.cell("residual", "prenorm", 0)], results[grid.cell("residual", "published", 1)]
    row = rows_of(grid, results, None)["residual/published"]
    assert row.num_seeds == 1
    assert row.loss_at_equal_samples
    assert row.loss_at_equal_samples.mean == pytest.approx(-0.3)
    assert row.loss_at_equal_samples.half is None
    assert rows_of(grid, {grid.cell("tread", "on", 0): line(2, 1, 1)}, None) == {}


def test_the_page_says_what_the_rows_say(grid: Grid) -> None:
    results = finished(grid)
    for seed in range(3):  # ten points better at every seed
        results[grid.cell("tread", "on", seed)] = line(2.0, 1.0, 0.6 + 0.001 * seed)
    costs = {"residual": {"prenorm": Cost(((0.0, 1.0),)), "published": Cost(((0.0, 1.25),))}}
    text = to_markdown(grid, table_rows(grid, results, costs), results)
    assert (
        "| residual | prenorm | 3 | 400 | 1.00 × | 1.1000 |  | 80.0 % | 100.0 % | 25.0 % |" in text
    )
    assert "|  | published | 3 | 400 | 1.25 × | -0.2000 ± 0.2484 | " in text
    assert "|  | on | 3 | 400 | – | – | – | **+10.1 ± 0.2** | +0.0 ± 0.0 | +0.0 ± 0.0 |" in text
    assert "12 trainings, 3 seeds, 64 prompts each" in text


def test_the_figure_has_a_line_and_a_band_for_each_setting_whose_losses_compare(grid: Grid) -> None:
    drawn = ElementTree.fromstring(figure(grid, finished(grid)))
    (panel,) = drawn.findall(f"{SVG}g")
    assert panel.findtext(f"{SVG}text") == "residual"
    lines = [
        [tuple(map(float, point.split(","))) for point in found.attrib["points"].split()]
        for found in panel.findall(f"{SVG}polyline")
    ]
    assert [len(points) for points in lines] == [5, 5]
    for points in lines:  # evenly spaced in images and in loss, as these curves are
        across, down = zip(*points, strict=True)
        assert np.diff(across) == pytest.approx(np.full(4, across[1] - across[0]), abs=0.2)
        assert np.diff(down) == pytest.approx(np.full(4, down[1] - down[0]), abs=0.2)
    falls = [points[-1][1] - points[0][1] for points in lines]
    assert falls[1] / falls[0] == pytest.approx(1.1 / 0.9, rel=0.01), (
        "means fall from 2 to 1.1 and to 0.9: 0.9 and 1.1"
    )
    assert len(panel.findall(f"{SVG}polygon")) == 2
    assert figure(grid, {}) == ""


def test_every_setting_of_a_large_comparison_has_a_line_of_its_own_look(
    small: Lab, file: Path
) -> None:
    ways = {f"decay_{number}": {"train.ema_decay": number / 50} for number in range(12)}
    large = small.model_copy(update={"comparisons": {"decay": Comparison(settings=ways)}})
    grid = plan_grid(large, ["decay"], 1, file=file)
    results = {cell: line(2.0, 1.0 + cell.own["train.ema_decay"], 0.5) for cell in grid.cells()}
    drawn = ElementTree.fromstring(figure(grid, results))
    (panel,) = drawn.findall(f"{SVG}g")
    lines = panel.findall(f"{SVG}polyline")
    looks = {(one.attrib["stroke"], one.attrib.get("stroke-dasharray")) for one in lines}
    assert len(looks) == len(ways)
    names = {one.text: one for one in panel.findall(f"{SVG}text") if one.text in ways}
    assert list(names) == list(ways)
    width, height = map(float, drawn.attrib["viewBox"].split()[2:])
    # The first third of a curve lies above the panel and is clipped.
    heights = [float(point.split(",")[1]) for point in lines[0].attrib["points"].split()]
    highest_point = min(heights[2:])
    for name, text in names.items():
        assert float(text.attrib["x"]) + 7 * len(name) <= width
        assert float(text.attrib["y"]) < highest_point, "the legend lies above the curves"
    assert height > highest_point


def test_a_score_of_any_name_has_its_column_and_its_own_scale(grid: Grid) -> None:
    results = {}
    for number, setting in enumerate(("prenorm", "published")):
        sharpness = Score(
            "edge_width", 1.5 + number, None, None, 9, "lower", label="width of edges"
        )
        plain = line(2.0, 1.0, 0.5)
        results[grid.cell("residual", setting, 0)] = Result(
            400, plain.losses, {"edge_width": sharpness}
        )
    text = to_markdown(grid, table_rows(grid, results, {}), results)
    heading, _, reference, other = [one for one in text.splitlines() if one.startswith("|")]
    assert heading.endswith("| edge width |")
    assert reference.endswith("| 1.5000 |")
    assert other.endswith("| +1.0000 |")
    assert "- edge width: width of edges, at the end; less is better." in text
