"""Every row of the table in docs/own-pictures.md: a small source, and the captions that arrive."""

import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdm.acquisition.inventory import Inventory
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from tests.acquisition.misbehaving import png

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-pictures.md"
FOX, BOTH = ("a fox",), ("a fox", "an animal")


@dataclass
class Row:
    """Files of a source by name (None: a picture), settings, and the captions of each picture."""

    files: dict[str, str | bytes | None]
    captions: dict[str, tuple[str, ...]]
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = "."


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(*records: dict[str, Any], schema: pa.Schema | None = None) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(records), schema=schema), buffer)
    return buffer.getvalue()


def tar(**members: str | None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, text in members.items():
            data = png(0) if text is None else text.encode()
            member = tarfile.TarInfo(f"0001.{name}")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def classes() -> bytes:
    """A data set's Parquet file whose labels are numbers with names."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "fox"])}
    )
    table = {"image": [{"bytes": png(0), "path": None}], "label": [1]}
    buffer = io.BytesIO()
    datasets.Dataset.from_dict(table, features=features).to_parquet(buffer)
    return buffer.getvalue()


A = {"a.png": None}
PICTURE = {"image": {"bytes": png(0), "path": "a.png"}}
CLASSES = {"class_captions": True}
ROWS = {
    "kohya caption": lambda: Row({**A, "a.caption": "a fox"}, {"a.png": FOX}),
    "kohya tags": lambda: Row(
        {**A, "a.txt": "fox, snow, 1girl\n"}, {"a.png": ("fox, snow, 1girl",)}
    ),
    "kohya several lines": lambda: Row({**A, "a.txt": "a fox\nan animal"}, {"a.png": BOTH}),
    "kohya metadata": lambda: Row(
        {**A, "meta_cap.json": json.dumps({"a": {"caption": "a fox", "tags": "fox, snow"}})},
        {"a.png": FOX},
        {"metadata": "meta_cap.json"},
    ),
    "kohya class folders": lambda: Row(
        {"10_dog/a.png": None, "1_fox/b.png": None, "1_fox/b.txt": "a fox"},
        {"10_dog/a.png": ("dog",), "1_fox/b.png": FOX},
        CLASSES,
    ),
    "OneTrainer text file": lambda: Row({**A, "a.txt": "a fox\r\nan animal\r\n"}, {"a.png": BOTH}),
    "OneTrainer masks": lambda: Row(
        {**A, "a.txt": "a fox", "a-masklabel.png": None}, {"a.png": FOX}
    ),
    "OneTrainer file name": lambda: Row({"a fox.png": None}, {"a fox.png": ()}),
    "SimpleTuner textfile": lambda: Row({**A, "a.txt": "a fox\nan animal\n"}, {"a.png": BOTH}),
    "SimpleTuner one text": lambda: Row(
        {**A, "a.txt": "a fox\nin snow"}, {"a.png": ("a fox\nin snow",)}, {"text_lines": "one"}
    ),
    "SimpleTuner parquet": lambda: Row(
        {**A, "captions.parquet": parquet({"filename": "a.png", "captions": list(BOTH)})},
        {"a.png": BOTH},
        {"metadata": "captions.parquet"},
    ),
    "imagefolder jsonl": lambda: Row(
        {**A, "metadata.jsonl": lines({"file_name": "a.png", "text": "a fox"})}, {"a.png": FOX}
    ),
    "imagefolder csv": lambda: Row(
        {**A, "metadata.csv": 'file_name;text\na.png;"a fox"\n'}, {"a.png": FOX}
    ),
    "imagefolder parquet": lambda: Row(
        {**A, "metadata.parquet": parquet({"file_name": "a.png", "text": "a fox"})}, {"a.png": FOX}
    ),
    "imagefolder sub-folders": lambda: Row(
        {
            "train/a.png": None,
            "train/metadata.jsonl": lines({"file_name": "a.png", "text": "a fox"}),
            "test/a.png": None,
            "test/metadata.csv": "file_name,text\na.png,a cat\n",
        },
        {"test/a.png": ("a cat",), "train/a.png": FOX},
    ),
    "imagefolder class folders": lambda: Row({"dog/a.png": None}, {"dog/a.png": ()}),
    "img2dataset files": lambda: Row(
        {"01.png": None, "01.txt": "a fox", "01.json": '{"caption": "a fox", "width": 3}'},
        {"01.png": FOX},
    ),
    "COCO captions": lambda: Row(
        {
            **A,
            "metadata.jsonl": lines(
                {"file_name": "a.png", "caption": "a fox"},
                {"file_name": "a.png", "caption": "an animal"},
            ),
        },
        {"a.png": BOTH},
    ),
    "WebDataset txt": lambda: Row(
        {"t.tar": tar(png=None, txt="a fox")}, {"t.tar/0001.png": FOX}, source="t.tar"
    ),
    "WebDataset json": lambda: Row(
        {"t.tar": tar(json='{"text": ["a fox", "an animal"]}', png=None)},
        {"t.tar/0001.png": BOTH},
        source="t.tar",
    ),
    "WebDataset cls": lambda: Row(
        {"t.tar": tar(png=None, cls="fox"), "u.tar": tar(png=None, cls="3")},
        {"t.tar/0001.png": ("fox",), "u.tar/0001.png": ()},
        CLASSES,
        source="*.tar",
    ),
    "data set list": lambda: Row(
        {"t.parquet": parquet({**PICTURE, "captions": list(BOTH)})},
        {"train/0": BOTH},
        source="t.parquet",
    ),
    "data set ClassLabel": lambda: Row(
        {"t.parquet": classes()}, {"train/0": ("fox",)}, {"caption_column": "label"}, "t.parquet"
    ),
    "Parquet of pictures": lambda: Row(
        {"t.parquet": parquet({"image": png(0), "caption": "a fox"})},
        {"train/0": FOX},
        source="t.parquet",
    ),
    "paragraphs": lambda: Row(
        {**A, "a.txt": "a fox\n\nin snow\n"}, {"a.png": ("a fox\n\nin snow",)}
    ),
}


def written(row: Row, root: Path) -> str:
    for name, content in row.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = png(0) if content is None else content
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(root / row.source)


@pytest.mark.parametrize("name", ROWS)
def test_a_convention(name, tmp_path):
    row, inventory = ROWS[name](), Inventory()
    source = written(row, tmp_path)
    arrived = {}
    for item in open_source(source, "auto", DownloadSettings(**row.settings))[1].items(inventory):
        arrived[item.source] = item.captions
        assert item.load is not None
        assert item.load() == png(0)
    assert arrived == row.captions
    assert inventory.lost == 0


@pytest.mark.parametrize(
    ("name", "unasked"),
    [("kohya class folders", FOX), ("WebDataset cls", ()), ("data set ClassLabel", ())],
)
def test_classes_are_no_captions_unless_asked_for(name, unasked, tmp_path):
    items = open_source(written(ROWS[name](), tmp_path), "auto", DownloadSettings())[1].items()
    assert [caption for item in items for caption in item.captions] == list(unasked)


def test_the_label_of_a_data_set_is_a_caption_where_asked_for(tmp_path):
    source = written(ROWS["data set ClassLabel"](), tmp_path)
    items = open_source(source, "auto", DownloadSettings(class_captions=True))[1].items()
    assert [item.captions for item in items] == [("fox",)]


def test_the_page_has_a_row_for_each_of_them():
    table = PAGE.read_text().split("## Where captions are looked for")[1].split("\n## ")[0]
    names = re.findall(r"^\| ([^|`]+?) \|", table, re.M)[1:]  # after the header
    assert names == list(ROWS)
