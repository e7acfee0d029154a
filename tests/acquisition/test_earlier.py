"""What a finished download of the store holds is not fetched again, and the new download is what it
would be in an empty store.
"""

import fcntl
import logging
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hdm.data.tables import read_tables
from hdm.files import fast_hash
from hdm.garbage import Needs, discard, garbage
from hdm.store import USED, Store, check_files
from tests.acquisition.misbehaving import http, png
from tests.acquisition.test_download import HOST, content, kill_download, make, pipeline, write_list

PAGES = [f"/{number}.png" for number in range(20)]


@pytest.fixture
def site(server):
    server.pages |= {page: http(png(number)) for number, page in enumerate(PAGES)}
    return server


def listed(path, pages, shard_items=4, **settings):
    return pipeline(source=write_list(path, pages), shard_items=shard_items, **settings)


def in_empty_store(tmp_path, chosen, site):
    return content(make(tmp_path / "empty", chosen, site))


def reused(output):
    return output.run()["figures"]["reused"]


def statuses(output):
    return read_tables(output, "samples")["status"].to_pylist()


def test_a_list_that_grew_fetches_what_is_new(site, tmp_path):
    first = make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:10]), site)
    assert reused(first) == 0
    site.asked.clear()

    grown = listed(tmp_path / "two.parquet", PAGES[:13])
    second = make(tmp_path / "store", grown, site)
    assert site.asked == dict.fromkeys(PAGES[10:13], 1)
    assert reused(second) == 10
    assert content(second) == in_empty_store(tmp_path, grown, site)


def test_the_same_list_read_in_another_way_fetches_nothing(site, tmp_path):
    make(tmp_path / "store", listed(tmp_path / "list.parquet", PAGES), site)
    urls = [f"http://{HOST}{page}" for page in PAGES]
    texts = [f"another text {number}" for number in range(len(urls))]
    pq.write_table(pa.table({"text": texts[::-1], "url": urls[::-1]}), tmp_path / "other.parquet")
    others = [
        pipeline(source=str(tmp_path / "other.parquet"), shard_items=3),
        listed(tmp_path / "list.parquet", PAGES, max_items=7),
        listed(tmp_path / "list.parquet", PAGES, shard_items=6),
    ]
    for number, chosen in enumerate(others):
        site.asked.clear()
        output = make(tmp_path / "store", chosen, site)
        assert not site.asked
        assert reused(output) == output.counts["ok"] == (chosen.download.max_items or 20)
        assert content(output) == content(make(tmp_path / f"empty-{number}", chosen, site))


def test_several_downloads_together_hold_a_list(site, tmp_path):
    make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:7]), site)
    make(tmp_path / "store", listed(tmp_path / "two.parquet", PAGES[5:11]), site)
    site.asked.clear()
    chosen = listed(tmp_path / "both.parquet", PAGES[:12])
    output = make(tmp_path / "store", chosen, site)
    assert site.asked == {PAGES[11]: 1}
    assert content(output) == in_empty_store(tmp_path, chosen, site)


def test_of_two_downloads_the_newer_one_gives_a_picture(site, tmp_path):
    make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:1]), site)
    site.pages[PAGES[0]] = http(png(99))
    changed = listed(tmp_path / "two.parquet", PAGES[:2], reuse=False)
    newer = make(tmp_path / "store", changed, site)
    wanted = read_tables(newer, "samples")["sha256"][0]
    output = make(tmp_path / "store", listed(tmp_path / "three.parquet", PAGES[:3]), site)
    assert read_tables(output, "samples")["sha256"][0] == wanted


def test_equal_urls_of_a_list_are_fetched_once(site, tmp_path):
    output = make(tmp_path / "store", listed(tmp_path / "l.parquet", PAGES[:4] * 3), site)
    assert site.asked == dict.fromkeys(PAGES[:4], 1)
    assert output.counts["ok"] == 4


def test_failures_are_tried_again(site, tmp_path):
    site.pages[PAGES[1]] = http(b"", "404 Not Found")
    site.pages[PAGES[2]] = http(b"", "503 Busy")
    site.pages[PAGES[3]] = http(b"<html>soon</html>")
    first = make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:8], retries=0), site)
    assert statuses(first)[:4] == ["ok", "http_404", "http_503", "not_image"]
    site.pages |= {PAGES[number]: http(png(number)) for number in (1, 2)}
    site.asked.clear()

    chosen = listed(tmp_path / "two.parquet", PAGES[:9], retries=0)
    second = make(tmp_path / "store", chosen, site)
    assert site.asked == dict.fromkeys([*PAGES[1:4], PAGES[8]], 1)
    assert statuses(second)[:4] == ["ok", "ok", "ok", "not_image"]
    assert content(second) == in_empty_store(tmp_path, chosen, site)


def test_limits_hold_for_pictures_of_earlier_downloads(site, tmp_path):
    make(tmp_path / "store", listed(tmp_path / "list.parquet", PAGES), site)
    sizes = sorted(len(png(number)) for number in range(len(PAGES)))
    chosen = listed(tmp_path / "list.parquet", PAGES, max_bytes=sizes[15], max_failed=1.0)
    site.asked.clear()
    output = make(tmp_path / "store", chosen, site)
    assert not site.asked
    assert output.counts["failed_too_large"] == sum(size > sizes[15] for size in sizes) > 0
    assert content(output) == in_empty_store(tmp_path, chosen, site)


def test_what_this_list_may_not_reach_is_not_taken_from_another(site, tmp_path):
    page = f"http://127.0.0.1:{site.port}/0.png"
    write_list(tmp_path / "l.parquet", [], [page])
    make(tmp_path / "store", pipeline(source=str(tmp_path / "l.parquet")), site)
    chosen = pipeline(source=str(tmp_path / "l.parquet"), allow_loopback=False, max_failed=1.0)
    assert statuses(make(tmp_path / "store", chosen, site)) == ["refused_address"]


def test_what_a_site_keeps_from_this_list_is_not_taken_from_another(site, tmp_path):
    site.pages[PAGES[1]] = http(png(1), X_Robots_Tag="noai")
    lenient = listed(tmp_path / "list.parquet", PAGES[:4], opt_outs="ignore")
    assert make(tmp_path / "store", lenient, site).counts["ok"] == 4
    strict = listed(tmp_path / "list.parquet", PAGES[:4])
    output = make(tmp_path / "store", strict, site)
    assert statuses(output) == ["ok", "opted_out", "ok", "ok"]
    assert reused(output) == 0
    site.asked.clear()
    other = listed(tmp_path / "list.parquet", PAGES[:3], opt_outs="ignore")
    assert reused(make(tmp_path / "store", other, site)) == 3
    assert not site.asked


def test_without_reuse_every_picture_is_fetched(site, tmp_path):
    make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:4]), site)
    site.pages[PAGES[0]] = http(png(99))
    site.asked.clear()
    chosen = listed(tmp_path / "two.parquet", PAGES[:5], reuse=False)
    output = make(tmp_path / "store", chosen, site)
    assert site.asked == dict.fromkeys(PAGES[:5], 1)
    assert content(output) == in_empty_store(tmp_path, chosen, site)


def flip(path, place=600):
    """Change a tar: by default its first picture, which begins at 512."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("name", "damage", "lost"),
    [
        ("images-00001.tar", flip, PAGES[4:5]),
        ("images-00001.tar", os.remove, PAGES[4:8]),
        ("samples-00001.parquet", cut, PAGES[4:8]),
        ("samples-00001.parquet", os.remove, PAGES[4:8]),
        ("manifest.json", cut, PAGES[:8]),
    ],
)
def test_what_is_damaged_is_fetched_again(site, tmp_path, caplog, name, damage, lost):
    first = make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:8]), site)
    damage(first.path / name)
    site.asked.clear()
    grown = listed(tmp_path / "two.parquet", PAGES[:9])
    with caplog.at_level(logging.WARNING, "hdm"):
        second = make(tmp_path / "store", grown, site)
    assert site.asked == dict.fromkeys([*lost, PAGES[8]], 1)
    assert reused(second) == 8 - len(lost)
    # Each picture is counted; of a damaged manifest, nobody knows what it listed.
    told = "left out" if name == "manifest.json" else f"{len(lost)} picture"
    assert told in caplog.text
    assert content(second) == in_empty_store(tmp_path, grown, site)


def test_a_download_that_is_being_removed_is_left_out(site, tmp_path):
    first = make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:4]), site)
    site.asked.clear()
    with (first.path / USED).open("w") as removing:
        fcntl.flock(removing, fcntl.LOCK_EX)
        output = make(tmp_path / "store", listed(tmp_path / "two.parquet", PAGES[:5]), site)
    assert site.asked == dict.fromkeys(PAGES[:5], 1)
    assert (output.counts["ok"], reused(output)) == (5, 0)


def test_equal_tars_take_their_room_once_and_outlive_each_other(site, tmp_path):
    store = Store(tmp_path / "store")
    first = make(store.root, listed(tmp_path / "one.parquet", PAGES[:10]), site)
    second = make(store.root, listed(tmp_path / "two.parquet", PAGES[:13]), site)
    shared = [path.name for path in second.paths(".tar") if path.stat().st_nlink == 2]
    assert shared == ["images-00000.tar", "images-00001.tar"]

    before = content(second)
    needed = Needs(frozenset({(second.name, second.digest)}), ())
    # As long after as `hdm gc` keeps what was used.
    removable = [one for one in garbage(store, needed, days=-1) if one.path == first.path]
    assert len(removable) == 1
    files = [path for path in first.path.rglob("*") if path.is_file()]
    on_disk = sum(path.stat().st_blocks * 512 for path in files)
    both = sum((first.path / name).stat().st_blocks * 512 for name in shared)
    folders = [first.path, *(path for path in first.path.rglob("*") if path.is_dir())]
    on_disk += sum(path.stat().st_blocks * 512 for path in folders)
    assert removable[0].num_bytes == on_disk - both // 2
    discard(removable[0])
    assert not first.path.exists()
    check_files(second)
    assert content(second) == before


def test_taking_from_a_download_does_not_keep_it(site, tmp_path):
    """Or a list that grows every day would keep a copy of every day."""
    store = Store(tmp_path / "store")
    first = make(store.root, listed(tmp_path / "one.parquet", PAGES[:4]), site)
    for path in (first.path / USED, *first.path.iterdir()):
        path.touch()
        os.utime(path, (1e9, 1e9))
    second = make(store.root, listed(tmp_path / "two.parquet", PAGES[:5]), site)
    needed = Needs(frozenset({(second.name, second.digest)}), ())
    assert [one.path for one in garbage(store, needed, days=30)] == [first.path]


def test_a_damaged_tar_is_not_shared(site, tmp_path):
    first = make(tmp_path / "store", listed(tmp_path / "one.parquet", PAGES[:4]), site)
    flip(first.path / "images-00000.tar", -1)  # behind the pictures, which are whole
    site.asked.clear()
    second = make(tmp_path / "store", listed(tmp_path / "two.parquet", PAGES[:5]), site)
    assert site.asked == {PAGES[4]: 1}
    tar = second.path / "images-00000.tar"
    assert tar.stat().st_nlink == 1
    assert fast_hash(tar) == next(one.xxh3 for one in second.files if one.name == tar.name)


def test_a_kill_loses_nothing_of_it(site, tmp_path):
    """SIGKILL once the first shard of the grown list is there."""
    for number, page in enumerate(PAGES):
        site.pages[page] = http(png(number, 300, 300))
    make(tmp_path / "killed", listed(tmp_path / "one.parquet", PAGES[:15]), site)
    shutil.copytree(tmp_path / "killed", tmp_path / "undisturbed")
    grown = listed(tmp_path / "two.parquet", PAGES, shard_items=2)
    undisturbed = make(tmp_path / "undisturbed", grown, site)

    folder = tmp_path / "killed" / "download" / undisturbed.digest
    kill_download(grown, tmp_path / "killed", site.port, folder / "samples-00000.parquet")

    site.asked.clear()
    again = make(tmp_path / "killed", grown, site)
    assert set(site.asked) <= set(PAGES[15:])
    assert content(again) == content(undisturbed)
    assert reused(again) == reused(undisturbed) == 15


def test_another_generation_tries_failures_again(site, tmp_path):
    site.pages[PAGES[1]] = http(b"", "503 Busy")
    chosen = listed(tmp_path / "list.parquet", PAGES[:4], retries=0)
    first = make(tmp_path / "store", chosen, site)
    assert statuses(first).count("http_503") == 1
    site.pages[PAGES[1]] = http(png(1))
    site.asked.clear()

    again = listed(tmp_path / "list.parquet", PAGES[:4], retries=0, generation=1)
    second = make(tmp_path / "store", again, site)
    assert site.asked == {PAGES[1]: 1}
    assert second.digest != first.digest
    assert content(second) == in_empty_store(tmp_path, again, site)
    unset = listed(tmp_path / "list.parquet", PAGES[:4], retries=0, generation=0)
    assert make(tmp_path / "store", unset, site).digest == first.digest
