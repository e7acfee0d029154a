import http.client
import socket
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from hdm.acquisition.settings import DownloadSettings, ScenesSettings
from hdm.config import Pipeline
from hdm.demo.faults import HOST, file_bytes, plan
from hdm.demo.site import serve_scenes

SETTINGS = ScenesSettings(count=150, seed=1, faults=0.4)
PIPELINE = Pipeline(download=DownloadSettings(kind="scenes", scenes=SETTINGS, url_column="address"))


@pytest.fixture(scope="module")
def site():
    with serve_scenes(PIPELINE) as served:
        yield served


def get(site, path):
    address, port = site.hosts[HOST]
    connection = http.client.HTTPConnection(address, port, timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    try:
        return answer.status, answer.read()
    finally:
        connection.close()


def first(**wanted):
    return next(
        item
        for item in plan(SETTINGS)
        if all(getattr(item, name) == value for name, value in wanted.items())
    )


def test_the_list_names_every_item_at_a_host_without_a_port(site):
    table = pq.read_table(site.source)
    assert site.kind == "urls"
    assert table["address"].to_pylist() == [item.url for item in plan(SETTINGS)]
    assert table["caption"].to_pylist() == [list(item.captions) for item in plan(SETTINGS)]
    assert table["address"][0].as_py().startswith(f"http://{HOST}/")


def test_pictures_arrive_whole(site):
    items = plan(SETTINGS)
    for item in items[:40]:
        if item.manner is None and item.fault not in ("missing", "cut_off"):
            assert get(site, item.path) == (200, file_bytes(item, SETTINGS, items))


def test_the_site_misbehaves_as_planned(site):
    items = plan(SETTINGS)
    assert get(site, first(fault="missing").path)[0] == 404
    assert get(site, "/elsewhere")[0] == 404

    busy = first(manner="busy")
    assert get(site, busy.path)[0] == 503
    assert get(site, busy.path) == (200, file_bytes(busy, SETTINGS, items))

    once = first(manner="cut_once")
    with pytest.raises(http.client.IncompleteRead):
        get(site, once.path)
    assert get(site, once.path) == (200, file_bytes(once, SETTINGS, items))

    for _ in range(3):
        with pytest.raises(http.client.IncompleteRead):
            get(site, first(fault="cut_off").path)


def test_two_sites_differ_only_in_their_port(site):
    with serve_scenes(PIPELINE) as other:
        assert other.hosts != site.hosts
        assert pq.read_table(other.source) == pq.read_table(site.source)


def test_the_server_ends_with_a_killed_process():
    script = (
        "import time; from hdm.config import Pipeline; from hdm.demo.site import serve_scenes\n"
        "with serve_scenes(Pipeline()) as site:\n"
        "    print(site.hosts['scenes.test'][1], flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        port = int(client.stdout.readline())
        socket.create_connection(("127.0.0.1", port)).close()
        client.kill()
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    pytest.fail("the server outlived the process that started it")
