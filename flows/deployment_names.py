"""Prefect's start-up hook: `prefect deployment run full-pipeline` works as written, against the `hdm serve` of this store.

Prefect wants FLOW/DEPLOYMENT. A bare name is completed where one deployment alone has it; a name with a slash is left as it is.
Prefect loads this module at import (entry point group `prefect.plugins`; `[tool.prefect.plugins] enabled`).
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.processes import bypass_proxy
from hdm.store import store_root
from tasks.services import prefect_environment

RUN = ("deployment", "run")


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Settings that the user made stay; a store without any services changes nothing."""
    if not (store_root() / ".services").is_dir():
        return None
    bypass_proxy()
    url = ctx.api_url
    found = {
        key: value
        for key, value in prefect_environment(store_root()).items()
        if key not in os.environ
    }
    if url:
        found.pop("PREFECT_API_URL", None)
    complete(sys.argv, url or found.get("PREFECT_API_URL"))
    return SetupResult(env=found)


def complete(words: list[str], url: str | None) -> None:
    """Complete the bare name in `prefect deployment run NAME …`, in place, if the server has one such deployment."""
    place = _name_place(words)
    if place is None or url is None or "/" in words[place]:
        return
    matches = [full for full in _deployments(url) if full.rpartition("/")[2] == words[place]]
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


def _deployments(url: str) -> list[str]:
    """FLOW/DEPLOYMENT of all that the server knows; [] if it does not answer."""
    try:
        flows = {flow["id"]: flow["name"] for flow in _post(f"{url}/flows/filter")}
        return [
            f"{flows[found['flow_id']]}/{found['name']}"
            for found in _post(f"{url}/deployments/filter")
        ]
    except (OSError, ValueError, KeyError):
        return []


def _post(address: str) -> list[dict[str, str]]:
    request = urllib.request.Request(address, b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)
