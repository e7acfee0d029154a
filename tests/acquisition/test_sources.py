"""Every kind of source gives the same items in the same order, whatever people put into their
lists, folders, tars and data sets.
"""

import bz2
import gzip
import hashlib
import io
import json
import logging
import lzma
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from hdm.acquisition.inventory import Inventory
from hdm.acquisition.items import Item, Unreadable, survey
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from hdm.acquisition.texts import as_text
from hdm.errors import ConfigError, InputError
from tests.acquisition.misbehaving import png

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
URLS = ["http://a.test/1.png", "http://a.test/2.png", "http://a.test/1.png", "http://b.test/ü.png"]
CAPTIONS = ['a "red" dog, running', "", "two\nlines", "naïve 日本"]


def loaded(item: Item) -> bytes:
    assert item.load is not None
    content = item.load()
    assert isinstance(content, bytes)
    return content


def read(source, kind="auto", **settings):
    return list(open_source(str(source), kind, DownloadSettings(**settings))[1].items())


def status(item):
    with pytest.raises(Unreadable) as refusal:
        loaded(item)
    return refusal.value.status


def key(source):
    return hashlib.sha256(source.encode()).hexdigest()[:16]


# Lists of URLs


def write_list(path: Path, url="url", caption="caption") -> Path:
    rows = [{url: u, caption: c, "license": "CC0"} for u, c in zip(URLS, CAPTIONS, strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".txt":
        path.write_text("# a comment\n\n" + "\r\n".join(URLS))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        quoted = [
            separator.join('"' + text.replace('"', '""') + '"' for text in row.values())
            for row in rows
        ]
        path.write_text("\ufeff" + separator.join(rows[0]) + "\n" + "\n".join(quoted))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".txt"])
def test_a_list_in_any_form(tmp_path, suffix):
    kind, reader = open_source(
        str(write_list(tmp_path / f"list{suffix}")), "auto", DownloadSettings()
    )
    items = list(reader.items())
    assert kind == "urls"
    assert reader.total() == 3
    assert [item.source for item in items] == [URLS[0], URLS[1], URLS[3]]
    assert [item.key for item in items] == [key(URLS[0]), key(URLS[1]), key(URLS[3])]
    plain = suffix == ".txt"
    # The first URL comes twice: it is one picture with both captions.
    captions = [(CAPTIONS[0], CAPTIONS[2]), (), (CAPTIONS[3],)]
    assert [item.captions for item in items] == ([()] * 3 if plain else captions)
    assert {item.licence for item in items} == {None if plain else "CC0"}
    assert all(item.load is None for item in items)


def test_parts_of_a_list_are_read_in_order(tmp_path):
    for number, url in enumerate(URLS):
        (tmp_path / f"part-{number}.txt").write_text(url)
    everything = [key(URLS[0]), key(URLS[1]), key(URLS[3])]
    assert [item.key for item in read(tmp_path / "part-*.txt")] == everything
    assert [item.key for item in read(f"{tmp_path}/part-{{0..3}}.txt")] == everything


def test_a_real_list():
    folder = SHARED / "urllists" / "img2dataset"
    if not folder.is_dir():
        pytest.skip("shared/data/urllists is not here")
    table = pq.read_table(folder / "test_1000.parquet")
    assert {"URL", "TEXT"} <= set(table.column_names)
    items = read(folder / "test_1000.parquet", url_column="URL", caption_column="TEXT")
    captions: dict[str, list[str]] = {}
    for url, text in zip(table["URL"].to_pylist(), table["TEXT"].to_pylist(), strict=True):
        captions.setdefault(url.strip(), []).append(text.strip())
    assert [item.source for item in items] == list(captions)
    assert [item.captions for item in items] == [
        tuple(dict.fromkeys(texts)) for texts in captions.values()
    ]


def test_a_missing_column_names_the_nearest(tmp_path):
    path = write_list(tmp_path / "list.parquet", url="URL", caption="TEXT")
    with pytest.raises(InputError, match=r"no column 'url'; did you mean URL\?") as error:
        read(path)
    assert "URL, TEXT, license" in str(error.value)
    assert "download.url_column" in str(error.value)
    with pytest.raises(InputError, match=r"no column 'text'; did you mean TEXT\?"):
        read(path, url_column="URL", caption_column="text")


def test_a_list_without_captions_is_taken_and_that_is_said(tmp_path, caplog):
    path = write_list(tmp_path / "list.parquet", caption="words")
    with caplog.at_level(logging.WARNING):
        assert [item.captions for item in read(path)] == [()] * 3
    assert "so its pictures have no captions" in caplog.text


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_rows_without_a_url_get_a_status(tmp_path, suffix):
    path = tmp_path / f"list{suffix}"
    if suffix == ".parquet":
        pq.write_table(
            pa.table(
                {"url": ["http://a.test/1", None, "  "], "caption": [["one", "two"], None, []]}
            ),
            path,
        )
    elif suffix == ".csv":
        path.write_bytes(b"url,caption\nhttp://a.test/1,one\n,two\n  ,\xff\xfe\n")
    else:
        path.write_text(
            '{"url": "http://a.test/1", "caption": ["one", "two"]}\n'
            '{"url": nothing}\n'
            '{"caption": "\\ud800"}\n'
        )
    items = read(path)
    assert items[0].captions == (("one",) if suffix == ".csv" else ("one", "two"))
    assert items[0].load is None
    assert [status(item) for item in items[1:]] == ["no_url", "no_url"]
    assert len({item.key for item in items}) == 3
    pa.array([item.captions for item in items], pa.list_(pa.string()))


def test_what_is_no_table(tmp_path):
    for name in ("list.parquet", "list.csv"):
        (tmp_path / name).write_bytes(
            b"PAR1 no table at all" if name.endswith("parquet") else b"url,caption\na,b\na,b,c,d\n"
        )
        with pytest.raises(InputError, match="this is not a"):
            read(tmp_path / name)


def test_numbers_for_urls_are_no_urls_but_no_crash(tmp_path):
    pq.write_table(
        pa.table({"url": [1, 2], "caption": [0.5, float("nan")]}), tmp_path / "list.parquet"
    )
    assert [(item.source, item.captions) for item in read(tmp_path / "list.parquet")] == [
        ("1", ("0.5",)),
        ("2", ()),
    ]


def test_repeated_urls_are_found_in_a_long_list():
    urls = [f"http://a.test/{number % 40_000}" for number in range(50_000)]
    found = survey([*urls, None, None])
    assert found.total == 40_002
    assert found.repeated == {key(f"http://a.test/{number}") for number in range(10_000)}


@given(
    st.one_of(
        st.none(),
        st.text(st.characters(), max_size=20),
        st.binary(max_size=20),
        st.integers(),
        st.floats(),
        st.lists(st.text(max_size=3), max_size=3),
        st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2),
    )
)
def test_any_value_becomes_text_that_a_table_keeps(value):
    text = as_text(value)
    assert text is None or text.strip()
    assert pa.array([text], pa.string()).to_pylist() == [text]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("None", "None"),
        ("  ", None),
        ("a\0b", "a\0b"),
        ("\ufeffa", "a"),
        ("x\ud800y", "x?y"),
        (b"caf\xe9", "caf\ufffd"),
        ("{a|b} &amp; <i>", "{a|b} &amp; <i>"),
        ("\u200fאב", "\u200fאב"),
        ("x" * 1_000_000, "x" * 1_000_000),
    ],
)
def test_captions_stay_as_given(value, text):
    assert as_text(value) == text


# Folders


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "my pictures ü"
    for number, name in enumerate(
        ["b.png", "a.JPG", "sub/c.webp", ".hidden.png", ".cache/d.png", "sub/notes.md"]
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number) if path.suffix != ".md" else b"# Notes")
    return root


def test_a_folder_with_captions_beside_the_pictures(folder):
    (folder / "b.txt").write_bytes("\ufeff a blue bird \n".encode())
    (folder / "a.json").write_text(json.dumps({"caption": "an ant", "license": "CC-BY"}))
    (folder / "sub" / "c.json").write_text("{broken")
    (folder / "sub" / "c.txt").write_text("a cat")
    items = read(folder)
    assert [(item.source, item.captions, item.licence) for item in items] == [
        ("a.JPG", ("an ant",), "CC-BY"),
        ("b.png", ("a blue bird",), None),
        ("sub/c.webp", ("a cat",), None),
    ]
    assert [item.key for item in items] == [key("a.JPG"), key("b.png"), key("sub/c.webp")]
    assert items[1].load() == png(0)


def test_metadata_name_pictures_relative_to_their_own_folder(folder):
    lines = [
        {"file_name": "c.webp", "name": "a cat"},
        {"file_name": "../b.png", "name": "one"},
        {"file_name": "../b.png", "name": "two"},
        {"file_name": "gone.png", "name": "x"},
        {"file_name": "../../outside.png", "name": "x"},
        {"file_name": "/etc/passwd", "name": "x"},
    ]
    (folder / "sub" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{torn")
    items = read(folder, metadata="sub/captions.jsonl", caption_column="name")
    found = {item.source: item for item in items}
    assert len(found) == len(items)
    assert found["b.png"].captions == ("one", "two")
    assert found["sub/c.webp"].captions == ("a cat",)
    assert found["a.JPG"].captions == ()
    assert status(found["sub/gone.png"]) == "missing_file"
    assert status(found["../outside.png"]) == "refused_path"
    assert status(found["/etc/passwd"]) == "refused_path"
    assert open_source(
        str(folder),
        "folder",
        DownloadSettings(metadata="sub/captions.jsonl", caption_column="name"),
    )[1].total() == len(items)


def test_metadata_jsonl_is_found_by_itself(folder):
    (folder / "sub" / "metadata.jsonl").write_text('{"file_name": "c.webp", "caption": "a cat"}')
    assert {item.source: item.captions for item in read(folder)} == {
        "a.JPG": (),
        "b.png": (),
        "sub/c.webp": ("a cat",),
    }


def test_mistakes_about_metadata_are_named(folder):
    (folder / "captions.jsonl").write_text('{"file_name": "b.png", "title": "a cat"}')
    with pytest.raises(InputError, match=r"did you mean captions.jsonl\?"):
        read(folder, metadata="caption.jsonl")
    with pytest.raises(InputError, match=r"no column 'titel'; did you mean title\?"):
        read(folder, metadata="captions.jsonl", caption_column="titel")


def test_a_line_whose_name_no_file_can_have_is_an_item_with_a_status(folder):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a\0.png", "text": "a fox"}))
    (refused,) = [item for item in read(folder) if item.source == "a\0.png"]
    assert status(refused) == "missing_file"


def test_names_that_are_not_utf8(folder):
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(png(9))
    item = next(item for item in read(folder) if "caf" in item.source)
    assert item.source == "caf\ufffd.png"
    assert loaded(item) == png(9)


def test_a_file_above_the_limit(folder):
    (folder / "b.png").write_bytes(bytes(1000))
    assert status(read(folder, max_bytes=999)[1]) == "too_large"


def test_real_pictures_with_their_metadata():
    emoji = SHARED / "emoji" / "noto128"
    if not emoji.is_dir():
        pytest.skip("shared/data/emoji is not here")
    items = read(emoji, metadata="metadata.dev.jsonl", caption_column="name")
    names = {
        line["file_name"]: (line["name"],)
        for line in map(json.loads, (emoji / "metadata.dev.jsonl").read_text().splitlines())
    }
    assert {item.source: item.captions for item in items} == names
    assert len(items) == 3053


def test_a_folder_is_known_by_its_content_wherever_it_lies(folder, tmp_path):
    def fingerprint(root):
        return open_source(str(root), "auto", DownloadSettings())[1].fingerprint()

    (folder / "b.txt").write_text("a bird")
    before = fingerprint(folder)
    os.utime(folder / "b.png", (1, 1))
    (folder / ".hidden.png").unlink()
    moved = folder.rename(tmp_path / "elsewhere")
    assert fingerprint(moved) == before
    (moved / "b.txt").write_text("a bard")
    assert fingerprint(moved) != before
    (moved / "b.txt").write_text("a bird")
    assert fingerprint(moved) == before
    (moved / "b.png").rename(moved / "e.png")
    assert fingerprint(moved) != before


def test_hidden_files_and_folders_are_no_part_of_a_data_set(folder):
    def fingerprint():
        return open_source(str(folder), "dataset", DownloadSettings())[1].fingerprint()

    before = fingerprint()
    (folder / ".cache" / "huggingface").mkdir(parents=True)
    (folder / ".cache" / "huggingface" / "b.png.metadata").write_text("1700000000.0")
    (folder / ".gitattributes").write_text("*.png filter=lfs")
    assert fingerprint() == before
    (folder / "more").mkdir()
    (folder / "more" / "f.png").write_bytes((folder / "b.png").read_bytes())
    assert fingerprint() != before


# What a source is


def test_kinds_are_told_apart(folder, tmp_path):
    def kind(source):
        return open_source(str(source), "auto", DownloadSettings())[0]

    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t" / "one.tar", "w"):
        pass
    assert kind(folder) == "folder"
    assert (
        kind(tmp_path / "t")
        == kind(tmp_path / "t" / "one.tar")
        == kind(tmp_path / "t" / "*.tar")
        == "tars"
    )
    assert kind("someone/pictures") == kind("someone/pictures@main") == kind("mnist") == "dataset"


def test_a_source_that_is_not_there(folder):
    with pytest.raises(InputError, match="did you mean") as error:
        read(folder.parent / "my picture ü")
    assert str(folder) in str(error.value)
    for source in ("./nothing", "/nothing/here", "~/nothing/at/all", "nothing.parquet", "no-*.tar"):
        with pytest.raises(InputError, match="not there"):
            read(source)
    with pytest.raises(ConfigError, match=r"download.source is not set"):
        read("")
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        read("/" + "a" * 300)
    with pytest.raises(InputError, match="a file, not a folder"):
        read(folder / "b.png", kind="folder")
    with pytest.raises(InputError, match="a source is"):
        read(folder / "sub" / "notes.md")


# Tars


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_tars_that_webdataset_wrote(tmp_path, suffix):
    for shard in range(2):
        with webdataset.TarWriter(str(tmp_path / f"part-{shard}{suffix}")) as writer:
            for number in range(3):
                writer.write(
                    {
                        "__key__": f"sub/{number:03d}",
                        "png": png(number),
                        "txt": f"caption {shard} {number}",
                    }
                )
            writer.write(
                {
                    "__key__": "last",
                    "jpg": png(9),
                    "json": {"caption": "from json", "license": "CC0"},
                    "cls": 3,
                }
            )
    reader = open_source(str(tmp_path / f"part-{{0..1}}{suffix}"), "auto", DownloadSettings())[1]
    seen = [(item.source, item.captions, item.licence, loaded(item)) for item in reader.items()]
    assert [row[0] for row in seen[:4]] == [
        f"part-0{suffix}/{name}"
        for name in ("sub/000.png", "sub/001.png", "sub/002.png", "last.jpg")
    ]
    assert [row[1] for row in seen] == [
        (text,) for s in "01" for text in (*(f"caption {s} {n}" for n in range(3)), "from json")
    ]
    assert [row[3] for row in seen] == [png(0), png(1), png(2), png(9)] * 2
    assert seen[3][2] == "CC0"


def test_odd_members_of_tars_are_counted_and_lead_nowhere(tmp_path):
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        add(tar, "../../escape.png", png(1))
        add(tar, "/absolute.png", png(2))
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="../../escape.png")
        add(tar, "device.png", type=tarfile.CHRTYPE)
        add(tar, "twice.png", png(3))
        add(tar, "twice.png", png(4))
        add(tar, "words.txt", b"no picture")
        add(tar, "large.png", bytes(5000))
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "README", b"about")
    outcome: list[tuple[str, bytes | str]] = []
    reader = open_source(str(tmp_path / "odd.tar"), "auto", DownloadSettings(max_bytes=4000))[1]
    for item in reader.items():
        try:
            outcome.append((item.source, loaded(item)))
        except Unreadable as refusal:
            outcome.append((item.source, refusal.status))
    assert outcome == [
        ("odd.tar/../../escape.png", png(1)),
        ("odd.tar//absolute.png", png(2)),
        ("odd.tar/link.png", "not_a_file"),
        ("odd.tar/hard.png", "not_a_file"),
        ("odd.tar/device.png", "not_a_file"),
        ("odd.tar/twice.png", png(3)),
        ("odd.tar/twice.png", png(4)),
        ("odd.tar/words", "no_picture"),
        ("odd.tar/large.png", "too_large"),
    ]
    keys = [item.key for item in reader.items()]
    assert len(set(keys)) == 9
    assert all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["odd.tar"]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.52, 0.62])
def test_a_tar_that_ends_early_gives_what_is_there_and_says_so(tmp_path, suffix, part):
    path = tmp_path / f"cut{suffix}"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(20):
            writer.write({"__key__": f"{number:03d}", "png": png(number)})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    whole, refused = [], []
    for item in open_source(str(path), "tars", DownloadSettings())[1].items():
        try:
            whole.append(loaded(item))
        except Unreadable as refusal:
            refused.append(refusal.status)
    assert whole == [png(number) for number in range(len(whole))]
    assert len(whole) < 20
    assert refused[-1] in ("cut_off", "damaged_tar") if part else refused == ["damaged_tar"]


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [(".tar.gz", gzip.compress), (".tar.bz2", bz2.compress), (".tar.xz", lzma.compress)],
)
@pytest.mark.parametrize("place", [0.15, 0.3, 0.45, 0.6, 0.75, 0.9])
def test_what_a_damaged_compressed_tar_loses_is_said(tmp_path, suffix, compress, place):
    path = tmp_path / f"damaged{suffix}"
    count = 150
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for number in range(count):
            add(tar, f"{number:03}.png", png(number, 8, 8) + b"abc" * 300 * (number % 7))
            add(tar, f"{number:03}.txt", f"caption {number} of some words".encode())
    data = bytearray(compress(plain.getvalue()))
    start = int(len(data) * place)
    data[start : start + 5] = bytes(byte ^ 0x5A for byte in data[start : start + 5])
    path.write_bytes(data)
    statuses = statuses_of(path)
    assert statuses.count("ok") < count or statuses[-1] == "damaged_tar"
    assert {"cut_off", "damaged_tar"} & set(statuses)


def statuses_of(source):
    """ "ok" or the refusal's word of each item, loaded before the next one is taken."""
    statuses = []
    for item in open_source(str(source), "auto", DownloadSettings())[1].items():
        try:
            loaded(item)
            statuses.append("ok")
        except Unreadable as refusal:
            statuses.append(refusal.status)
    return statuses


def test_zeros_in_the_middle_of_a_tar_are_not_its_end(tmp_path):
    path = tmp_path / "holes.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(6):
            add(tar, f"{number}.png", png(number))
    with tarfile.open(path) as tar:
        hole = tar.getmember("3.png").offset
    data = bytearray(path.read_bytes())
    data[hole : hole + tarfile.BLOCKSIZE] = bytes(tarfile.BLOCKSIZE)
    path.write_bytes(data)
    assert statuses_of(path) == ["ok"] * 3 + ["damaged_tar"]


# Data sets


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets")
    pictures = [{"bytes": png(number), "path": None} for number in range(5)]
    table = {"picture": pictures, "words": [f"caption {number}" for number in range(5)]}
    return datasets.Dataset.from_dict(table).cast_column("picture", datasets.Image())


def test_a_data_set_saved_to_disk_and_as_parquet(rows, tmp_path):
    rows.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "parquet").mkdir()
    rows.to_parquet(str(tmp_path / "parquet" / "train-00000-of-00001.parquet"))
    for name in ("saved", "parquet"):
        settings = DownloadSettings(image_column="picture", caption_column="words")
        kind, reader = open_source(str(tmp_path / name), "auto", settings)
        items = list(reader.items())
        assert kind == "dataset"
        assert [loaded(item) for item in items] == [png(number) for number in range(5)]
        assert [item.captions for item in items] == [(f"caption {number}",) for number in range(5)]
        assert [item.source for item in items] == [f"train/{number}" for number in range(5)]
    with pytest.raises(InputError, match=r"no column 'image'"):
        read(tmp_path / "saved")
    with pytest.raises(InputError, match=r"no column 'word'; did you mean words\?"):
        read(tmp_path / "saved", image_column="picture", caption_column="word")


def test_other_columns_of_pictures_are_not_decoded_in_the_search_for_captions(rows, tmp_path):
    import datasets

    broken = [{"bytes": b"no picture", "path": None}] * len(rows)
    titles = ["a red fox", "an old owl", "a big dog", "a shy cat", "a wet cow"]
    table = rows.rename_column("picture", "image").remove_columns("words")
    table = table.add_column("title", titles)
    table = table.add_column("thumbnail", broken).cast_column("thumbnail", datasets.Image())
    table.save_to_disk(str(tmp_path / "saved"))
    inventory = Inventory()
    reader = open_source(str(tmp_path / "saved"), "auto", DownloadSettings())[1]
    assert [loaded(item) for item in reader.items(inventory)] == [png(i) for i in range(5)]
    lost = [entry.place for entry in inventory.entries if entry.fate == "lost"]
    assert lost == ["train: title"]


@pytest.mark.parametrize("place", ["page", "footer"])
@pytest.mark.parametrize("kind", ["urls", "dataset", "folder"])
def test_a_damaged_parquet_file_is_named(tmp_path, kind, place):
    names = [f"{number}.png" for number in range(50)]
    own: dict[str, dict[str, list[Any]]] = {
        "urls": {"url": [f"http://a.test/{name}" for name in names]},
        "dataset": {"image": [png(number) for number in range(50)]},
        "folder": {"file_name": names},
    }
    path = tmp_path / "metadata.parquet"
    table = pa.table({**own[kind], "caption": [f"caption of {name}" for name in names]})
    pq.write_table(table, path)
    (tmp_path / "0.png").write_bytes(png(0))
    data = bytearray(path.read_bytes())
    start = 4 if place == "page" else len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)
    with pytest.raises(InputError, match="parquet"):
        read(tmp_path if kind == "folder" else path, kind)


def test_a_parquet_file_below_a_folder_with_signs_of_patterns(tmp_path):
    for number, name in enumerate(["set [1]", "set 1", "a*b", "a and b"]):
        (tmp_path / name).mkdir()
        table = pa.table({"image": [png(number)], "caption": [name]})
        pq.write_table(table, tmp_path / name / "part.parquet")
    for number, name in enumerate(["set [1]", "set 1", "a*b", "a and b"]):
        (item,) = read(tmp_path / name / "part.parquet")
        assert item.captions == (name,)
        assert loaded(item) == png(number)
    assert len(read(tmp_path / "set 1")) == 1
    for name in ("set [1]", "a*b"):
        with pytest.raises(InputError, match="rename it"):
            read(tmp_path / name)


def test_splits_of_a_data_set(rows, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict(
        {"train": rows.select(range(3)), "test": rows.select(range(3, 5))}
    ).save_to_disk(str(tmp_path / "both"))
    assert [
        item.source for item in read(tmp_path / "both", image_column="picture", split="test")
    ] == ["test/0", "test/1"]
    with pytest.raises(
        InputError, match=r"split 'trian' cannot be loaded: its splits are train, test"
    ):
        read(tmp_path / "both", image_column="picture", split="trian")


def test_a_picture_folder_read_as_a_data_set(folder):
    (folder / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{name}", "text": "{name}"}}\n' for name in ("a.JPG", "b.png"))
    )
    items = read(folder, kind="dataset", caption_column="text")
    assert {item.captions: loaded(item) for item in items} == {
        ("a.JPG",): png(1),
        ("b.png",): png(0),
    }


def test_a_data_set_of_urls_is_fetched(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"url": URLS, "caption": CAPTIONS}).save_to_disk(
        str(tmp_path / "urls")
    )
    reader = open_source(str(tmp_path / "urls"), "auto", DownloadSettings())[1]
    assert reader.fetched
    assert [item.key for item in reader.items()] == [key(URLS[0]), key(URLS[1]), key(URLS[3])]
    assert next(reader.items()).captions == (CAPTIONS[0], CAPTIONS[2])


def test_links_of_a_data_set_do_not_lead_out_of_it(tmp_path):
    pytest.importorskip("datasets")
    root, outside = tmp_path / "set", tmp_path / "outside"
    for path in (root / "here.png", outside / "there.png"):
        path.parent.mkdir()
        path.write_bytes(png(0))
    (root / "near.png").symlink_to("here.png")
    (root / "far.png").symlink_to("../outside/there.png")
    (root / "up").symlink_to("../outside")
    names = ["here.png", "near.png", "far.png", "up/there.png"]
    pq.write_table(pa.table({"image": names}), root / "data.parquet")
    items = read(root / "data.parquet", kind="dataset")
    assert [loaded(item) for item in items[:2]] == [png(0)] * 2
    assert [status(item) for item in items[2:]] == ["refused_link"] * 2


def test_pictures_without_a_suffix_make_a_folder_of_one_with_tables_and_tars(tmp_path):
    (tmp_path / "a").write_bytes(png(0))
    (tmp_path / "more.tar").write_bytes(bytes(1024))
    table = {"file_name": ["a"], "text": ["a fox"]}
    pq.write_table(pa.table(table), tmp_path / "metadata.parquet")
    kind, reader = open_source(str(tmp_path), "auto", DownloadSettings())
    inventory = Inventory()
    assert kind == "folder"
    assert [item.captions for item in reader.items(inventory)] == [("a fox",)]
    assert inventory.counts["files_not_looked_at"] == 1


def test_a_folder_of_compressed_tars_is_read_and_its_other_files_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, data in (("1.png", png(0)), ("1.txt", b"one"), ("1.TXT", b"two")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "notes.txt").write_text("a fox")
    (tmp_path / ".hidden.tar").write_bytes(b"")
    inventory = Inventory()
    kind, reader = open_source(str(tmp_path), "auto", DownloadSettings())
    assert kind == "tars"
    assert [item.captions for item in reader.items(inventory)] == [("one", "two")]
    assert {entry.place: entry.fate for entry in inventory.entries} == dict.fromkeys(
        ("notes.txt", ".hidden.tar"), "not_looked_at"
    )
    assert inventory.counts["files_taken"] == 1


def test_files_of_other_splits_and_kinds_beside_a_data_set_are_named(rows, tmp_path):
    datasets = pytest.importorskip("datasets")
    saved, tables = tmp_path / "saved", tmp_path / "tables"
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(saved))
    tables.mkdir()
    for split in ("train", "test"):
        rows.to_parquet(str(tables / f"{split}-00000-of-00001.parquet"))
    for root, other in ((saved, "test/state.json"), (tables, "test-00000-of-00001.parquet")):
        (root / "notes.txt").write_text("a fox")
        inventory = Inventory()
        settings = DownloadSettings(image_column="picture", caption_column="words")
        list(open_source(str(root), "auto", settings)[1].items(inventory))
        places = {entry.place for entry in inventory.entries if entry.what == "file"}
        assert {"notes.txt", other} <= places
        assert not any("train" in place for place in places)
