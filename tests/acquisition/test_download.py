"""The whole stage: every item counted, shards that others can read, and a kill at any moment leaves
what an undisturbed run leaves.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from hdm.acquisition import download
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sites import Site
from hdm.config import Pipeline
from hdm.data.shards import ImageReader
from hdm.data.tables import SAMPLES, read_tables
from hdm.errors import InputError
from hdm.pictures.settings import ImageSettings
from hdm.secrets import READERS
from hdm.store import Store
from tests.acquisition.misbehaving import dripping, endless, http, png, png_header

PROJECT = Path(__file__).resolve().parents[2]
HOST = "pictures.test"


def pipeline(**settings):
    web = (
        {"allow_loopback": True, "retries": 1, "timeout_sec": 0.5, "max_bytes": 200_000}
        if settings.get("kind", "urls") == "urls"
        else {}
    )
    download = DownloadSettings(**{"kind": "urls", **web, **settings})
    return Pipeline(name="test", download=download, threads=1)


def make(store, chosen, server=None):
    @contextmanager
    def site(chosen):
        yield Site(
            chosen.download.source,
            chosen.download.kind,
            {HOST: ("127.0.0.1", server.port)} if server else {},
        )

    return download.make(chosen, download.identify(chosen, {}), {}, Store(store), site=site)


def write_list(path, pages, extra=()):
    urls = [f"http://{HOST}{page}" for page in pages] + list(extra)
    pq.write_table(
        pa.table({"url": urls, "caption": [f"caption {number}" for number in range(len(urls))]}),
        path,
    )
    return str(path)


def content(output):
    return {
        path.name: path.read_bytes()
        for path in output.path.iterdir()
        if not path.name.startswith(".") and path.name != "run.json"
    }


FAULTS = {
    "/missing.png": "http_404",
    "/gone.png": "http_410",
    "/page.png": "not_image",
    "/svg.png": "unsupported",
    "/empty.png": "not_image",
    "/cut.png": "cut_off",
    "/endless.png": "too_large",
    "/slow.png": "timeout",
    "/inward.png": "refused_address",
    "/file.png": "refused_scheme",
    "/torn.png": "corrupt",
    "/huge.png": "too_large",
}


@pytest.fixture
def faulty(server):
    """A site with good pictures, and one page for each fault."""
    jpeg_like = b"\xff\xd8\xff\xe0" + b"\0" * 40
    server.pages |= {f"/{number}.png": http(png(number)) for number in range(10)}
    server.pages |= {
        "/3.png": lambda c: c.wfile.write(http(png(3)) if c.number > 1 else http(b"", "503 Busy")),
        "/gone.png": http(b"", "410 Gone"),
        "/page.png": http(b"<html>not found</html>", Content_Type="image/png"),
        "/svg.png": http(b"<svg/>"),
        "/empty.png": http(b""),
        "/cut.png": http(png(), Content_Length="9000"),
        "/endless.png": endless,
        "/slow.png": dripping,
        "/inward.png": http(b"", "302 Found", Location=f"http://127.0.0.1:{server.port}/0.png"),
        "/file.png": http(b"", "302 Found", Location="file:///etc/passwd"),
        "/torn.png": http(jpeg_like),
        "/huge.png": http(png_header(65535, 1)),
        "/liar.png": http(png(11), Content_Type="text/html"),
    }
    return server


def test_every_item_of_a_list_gets_a_status_and_good_ones_their_bytes(faulty, tmp_path):
    pages = [
        "/0.png",
        "/missing.png",
        "/1.png",
        *[name for name in FAULTS if name != "/missing.png"],
        "/liar.png",
    ]
    pages += [f"/{number}.png" for number in range(2, 10)]
    source = write_list(tmp_path / "list.parquet", [*pages, "/0.png"])
    output = make(
        tmp_path / "store", pipeline(source=source, shard_items=7, max_failed=0.6), faulty
    )

    table = read_tables(output, "samples")
    assert table.schema.equals(SAMPLES)
    rows = table.to_pylist()
    assert [row["source"] for row in rows] == [f"http://{HOST}{page}" for page in pages]
    assert [row["captions"] for row in rows] == [
        ["caption 0", f"caption {len(pages)}"],  # of both its rows
        *([f"caption {number}"] for number in range(1, len(pages))),
    ]
    assert {
        page: row["status"] for page, row in zip(pages, rows, strict=True) if page in FAULTS
    } == FAULTS
    good = [row for page, row in zip(pages, rows, strict=True) if page not in FAULTS]
    assert {row["status"] for row in good} == {"ok"}
    assert all(
        row["error"] and row["sha256"] is row["offset"] is row["bytes"] is None
        for row in rows
        if row["status"] != "ok"
    )
    assert not [
        row["error"]
        for row in rows
        if row["error"] and (str(faulty.port) in row["error"] or "127.0" in row["error"])
    ]
    assert [row["key"] for row in rows] == [
        hashlib.sha256(row["source"].encode()).hexdigest()[:16] for row in rows
    ]
    assert output.counts == {
        "items": len(pages), "failed": 12, "ok": 11, "bytes": sum(row["bytes"] for row in good),
        "failed_http_404": 1, "failed_http_410": 1, "failed_not_image": 2, "failed_unsupported": 1,
        "failed_cut_off": 1, "failed_too_large": 2, "failed_timeout": 1,
        "failed_refused_address": 1, "failed_refused_scheme": 1, "failed_corrupt": 1,
        "captions_taken": len(pages) + 1, "captions_guessed": 0, "items_uncaptioned": 0,
        "columns_taken": 2, "lines_taken": len(pages) + 1,
    }  # fmt: skip

    by_page = {f"/{number}.png": png(number) for number in range(10)} | {"/liar.png": png(11)}
    with ImageReader(output) as reader:
        for index, (page, row) in enumerate(zip(pages, rows, strict=True)):
            if row["status"] == "ok":
                data = reader.read(index // 7, row["offset"], row["bytes"], row["sha256"])
                assert data == by_page[page]
                assert hashlib.sha256(data).hexdigest() == row["sha256"]
                assert (row["format"], row["width"], row["height"]) == ("PNG", 40, 30)


def test_our_shards_are_read_by_webdataset(faulty, tmp_path):
    pages = [f"/{number}.png" for number in range(10)]
    output = make(
        tmp_path / "store",
        pipeline(source=write_list(tmp_path / "l.parquet", pages), shard_items=4),
        faulty,
    )
    tars = [str(path) for path in output.paths(".tar")]
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
    assert [sample["png"] for sample in samples] == [png(number) for number in range(10)]
    assert [sample["__key__"] for sample in samples] == read_tables(output, "samples")[
        "key"
    ].to_pylist()
    with tarfile.open(tars[0]) as tar:
        assert {
            (member.mtime, member.uid, member.gid, member.uname, member.mode) for member in tar
        } == {(0, 0, 0, "", 0o644)}


def test_the_same_bytes_whatever_the_haste(faulty, tmp_path):
    pages = [f"/{number}.png" for number in range(10)] + ["/missing.png"]
    source = write_list(tmp_path / "list.parquet", pages)
    one = make(tmp_path / "one", pipeline(source=source, shard_items=3, concurrency=1), faulty)
    faulty.asked.clear()
    other = make(
        tmp_path / "other",
        pipeline(source=source, shard_items=3, concurrency=32, timeout_sec=0.7),
        faulty,
    )
    assert one.digest == other.digest
    assert content(one) == content(other)


def test_slow_items_hold_up_no_later_shard(server, tmp_path):
    """One picture of each of the first four shards comes when all others were asked for."""
    pages = [f"/{number}.png" for number in range(120)]
    slow = pages[:80:20]
    all_asked = threading.Event()

    def good(connection):
        connection.wfile.write(http(png()))
        if len(server.asked) == len(pages):
            all_asked.set()

    def waits(connection):
        all_asked.wait()
        connection.wfile.write(http(png()))

    server.pages |= dict.fromkeys(pages, good) | dict.fromkeys(slow, waits)
    source = write_list(tmp_path / "list.parquet", pages)
    chosen = pipeline(source=source, shard_items=20, timeout_sec=20, retries=0)
    output = make(tmp_path / "store", chosen, server)
    assert output.counts["ok"] == 120
    assert len(output.paths(".tar")) == 6


def test_a_finished_shard_is_not_fetched_again(faulty, tmp_path):
    pages = [f"/{number}.png" for number in range(10)]
    chosen = pipeline(source=write_list(tmp_path / "list.parquet", pages), shard_items=5)
    first = make(tmp_path / "store", chosen, faulty)
    before = content(first)
    (first.path / "manifest.json").unlink()
    (first.path / "samples-00001.parquet").unlink()
    faulty.asked.clear()
    second = make(tmp_path / "store", chosen, faulty)
    assert set(faulty.asked) == set(pages[5:])
    assert content(second) == before


def test_too_many_failures_stop_the_stage_and_a_larger_limit_goes_on(faulty, tmp_path):
    source = write_list(
        tmp_path / "list.parquet", ["/0.png", "/missing.png", "/page.png", "/x.png"]
    )
    with pytest.raises(
        InputError, match=r"3 of the first 4 items failed \(2 http_404, 1 not_image\)"
    ) as error:
        make(tmp_path / "store", pipeline(source=source), faulty)
    assert "download.max_failed" in str(error.value)
    asked = dict(faulty.asked)
    output = make(tmp_path / "store", pipeline(source=source, max_failed=0.75), faulty)
    assert (output.counts["ok"], dict(faulty.asked)) == (1, asked)


def test_failures_that_pass_are_tried_again_by_the_next_run(server, tmp_path):
    """As when the network was down: nothing of it stays."""
    pages = [f"/{number}.png" for number in range(4)]
    server.pages |= {page: http(b"", "503 Busy") for page in pages}
    chosen = pipeline(source=write_list(tmp_path / "list.parquet", pages), retries=0)
    with pytest.raises(InputError, match="4 http_503"):
        make(tmp_path / "store", chosen, server)
    server.pages |= {page: http(png()) for page in pages}
    assert make(tmp_path / "store", chosen, server).counts["ok"] == 4


def test_loopback_needs_its_permission(faulty, tmp_path):
    source = write_list(
        tmp_path / "list.parquet", ["/0.png"], [f"http://127.0.0.1:{faulty.port}/1.png"]
    )
    output = make(
        tmp_path / "store", pipeline(source=source, allow_loopback=False, max_failed=1.0), faulty
    )
    assert read_tables(output, "samples")["status"].to_pylist()[1] == "refused_address"
    assert output.counts["failed"] == 2
    assert not faulty.asked


# Sources on this machine


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(9):
        (root / f"{number}.png").write_bytes(png(number))
        (root / f"{number}.txt").write_text(f"caption {number}")
    (root / "4.png").write_bytes(b"<html></html>")
    return root


def test_a_folder(folder, tmp_path):
    output = make(tmp_path / "store", pipeline(source=str(folder), kind="folder", shard_items=4))
    assert output.counts["items"] == 9
    assert output.counts["failed_not_image"] == 1
    assert len(output.paths(".tar")) == 3
    assert read_tables(output, "samples")["captions"].to_pylist() == [
        [f"caption {number}"] for number in range(9)
    ]
    assert json.loads((output.path / "manifest.json").read_text())["summary"] == {"kind": "folder"}


def test_our_own_tars_are_a_source_too(folder, tmp_path):
    first = make(tmp_path / "store", pipeline(source=str(folder), kind="folder", shard_items=4))
    again = make(tmp_path / "store", pipeline(source=f"{first.path}/images-*.tar", kind="tars"))
    assert again.counts["ok"] == 8
    assert read_tables(again, "samples")["sha256"].to_pylist() == [
        value for value in read_tables(first, "samples")["sha256"].to_pylist() if value
    ]


def test_only_the_first_so_many(folder, tmp_path):
    output = make(
        tmp_path / "store", pipeline(source=str(folder), kind="folder", shard_items=2, max_items=3)
    )
    assert read_tables(output, "samples")["source"].to_pylist() == ["0.png", "1.png", "2.png"]


def test_an_empty_source(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no items"):
        make(tmp_path / "store", pipeline(source=str(tmp_path / "empty"), kind="folder"))
    for name, text in {
        "empty.txt": "\n\n",
        "empty.csv": "",
        "header.csv": "url,caption\n",
        "empty.jsonl": "\n",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="no items"):
            make(tmp_path / "store", pipeline(source=str(tmp_path / name)))


def test_what_the_digest_depends_on(folder, tmp_path):
    def digest(chosen):
        return download.identify(chosen, {}).digest

    local = {"source": str(folder), "kind": "folder"}
    same = [
        pipeline(**local),
        pipeline(**{**local, "kind": "auto"}),
        pipeline(**local, concurrency=3, timeout_sec=9, max_failed=0.9),
        pipeline(**local).model_copy(update={"images": ImageSettings(matte="#000000")}),
    ]
    assert len({digest(chosen) for chosen in same}) == 1
    moved = folder.rename(tmp_path / "moved")
    assert digest(pipeline(source=str(moved), kind="folder")) == digest(
        pipeline(**{**local, "source": str(moved)})
    )
    others: list[dict[str, Any]] = [
        {"max_items": 3},
        {"caption_column": "name"},
        {"shard_items": 3},
        {"max_bytes": 5},
    ]
    assert len(
        {digest(pipeline(**{**local, "source": str(moved), **other})) for other in others}
    ) == len(others)
    scenes = pipeline(kind="scenes")
    assert digest(scenes) == digest(pipeline(kind="scenes", source="anything"))
    assert str(tmp_path) not in json.dumps(
        download.identify(pipeline(source=str(moved), kind="folder"), {}).config
    )


def test_a_file_that_cannot_grow_is_named(folder, tmp_path):
    script = """
        import resource, signal, sys
        from hdm.acquisition import download
        from hdm.acquisition.settings import DownloadSettings
        from hdm.config import Pipeline
        from hdm.errors import HdmError
        from hdm.store import Store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        chosen = Pipeline(download=DownloadSettings(source=sys.argv[1], kind="folder"))
        identity = download.identify(chosen, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            download.make(chosen, identity, {}, Store(sys.argv[2]))
        except HdmError as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder), str(tmp_path / "store")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert "cannot write" in done.stdout, done.stderr
    assert "images-00000.tar" in done.stdout


def kill_download(chosen: Pipeline, root: Path, port: int, seen: Path) -> None:
    """SIGKILL a download into the store at `root` as soon as the file `seen` is there."""
    script = """
        import contextlib, sys
        from hdm.acquisition import download
        from hdm.config import Pipeline
        from hdm.acquisition.sites import Site
        from hdm.store import Store
        chosen = Pipeline.model_validate_json(sys.argv[1])
        hosts = {"pictures.test": ("127.0.0.1", int(sys.argv[3]))}
        site = Site(chosen.download.source, chosen.download.kind, hosts)
        opened = lambda chosen: contextlib.nullcontext(site)
        download.make(chosen, download.identify(chosen, {}), {}, Store(sys.argv[2]), site=opened)
    """
    arguments = [chosen.model_dump_json(), str(root), str(port)]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], cwd=PROJECT
    ) as child:
        while child.poll() is None and not seen.exists():
            time.sleep(0.0005)
        child.kill()
    assert seen.exists()


@pytest.mark.parametrize(
    ("kind", "seen"), [("folder", "images-00003.tar"), ("urls", "samples-00001.parquet")]
)
def test_a_kill_between_shards_changes_nothing(server, tmp_path, kind, seen):
    """SIGKILL as soon as a file is there; the same command then gives what an undisturbed run
    gives.
    """
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(60):
        (root / f"{number:02d}.png").write_bytes(png(number, 200, 200))
        server.pages[f"/{number}.png"] = http(png(number, 200, 200))
    source = (
        str(root) if kind == "folder" else write_list(tmp_path / "list.parquet", list(server.pages))
    )
    chosen = pipeline(source=source, kind=kind, shard_items=6, allow_loopback=kind == "urls")
    undisturbed = make(tmp_path / "undisturbed", chosen, server)

    folder = tmp_path / "killed" / "download" / undisturbed.digest
    kill_download(chosen, tmp_path / "killed", server.port, folder / seen)
    finished = {path.name[8:13] for path in folder.glob("samples-*")} & {
        path.name[7:12] for path in folder.glob("images-*")
    }
    stamps = {
        path: path.stat().st_mtime_ns
        for number in finished
        for path in folder.glob(f"*-{number}.*")
    }
    again = make(tmp_path / "killed", chosen, server)
    assert content(again) == content(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def statuses(output):
    return [row["status"] for row in read_tables(output, "samples").to_pylist()]


@pytest.fixture
def places(server, tmp_path):
    """What rows say instead of holding a picture, and the status that each deserves."""
    server.pages["/1.png"] = http(png(1))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "inside picture.png").write_bytes(png(2))
    outside = tmp_path / "secret.png"
    outside.write_bytes(png(3))
    with zipfile.ZipFile(folder / "in.zip", "w") as archive:
        archive.writestr("a.png", png(4))
    shutil.copy(folder / "in.zip", tmp_path / "out.zip")
    write_broken_zips(folder)
    rows = {
        f"http://{HOST}/1.png": "ok",
        f"http://{HOST}/none.png": "http_404",
        "http://10.0.0.1/1.png": "refused_address",
        f"http://127.0.0.1:{server.port}/1.png": "ok",
        "http://me:word@pictures.test/1.png": "refused_credentials",
        str(folder / "inside picture.png"): "ok",
        (folder / "inside picture.png").as_uri(): "ok",
        "inside picture.png": "ok",
        f"zip://a.png::{folder / 'in.zip'}": "ok",
        f"zip://b.png::{folder / 'in.zip'}": "missing_file",
        f"zip://a.png::{folder / 'deflated.zip'}": "unreadable_file",
        f"zip://a.png::{folder / 'lzma.zip'}": "unreadable_file",
        f"zip://a.png::{folder / 'encrypted.zip'}": "unreadable_file",
        "none.png": "missing_file",
        str(outside): "refused_path",
        outside.as_uri(): "refused_path",
        "../secret.png": "refused_path",
        f"{folder}/../secret.png": "refused_path",
        "file://elsewhere/etc/passwd": "refused_path",
        "/etc/passwd": "refused_path",
        "a\0b": "refused_path",
        f"zip://a.png::{tmp_path / 'out.zip'}": "refused_path",
        f"zip://a.png::http://{HOST}/in.zip": "refused_scheme",
        "s3://bucket/a.png": "refused_scheme",
        "ftp://host/a.png": "refused_scheme",
        f"filecache://{outside}::{outside}": "refused_scheme",
        " ": "no_picture",
    }
    return folder, rows


def write_broken_zips(folder):
    """Two whose compressed bytes are damaged, and one that asks for a password."""
    forms = {"deflated": zipfile.ZIP_DEFLATED, "lzma": zipfile.ZIP_LZMA}
    for name, compression in forms.items():
        path = folder / f"{name}.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("a.png", png(4))
        data = bytearray(path.read_bytes())
        start = data.index(b"a.png") + 20
        data[start : start + 20] = bytes(byte ^ 0xFF for byte in data[start : start + 20])
        path.write_bytes(data)
    data = bytearray((folder / "in.zip").read_bytes())
    # The flag of encryption, in both headers of the member (APPNOTE 4.3.7 and 4.3.12).
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (folder / "encrypted.zip").write_bytes(data)


@pytest.mark.parametrize("column", ["text", "picture"])
@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_what_a_data_set_writes_for_a_picture_gets_the_checks_of_its_kind(
    places, server, tmp_path, column, form
):
    datasets = pytest.importorskip("datasets")
    folder, rows = places
    values = list(rows) if column == "text" else [{"bytes": None, "path": row} for row in rows]
    data = datasets.Dataset.from_dict({"image": values, "caption": list(rows)})
    if form == "parquet":
        data.to_parquet(str(folder / "train-00000-of-00001.parquet"))
    else:
        data.save_to_disk(str(folder))
    settings = {"allow_loopback": True, "retries": 0, "timeout_sec": 2, "max_failed": 1}
    chosen = pipeline(kind="dataset", source=str(folder), **settings)
    output = make(tmp_path / "store", chosen, server)
    found = dict(zip(rows, statuses(output), strict=True))
    assert found == rows
    assert output.counts["failed_refused_path"] == list(rows.values()).count("refused_path")
    pictures = [row for row in read_tables(output, "samples").to_pylist() if row["sha256"]]
    known = {hashlib.sha256(png(number)).hexdigest() for number in (1, 2, 4)}
    assert {row["sha256"] for row in pictures} == known


def test_a_list_on_the_web_is_the_list_that_it_is_here(server, tmp_path):
    server.pages |= {f"/{number}.png": http(png(number)) for number in range(3)}
    urls = write_list(tmp_path / "list.parquet", [f"/{number}.png" for number in range(3)])
    server.pages["/lists/list.parquet?sig=1"] = http((tmp_path / "list.parquet").read_bytes())
    address = f"http://127.0.0.1:{server.port}/lists/list.parquet?sig=1"
    here = make(tmp_path / "a", pipeline(source=urls), server)
    there = make(tmp_path / "b", pipeline(source=address), server)
    assert there.digest == here.digest
    assert content(there) == content(here)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("http://127.0.0.1:{port}/none.csv", "answered 404"),
        ("http://127.0.0.1:{port}/index.html", "names no URL list"),
        ("http://10.0.0.1/list.csv", "not on the public internet"),
    ],
)
def test_a_list_on_the_web_that_cannot_be_had(server, address, told):
    with pytest.raises(InputError, match=told):
        download.identify(pipeline(source=address.format(port=server.port), retries=0), {})


def test_what_only_a_run_can_read_is_left_to_the_run(monkeypatch):
    by_block = pipeline(source="block:list")
    monkeypatch.delitem(READERS, "block", raising=False)
    assert list(download.preflight(by_block, {})) == []
    with pytest.raises(InputError, match="only runs read block: references"):
        download.identify(by_block, {})
    (problem,) = download.preflight(pipeline(source="env:NOWHERE_TO_BE_FOUND"), {})
    assert "no variable NOWHERE_TO_BE_FOUND" in str(problem)


def test_a_list_of_urls_leads_to_no_file_of_this_machine(server, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    named = [tmp_path / "a.png", (tmp_path / "a.png").as_uri(), "a.png", "../a.png", "s3://b/a.png"]
    urls = write_list(tmp_path / "list.parquet", ["/none.png"], map(str, named))
    output = make(tmp_path / "store", pipeline(source=urls, max_failed=1), server)
    assert statuses(output) == ["http_404", *["refused_scheme"] * len(named)]
    assert output.counts["failed_refused_scheme"] == len(named)
