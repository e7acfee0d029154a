"""The only file that uses MLflow, except `tasks.moved`, which knows its database.

    experiment            the pipeline's name
    └── run               one for each pipeline run: every setting as a parameter, every figure as
                          `<output>.<key>`, the report
        └── child run     one for each output: its figures under fixed keys, its series over images
                          seen, its pictures and manifest, its inputs as data sets (name and digest)

    experiment            lab-<name>
    └── run               one for each lab, continued when it is run again: its settings, its table
        └── child run     one for each cell: its own settings as parameters, and all of its training
                          and evaluation

Everything that is logged about an output comes from the store, so the next run of the same pipeline
logs what an outage lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hdm.errors import InputError
from tasks.figures import (
    Manifest,
    Pictures,
    Point,
    Series,
    counts,
    flattened,
    input_folder,
    measured,
    numeric,
    origin,
    read_manifest,
    shown,
)
from tasks.moved import follow_store
from tasks.services import alone_at, database_address, services, serving

if TYPE_CHECKING:
    from mlflow import MlflowClient

Event = dict[str, Any]
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    # With its defaults MLflow's client blocks for 247 s before it raises. `tasks.tracker` retries
    # instead.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
# Below MLflow's limits of 1000, 100 and 6000.
METRICS_AT_ONCE = 900
PARAMS_AT_ONCE = 90
PARAM_CHARS = 5900
MESSAGE_CHARS = 5000
# MLflow's codes for errors that may pass, such as a busy database.
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")


def server_command(root: Path, listener: socket.socket, proxy: str | None = None) -> list[str]:
    """The command that serves MLflow's pages on a loopback socket in one process. With its own
    command's defaults MLflow uses 15 processes and 3.2 GB.

    Args:
        root: the store.
        listener: an open socket, which the process inherits under the same number.
        proxy: the https:// address of a reverse proxy whose pages, at any port, are allowed too.
    """
    port = listener.getsockname()[1]
    pages = [f"http://{host}:{port}" for host in ("127.0.0.1", "localhost")]
    if proxy is not None:
        # At any port: the proxy may serve MLflow's pages at another port than Prefect's.
        name = f"https://{urlsplit(proxy).hostname}"
        pages += [name, f"{name}:*"]
    return [
        sys.executable, "-m", "tasks.tracking_server", "--socket", str(listener.fileno()),
        *(f"--page={page}" for page in pages),
        "--database", database(root), "--artifacts", str(services(root) / "mlartifacts"),
        "--lock", str(setup_lock(root)),
    ]  # fmt: skip


def server_environment(proxy: str | None = None) -> dict[str, str]:
    """Settings that keep the server small, quiet, and closed to other origins and host names,
    whatever the user's own settings of MLflow are.

    Args:
        proxy: the https:// address of a reverse proxy whose pages are allowed too.
    """
    name = urlsplit(proxy or "").hostname
    hosts = []
    for host in filter(None, ("127.0.0.1", "localhost", name)):
        hosts += [host, f"{host}:*"]
    return {
        **SETTINGS,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "false",
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"https://{name},https://{name}:*" if name else "",
        "MLFLOW_DEPLOYMENTS_TARGET": "",
        "MLFLOW_ARTIFACT_LOCATION_MAX_LENGTH": "0",  # nobody may choose where the server writes
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }


def database(root: Path) -> str:
    """MLflow's address of the store's own database."""
    return database_address("pysqlite", services(root) / "mlflow.db")


def setup_lock(root: Path) -> Path:
    """The lock held while tables and experiments are made: MLflow fails if two processes start."""
    return services(root) / "mlflow.lock"


def address(root: Path) -> str:
    """Where to log: the user's setting, the running `hdm serve`, or the database itself."""
    alive = serving(root)
    return os.environ.get("MLFLOW_TRACKING_URI") or (alive.mlflow if alive else database(root))


def say(what: dict[str, str]) -> None:
    """Send a message to the run's process, if it is still alive."""
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(what), flush=True)


def passing(error: Exception) -> bool:
    """Whether a retry can help: no connection, or a busy database."""
    return isinstance(error, OSError) or getattr(error, "error_code", None) in PASSING


def tracked_outputs(root: Path, run: str) -> dict[str, str]:
    """Name → digest of every output that a run has logged.

    Args:
        root: the store.
        run: id of a pipeline's run, or of that of one output.

    Raises:
        InputError: there is no such run, or MLflow cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    try:
        client = _client(root)
        own = client.get_run(run)
        children = client.search_runs(
            [own.info.experiment_id], matching({"tags.mlflow.parentRunId": run})
        )
    except (MlflowException, OSError) as error:
        raise InputError(
            f"MLflow has no run {run} that can be read: {error}",
            where=address(root),
            do="copy the run's id from its page, or name a pipeline",
        ) from error
    digests = {}
    for one in (own, *children):
        tags = one.data.tags
        if "output" in tags and "digest" in tags:
            digests[tags["output"]] = tags["digest"]
    return digests


def log_files(root: Path, run: str, files: Sequence[Path], folder: str) -> None:
    """Log files as artifacts of a run, below a folder.

    Args:
        root: the store.
        run: the run's id.
    """
    client = _client(root)
    for path in files:
        client.log_artifact(run, str(path), folder)


def _client(root: Path) -> MlflowClient:
    from mlflow import MlflowClient

    place = address(root)
    # The lock also covers the client's creation of the tables.
    with alone_at(setup_lock(root)):
        if place == database(root):  # a server does it when it starts
            follow_store(root)
        return MlflowClient(place, registry_uri=place)


class Mirror:
    """A run in MLflow, event by event."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.client = _client(root)
        self.parent = ""
        self.experiment = ""
        self.pipeline = ""
        self.tags: dict[str, str] = {}
        self.children: dict[str, str] = {}
        self.cell: str | None = None
        self.cell_is_logged = False
        self.followed: dict[str, Series] = {}
        self.pictures: Pictures | None = None
        self.unsent: list[tuple[str, Point]] = []

    def handle(self, event: Event) -> None:
        """Log one event."""
        # The outputs of a cell that an earlier run has logged are not logged again.
        if self.cell_is_logged and event["event"] in ("begin", "made"):
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
        # A retried flow run continues its MLflow run instead of appearing twice.
        self.parent = self._same_flow_run(own) or self._create(
            f"{self.pipeline} {event['recipe'][:6]}", event["at"], own
        )
        self._params(self.parent, event["params"])
        say({"run_id": self.parent})

    def on_cell(self, event: Event) -> None:
        # A lab that runs again continues its run, whose children include the earlier cells.
        this_cell = matching(
            {"tags.mlflow.parentRunId": self.parent, "attributes.run_name": event["name"]}
        )
        earlier = self.client.search_runs([self.experiment], this_cell, max_results=1)
        if earlier:
            self.cell = earlier[0].info.run_id
            self.cell_is_logged = earlier[0].info.status == "FINISHED"
        else:
            own = {"mlflow.parentRunId": self.parent, "stage": "cell", "output": event["name"]}
            self.cell = self._create(event["name"], event["at"], own)
            self.cell_is_logged = False
        if not self.cell_is_logged:
            self.client.update_run(self.cell, status="RUNNING")
            self._params(self.cell, event["params"])

    def on_cell_end(self, event: Event) -> None:
        assert self.cell is not None
        if not self.cell_is_logged:
            self.client.set_terminated(self.cell, event["status"], end_time=int(event["at"] * 1000))
        self.cell = None
        self.cell_is_logged = False
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
        manifest = read_manifest(folder)
        # The last points may have been written after the last tick.
        self.follow()
        finals: dict[str, float] = {}
        for series in self.followed.values():
            finals |= series.final
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
            # The run of the whole pipeline has the final values of the series too.
            self._numbers(self.parent, _prefixed(event["name"], finals | numbers))
        else:
            # A cell has the series themselves.
            self._numbers(self.cell, _prefixed(event["name"], numbers))
        self._inputs(child, manifest)
        for path in shown(folder, manifest):
            self.client.log_artifact(child, str(path), event["name"] if self.cell else None)
            if path.suffix == ".png" and self.cell is None:
                # MLflow's comparison page then shows the runs' pictures side by side.
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
        self._tag(child, {"message": _cut(event["message"], MESSAGE_CHARS)})
        self.client.set_terminated(child, event["status"], end_time=int(event["at"] * 1000))

    def on_artifact(self, event: Event) -> None:
        self.client.log_artifact(self.parent, event["path"])

    def on_end(self, event: Event) -> None:
        for child in self.children.values():
            if self.client.get_run(child).info.status == "RUNNING":
                self.client.set_terminated(child, event["status"])
        self.client.set_terminated(self.parent, event["status"], end_time=int(event["at"] * 1000))

    def follow(self) -> None:
        """Log additions to the series and pictures of the output in progress. What MLflow does not
        accept is sent first the next time.
        """
        for series in self.followed.values():
            self.unsent += [(self.following, point) for point in series.added()]
        self._send()
        for path in self.pictures.added() if self.pictures else ():
            # It may have become a file of the finished output, which is logged soon.
            with contextlib.suppress(FileNotFoundError):
                self.client.log_artifact(self.following, str(path))

    def _send(self) -> None:
        from mlflow.entities import Metric

        # Points leave the list only after MLflow has taken them.
        while self.unsent:
            # A batch belongs to one run.
            run, _ = self.unsent[0]
            points = []
            for of_run, point in self.unsent[:METRICS_AT_ONCE]:
                if of_run != run:
                    break
                points.append(Metric(*point))
            self.client.log_batch(run, metrics=points)
            del self.unsent[: len(points)]

    def _experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return experiment.experiment_id
        # Otherwise its page opens on traces of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        if "MLFLOW_TRACKING_URI" in os.environ:
            return self.client.create_experiment(name, tags=tags)
        # Not through the server of `hdm serve`, which does not let clients choose where it writes.
        from mlflow import MlflowClient

        return MlflowClient(database(self.root)).create_experiment(
            name,
            artifact_location=(services(self.root) / "mlartifacts" / name).as_uri(),
            tags=tags,
        )

    def _same_flow_run(self, own: dict[str, str]) -> str | None:
        """The run that this flow run began before it was retried; None if it is new."""
        this_run = matching(
            {"tags.prefect_flow_run": self.tags["prefect_flow_run"], "tags.stage": "all"}
        )
        runs = self.client.search_runs([self.experiment], this_run, max_results=1)
        if not runs:
            return None
        run_id: str = runs[0].info.run_id
        self.client.update_run(run_id, status="RUNNING")
        self._tag(run_id, own)
        return run_id

    def _end_dead_runs(self) -> None:
        """Mark runs as killed that could not do so themselves because everything was killed."""
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
        run_id: str = run.info.run_id
        return run_id

    def _tag(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run, tags=[RunTag(key, value) for key, value in tags.items()])

    def _params(self, run: str, values: dict[str, Any]) -> None:
        """Log the parameters that the run does not have yet; MLflow refuses to change a value."""
        from mlflow.entities import Param

        logged = self.client.get_run(run).data.params
        params = []
        for key, value in values.items():
            if key and key not in logged:
                params.append(Param(key, plain(value)))
        # MLflow refuses a larger batch as a whole.
        for start in range(0, len(params), PARAMS_AT_ONCE):
            self.client.log_batch(run, params=params[start : start + PARAMS_AT_ONCE])

    def _numbers(self, run: str, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(key, float(value), now, 0) for key, value in values.items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            self.client.log_batch(run, metrics=metrics[start : start + METRICS_AT_ONCE])

    def _inputs(self, run: str, manifest: Manifest) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        context = [InputTag("mlflow.data.context", manifest["name"])]
        inputs = []
        for name, digest in manifest["inputs"].items():
            folder = input_folder(self.root, name, digest)
            profile = json.dumps(counts(read_manifest(folder)))
            source = json.dumps({"uri": str(folder)})
            dataset = Dataset(name, digest, "local", source, profile=profile)
            inputs.append(DatasetInput(dataset, context))
        if inputs:
            self.client.log_inputs(run, inputs)

    def _register(self, run: str, manifest: Manifest, folder: Path) -> None:
        """Register a version of the model for a phase. The weights stay in the store and are listed
        by path, size and sha256.
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
        tags = {"digest": manifest["digest"], "folder": str(folder)}
        try:
            version = self.client.create_model_version(self.pipeline, source, run, tags=tags)
        except RestException:  # a server refuses sources outside its own artifacts
            source = f"runs:/{run}/model"
            version = self.client.create_model_version(self.pipeline, source, run, tags=tags)
        self.client.set_registered_model_alias(self.pipeline, "newest", version.version)


def made_by(provenance: dict[str, Any]) -> dict[str, str]:
    """Code, libraries and machine as tags of a run; the commit also under the name that MLflow's
    pages show.
    """
    tags = {name: plain(value) for name, value in flattened(provenance)}
    commit = tags.get("code.commit")
    return tags if commit is None else {**tags, "mlflow.source.git.commit": commit}


def _prefixed(name: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{name}.{key}": value for key, value in values.items()}


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
    """A parameter's text, cut to the length that MLflow accepts."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _cut(text, PARAM_CHARS)


def _cut(text: str, most: int) -> str:
    """The text, or its beginning with a sign that it goes on."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
