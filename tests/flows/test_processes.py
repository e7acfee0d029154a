"""This machine's own servers are reached without the user's proxy."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.processes import running, wait_for
from hdm.errors import HdmError

DEAD_PROXY = "http://127.0.0.1:9"
CLIENTS = """
import sys, urllib.request
from flows.commands.run import prepare
from hdm.store import store_root
prepare(store_root(), False)
import httpx, requests
print(urllib.request.urlopen(sys.argv[1], timeout=5).status)
print(httpx.get(sys.argv[1], timeout=5).status_code)
print(requests.get(sys.argv[1], timeout=5).status_code)
try:
    urllib.request.urlopen("http://elsewhere.invalid", timeout=5)
except OSError as error:
    print("Connection refused" in str(error))  # by the proxy
"""


@pytest.fixture
def server() -> Iterator[str]:
    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/health"
        http.shutdown()


@pytest.mark.parametrize("own", [{}, {"NO_PROXY": "intranet, 10.0.0.0/8"}, {"no_proxy": "here"}])
def test_every_client_reaches_loopback_past_a_dead_proxy(server: str, own: dict[str, str]) -> None:
    proxies = {"http_proxy": DEAD_PROXY, "https_proxy": DEAD_PROXY, "ALL_PROXY": DEAD_PROXY}
    done = subprocess.run(
        [sys.executable, "-c", CLIENTS, server],
        env={**os.environ, **proxies, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["200", "200", "200", "True"], done.stderr[-2000:]


def test_the_user_s_exceptions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.processes import bypass_proxy

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intranet, localhost")
    bypass_proxy()
    bypass_proxy()
    expected = "intranet,localhost,127.0.0.1,::1"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == expected
    monkeypatch.setenv("no_proxy", "*")
    bypass_proxy()
    assert os.environ["no_proxy"] == "*"


def test_a_server_that_does_not_start_is_told_with_its_error(tmp_path: Path) -> None:
    code = "raise OSError(28, 'No space left on device')"
    with (
        running("prefect", [sys.executable, "-c", code], os.environ, tmp_path, tmp_path) as process,
        pytest.raises(HdmError, match="No space left on device") as caught,
    ):
        wait_for("http://127.0.0.1:9", process, tmp_path)
    assert str(tmp_path / ".services" / "prefect.log") in str(caught.value)


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_prefect_needs_no_home_of_the_user(tmp_path: Path, home: str | None) -> None:
    code = (
        "from hdm.store import store_root; from flows.commands.run import prepare; "
        "prepare(store_root(), False); import prefect.settings; "
        "print(prefect.settings.get_current_settings().home)"
    )
    environment = {**os.environ, "HDM_STORE": str(tmp_path), "HOME": home or ""}
    environment.pop("PREFECT_HOME")
    if home is None:
        environment.pop("HOME")  # the entry in /etc/passwd is taken
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    if home is not None:
        assert Path(done.stdout.strip()).is_relative_to(tmp_path)
