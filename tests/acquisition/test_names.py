"""Names in lists find their files however they are spelled, and never another one."""

import json
import unicodedata

import pytest

from hdm.acquisition.inventory import Inventory
from hdm.acquisition.names import Names
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from hdm.errors import InputError
from tests.acquisition.misbehaving import png

DECOMPOSED, COMPOSED = (unicodedata.normalize(form, "Füchse/é.png") for form in ("NFD", "NFC"))


@pytest.fixture
def names(tmp_path):
    root = tmp_path / "train"
    root.mkdir()
    files = ["a.png", "img/b.PNG", "img/c.png", "c.png", DECOMPOSED, "notes.md", "train/d.png"]
    return Names(root, files, [file for file in files if file != "notes.md"])


@pytest.mark.parametrize(
    ("name", "beside", "found"),
    [
        ("a.png", "", "a.png"),
        ("./a.png", "", "a.png"),
        ("../a.png", "img", "a.png"),
        ("c.png", "img", "img/c.png"),
        (r"img\b.PNG", "", "img/b.PNG"),
        (r"IMG\B.png", "", "img/b.PNG"),
        ("b", "img", "img/b.PNG"),
        ("A", "", "a.png"),
        (COMPOSED, "", DECOMPOSED),
        ("train/a.png", "", "a.png"),
        ("Train/A.PNG", "", "a.png"),
        ("d.png", "train", "train/d.png"),
        ("train/d.png", "", "train/d.png"),
        ("img/c.png", "img", "img/c.png"),
        ("train/img/c.png", "img", "img/c.png"),
        ("notes.md", "", "notes.md"),
        ("notes", "", None),
        ("b.png", "", None),
        ("../../etc/passwd", "", None),
        ("/etc/passwd", "", None),
    ],
)
def test_a_name_in_any_spelling(names, name, beside, found):
    assert names.find(name, beside, "metadata.jsonl:1") == found


def test_absolute_paths_inside_the_folder(names):
    assert names.find(f"{names.root}/img/c.png", "", "x") == "img/c.png"
    assert names.find(f"{names.root}/../train/img/C.png", "", "x") == "img/c.png"
    assert names.find(f"{names.root.parent}/img/c.png", "", "x") is None


@pytest.mark.parametrize(
    ("files", "name"),
    [(["a.png", "a.jpg"], "a"), (["A.png", "a.PNG"], "a.png"), (["é.png", "É.png"], "é.PNG")],
)
def test_a_name_that_may_mean_two_files_is_an_error_with_both(tmp_path, files, name):
    with pytest.raises(InputError, match=r"may mean .* or ") as error:
        Names(tmp_path, files, files).find(name, "", "metadata.jsonl:7")
    assert all(file in str(error.value) for file in [*files, "metadata.jsonl:7"])


def test_a_name_that_is_not_there_has_a_neighbour(names):
    assert names.near("photos/b.png") == "img/b.PNG"
    assert names.near("imgs/c.png") == "img/c.png"
    assert names.near("zebra.tiff") is None


def test_texts_beside_pictures_in_any_spelling_belong_to_the_nearest_name(tmp_path):
    for name in ("a.png", "A.png", DECOMPOSED, "b.png", "b.c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(0))
    texts = {"a.txt": "small", "A.TXT": "large", COMPOSED.replace(".png", ".txt"): "accent"}
    texts |= {"B.txt": "b", "b.png.txt": "b too", "b.c.json": json.dumps(["c"])}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    inventory = Inventory()
    items = open_source(str(tmp_path), "folder", DownloadSettings())[1].items(inventory)
    assert {item.source: item.captions for item in items} == {
        "a.png": ("small",),
        "A.png": ("large",),
        DECOMPOSED: ("accent",),
        "b.png": ("b", "b too"),
        "b.c.png": ("c",),
    }
    assert inventory.lost == 0
