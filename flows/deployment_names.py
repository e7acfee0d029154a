"""Prefect's start-up hook: `prefect deployment run full-pipeline` works as written, against the `hdm serve` of this store.

Prefect wants FLOW/DEPLOYMENT. A bare name is completed where one deployment alone has it; a name with a slash is left as it is.
Prefect loads this module at import (entry point group `prefect.plugins`; `[tool.prefect.plugins] enabled`).
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.processes import bypass_proxy
from hdm.store import store_root
from tasks.services import password, prefect_access, prefect_environment

RUN = ("deployment", "run")


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Settings that the user made stay; a store without any services changes nothing."""
    root, url = store_root(), ctx.api_url
    if not (root / ".services").is_dir():
        return None
    bypass_proxy()
    found = {
        key: value for key, value in prefect_environment(root).items() if key not in os.environ
    }
    access = prefect_access(root, url or None)
    if not url and not access:  # Prefect will start a server by itself, with the store's data
        access = dict.fromkeys(
            ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"), password(root)
        )
    complete(
        sys.argv,
        access.get("PREFECT_API_URL", url),
        access.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING"),
    )
    return SetupResult(env={**found, **access})


def complete(words: list[str], url: str | None, authorization: str | None = None) -> None:
    """Complete the bare name in `prefect deployment run NAME …`, in place, if the server has one such deployment.

    Args:
        words: the command line.
        url: the server's API; None if there is none.
        authorization: the password that it asks for; None if it asks for none.
    """
    place = _name_place(words)
    if place is None or url is None or "/" in words[place]:
        return
    deployments = _deployments(url, authorization)
    matches = [full for full in deployments if full.rpartition("/")[2] == words[place]]
    if len(matches) == 1:
        words[place] = matches[0]


def _name_place(words: Sequence[str]) -> int | None:
    """Where NAME stands, if this is that command."""
    if Path(words[0] if words else "").name not in ("prefect", "__main__.py"):
        return None
    plain = [place for place in range(1, len(words)) if not words[place].startswith("-")]
    if len(plain) < 3 or tuple(words[place] for place in plain[:2]) != RUN:
        return None
    return plain[2]


def _deployments(url: str, authorization: str | None) -> list[str]:
    """FLOW/DEPLOYMENT of all that the server knows; [] if it does not answer."""
    try:
        found = _post(f"{url}/flows/filter", authorization)
        flows = {flow["id"]: flow["name"] for flow in found}
        return [
            f"{flows[found['flow_id']]}/{found['name']}"
            for found in _post(f"{url}/deployments/filter", authorization)
        ]
    except (OSError, ValueError, KeyError):
        return []


def _post(address: str, authorization: str | None) -> list[dict[str, str]]:
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        encoded = base64.b64encode(authorization.encode()).decode()
        headers["Authorization"] = f"Basic {encoded}"
    request = urllib.request.Request(address, b"{}", headers)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)
