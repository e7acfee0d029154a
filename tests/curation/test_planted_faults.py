"""How well the measures tell the embedded data set's planted faults from its good pictures."""

from collections import Counter

from hdm.acquisition.settings import ScenesSettings
from hdm.config import Pipeline
from hdm.curation import decide
from hdm.curation.measure import Measures
from hdm.data.tables import read_tables
from hdm.demo.faults import file_bytes, plan
from hdm.pipelines import load_pipeline
from tests.curation.conftest import run

SEEN_BY_PIXELS = (
    "corrupt",
    "not_image",
    "exact_duplicate",
    "near_duplicate",
    "too_small",
    "blurred",
    "noisy",
)
SETTINGS = load_pipeline("demo").filter.model_copy(update={"min_clip_similarity": None})


def test_planted_faults_are_caught_and_good_pictures_kept(store, make_download):
    scenes = ScenesSettings(count=400, faults=0.5, seed=7)
    items = [item for item in plan(scenes) if item.fault not in ("missing", "cut_off")]
    download = make_download([(file_bytes(item, scenes, plan(scenes)), None) for item in items])
    pipeline, inputs = Pipeline(threads=1, filter=SETTINGS), {"download": download}
    for stage in (Measures(), decide):
        output = run(stage, pipeline, inputs, store)
        inputs[output.name] = output
    rows = read_tables(inputs["filter"], "scores").to_pylist()
    row_of = {item.index: row for item, row in zip(items, rows, strict=True)}
    for item in items:  # of files with equal bytes either may be kept
        if item.fault == "exact_duplicate" and row_of[item.index]["kept"]:
            assert item.original is not None
            original = row_of[item.original]
            assert original["reason"] == "duplicate"
            original["kept"], row_of[item.index]["kept"] = True, False
    total = Counter(item.fault for item in items)
    refused = Counter(item.fault for item, row in zip(items, rows, strict=True) if not row["kept"])
    assert refused[None] <= 0.02 * total[None]
    for fault in SEEN_BY_PIXELS:
        assert total[fault] > 10
        assert refused[fault] >= 0.98 * total[fault], fault
