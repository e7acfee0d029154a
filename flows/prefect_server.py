"""Prefect's server, closed to everybody but its own pages and commands: `python -m
flows.prefect_server`.

Prefect's own `server start` answers a page of any origin, under any host name. Whoever may write to
it can have a worker run any command, so that a page in the user's browser must not reach it.
Passwords are checked by Prefect (PREFECT_SERVER_API_AUTH_STRING); this module checks where a
request was sent to and which page sent it, before Prefect sees it.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from prefect.server.api.server import create_app
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp

from tasks.closed_doors import OwnPagesOnly


def closed(app: ASGIApp, pages: Sequence[str]) -> ASGIApp:
    """The application, for these pages alone: no other origin, no other host name."""
    hosts = [urlsplit(page).hostname or "" for page in pages]
    # Both checks are needed. A page whose own name is made to resolve to this machine (DNS
    # rebinding) sends same-origin requests, which may lack an Origin; only their Host is foreign.
    return TrustedHostMiddleware(OwnPagesOnly(app, pages), hosts, www_redirect=False)


async def _serve(app: ASGIApp, asked: argparse.Namespace) -> None:
    # One application behind two servers, since uvicorn serves either plain sockets or TLS.
    plain = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    listeners = [socket.socket(fileno=number) for number in asked.socket]
    if asked.tls_socket is None:
        await plain.serve(listeners)
        return
    config = uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",  # the other one's
        ssl_certfile=asked.certificate,
        ssl_keyfile=asked.key,
    )
    encrypted = uvicorn.Server(config)
    first = asyncio.create_task(plain.serve(listeners))
    # The first one runs the application's startup; the second must not answer before that is done.
    while not plain.started and not first.done():
        await asyncio.sleep(0.1)
    # The one that started last has the signals, and passes them on when it ends.
    if not first.done():
        await encrypted.serve([socket.socket(fileno=asked.tls_socket)])
    await first


def main() -> None:
    """Serve on sockets that the process which started this one has opened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, action="append", required=True)
    parser.add_argument("--page", action="append", required=True)
    parser.add_argument("--tls-socket", type=int)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    asked = parser.parse_args()
    asyncio.run(_serve(closed(create_app(final=True), asked.page), asked))


if __name__ == "__main__":
    main()
