"""Reading pipelines.yaml: order of the sources, and errors that say where and what to write
instead.
"""

import json
from pathlib import Path

import pytest

from hdm.acquisition.settings import DownloadSettings
from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.curation.settings import FilterSettings
from hdm.definitions import read_section
from hdm.errors import ConfigError
from hdm.pipelines import load_pipeline, pipeline_names

TEXT = """\
pipelines:
  plain:
    description: nothing special
    filter: {min_side_px: 100, max_aspect: 4}
    train:
      phases:
        - {resolution: 64, num_images: 100, batch_size: 4}
        - {resolution: 128, num_images: 50, batch_size: 2}
  special:
    extends: plain
    filter:
      min_side_px: 200
  wrong:
    filter:
      min_aesthetics: 5
      max_aspect: wide
    train:
      model: {widht: 3}
      phases:
        - {resolution: 64, num_images: 100}
  circle:
    extends: round
  round:
    extends: circle
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pipelines.yaml"
    path.write_text(TEXT)
    return path


def test_each_source_overrides_the_one_before(file):
    def min_side(*overrides: str, **environment: str) -> int | None:
        return load_pipeline("special", overrides, file, environment).filter.min_side_px

    assert load_pipeline("plain", (), file, {}).filter.min_side_px == 100
    assert min_side() == 200
    assert min_side(HDM__filter__min_side_px="300") == 300
    assert min_side("filter.min_side_px=400", HDM__filter__min_side_px="300") == 400
    assert min_side("filter.min_side_px=null") is None
    assert load_pipeline("special", (), file, {}).filter.max_aspect == 4, (
        "what is not overridden is inherited"
    )


def test_an_element_of_a_list_can_be_set_alone(file):
    phases = load_pipeline("plain", ["train.phases.1.batch_size=8"], file, {}).train.phases
    assert [(p.name, p.batch_size, p.num_images) for p in phases] == [
        ("64px", 4, 100),
        ("128px", 8, 50),
    ]


def test_every_mistake_is_told_at_once_with_its_line(file):
    with pytest.raises(ConfigError) as caught:
        load_pipeline("wrong", ["evaluate.stepps=3"], file, {"HDM__download__max_items": "0"})
    text = str(caught.value)
    assert f"{file}:15: unknown key filter.min_aesthetics; did you mean min_aesthetic?" in text
    assert f"{file}:16: filter.max_aspect = 'wide'" in text
    assert f"{file}:18: unknown key train.model.widht; did you mean width?" in text
    assert f"{file}:20: train.phases.0.batch_size is missing" in text
    assert "--set evaluate.stepps: unknown key evaluate.stepps; did you mean steps?" in text
    assert "environment download.max_items" in text


def test_a_mistake_in_a_list_is_told_with_the_file_that_holds_the_list(tmp_path):
    path = tmp_path / "pipelines.yaml"
    path.write_text(
        """\
pipelines:
  mine:
    extends: demo
    train:
      phases:
        - {resolution: 128, num_images: 200, batch_size: 4}
        - {resolution: 256, num_images: 100}
"""
    )
    with pytest.raises(ConfigError) as caught:
        load_pipeline("mine", (), path, {})
    assert str(caught.value).startswith(f"{path}:7: train.phases.1.batch_size is missing")


def test_a_mistake_below_a_merge_key_is_told_with_its_line(tmp_path):
    path = tmp_path / "pipelines.yaml"
    path.write_text(
        """\
pipelines:
  first: &first
    filter: {min_side: 3}
    threads: many
  second:
    <<: *first
    images: {}
"""
    )
    with pytest.raises(ConfigError) as caught:
        load_pipeline("second", (), path, {})
    assert f"{path}:3: unknown key filter.min_side; did you mean min_side_px?" in str(caught.value)
    assert f"{path}: threads = 'many'" in str(caught.value)


def test_names_that_are_not_there(file, tmp_path):
    with pytest.raises(ConfigError, match="did you mean special"):
        load_pipeline("specail", (), file, {})
    with pytest.raises(ConfigError, match="circle → round → circle"):
        load_pipeline("circle", (), file, {})
    with pytest.raises(ConfigError, match="FIELD=VALUE"):
        load_pipeline("plain", ["filter"], file, {})
    with pytest.raises(ConfigError, match="there is no such file"):
        load_pipeline("plain", (), tmp_path / "other.yaml", {})


def test_an_option_is_in_a_digest_only_where_it_is_set() -> None:
    plain = Pipeline.model_validate({"train": {"ema_decay": 0.9}}).train.result_fields()
    assert "ema_lengths" not in plain
    same = Pipeline.model_validate(
        {"train": {"ema_decay": 0.9, "ema_lengths": []}}
    ).train.result_fields()
    assert same == plain
    assert Pipeline.model_validate(
        {"train": {"ema_decay": 0.9, "ema_lengths": [0.05]}}
    ).train.result_fields()["ema_lengths"] == [0.05]


def test_workers_and_batches_of_data_stages_stay_out_of_digests():
    assert (
        DownloadSettings(concurrency=3).result_fields()
        == DownloadSettings(concurrency=99).result_fields()
    )
    assert (
        DownloadSettings(retries=1).result_fields() != DownloadSettings(retries=2).result_fields()
    )
    assert (
        FilterSettings(batch_size=1).result_fields() == FilterSettings(batch_size=2).result_fields()
    )


def test_the_shipped_pipelines_are_valid():
    names = pipeline_names()
    assert {"demo", "folder", "hdm-xut-base", "hdm-xut-fast"} <= set(names)
    for name in names:
        assert load_pipeline(name, (), None, {}).name == name


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("tread_schedule=[[0.5, 0.25]]", "first entry begins at 0"),
        ("tread_schedule=[[0, 0.5], [0.9, 0.2], [0.9, 0]]", "each later one after the one before"),
        ("tread_schedule=[[0, 1.0]]", "less than 1"),
        ("tread_route=[3, 40]", "reaches beyond the 6 blocks"),
    ],
)
def test_a_tread_schedule_or_route_that_cannot_be_is_refused(setting, told):
    with pytest.raises(ConfigError, match=told):
        load_pipeline("demo", (f"train.phases.0.{setting}",), None, {})


def test_the_published_recipe_figure_by_figure():
    """Against arXiv 2509.06068's table: samples, batches and steps agree with each other."""
    pipeline = load_pipeline("hdm-xut-base", (), None, {})
    assert pipeline.train.model == XUTConfig.preset("base")
    steps = [round(phase.num_images / phase.batch_size) for phase in pipeline.train.phases]
    assert steps == [74_460, 82_705, 16_541, 14_254]
    assert [phase.resolution for phase in pipeline.train.phases] == [256, 512, 768, 1024]
    assert [phase.tread_rate for phase in pipeline.train.phases] == [0.5, 0.5, 0.5, 0.0]


def test_pipelines_that_are_mixed_in_are_read_with_their_own_settings(file):
    both = load_pipeline(
        "plain", ["train.mix=[{pipeline: special, weight: 2}]", "filter.min_side_px=7"], file, {}
    )
    assert [(entry.pipeline, entry.weight) for entry in both.train.mix] == [("special", 2.0)]
    assert both.filter.min_side_px == 7
    assert both.mixed == {"special": load_pipeline("special", (), file, {})}
    assert load_pipeline("plain", (), file, {}).mixed == {}
    with pytest.raises(ConfigError, match="no pipeline is called 'speciel'; did you mean special"):
        load_pipeline("plain", ["train.mix=[{pipeline: speciel}]"], file, {})
    with pytest.raises(ConfigError, match=r"mix\.0\.weight = 0: must be a number, at least"):
        load_pipeline("plain", ["train.mix=[{pipeline: special, weight: 0}]"], file, {})


def test_a_pipeline_that_starts_from_another_knows_it_and_those_before_it(tmp_path):
    file = tmp_path / "pipelines.yaml"
    file.write_text("""\
pipelines:
  first: {extends: folder}
  second: {extends: first, train: {start: {pipeline: first}}}
  third: {extends: second, train: {start: {pipeline: second, phase: 64px}}}
  ring: {extends: first, train: {start: {pipeline: back}}}
  back: {extends: first, train: {start: {pipeline: ring}}}
""")
    third = load_pipeline("third", (), file, {})
    assert third.mixed == {"second": load_pipeline("second", (), file, {})}
    assert third.mixed["second"].mixed == {"first": load_pipeline("first", (), file, {})}
    with pytest.raises(ConfigError, match="start from each other: back → ring → back"):
        load_pipeline("ring", (), file, {})
    again = load_pipeline("first", ["train.start.pipeline=first"], file, {})
    assert again.mixed["first"].train.start is None
    with pytest.raises(ConfigError, match="either weights on disk or another pipeline"):
        load_pipeline("second", ["train.start.weights=a.safetensors"], file, {})


@pytest.mark.parametrize("name", ["..", "a/b", "bob's", ".hidden", "a b", "x" * 65, "a\nb", "-x"])
@pytest.mark.parametrize("section", ["pipelines", "labs"])
def test_a_name_that_would_escape_its_folder_is_refused_where_it_is_read(tmp_path, section, name):
    path = tmp_path / "pipelines.yaml"
    path.write_text(f"{section}:\n  fine: {{}}\n  {json.dumps(name)}: {{}}\n")
    with pytest.raises(ConfigError) as caught:
        read_section(path, section)
    assert str(caught.value.where) == f"{path}:3"
    assert repr(name) in caught.value.what
    assert "letters, digits" in str(caught.value.do)


@pytest.mark.parametrize("name", ["hdm-xut-base", "v1.2_b", "кошки", "7"])
def test_names_in_any_script_are_taken(tmp_path, name):
    path = tmp_path / "pipelines.yaml"
    path.write_text(f"pipelines: {{{json.dumps(name, ensure_ascii=False)}: {{}}}}")
    assert load_pipeline(name, (), path, {}).name == name


def test_a_value_on_the_command_line_has_no_comments(tmp_path):
    settings = ["images.matte=#000000", f"download.source={tmp_path}/cats #1"]
    pipeline = load_pipeline("folder", settings, environment={})
    assert pipeline.images.matte == "#000000"
    assert pipeline.download.source == f"{tmp_path}/cats #1"
    quoted = load_pipeline("folder", ["images.matte='#00ff00'"], environment={})
    assert quoted.images.matte == "#00ff00"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("download.source=2024", "must be text; write it in quotes"),
        ("download.source=/pictures: new", "must be text; write it in quotes"),
        ("images.matte=red", "must be a colour as #rrggbb"),
        ("train.phases.9.resolution=64", "no train.phases.9; they are counted from 0"),
    ],
)
def test_values_of_another_kind_are_refused_with_what_to_write(setting, said):
    with pytest.raises(ConfigError, match=said):
        load_pipeline("folder", [setting], environment={})
    loaded = load_pipeline("folder", ["download.source='2024'"], environment={})
    assert loaded.download.source == "2024"


def test_no_pipeline_but_those_of_scenes_has_the_demos_components():
    """What was trained on scenes knows nothing of photographs."""
    for name in set(pipeline_names()) - {"demo", "demo-lora"}:
        named = [value for _, value in load_pipeline(name, (), None, {}).components if value]
        assert not [value for value in named if value == "demo" or "hdm/demo" in str(value)], name
    assert load_pipeline("demo", (), None, {}).components.folder == "demo"


def test_own_entries_come_on_top_of_the_packages(tmp_path):
    own = tmp_path / "pipelines.yaml"
    own.write_text(
        "pipelines:\n"
        "  demo: {extends: demo, filter: {min_side_px: 7}}\n"
        "  other: {extends: demo, filter: {max_aspect: 3.0}}\n"
        "  folder: {filter: {min_side_px: 9}}\n"
    )
    packaged = load_pipeline("demo", (), None, {})
    assert packaged.filter.min_side_px != 7

    demo = load_pipeline("demo", (), own, {})
    assert demo.filter.min_side_px == 7
    assert demo.train == packaged.train

    other = load_pipeline("other", (), own, {})
    assert (other.filter.min_side_px, other.filter.max_aspect) == (7, 3.0)

    assert load_pipeline("folder", (), None, {}).filter.min_sharpness == 0.25
    assert load_pipeline("folder", (), own, {}).filter.min_sharpness is None, "replaced as a whole"
    assert set(pipeline_names(own)) == {*pipeline_names(), "other"}


def test_the_working_folders_file_is_used_unless_another_is_named(tmp_path, monkeypatch, file):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "plain" not in pipeline_names()
    Path("pipelines.yaml").write_text("pipelines: {mine: {extends: demo}}\n")
    assert "mine" in pipeline_names()
    assert "mine" not in pipeline_names(file)
    Path("pipelines.yaml").write_text("pipelines: [mine]\n")
    with pytest.raises(ConfigError, match="not a mapping of names to entries"):
        pipeline_names()
