"""Requests to Prefect's server without importing Prefect, which takes seconds."""

from __future__ import annotations

import base64
import json
import urllib.request
from typing import Any

# `hdm serve` asks between two looks at its processes, so it cannot wait long for a server that
# hangs.
TIMEOUT_SEC = 5.0


def post(address: str, body: Any, authorization: str | None) -> Any:
    """What the server answers to that JSON.

    Args:
        address: of the resource.
        body: what is sent.
        authorization: the password that the server asks for; None if it asks for none.

    Raises:
        OSError: it does not answer, or refuses.
        ValueError: it does not answer with JSON.
    """
    return json.loads(_answer("POST", address, authorization, json.dumps(body).encode()))


def delete(address: str, authorization: str | None) -> None:
    """Remove what is at that address.

    Raises:
        OSError: the server does not answer, or refuses.
    """
    _answer("DELETE", address, authorization)


def _answer(method: str, address: str, authorization: str | None, body: bytes = b"") -> bytes:
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        encoded = base64.b64encode(authorization.encode()).decode()
        headers["Authorization"] = f"Basic {encoded}"
    request = urllib.request.Request(address, body or None, headers, method=method)
    with urllib.request.urlopen(request, timeout=TIMEOUT_SEC) as answer:
        content: bytes = answer.read()
        return content
