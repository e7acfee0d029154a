"""MLflow, and the only file that knows it (but for where its records lie: `tasks.moved`).

    experiment            the pipeline's name
    └── run               one a pipeline run: every setting as a parameter, every figure as `<output>.<key>`, the report
        └── child run     one an output: its own figures under fixed keys, its series over images seen, its pictures and manifest,
                          its inputs as data sets (name and digest)

    experiment            lab-<name>
    └── run               one a lab, which goes on when it is run again: its settings, its table
        └── child run     one a cell: what sets it apart as parameters, and all of its training and evaluation

Everything logged of an output comes from the store, so that what an outage lost is logged by the
next run of the same pipeline.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tasks.figures import (
    Pictures,
    Point,
    Series,
    counts,
    flattened,
    measured,
    numeric,
    origin,
    shown,
)
from tasks.moved import follow_store
from tasks.services import alone_at, database_address, services, serving

Event = dict[str, Any]
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
METRICS_AT_ONCE, PARAMS_AT_ONCE, PARAM_CHARS = 900, 90, 5900  # MLflow takes 1000, 100 and 6000
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def server_command(root: Path, listener: socket.socket, proxy: str | None = None) -> list[str]:
    """MLflow's pages on a socket of loopback, in one process: with its own command's defaults it
    takes 15 and 3.2 GB.

    Args:
        root: the store.
        listener: an open socket, which the process takes over under the same number.
        proxy: the https:// address of a reverse proxy whose pages, at any port, are let in too.
    """
    port = listener.getsockname()[1]
    pages = [f"http://{host}:{port}" for host in ("127.0.0.1", "localhost")]
    if proxy is not None:
        name = f"https://{urlsplit(proxy).hostname}"
        pages += [name, f"{name}:*"]
    return [
        sys.executable, "-m", "tasks.tracking_server", "--socket", str(listener.fileno()),
        *(word for page in pages for word in ("--page", page)),
        "--database", database(root), "--artifacts", str(services(root) / "mlartifacts"),
        "--lock", str(setup_lock(root)),
    ]  # fmt: skip


def server_environment(proxy: str | None = None) -> dict[str, str]:
    """What keeps the server small, quiet, and closed to other origins and host names, whatever the
    user's own MLflow is set to.

    Args:
        proxy: the https:// address of a reverse proxy whose pages are let in too.
    """
    name = urlsplit(proxy or "").hostname
    hosts = [
        pattern
        for host in ("127.0.0.1", "localhost", *([name] if name else []))
        for pattern in (host, f"{host}:*")
    ]
    return {
        **SETTINGS,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"https://{name},https://{name}:*" if name else "",
        "MLFLOW_DEPLOYMENTS_TARGET": "",
        "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "0",  # nobody says where the server writes
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }


def database(root: Path) -> str:
    """MLflow's address of the store's own database."""
    return database_address("pysqlite", services(root) / "mlflow.db")


def setup_lock(root: Path) -> Path:
    """Held while tables and experiments are made: MLflow fails where two processes begin at once."""
    return services(root) / "mlflow.lock"


def address(root: Path) -> str:
    """Where to log: what the user set, the living `hdm serve`, or the database itself."""
    alive = serving(root)
    return os.environ.get("MLFLOW_TRACKING_URI") or (alive.mlflow if alive else database(root))


def say(what: dict[str, str]) -> None:
    """Tell the run's process something, if it is still there."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(what), flush=True)


def passing(error: Exception) -> bool:
    """Whether trying again can help: no connection, a busy database."""
    return isinstance(error, OSError) or getattr(error, "error_code", None) in PASSING


class Mirror:
    """A run in MLflow, event by event."""

    def __init__(self, root: Path) -> None:
        from mlflow import MlflowClient

        place = address(root)
        with alone_at(setup_lock(root)):
            if place == database(root):  # a server has done it when it started
                follow_store(root)
            self.root = root
            self.client = MlflowClient(place, registry_uri=place)
        self.parent = self.experiment = self.pipeline = ""
        self.tags: dict[str, str] = {}
        self.children: dict[str, str] = {}
        self.cell: str | None = None
        self.told_before = False
        self.followed: dict[str, Series] = {}
        self.pictures: Pictures | None = None
        self.unsent: list[tuple[str, Point]] = []

    def handle(self, event: Event) -> None:
        """Write down one event."""
        if self.told_before and event["event"] in ("begin", "made"):
            return
        getattr(self, f"on_{event['event']}")(event)

    def on_run(self, event: Event) -> None:
        self.pipeline = event["pipeline"]
        with alone_at(setup_lock(self.root)):
            self.experiment = self._experiment(self.pipeline)
        self.tags = {
            "pipeline": self.pipeline,
            "recipe": event["recipe"],
            "prefect_flow_run": str(event["flow_run"]),
        }
        self._end_dead_runs()
        own = {
            "process": f"{os.uname().nodename}:{event['pid']}",
            "stage": "all",
            "overrides": " ".join(event["overrides"]),
        }
        own |= made_by(event.get("provenance", {}))
        self.parent = self._same_flow_run(own) or self._create(
            f"{self.pipeline} {event['recipe'][:6]}", event["at"], own
        )
        self._params(self.parent, event["params"])
        say({"run_id": self.parent})

    def on_cell(self, event: Event) -> None:
        this_cell = matching(
            {"tags.mlflow.parentRunId": self.parent, "attributes.run_name": event["name"]}
        )
        found = self.client.search_runs([self.experiment], this_cell, max_results=1)
        self.told_before = bool(found) and found[0].info.status == "FINISHED"
        own = {"mlflow.parentRunId": self.parent, "stage": "cell", "output": event["name"]}
        self.cell = found[0].info.run_id if found else self._create(event["name"], event["at"], own)
        if not self.told_before:
            self.client.update_run(self.cell, status="RUNNING")
            self._params(self.cell, event["params"])

    def on_cell_end(self, event: Event) -> None:
        assert self.cell is not None
        if not self.told_before:
            self.client.set_terminated(self.cell, event["status"], end_time=int(event["at"] * 1000))
        self.cell = None
        self.told_before = False
        self.children = {}

    def on_begin(self, event: Event) -> None:
        name = event["name"]
        if self.cell is not None:
            self.children[name] = self.cell
        elif name not in self.children:
            own = {"mlflow.parentRunId": self.parent, "stage": name.split(".")[0], "output": name}
            self.children[name] = self._create(name, event["at"], own)
        self.followed = {file: Series(Path(event["folder"]), file) for file in Series.FILES}
        self.pictures = Pictures(Path(event["folder"]))
        self.following = self.children[name]

    def on_made(self, event: Event) -> None:
        child = self.children[event["name"]]
        folder = Path(event["path"])
        manifest = json.loads((folder / "manifest.json").read_bytes())
        self.follow()
        finals = {
            key: value for series in self.followed.values() for key, value in series.final.items()
        }
        self.followed = {}
        self.pictures = None
        tags = {
            "digest": event["digest"],
            "cached": str(event["cached"]).lower(),
            "folder": str(folder),
        }
        tags["dataset"] = self.tags["dataset"] = origin(self.root, manifest)
        self._tag(child, tags)
        self._tag(self.parent, {"dataset": tags["dataset"]})
        self._params(child, dict(flattened(manifest["config"])))
        numbers = {
            **event["counts"],
            **dict(numeric(manifest["summary"])),
            **measured(folder),
            "seconds": event["seconds"],
        }
        if self.cell is None:
            self._numbers(child, numbers)
        else:
            finals = {}  # are its own series
        self._numbers(
            self.cell or self.parent,
            {f"{event['name']}.{key}": value for key, value in {**finals, **numbers}.items()},
        )
        self._inputs(child, manifest)
        for path in shown(folder, manifest):
            self.client.log_artifact(child, str(path), event["name"] if self.cell else None)
            if path.suffix == ".png" and self.cell is None:  # side by side on the comparison page
                self.client.log_artifact(self.parent, str(path), event["name"])
        if self.cell is not None:
            return
        if manifest["name"].startswith("train."):
            self._register(child, manifest, folder)
        self.client.set_terminated(child, "FINISHED", end_time=int(event["at"] * 1000))

    def on_failed(self, event: Event) -> None:
        self.follow()
        self.followed = {}
        self.pictures = None
        child = self.children[event["name"]]
        self._tag(child, {"message": event["message"][:5000]})
        self.client.set_terminated(child, event["status"], end_time=int(event["at"] * 1000))

    def on_artifact(self, event: Event) -> None:
        self.client.log_artifact(self.parent, event["path"])

    def on_end(self, event: Event) -> None:
        for child in self.children.values():
            if self.client.get_run(child).info.status == "RUNNING":
                self.client.set_terminated(child, event["status"])
        self.client.set_terminated(self.parent, event["status"], end_time=int(event["at"] * 1000))

    def follow(self) -> None:
        """Log what was added to the series and the pictures of the output in work. What MLflow does
        not take is sent first next time.
        """
        for series in self.followed.values():
            self.unsent += [(self.following, point) for point in series.added()]
        self._send()
        for path in self.pictures.added() if self.pictures else ():
            # It has become a file of the output, which is told of soon.
            with contextlib.suppress(FileNotFoundError):
                self.client.log_artifact(self.following, str(path))

    def _send(self) -> None:
        from mlflow.entities import Metric

        while self.unsent:
            run, batch = next(
                itertools.groupby(self.unsent[:METRICS_AT_ONCE], operator.itemgetter(0))
            )
            points = [Metric(*point) for _, point in batch]
            self.client.log_batch(run, metrics=points)
            del self.unsent[: len(points)]

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        # Else its page opens on traces of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        if "MLFLOW_TRACKING_URI" in os.environ:
            return self.client.create_experiment(name, tags=tags)
        # Not through the server of `hdm serve`, which lets nobody choose where it writes.
        from mlflow import MlflowClient

        return MlflowClient(database(self.root)).create_experiment(
            name,
            artifact_location=(services(self.root) / "mlartifacts" / name).as_uri(),
            tags=tags,
        )

    def _same_flow_run(self, own: dict[str, str]) -> str | None:
        """A retried flow run goes on in the run that it began."""
        this_run = matching(
            {"tags.prefect_flow_run": self.tags["prefect_flow_run"], "tags.stage": "all"}
        )
        found = self.client.search_runs([self.experiment], this_run, max_results=1)
        if not found:
            return None
        self.client.update_run(found[0].info.run_id, status="RUNNING")
        self._tag(found[0].info.run_id, own)
        return found[0].info.run_id

    def _end_dead_runs(self) -> None:
        """Runs that were killed with everything else cannot say so themselves."""
        for run in self.client.search_runs(
            [self.experiment], matching({"attributes.status": "RUNNING"})
        ):
            host, _, pid = run.data.tags.get("process", "").partition(":")
            if host == os.uname().nodename and not Path(f"/proc/{pid}").exists():
                children = matching({"tags.mlflow.parentRunId": run.info.run_id})
                for child in self.client.search_runs([self.experiment], children):
                    if child.info.status == "RUNNING":
                        self.client.set_terminated(child.info.run_id, "KILLED")
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _create(self, name: str, at: float, tags: dict[str, str]) -> str:
        run = self.client.create_run(
            self.experiment, start_time=int(at * 1000), tags={**self.tags, **tags}, run_name=name
        )
        return run.info.run_id

    def _tag(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def _params(self, run: str, values: dict[str, Any]) -> None:
        """Parameters that the run has not got yet: they cannot be logged twice with another
        value.
        """
        from mlflow.entities import Param

        there = self.client.get_run(run).data.params
        params = [
            Param(key, plain(value)) for key, value in values.items() if key and key not in there
        ]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(run, params=params[start : start + PARAMS_AT_ONCE])

    def _numbers(self, run: str, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            run,
            metrics=[Metric(key, float(value), now, 0) for key, value in values.items()][
                :METRICS_AT_ONCE
            ],
        )

    def _inputs(self, run: str, manifest: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = [InputTag("mlflow.data.context", manifest["name"])]
        found = []
        for name, digest in manifest["inputs"].items():
            folder = self.root / name / digest
            profile = json.dumps(counts(json.loads((folder / "manifest.json").read_bytes())))
            found.append(
                DatasetInput(
                    Dataset(
                        name, digest, "local", json.dumps({"uri": str(folder)}), profile=profile
                    ),
                    context,
                )
            )
        if found:
            self.client.log_inputs(run, found)

    def _register(self, run: str, manifest: dict[str, Any], folder: Path) -> None:
        """A version of the model for each phase; the weights stay in the store, named by path, size
        and sha256.
        """
        from mlflow.exceptions import RestException

        this_version = matching({"name": self.pipeline, "tags.digest": manifest["digest"]})
        if self.client.search_model_versions(this_version):
            return
        if not self.client.search_registered_models(matching({"name": self.pipeline})):
            self.client.create_registered_model(self.pipeline)
        weights = [
            record for record in manifest["files"] if record["name"].endswith(".safetensors")
        ]
        self.client.log_dict(
            run,
            {"output": f"{manifest['name']}/{manifest['digest']}", "files": weights},
            "model/weights.json",
        )
        source = f"{self.client.get_run(run).info.artifact_uri}/model"
        try:
            version = self.client.create_model_version(
                self.pipeline,
                source,
                run,
                tags={"digest": manifest["digest"], "folder": str(folder)},
            )
        except RestException:  # a server refuses sources outside its own artifacts
            version = self.client.create_model_version(
                self.pipeline,
                f"runs:/{run}/model",
                run,
                tags={"digest": manifest["digest"], "folder": str(folder)},
            )
        self.client.set_registered_model_alias(self.pipeline, "newest", version.version)


def made_by(provenance: dict[str, Any]) -> dict[str, str]:
    """Code, libraries and machine as tags of a run; the commit also where MLflow's pages show
    it.
    """
    tags = {name: plain(value) for name, value in flattened(provenance)}
    commit = tags.get("code.commit")
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}


def matching(values: Mapping[str, str]) -> str:
    """MLflow's filter for entities that have all these values.

    Raises:
        ValueError: a value holds both kinds of quote; the grammar escapes neither.
    """
    conditions = []
    for key, value in values.items():
        quote = '"' if "'" in value else "'"
        if quote in value:
            raise ValueError(f"MLflow cannot search for {value!r}: it holds both kinds of quote")
        conditions.append(f"{key} = {quote}{value}{quote}")
    return " and ".join(conditions)


def plain(value: Any) -> str:
    """A parameter's text, no longer than MLflow takes."""
    return (value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))[
        :PARAM_CHARS
    ]
