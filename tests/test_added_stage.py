"""A stage of another package: a new file and its entry point, from which all else derives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.flows.served import with_tables

NEW_FILE = '''
"""A number for every downloaded picture."""

from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from hdm import parts
from hdm.data.tables import num_shards, read_table, shard_name, write_table
from hdm.errors import ConfigError
from hdm.keys import FIELD
from hdm.parts import Part, Step
from hdm.settings import Settings
from hdm.stage_work import AddedStage, OutputStep, Size, StageWork
from hdm.store import Identity, Output

NAME = "mosaic"
SCHEMA = pa.schema([FIELD, pa.field("tiles", pa.int64(), nullable=False)])


class MosaicSettings(Settings):
    tiles: int = 4


@dataclass(frozen=True)
class Mosaic(Step[int, None]):
    download: Output
    tiles: int

    what = "lay tiles"

    def plan(self):
        for number in range(num_shards(self.download, "samples")):
            yield Part(number, {NAME: (shard_name("tiles", number),)})

    @contextmanager
    def open(self):
        yield None

    def make_part(self, part, folders, tools, bar):
        samples = read_table(self.download.file(shard_name("samples", part.task)))
        keys = samples["key"].to_pylist()
        rows = {"key": keys, "tiles": [self.tiles] * len(keys)}
        name = shard_name("tiles", part.task)
        write_table(folders[NAME], name, SCHEMA, rows, {"tiles_laid": self.tiles * len(keys)})
        bar.advance()


def identify(pipeline, inputs):
    return Identity(NAME, 1, pipeline.stages[NAME].result_fields(), dict(inputs))


def make(pipeline, identity, inputs, store):
    step = Mosaic(inputs["download"], pipeline.stages[NAME].tiles)
    return parts.make_output(step, store, identity, pipeline.execution)


def size(pipeline, numbers):
    return Size(numbers.pictures, 16 * pipeline.stages[NAME].tiles)


def outputs(pipeline, before):
    yield OutputStep(NAME, ("download",), identify, make, size)


def preflight(pipeline, made):
    if pipeline.stages[NAME].tiles > 100:
        yield ConfigError("so many tiles do not fit", where="stages.mosaic.tiles")


STAGE = AddedStage(
    NAME, "lay-mosaic", "Lay tiles.", after="download", settings=MosaicSettings,
    work=StageWork(outputs, preflight),
)
'''
CRITERION = """
from hdm.curation.criteria import Criterion, register

def open_brightness(pipeline):
    return lambda pictures: [float(picture.pixels.mean()) for picture in pictures]

register(Criterion("brightness", "too bright", bound="max", open=open_brightness, flops=1e15))
"""
ENTRY_POINTS = """
[hdm.stages]
mosaic = added_mosaic:STAGE
[hdm.extensions]
brightness = added_brightness
"""
METADATA = "Metadata-Version: 2.1\nName: added-mosaic\nVersion: 1.0\n"
SMALL = (
    "stages.mosaic={tiles: 3}",
    "download.scenes.count=8",
    "download.scenes.faults=0",
    "download.shard_items=4",
    "threads=1",
)
HDM = "import sys; from flows.cli import app; sys.argv[0] = 'hdm'; app()"
FACTS = """
import added_mosaic  # first of all, as in a process that unpickles one of its steps
import importlib, json, sys
from pathlib import Path
from prefect.cli.deploy._models import DeploymentConfig
from flows.deployments import added_deployments
from flows.full_pipeline import full_pipeline
from hdm.errors import ConfigError
from hdm.pipelines import load_pipeline
from hdm.planning.hardware import card
from hdm.planning.plan import Question, make_plan
from hdm.stages import OutputGraph, preflight, steps
from hdm.store import Store

def pipeline(*settings):
    return load_pipeline("demo", settings, environment={})

def refusal(*settings):
    try:
        preflight(pipeline(*settings), store, "mosaic", "mosaic")
    except ConfigError as error:
        return str(error)

def rows(*settings):
    return [[row.name, row.items, row.bytes, row.done, row.hours > 0]
        for row in make_plan(Question(pipeline(*settings), store, card("cpu"))).rows]

store = Store(Path(sys.argv[1]))
small = json.loads(sys.argv[2])
(deployment,) = added_deployments()
module, _, name = DeploymentConfig.model_validate(deployment).entrypoint.rpartition(".")
flow = getattr(importlib.import_module(module), name)
print(json.dumps({
    "flow": [flow.name, flow.description, list(flow.parameters.properties)],
    "form": full_pipeline.parameters.model_dump(),
    "digests": [
        {name: one.digest for name, one in OutputGraph(pipeline(*settings)).identities().items()}
        for settings in ([], ["stages.mosaic.tiles=3"], ["stages.mosaic.tiles=4"])
    ],
    "names": [step.name for step in steps(pipeline("stages.mosaic={}"))],
    "planned": rows("stages.mosaic.tiles=3"),
    "made": rows(*small),
    "criterion": rows("filter.limits={brightness: 200}"),
    "refusals": [refusal(setting) for setting in (
        "stages.mosaic.tiles=many", "stages.mosaik.tiles=3", "stages.mosaic.tiles=101", "stages={}",
    )],
}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as pip installs it."""
    site = tmp_path_factory.mktemp("site")
    (site / "added_mosaic.py").write_text(NEW_FILE)
    (site / "added_brightness.py").write_text(CRITERION)
    about = site / "added_mosaic-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def python(package: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(package), str(Path(__file__).parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "HDM_TRACKING": "off"}
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def store(package: Path, tmp_path_factory: pytest.TempPathFactory, prefect_tables: Path) -> Path:
    """What `hdm run` made up to the stage, and what it told."""
    root = with_tables(tmp_path_factory.mktemp("store"), prefect_tables)
    words = [word for one in SMALL for word in ("--set", one)]
    run = ("run", "demo", "--until", "mosaic", "--json", "--store", str(root))
    done = python(package, HDM, *run, *words)
    assert done.returncode == 0, done.stderr
    (root / "told.json").write_text(done.stdout.splitlines()[-1])
    return root


@pytest.fixture(scope="module")
def facts(package: Path, store: Path) -> dict[str, Any]:
    told = python(package, FACTS, str(store), json.dumps(SMALL))
    assert told.returncode == 0, told.stderr
    return dict(json.loads(told.stdout))


def test_it_runs_and_is_reported(store: Path) -> None:
    (manifest,) = (store / "mosaic").glob("*/manifest.json")
    names = [record["name"] for record in json.loads(manifest.read_bytes())["files"]]
    assert names == ["tiles-00000.parquet", "tiles-00001.parquet"]
    assert "mosaic" in (store / "told.json").read_text()
    (report,) = (store / "reports" / "demo").glob("*/report.html")
    page = " ".join(report.read_text().split())
    assert re.search(r"tiles laid.{0,60}\b24\b|\b24\b.{0,60}tiles laid", page)


def test_it_has_a_flow_a_deployment_and_a_place(facts: dict[str, Any]) -> None:
    parameters = ["pipeline", "outputs", "overrides"]
    assert facts["flow"] == ["lay-mosaic", "Lay tiles.", parameters]
    assert '"mosaic"' in json.dumps(facts["form"])
    assert facts["names"][:3] == ["download", "mosaic", "filter.measures"]


def test_no_other_output_depends_on_it(facts: dict[str, Any]) -> None:
    without, three, four = facts["digests"]
    assert "mosaic" not in without
    assert three.pop("mosaic") != four.pop("mosaic")
    assert three == four == without


def test_it_is_planned(facts: dict[str, Any]) -> None:
    items = facts["planned"][0][1]
    assert facts["planned"][1] == ["mosaic", items, 48 * items, False, False]
    assert facts["made"][1][0] == "mosaic"
    assert facts["made"][1][3]


def test_a_criterion_that_says_its_work_is_counted(facts: dict[str, Any]) -> None:
    rows = {name: rest for name, *rest in facts["criterion"]}
    items = rows["download"][0]
    assert rows["filter.brightness"] == [items, 8 * items, False, True]


def test_its_settings_are_checked(facts: dict[str, Any]) -> None:
    no_number, unknown, too_many, absent = facts["refusals"]
    assert "stages.mosaic.tiles" in no_number
    assert "valid integer" in no_number
    assert "use one of mosaic" in unknown
    assert "so many tiles do not fit" in too_many
    assert "--set stages.mosaic={}" in absent
