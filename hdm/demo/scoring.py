"""Registers the judge of scenes, and a metric of the data: which planted faults the filter
caught.
"""

from __future__ import annotations

from hdm.acquisition.settings import Pipeline
from hdm.data.tables import read_tables
from hdm.demo.judge import SceneJudge
from hdm.errors import ConfigError
from hdm.scoring import judges
from hdm.scoring.metrics import Measured, Metric, Score, Table, register
from hdm.statistics import Share
from hdm.store import Outputs

SCENES = "scenes"
COLUMNS = ("Fault", "planted", "caught", "what became of them")


def scene_judge(pipeline: Pipeline) -> SceneJudge:
    """The judge of a pipeline that makes scenes.

    Raises:
        ConfigError: it has other pictures.
    """
    if not _has_scenes(pipeline):
        raise ConfigError(
            "evaluate.prompts: scenes needs download.kind: scenes",
            where="evaluate.prompts",
            do="write held_out, or name a file of prompts",
        )
    return SceneJudge(pipeline.download.scenes)


def measure(pipeline: Pipeline, outputs: Outputs) -> Measured:
    """Shares of the faults that were caught and of the good pictures that were kept."""
    samples = read_tables(outputs["download"], "samples")
    scores = read_tables(outputs["filter"], "scores")
    audit = scene_judge(pipeline).audit(samples, scores)
    caught = Share(audit["caught"]["caught"], audit["caught"]["planted"])
    kept = Share(audit["good"]["kept"], audit["good"]["planted"])
    rows = []
    for fault, answers in audit["faults"].items():
        reasons = [f"{count} {why.replace('_', ' ')}" for why, count in answers["reasons"].items()]
        counts = (str(answers["planted"]), str(answers["caught"]))
        rows.append((fault.replace("_", " "), *counts, ", ".join(reasons)))
    return Measured(
        [
            Score.of_share("faults_caught", caught, label="faults caught"),
            Score.of_share("good_kept", kept, label="good pictures kept"),
        ],
        [Table(COLUMNS, rows)],
        details={"audit": audit},
    )


def _has_scenes(pipeline: Pipeline) -> bool:
    return pipeline.download.kind == "scenes"


METRIC = Metric(
    "faults",
    ("download", "filter"),
    lambda pipeline: {"version": 1, "scenes": pipeline.download.scenes.result_fields()},
    measure,
    title="Planted faults",
    about=(
        "The data set has faults in known places. A fault counts as caught if its picture was "
        "not downloaded or not kept; a copy only if its original was kept."
    ),
    applies=lambda pipeline: _has_scenes(pipeline) and pipeline.download.scenes.faults > 0,
)
register(METRIC)
judges.register(SCENES, scene_judge)
