"""Processes that `hdm serve` starts, and that it is alone on its store."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.commands.serve import Reach, kept_port, serve_pages
from flows.processes import LOOPBACK, listener, nearest_listener, running
from hdm.errors import InputError, LockedError
from tasks.services import alone, password, services
from tests.flows.served import HDM, PROJECT, environment, with_tables

FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
print("up", flush=True)
time.sleep(99)
"""


def living(group: int) -> int:
    """How many processes of that group live."""
    found = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], capture_output=True, text=True, check=True
    ).stdout
    return sum(line.split()[0] == str(group) and "Z" not in line for line in found.splitlines())


def test_a_process_and_its_children_are_gone_at_the_end(tmp_path: Path) -> None:
    with running(
        "family", [sys.executable, "-c", FAMILY], os.environ, tmp_path, tmp_path
    ) as process:
        log = tmp_path / ".services" / "family.log"
        while "up" not in log.read_text():
            time.sleep(0.05)
        assert living(process.pid) == 2
    while living(process.pid):
        time.sleep(0.05)


def test_a_port_in_use_is_left_alone() -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert listener(port) is None
        with nearest_listener(port) as near:
            assert near.getsockname()[1] not in (port, 0)


def test_a_port_is_kept_while_its_server_is_gone() -> None:
    with nearest_listener(0) as held:
        with socket.create_connection(held.getsockname()) as waiting:
            assert waiting.getpeername() == held.getsockname()  # nobody has answered yet
        assert listener(held.getsockname()[1]) is None


def test_a_store_keeps_its_ports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with kept_port(tmp_path, "prefect", 0, 0) as first:
        port = first.getsockname()[1]
    with kept_port(tmp_path, "prefect", None, 0) as second:
        assert second.getsockname()[1] == port
        assert capfd.readouterr().err == ""
        with kept_port(tmp_path, "prefect", None, 0) as elsewhere:
            other = elsewhere.getsockname()[1]
        assert (
            f"another program has port {port}: prefect is at port {other}" in capfd.readouterr().err
        )
    with kept_port(tmp_path, "prefect", None, 0) as third:
        assert third.getsockname()[1] == other


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "5", '{"prefect": null}', '{"prefect": "a"}', '{"prefect": 70000}', "{"],
)
def test_a_record_of_ports_that_cannot_be_read_is_told_and_made_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str
) -> None:
    record = services(tmp_path) / "ports.json"
    record.write_text(content)
    with kept_port(tmp_path, "prefect", None, 0) as found:
        assert json.loads(record.read_bytes()) == {"prefect": found.getsockname()[1]}
    assert f"{record} cannot be read" in capfd.readouterr().err


def test_a_terminal_shows_the_password(tmp_path: Path, prefect_tables: Path) -> None:
    """And the services stop cleanly though Ctrl-C comes while that is being printed."""
    with_tables(tmp_path, prefect_tables)
    reading, writing = os.openpty()
    with nearest_listener(0) as one, nearest_listener(0) as other:
        ports = [str(probe.getsockname()[1]) for probe in (one, other)]
    words = [HDM, "serve", "--prefect-port", ports[0], "--mlflow-port", ports[1]]
    with subprocess.Popen(
        words, cwd=PROJECT, env=environment(tmp_path), stderr=writing, start_new_session=True
    ) as process:
        os.close(writing)
        said = b""
        while b"Ctrl-C" not in said:
            said += os.read(reading, 1024)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # its other end is closed: the services have ended
            while piece := os.read(reading, 1024):
                said += piece
    os.close(reading)
    assert process.returncode == 0, said.decode()
    assert password(tmp_path) in said.decode()


def test_one_store_is_served_once(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(LockedError, match=str(os.getpid())):
        serve_pages(tmp_path, None, 0, 0)


@pytest.mark.parametrize(
    ("reach", "said"),
    [
        (Reach("192.0.2.1"), "in the clear"),
        (Reach("0.0.0.0"), "in the clear"),
        (Reach("192.0.2.1", certificate=Path("there.pem")), "belong together"),
        (Reach(certificate=Path("there.pem"), key=Path("there.key")), "add --host"),
        (Reach("192.0.2.1", Path("no.pem"), Path("no.key")), "TLS does not accept"),
        (Reach("192.0.2.1", proxy="http://images.example"), "not the address of a reverse proxy"),
        (Reach(proxy="images.example"), "not the address of a reverse proxy"),
        (Reach(proxy="https://images.example/prefect"), "not the address of a reverse proxy"),
        *(
            (Reach(proxy=f"https://{address}"), "not the address of a reverse proxy")
            for address in (
                "*",
                "*.example",
                "me:x@images.example",
                "images.example?x",
                "a:99999",
                "[::1]",
                "[::1",
                "",
            )
        ),
        (Reach("::1", proxy="https://images.example"), "not the name or IPv4 address"),
        (Reach("*", proxy="https://images.example"), "not the name or IPv4 address"),
        (Reach("192.0.2.1", proxy="https://images.example"), "cannot be opened there"),
        (Reach("no.such.invalid", proxy="https://images.example"), "no such host"),
    ],
    ids=str,
)
def test_nobody_is_served_beyond_this_machine_in_the_clear(
    tmp_path: Path, reach: Reach, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        serve_pages(tmp_path, None, 0, 0, reach)


@pytest.mark.parametrize("given", ["https://Images.Example", "https://images.example:443/"])
def test_the_pages_of_a_proxy_are_known_by_the_origin_that_browsers_send(given: str) -> None:
    assert Reach(proxy=given).pages(4200)[2:] == ["https://images.example"]
