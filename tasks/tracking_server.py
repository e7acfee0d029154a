"""MLflow's server, reduced to tracking: `python -m tasks.tracking_server`.

MLflow has no password and does more than track experiments: it has an assistant that runs commands
for anyone (with a model of their choice), a gateway, jobs and webhooks. Anyone who reaches its port
could run commands as this user. Here only the paths of runs, models and their pages exist,
artifacts stay in one folder, and only requests of MLflow's own pages are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import socket
from pathlib import Path

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tasks.closed_doors import OwnPagesOnly
from tasks.services import alone_at

_OBJECTS = (
    "artifacts",
    "datasets",
    "experiments",
    "get-trace-artifact",
    "logged-models",
    "metrics",
    "model-versions",
    "mpu",
    "presigned",
    "registered-models",
    "runs",
    "server-info",
    "traces",
    "upload-artifact",
    # These two are switched off (`server_environment`), but the pages of runs need their paths.
    "gateway-proxy",
    "ui-telemetry",
)
_PAGES = (
    r"|health|version|graphql|get-artifact|model-versions/get-artifact|(?:static-files|build)/.*"
)
TRACKING = re.compile(
    rf"/(?:{_PAGES}|(?:ajax-)?api/[23]\.0/?mlflow(?:-artifacts)?/(?:{'|'.join(_OBJECTS)})(?:/.*)?)",
    re.DOTALL,
)
"""A list of allowed paths, so that whatever a later MLflow adds is closed too."""


class TrackingOnly:
    """Answers only the paths of MLflow's tracking and of its pages."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan" and not TRACKING.fullmatch(scope["path"]):
            await PlainTextResponse("not found", status_code=404)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _mlflow(database: str, artifacts: str, lock: Path) -> ASGIApp:
    """MLflow's application, configured as by `mlflow server`."""
    from mlflow.server import constants

    os.environ |= {
        constants.BACKEND_STORE_URI_ENV_VAR: database,
        constants.REGISTRY_STORE_URI_ENV_VAR: database,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
    }
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    # Two processes must not create MLflow's tables at the same time.
    with alone_at(lock):
        initialize_backend_stores(database, database, "mlflow-artifacts:/")
    mlflow: ASGIApp = app
    return mlflow


def main() -> None:
    """Serve on a socket that the parent process has opened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--page", action="append", required=True)
    parser.add_argument("--database", required=True)
    parser.add_argument("--artifacts", required=True)
    parser.add_argument("--lock", type=Path, required=True)
    options = parser.parse_args()
    mlflow = _mlflow(options.database, options.artifacts, options.lock)
    app = OwnPagesOnly(TrackingOnly(mlflow), options.page)
    # uvicorn believes X-Forwarded headers of any program on this machine unless that is switched
    # off.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", proxy_headers=False))
    asyncio.run(server.serve([socket.socket(fileno=options.socket)]))


if __name__ == "__main__":
    main()
