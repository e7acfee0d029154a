"""The small inputs of shared/cases, run as a person runs them, without any model."""

from pathlib import Path

import pytest

from hdm.data.tables import read_tables
from hdm.errors import InputError
from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Store

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FOX, BOTH = [["a fox"]], [["a fox", "an animal"]]
RIGHT = {
    "backslash": FOX,
    "folder_in_name": FOX,
    "no_suffix": FOX,
    "caption_list": BOTH,
    "caption_twice": BOTH,
    "metadata_csv": FOX,
    "sidecar_caption": FOX,
    "sidecar_png_txt": FOX,
    "sidecar_lines": BOTH,
    "sidecar_utf16": FOX,
}
"""Name of a case → the captions of each picture."""

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not here")


def outputs(source, store, *settings):
    pipeline = load_pipeline("folder", [f"download.source={source}", *settings], environment={})
    return {made.output.name: made.output for made in run(pipeline, Store(store), None, "caption")}


@pytest.mark.parametrize("name", RIGHT)
def test_a_case_gives_its_captions(name, tmp_path):
    made = outputs(CASES / name, tmp_path)
    captions: dict[str, list[tuple[str, str]]] = {}
    for row in read_tables(made["caption"], "captions").to_pylist():
        captions.setdefault(row["key"], []).append((row["maker"], row["caption"]))
    assert list(captions.values()) == [
        [("given", caption) for caption in found] for found in RIGHT[name]
    ]
    assert made["download"].counts["captions_taken"] == sum(map(len, RIGHT[name]))


def test_pictures_under_other_names_are_read_or_refused_by_name(tmp_path):
    made = outputs(CASES / "not_looked_at", tmp_path)
    rows = read_tables(made["download"], "samples").to_pylist()
    assert {row["source"] for row in rows} == {"a.png", "b.heic", "c.jpe"}
    assert sum(row["status"] == "ok" for row in rows) >= 2
    assert all(row["error"] for row in rows if row["status"] != "ok")


def test_a_linked_folder_is_read_and_one_copied_as_text_stops(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    target = CASES / "linked_folder_target"
    (root / "a.png").write_bytes((CASES / "linked_folder" / "a.png").read_bytes())
    (root / "sub").symlink_to(target)
    made = outputs(root, tmp_path / "store")
    sources = read_tables(made["download"], "samples")["source"].to_pylist()
    assert sources == ["a.png", "sub/b.png"]

    (root / "sub").unlink()
    (root / "sub").write_text(str(target))
    with pytest.raises(InputError, match=r"sub: it is a link to the folder .*linked_folder_target"):
        outputs(root, tmp_path / "store")
