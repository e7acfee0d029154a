"""A headless Chromium that tests look through, driven by its DevTools protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.flows.served import until

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOSTILE = "attacker.example"
"""A name that leads to this machine, as after DNS rebinding."""
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
    f"--host-resolver-rules=MAP {HOSTILE} 127.0.0.1",
)


class Page:
    """A tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def value(self, script: str) -> Any:
        """What a script or its promise comes to."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        return found["result"].get("value")

    def open(self, address: str) -> None:
        """Go there, and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        until(lambda: self.value("document.readyState === 'complete'"))

    def shows(self, text: str) -> bool:
        return text in (self.value("document.body?.innerText") or "")

    def type(self, text: str) -> None:
        """Into what has the focus, then Enter."""
        self.call("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
        for event in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=event, **key)


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Chromium with a new profile."""
    assert CHROMIUM is not None
    words = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        try:
            written = profile / "DevToolsActivePort"
            until(lambda: written.exists() and written.read_text().count("\n"))
            port = written.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = json.load(answer)
            (address,) = (tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None) as socket:
                assert isinstance(socket, ClientConnection)
                yield Page(socket)
        finally:
            process.kill()
