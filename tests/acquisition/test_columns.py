"""Columns and fields under the names that people give them: taken, or a loss that says what to
set.
"""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdm.acquisition.inventory import Fate, Inventory
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from hdm.errors import InputError
from tests.acquisition.misbehaving import png

TWO = {
    "a.png": {"file_name": "a.png", "text": "a fox", "caption": None},
    "b.png": {"file_name": "b.png", "caption": "an animal", "text": "ignored"},
}


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def parquet(*columns):
    """A table of one row, of which columns may have the same name."""
    names = [name for name, _ in columns]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([value]) for _, value in columns], names), file)
    return file.getvalue()


def read(root, files, **settings):
    """The captions of each picture of a folder, and its inventory."""
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    inventory = Inventory()
    reader = open_source(str(root), "auto", DownloadSettings(**settings))[1]
    return {item.source: item.captions for item in reader.items(inventory)}, inventory


def losses(inventory):
    return {entry.place: entry.reason for entry in inventory.entries if entry.fate is Fate.LOST}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", lines({"File_Name": "a.png", "Text": "a fox"})),
        ("metadata.jsonl", lines({"file_name": "a.png", "prompt": "a fox"})),
        ("metadata.jsonl", lines({"file_name": "a.png", "caption": " ", "text": "a fox"})),
        ("metadata.jsonl", json.dumps([{"file_name": "a.png", "text": "a fox"}], indent=1)),
        ("metadata.csv", "file_name\ttext\na.png\ta fox\n"),
        ("metadata.csv", "file_name\ttext\r\na.png\ta fox\r\n".encode("utf-16")),
        ("a.json", '{"Prompt": "a fox"}'),
        ("a.json", '{"caption": "", "text": "a fox"}'),
        ("a.text", "a fox"),
    ],
)
def test_a_caption_arrives_from(tmp_path, name, content):
    captions, inventory = read(tmp_path, {"a.png": png(0), name: content})
    assert captions == {"a.png": ("a fox",)}
    assert inventory.lost == 0


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_each_row_has_the_captions_of_its_first_column_that_holds_some(tmp_path, suffix):
    table = pa.Table.from_pylist(
        list(TWO.values()), pa.schema(dict.fromkeys(("file_name", "caption", "text"), pa.string()))
    )
    if suffix == "parquet":
        pq.write_table(table, tmp_path / "metadata.parquet")
    text = {
        "jsonl": lines(*TWO.values()),
        "csv": "file_name,text,caption\na.png,a fox,\nb.png,ignored,an animal\n",
    }
    files = {name: png(number) for number, name in enumerate(TWO)}
    if suffix in text:
        files[f"metadata.{suffix}"] = text[suffix]
    captions, inventory = read(tmp_path, files)
    assert captions == {"a.png": ("a fox",), "b.png": ("an animal",)}
    assert inventory.counts["captions_not_looked_at"] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,text,text\na.png,a fox,an animal\n"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a fox", "text": "an animal"}\n'),
        ("a.json", '{"caption": "a fox", "caption": "an animal"}'),
        (
            "metadata.parquet",
            parquet(("file_name", "a.png"), ("text", "a fox"), ("text", "an animal")),
        ),
    ],
)
def test_a_name_that_comes_twice_gives_both_captions(tmp_path, name, content):
    captions, _ = read(tmp_path, {"a.png": png(0), name: content})
    assert captions == {"a.png": ("a fox", "an animal")}


@pytest.mark.parametrize("closing", ["", 'd.png,a "red" dog\n', 'd.png,"a dog"\n'])
def test_a_quote_that_is_never_closed_takes_no_rows_with_it(tmp_path, closing):
    table = 'file_name,text\na.png,"a fox\nb.png,a dog\nc.png,a cat\n' + closing
    with pytest.raises(InputError, match="a quote that line 2 opens"):
        read(tmp_path, {f"{name}.png": png(0) for name in "abcd"} | {"metadata.csv": table})


def test_a_quote_that_the_header_never_closes_takes_no_rows_with_it(tmp_path):
    with pytest.raises(InputError, match="a quote that line 1 opens"):
        read(tmp_path, {"a.png": png(0), "metadata.csv": 'file_name,"text\na.png,a fox\n'})


def test_quoted_cells_over_several_lines_arrive(tmp_path):
    table = 'file_name,text\n"a.png","a ""red"" fox\nand a dog"\nb.png,"a" loose quote\n'
    pictures = {"a.png": png(0), "b.png": png(1)}
    captions, inventory = read(tmp_path, {**pictures, "metadata.csv": table})
    assert captions == {"a.png": ('a "red" fox\nand a dog',), "b.png": ("a loose quote",)}
    assert not losses(inventory)


def test_texts_in_columns_of_other_names_are_lost_until_one_is_named(tmp_path):
    files = {"a.png": png(0), "metadata.jsonl": lines({"file_name": "a.png", "alt": "a fox"})}
    captions, inventory = read(tmp_path, files)
    assert captions == {"a.png": ()}
    assert losses(inventory) == {
        "metadata.jsonl: alt": "it may hold captions: --set download.caption_column=alt"
    }
    captions, inventory = read(tmp_path, files, caption_column="alt")
    assert (captions, inventory.lost) == ({"a.png": ("a fox",)}, 0)


@pytest.mark.parametrize("caption", ["fox", "狐", "赤い狐", "สุนัขจิ้งจอก", "лиса"])
def test_a_caption_without_spaces_arrives_or_is_lost_as_any_other(tmp_path, caption):
    files = {"a.png": png(0), "metadata.jsonl": lines({"file_name": "a.png", "alt": caption})}
    _, inventory = read(tmp_path, files)
    assert losses(inventory).keys() == {"metadata.jsonl: alt"}
    for settings in ({"caption_column": "alt"}, {}):
        captions, inventory = read(tmp_path, files, **settings)
        assert (captions, inventory.lost) == ({"a.png": (caption,)}, 0)
        files["metadata.jsonl"] = lines({"file_name": "a.png", "text": caption})


def test_single_words_that_repeat_are_classes(tmp_path):
    files = {f"{number}.png": png(number) for number in range(4)}
    files["metadata.jsonl"] = lines(*({"file_name": name, "kind": "fox"} for name in files))
    assert read(tmp_path, files)[1].lost == 0


@pytest.mark.parametrize("encoding", ["shift_jis", "gbk", "cp1252"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "json", "sidecar"])
def test_texts_in_a_code_page_in_every_kind_of_file(tmp_path, form, encoding):
    files, settings = in_code_page(form, "“Bär”" if encoding == "cp1252" else "表の狐", encoding)
    captions, inventory = read(tmp_path, files, **settings, encoding=encoding)
    assert (len(captions["a.png"]), inventory.lost) == (1, 0)
    assert captions["a.png"][0] in ("“Bär”", "表の狐")
    assert inventory.counts["captions_guessed"] == 0
    files, settings = in_code_page(form, "ein Bär" if encoding == "cp1252" else "赤い狐", encoding)
    captions, inventory = read(tmp_path, files, **settings)
    if encoding == "cp1252":
        assert captions == {"a.png": ("ein Bär",)}
        assert inventory.counts["captions_guessed"] == 1
    else:
        assert (captions, inventory.lost) == ({"a.png": ()}, 1)


def in_code_page(form, text, encoding):
    """A picture with a caption in a file of some form, and the settings that name it."""
    record = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    content = {
        "csv": f"file_name,text\na.png,{text}\n",
        "jsonl": record + "\n",
        "json": f"[{record}]",
        "sidecar": record,
    }[form]
    name = "a.json" if form == "sidecar" else f"metadata.{form}"
    files = {"a.png": png(0), name: content.encode(encoding)}
    return files, {} if form == "sidecar" else {"metadata": name}


def test_columns_without_texts_are_no_loss(tmp_path):
    metadata = lines(
        {"file_name": "a.png", "label": "fox", "score": 0.5, "date": "2024-01-01 10:00"}
    )
    _, inventory = read(tmp_path, {"a.png": png(0), "metadata.jsonl": metadata})
    assert inventory.lost == 0
    assert inventory.counts["columns_not_looked_at"] == 3


def test_texts_in_json_beside_a_picture_are_lost_only_if_it_has_no_caption(tmp_path):
    files = {"a.png": png(0), "a.json": '{"data": {"caption": "a fox"}, "score": 1}'}
    _, inventory = read(tmp_path, files)
    assert losses(inventory).keys() == {"a.json"}
    captions, inventory = read(tmp_path, {**files, "a.txt": "an animal"})
    assert (captions, inventory.lost) == ({"a.png": ("an animal",)}, 0)


def test_texts_in_a_column_of_a_data_set_are_lost_until_one_is_named(tmp_path):
    pytest.importorskip("datasets")
    pq.write_table(pa.table({"image": [png(0)], "alt": ["a fox"]}), tmp_path / "train.parquet")
    for settings, lost in (({}, 1), ({"caption_column": "alt"}, 0)):
        assert read(tmp_path, {}, **settings)[1].lost == lost


def test_names_in_a_code_page_are_found_where_the_user_names_it(tmp_path):
    metadata = "file_name,text\nbär.png,ein Bär\n".encode("cp1252")
    files = {"bär.png": png(0), "metadata.csv": metadata}
    captions, _ = read(tmp_path, files, encoding="cp1252")
    assert captions == {"bär.png": ("ein Bär",)}
    assert "did you mean bär.png?" in losses(read(tmp_path, files)[1])["metadata.csv:2"]


def test_texts_in_a_folder_of_their_own_are_lost_and_lists_of_boxes_are_not(tmp_path):
    files = {"img/a.png": png(0), "txt/a.txt": "a fox", "labels/a.txt": "0 0.5 0.5 0.1 0.2\n"}
    _, inventory = read(tmp_path, files)
    assert losses(inventory) == {
        "txt/a.txt": "it lies in another folder than img/a; move it beside that"
    }
