"""Every number in the configuration, found by walking its types: what cannot work is refused when
it is read.
"""

import contextlib
import math
from pathlib import Path

import pytest

from hdm.config import Pipeline
from hdm.errors import ConfigError, InputError
from hdm.lab.grid import Lab
from hdm.pipelines import load_pipeline
from hdm.stages import problems
from hdm.store import Store
from tests.settings_numbers import Leaf, edges, leaves

EVERYTHING = """\
pipelines:
  all:
    components: {folder: demo}
    download: {kind: scenes, allow_loopback: true}
    filter: {top_fraction: {}}
    caption: {makers: [{}]}
    vae: {}
    train:
      model: {text_width: 128, channels: 8}
      phases: [{resolution: 64, num_images: 100, batch_size: 4}]
      mix: [{pipeline: plain}]
  plain:
    components: {folder: demo}
"""
NUMBERS = [leaf for leaf in leaves(Pipeline) if leaf.path[0] != "mixed"]
HUGE = ("1e+30", "-1e+30", "1" + 30 * "0", "-1" + 30 * "0", "1" + 400 * "0")
NOT_FINITE = (".nan", ".inf", "-.inf")
OTHERS = ("0", "-1", "-0.5", "1", "true")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "pipelines.yaml"
    path.write_text(EVERYTHING)
    return path


def yaml(value: float) -> str:
    return repr(value)


def load(leaf: Leaf, value: str, file: Path) -> Pipeline:
    return load_pipeline("all", [leaf.override(value)], file, {})


def test_the_walk_finds_numbers_of_every_sort() -> None:
    names = {leaf.name for leaf in NUMBERS}
    assert {
        "download.scenes.count",
        "filter.top_fraction.keep",
        "caption.makers.0.temperature",
        "encode.from_larger.0",
        "vae.optimizer.betas.1",
        "train.model.depth",
        "train.phases.0.tread_schedule.0.1",
        "train.mix.0.weight",
        "threads",
    } <= names


@pytest.mark.parametrize("leaf", [*NUMBERS, *leaves(Lab)], ids=lambda leaf: leaf.name)
def test_every_number_has_two_finite_bounds(leaf: Leaf) -> None:
    assert leaf.bounds is not None, "annotate it with a type of hdm.values"
    assert math.isfinite(leaf.bounds.low)
    assert math.isfinite(leaf.bounds.high)
    assert abs(leaf.bounds.high) < 10**19


@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: leaf.name)
def test_a_number_out_of_its_bounds_is_refused_with_field_value_and_bounds(
    leaf: Leaf, everything: Path
) -> None:
    assert leaf.bounds is not None
    low, high = edges(leaf.kind, leaf.bounds)
    beyond = (low - 1, high + 1 if high < 1e15 else high * 2)
    for value in (*HUGE, *NOT_FINITE, *map(yaml, beyond), "true"):
        with pytest.raises(ConfigError) as caught:
            load(leaf, value, everything)
        told = str(caught.value)
        assert leaf.name in told
        assert str(leaf.bounds) in told
        assert "--set" in told
        assert len(told) < 400


@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: leaf.name)
def test_no_number_ends_loading_or_a_preflight_in_anything_but_a_config_error(
    leaf: Leaf, everything: Path, tmp_path: Path
) -> None:
    assert leaf.bounds is not None
    for value in (*OTHERS, *map(yaml, edges(leaf.kind, leaf.bounds))):
        with contextlib.suppress(ConfigError):
            problems(load(leaf, value, everything), Store(tmp_path))


@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: leaf.name)
def test_integers_are_fine_where_fractions_are(leaf: Leaf, everything: Path) -> None:
    assert leaf.bounds is not None
    whole = next((value for value in (1, 0) if value in leaf.bounds), None)
    if leaf.kind is int or whole is None:
        pytest.skip("no fraction with an integer within its bounds")
    try:
        load(leaf, str(whole), everything)
        told = ""
    except ConfigError as error:  # it may not go together with other settings
        told = str(error)
    assert "must be a number" not in told


def test_file_environment_and_command_line_refuse_alike(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text("pipelines:\n  a:\n    train:\n      validate_every: 0\n")
    bounds = "must be a whole number, at least 1"
    with pytest.raises(ConfigError, match=rf"yaml:4: train\.validate_every = 0: {bounds}"):
        load_pipeline("a", (), path, {})
    with pytest.raises(ConfigError, match=rf"environment train\.validate_every.* = -1: {bounds}"):
        load_pipeline("a", (), path, {"HDM__train__validate_every": "-1"})
    with pytest.raises(ConfigError, match=rf"--set train\.validate_every.* = -2: {bounds}"):
        load_pipeline("a", ["train.validate_every=-2"], path, {})


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("evaluate.size=axb", "WIDTHxHEIGHT"),
        ("evaluate.size='0x64'", "WIDTHxHEIGHT"),
        ("evaluate.size=64x9999999", "at most 65536"),
        ("evaluate.device=gpu", "auto, cpu, cuda"),
        ("encode.device='cuda:0;cuda:1'", "commas"),
        ("images.matte=red", "#"),
        ("caption.makers=[{kind: template, template: 'a {colour} thing'}]", "colour"),
        ("caption.makers=[{kind: template, template: 'a {given'}]", "given"),
        ("caption.makers=[{kind: template}]", "template"),
        ("download.retries=" + 5000 * "9", "YAML"),
        ("description=2026-13-45", "YAML"),
    ],
)
def test_text_with_a_form_of_its_own_is_read_at_once(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_pipeline("demo", [setting], None, {})


def test_settings_that_do_not_go_together_are_told_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "pipelines.yaml"
    path.write_text("pipelines:\n  a:\n    train:\n      align_block: 99\n")
    with pytest.raises(InputError, match=r"no block 99 \(.*yaml:4: train\.align_block\)"):
        load_pipeline("a", (), path, {})


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("train.phases.-1.num_images=5", r"train.phases has 2 entries.*\(--set train.phases.-1"),
        ("train.phases.2.num_images=5", r"no train.phases.2;.*\(--set train.phases.2.num_images"),
        ("FILTER.min_side_px=64", r"--set FILTER.min_side_px: unknown key FILTER.*mean filter\?"),
        ("train.model.width.a=5", r"--set train.model.width.a: train.model.width = "),
    ],
)
def test_what_was_set_on_the_command_line_is_blamed_on_it(setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_pipeline("demo", [setting], None, {})


def test_a_variable_is_blamed_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"environment FILTER.MIN_SIDE_PX: unknown key FILTER"):
        load_pipeline("demo", (), None, {"HDM__FILTER__MIN_SIDE_PX": "64"})


def test_a_file_that_stands_for_billions_of_values_is_refused(tmp_path: Path) -> None:
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for number in range(1, 12):
        repeated = ", ".join([f"*a{number - 1}"] * 10)
        rows.append(f"a{number}: &a{number} [{repeated}]")
    bomb = "\n".join(f"      {row}" for row in rows)
    path = tmp_path / "pipelines.yaml"
    path.write_text(f"pipelines:\n  a:\n    filter:\n{bomb}\n")
    with pytest.raises(ConfigError, match=r"more than 1,000,000 values \(.*pipelines.yaml"):
        load_pipeline("a", (), path, {})


@pytest.mark.parametrize(("path", "told"), [(".", "folder"), ("/dev/null", "no regular file")])
def test_a_file_of_pipelines_that_is_none_is_named_as_what_it_is(path: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"this is .*{told}"):
        load_pipeline("demo", (), Path(path), {})


@pytest.mark.parametrize("value", ["&a [*a]", "[" * 3000 + "]" * 3000])
def test_a_setting_that_contains_itself_or_never_ends_is_refused(value):
    with pytest.raises(ConfigError):
        load_pipeline("demo", [f"filter.min_side_px={value}"])
