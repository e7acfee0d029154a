"""Prefect's start-up hook: `prefect deployment run full-pipeline` works as written, against the
`hdm serve` of this store.

Prefect wants FLOW/DEPLOYMENT. A bare name is completed where one deployment alone has it. A name
that the server does not know, or no server to ask, ends that command in one line; Prefect itself
would start a server and fail in a traceback. Prefect loads this module at import (entry point group
`prefect.plugins`; `[tool.prefect.plugins] enabled` in the project's folder, PREFECT_PLUGINS_ENABLED
elsewhere, which `make setup` puts into `.venv/bin/activate`).
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from prefect.plugins import HookContext, SetupResult, register_hook

from flows.prefect_api import post
from flows.processes import bypass_proxy
from hdm.pipelines import did_you_mean
from hdm.store import state_root, store_root
from tasks.services import password, prefect_access, prefect_environment

RUN = ("deployment", "run")


@register_hook
def setup_environment(*, ctx: HookContext) -> SetupResult | None:
    """Give Prefect the settings of this store's services, except those that the user has set. A
    store without services changes nothing.

    Raises:
        SystemExit: `prefect deployment run` cannot work; the message is one line.
    """
    if _is_server():
        return None
    root = store_root()
    url = ctx.api_url
    # Asked without creating it: a `prefect` command in any folder must not leave a store behind.
    if not (state_root(root) / ".services").is_dir():
        if not url and _name_place(sys.argv) is not None:
            raise SystemExit(_unserved(root))
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
    api = access.get("PREFECT_API_URL", url)
    if not api and _name_place(sys.argv) is not None:
        raise SystemExit(_unserved(root))
    # In place: Prefect parses sys.argv after its import, during which this hook runs.
    complete(
        sys.argv,
        api,
        access.get("PREFECT_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING"),
    )
    return SetupResult(env={**found, **access})


def _is_server() -> bool:
    """Whether this process is a server that Prefect started: its parent chose all its settings."""
    return any(word.startswith("prefect.server.") for word in sys.argv)


def complete(words: list[str], url: str | None, authorization: str | None = None) -> None:
    """Complete the bare name in `prefect deployment run NAME …`, in place, if the server has one
    such deployment.

    Args:
        words: the command line.
        url: the server's API; None if there is none.
        authorization: the password that it asks for; None if it asks for none.

    Raises:
        SystemExit: the server does not answer, or has no such deployment, or several.
    """
    place = _name_place(words)
    if place is None or url is None:
        return
    name = words[place]
    try:
        known = _deployments(url, authorization)
    # Caught first, because HTTPError is an OSError too.
    except urllib.error.HTTPError:
        return  # it answers; Prefect's own error says better what it refuses
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(
            f"no Prefect server answers at {url} ({error}): start it (hdm serve), or unset"
            " PREFECT_API_URL"
        ) from error
    # A full FLOW/DEPLOYMENT is looked up too, so that a misspelt one also ends in a line.
    matches = [full for full in known if name in (full, full.rpartition("/")[2])]
    if len(matches) > 1:
        raise SystemExit(f"several deployments are called {name}: {', '.join(matches)}")
    if not matches:
        names = [full.rpartition("/")[2] for full in known]
        hint = did_you_mean(name.rpartition("/")[2], names)
        raise SystemExit(f"no deployment is called {name}{hint}\nthere are: {', '.join(known)}")
    words[place] = matches[0]


def _unserved(root: Path) -> str:
    return (
        f"no hdm serve found for {root}: start it (hdm serve), or set HDM_STORE to a store that is"
        " served"
    )


def _name_place(words: Sequence[str]) -> int | None:
    """The position of NAME, if this is that command; None otherwise. A word after an option may be
    the option's value, so it is left to Prefect.
    """
    if Path(words[0] if words else "").name not in ("prefect", "-m"):
        return None
    if len(words) < 4 or tuple(words[1:3]) != RUN or words[3].startswith("-"):
        return None
    return 3


def _deployments(url: str, authorization: str | None) -> list[str]:
    """FLOW/DEPLOYMENT of all that the server knows."""
    found = post(f"{url}/flows/filter", {}, authorization)
    flows = {flow["id"]: flow["name"] for flow in found}
    return [
        f"{flows[found['flow_id']]}/{found['name']}"
        for found in post(f"{url}/deployments/filter", {}, authorization)
    ]
