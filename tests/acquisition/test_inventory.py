"""Everything in a source is counted and named, and a lost caption stops the download."""

import io
import json
import logging
import tarfile

import pytest
from PIL import Image

from hdm.acquisition import download
from hdm.acquisition.inventory import Fate, Inventory, summary_lines
from hdm.acquisition.items import Item
from hdm.acquisition.settings import DownloadSettings
from hdm.config import Pipeline
from hdm.data.tables import read_tables
from hdm.errors import InputError
from hdm.keys import key_numbers, key_of
from hdm.store import Store
from tests.acquisition.misbehaving import png


def make(source, store, **settings):
    pipeline = Pipeline(download=DownloadSettings(source=str(source), **settings), threads=1)
    return download.make(pipeline, download.identify(pipeline, {}), {}, Store(store))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for number in range(3):
        (root / "img").mkdir(parents=True, exist_ok=True)
        (root / "img" / f"{number}.png").write_bytes(png(number))
        (root / "img" / f"{number}.txt").write_text(f"caption {number}")
    return root


def entries(output):
    inventory = json.loads(output.file("inventory.json").read_bytes())
    return {
        (entry["what"], entry["fate"], entry["place"]): entry["reason"]
        for entry in inventory["entries"]
    }


def test_everything_in_a_folder_is_taken_refused_or_named(folder, tmp_path):
    (folder / "README.md").write_text("about")
    (folder / "img" / "LICENSE.txt").write_text("MIT")
    (folder / "img" / "layers.psd").write_bytes(b"8BPS\0\1" + bytes(40))
    (folder / "captions.jsonl").write_text("{}\n")
    (folder / "img" / "4").write_bytes(png(4))
    (folder / "img" / "gone.png").symlink_to("nowhere")
    (folder / ".DS_Store").write_bytes(b"")
    (folder / "metadata.csv").write_text(
        "file_name,caption,score\nimg/4,a fourth,0.5\nimg/0.png,,1\n"
    )
    output = make(folder, tmp_path / "store")
    rows = read_tables(output, "samples").to_pylist()
    assert {row["source"]: row["captions"] for row in rows} == {
        "img/0.png": ["caption 0"],
        "img/1.png": ["caption 1"],
        "img/2.png": ["caption 2"],
        "img/4": ["a fourth"],
    }
    assert entries(output).keys() == {
        ("file", "not_looked_at", "README.md"),
        ("file", "not_looked_at", "img/LICENSE.txt"),
        ("file", "refused", "img/layers.psd"),
        ("file", "not_looked_at", "captions.jsonl"),
        ("file", "refused", "img/gone.png"),
        ("file", "not_looked_at", ".DS_Store"),
        ("column", "not_looked_at", "metadata.csv: score"),
    }
    fates = ("taken", "at", "refused")
    assert {name: n for name, n in output.counts.items() if name.endswith(fates)} == {
        "captions_taken": 4,
        "files_taken": 8,
        "files_not_looked_at": 4,
        "files_refused": 2,
        "lines_taken": 2,
        "columns_taken": 2,
        "columns_not_looked_at": 1,
    }


TABLE = "metadata.jsonl"
UNDECODABLE = b"\x81\x8d"
DAMAGED = '{"file_name": "img/0.png", "caption": "x\ufffd"}'.encode()
LOSSES = {
    "a line that names no picture": (
        TABLE,
        b'{"file_name": "img/3.png", "caption": "x"}',
        "metadata.jsonl:1: it names img/3.png, which is not there; did you mean img/",
    ),
    "a line that leads out of the folder": (
        TABLE,
        b'{"file_name": "../x.png", "caption": "x"}',
        "metadata.jsonl:1: it names ../x.png, which lies outside the folder",
    ),
    "a line without a name": (
        TABLE,
        b'\n{"caption": "x", "file_name": null}',
        "metadata.jsonl:2: it names no file",
    ),
    "a line that is no JSON": (
        TABLE,
        b'{"file_name": "img/0.png"}\n{"file_name"',
        "metadata.jsonl:2: it is no JSON object",
    ),
    "a text that belongs to no picture": (
        "img/O1.txt",
        b"a fox",
        "img/O1.txt: it lies beside pictures and belongs to none of them; did you mean img/1?",
    ),
    "a JSON that belongs to no picture": (
        "about.json",
        b'{"caption": "x"}',
        "about.json: it lies beside pictures and belongs to none of them",
    ),
    "a table of captions that no setting names": (
        "captions.csv",
        b"file_name,caption\nimg/0.png,a fox\n",
        "captions.csv: it lists captions of files; set download.metadata to it",
    ),
    "a table of texts in another column that no setting names": (
        "metadata.json",
        b'[{"file": "img/0.png", "description": "a red fox", "author": "A B"}]',
        "metadata.json: it may list captions of files; "
        "set download.metadata to it and download.caption_column=description",
    ),
    "a table of texts whose column of names is called otherwise": (
        "list.csv",
        b"bild,beschreibung\nimg/0.png,ein roter Fuchs\n",
        "list.csv: it may list captions of files; "
        "call its column 'bild' file_name, set download.metadata to it",
    ),
    "half a character that JSON spells out": (
        TABLE,
        b'{"file_name": "img/0.png", "caption": "a \\ud800 fox"}',
        "img/0.png: its text was damaged before it came here",
    ),
    "a text that cannot be decoded": (
        "img/0.txt",
        UNDECODABLE,
        "img/0.txt: it is not text in a known encoding",
    ),
    "a JSON file that is none": ("img/0.json", b"{", "img/0.json: it is not JSON"),
    "a JSON file in another encoding, in which half a character escapes the next": (
        "img/0.json",
        '{"caption": "表示する狐"}'.encode("shift_jis"),
        "img/0.json: it is not text in a known encoding: "
        "--set download.encoding names another, as shift_jis (表示する狐)",
    ),
    "a table of captions in such an encoding, that no setting names": (
        "captions.json",
        '[{"file_name": "img/0.png", "caption": "表示する狐"}]'.encode("shift_jis"),
        "captions.json: it is not text in a known encoding: "
        "--set download.encoding names another, as shift_jis (表示する狐)",
    ),
    "JSON in UTF-16 without its mark": (
        "img/0.json",
        '{"caption": "表示する狐"}'.encode("utf-16-le"),
        "img/0.json: it is UTF-16 without the mark that says so: save it as UTF-8",
    ),
    "a caption that was damaged before": (
        TABLE,
        DAMAGED,
        "img/0.png: its text was damaged before it came here",
    ),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_a_lost_caption_stops_the_download_and_is_named(kind, folder, tmp_path):
    name, content, reason = LOSSES[kind]
    (folder / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        make(folder, tmp_path / "store")
    assert f"\n    {reason}" in str(error.value)
    assert "download.max_lost_captions=1" in str(error.value)
    output = make(folder, tmp_path / "store", max_lost_captions=1)
    assert sum(fate == Fate.LOST for _, fate, _ in entries(output)) == 1
    assert sum(count for name, count in output.counts.items() if name.endswith("_lost")) == 1


def test_a_caption_that_leads_nowhere_is_lost(folder, tmp_path):
    (folder / "img/2.txt").unlink(missing_ok=True)
    (folder / "img/2.txt").symlink_to("gone.txt")
    with pytest.raises(InputError, match=r"img/2\.txt: it is a link to gone\.txt, which is not"):
        make(folder, tmp_path / "store")


def test_a_table_nested_without_end_is_no_json(folder, tmp_path):
    (folder / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        make(folder, tmp_path / "store")


@pytest.mark.parametrize("name", ["metadata.jsonl", "captions.json"])
def test_a_table_in_another_encoding_says_so_and_is_read_as_told(name, folder, tmp_path):
    rows = [{"file_name": f"img/{number}.png", "text": "表示する狐"} for number in range(3)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    whole = json.dumps(rows, ensure_ascii=False)
    (folder / name).write_bytes((lines if name.endswith("l") else whole).encode("shift_jis"))
    with pytest.raises(InputError, match=rf"{name}") as error:
        make(folder, tmp_path / "store", metadata=name)
    assert "download.encoding names another, as shift_jis (表示する狐" in str(error.value)
    output = make(folder, tmp_path / "store", metadata=name, encoding="shift_jis")
    assert read_tables(output, "samples")["captions"].to_pylist()[0][0] == "表示する狐"


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.tsv", "metadata.jsonl"])
@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_a_table_in_utf_16_without_its_mark_is_read_as_told(name, codec, folder, tmp_path):
    rows = {
        "metadata.csv": "file_name,caption\nimg/0.png,ein Bär\n",
        "metadata.tsv": "file_name\tcaption\nimg/0.png\tein Bär\n",
        "metadata.jsonl": '{"file_name": "img/0.png", "caption": "ein Bär"}\n',
    }
    (folder / name).write_bytes(rows[name].encode(codec))
    with pytest.raises(InputError, match=f"{name}.*|save it as UTF-8") as error:
        make(folder, tmp_path / "store")
    assert "without" in str(error.value)
    output = make(folder, tmp_path / "store", encoding=codec)
    assert read_tables(output, "samples")["captions"].to_pylist()[0] == ["ein Bär", "caption 0"]


@pytest.mark.parametrize(
    "table",
    [
        "file_name,text\na.png,a fox, running\n",
        'file_name,text\na.png,"a fox\nb.png,a dog\n',
        "picture,words\na.png,a fox in snow\nb.png,a dog, asleep\n",
    ],
)
def test_a_table_of_captions_with_a_fault_is_lost_and_not_merely_unused(table, tmp_path):
    source = tmp_path / "pictures"
    source.mkdir()
    for name in ("a.png", "b.png"):
        (source / name).write_bytes(png(1))
    (source / "captions.csv").write_text(table)
    with pytest.raises(InputError, match=r"captions\.csv"):
        make(source, tmp_path / "store")


def test_a_table_of_credits_is_no_lost_caption(folder, tmp_path):
    (folder / "sources.csv").write_text(
        "file,author,url,licence\nimg/0.png,Ada B. Clark,https://a.example/0,CC BY 4.0\n"
    )
    output = make(folder, tmp_path / "store")
    assert entries(output).keys() == {("file", "not_looked_at", "sources.csv")}


def test_other_tables_and_json_files_are_no_lost_captions(folder, tmp_path):
    (folder / "config.json").write_text('{"size": 64, "name": "x"}')
    (folder / "classes.json").write_text('["cat", "fox"]')
    (folder / "orders.csv").write_text("file_name,caption\nelsewhere.pdf,x\n")
    (folder / "img" / "0.json").write_text('{"title": "0.png", "taken": "2020"}')
    output = make(folder, tmp_path / "store")
    assert [fate for _, fate, _ in entries(output)] == ["not_looked_at"] * 3
    assert output.counts["captions_taken"] == 3


def test_metadata_may_lie_outside_the_folder(folder, tmp_path):
    (tmp_path / "lists").mkdir()
    path = tmp_path / "lists" / "captions.csv"
    path.write_text("file_name,caption\nimg/0.png,a fox\npictures/img/1.png,a dog\n")
    for wanted in (str(path), "../lists/captions.csv"):
        output = make(folder, tmp_path / "store", metadata=wanted)
        captions = read_tables(output, "samples")["captions"].to_pylist()
        assert captions == [["a fox", "caption 0"], ["a dog", "caption 1"], ["caption 2"]]


def test_the_limit_is_part_of_no_digest_and_more_losses_than_it_still_stop(folder, tmp_path):
    (folder / "img" / "x.txt").write_text("a fox")
    (folder / "img" / "y.caption").write_text("a fox")
    digests = {
        download.identify(
            Pipeline(download=DownloadSettings(source=str(folder), max_lost_captions=most)), {}
        ).digest
        for most in (0, 1, 2)
    }
    assert len(digests) == 1
    with pytest.raises(InputError, match="2 files, lines and captions do not arrive"):
        make(folder, tmp_path / "store", max_lost_captions=1)
    assert make(folder, tmp_path / "store", max_lost_captions=2).counts["files_lost"] == 2


def test_a_new_text_beside_the_pictures_is_seen_by_the_next_run(folder, tmp_path):
    make(folder, tmp_path / "store")
    (folder / "img" / "5.txt").write_text("a fox")
    with pytest.raises(InputError, match=r"img/5\.txt"):
        make(folder, tmp_path / "store")


def test_guessed_encodings_and_missing_captions_are_counted_and_told(folder, tmp_path, caplog):
    (folder / "img" / "0.txt").write_bytes(b"caf\xe9\ntwo")
    (folder / "img" / "1.txt").unlink()
    with caplog.at_level(logging.INFO, "hdm"):
        output = make(folder, tmp_path / "store")
    assert (output.counts["captions_guessed"], output.counts["items_uncaptioned"]) == (2, 1)
    assert "3 captions arrived (2 in a guessed encoding, 0 made up from class names)" in caplog.text
    assert "1 picture has none; 0 lost" in caplog.text
    assert "img/0.png: café | two" in caplog.text


def test_a_folder_without_captions_is_a_warning(folder, tmp_path, caplog):
    for path in folder.rglob("*.txt"):
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert make(folder, tmp_path / "store").counts["items_uncaptioned"] == 3
    assert "none of the 3 pictures has a caption" in caplog.text


def test_pictures_that_are_not_taken_are_named(folder, tmp_path, caplog):
    for number in range(7):
        (folder / f"torn{number}.png").write_bytes(png(0)[:30])
        (folder / f"more{number}.png").write_bytes(png(number))
    with caplog.at_level(logging.INFO, "hdm"):
        make(folder, tmp_path / "store", shard_items=4)
    assert "not taken: 7 of 17 items" in caplog.text
    assert [
        name for name in map("torn{}.png".format, range(7)) if f"  {name}: corrupt" in caplog.text
    ] == [f"torn{number}.png" for number in range(5)]


def jpeg_of_scans(count):
    """A progressive JPEG whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    return whole[:-2] + count * whole[whole.rindex(b"\xff\xda") : -2] + whole[-2:]


def test_a_jpeg_of_very_many_scans_is_not_taken(folder, tmp_path):
    (folder / "many.jpg").write_bytes(jpeg_of_scans(2000))
    output = make(folder, tmp_path / "store", max_failed=1)
    rows = {row["source"]: row for row in read_tables(output, "samples").to_pylist()}
    assert rows["many.jpg"]["status"] == "too_many_scans"
    assert [row["status"] for row in rows.values()].count("ok") == 3


def test_names_made_up_from_folders_are_counted(folder, tmp_path):
    for path in folder.rglob("*.txt"):
        path.unlink()
    output = make(folder, tmp_path / "store", class_captions=True)
    assert (output.counts["captions_made_up"], output.counts["captions_taken"]) == (3, 3)


def test_the_sample_is_ten_of_all_captions_in_order():
    inventory = Inventory()
    for number in range(500):
        source = f"{number:03d}.png"
        inventory.arrived(
            Item(key_of(source), source, (f"caption {number}",) if number % 5 else ())
        )
    sample = inventory.to_json()["sample"]
    assert len(sample) == 10
    assert [entry["source"] for entry in sample] == sorted(entry["source"] for entry in sample)
    assert all(entry["captions"] == [f"caption {int(entry['source'][:3])}"] for entry in sample)
    assert len({int(entry["source"][:3]) // 100 for entry in sample}) > 2
    assert sum(line.startswith("  ") for line in summary_lines(inventory.to_json())) == 10


def test_a_repeated_name_in_a_tar_makes_keys_that_every_table_joins_on(tmp_path):
    """`filter.duplicate_distance: null` keeps them all, and joins read keys as numbers."""
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for number in range(3):
            member = tarfile.TarInfo("a.png")
            member.size = len(png(number))
            tar.addfile(member, io.BytesIO(png(number)))
    keys = read_tables(make(tmp_path / "twice.tar", tmp_path / "store"), "samples")["key"]
    assert len(set(key_numbers(keys).tolist())) == 3


def test_a_picture_with_two_lines_is_one_key_and_one_item(folder, tmp_path):
    (folder / "metadata.jsonl").write_text('{"file_name": "img/0.png", "caption": "a"}\n' * 2)
    rows = read_tables(make(folder, tmp_path / "store"), "samples").to_pylist()
    assert [row["key"] for row in rows] == [key_of(f"img/{number}.png") for number in range(3)]
    assert rows[0]["captions"] == ["a", "caption 0"]


def test_a_source_without_pictures_says_what_is_there_instead(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    (root / ".a.png").write_bytes(png(0))
    (root / "layers.psd").write_bytes(b"8BPS\0\1" + bytes(40))
    with pytest.raises(InputError, match="no items") as error:
        make(root, tmp_path / "store")
    assert ".a.png: its name begins with a dot" in str(error.value)
    assert "layers.psd: PSD: not read; convert it to PNG" in str(error.value)
