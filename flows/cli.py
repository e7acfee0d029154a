"""The console script `hdm`: the library's commands, and those that need Prefect or MLflow."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from flows.commands.compare import compare
from flows.commands.lab import lab
from flows.commands.status import place, show_status
from hdm import values
from hdm.commands.cli import app
from hdm.errors import ConfigError, HdmError, InputError
from hdm.messages import Terminal, say
from hdm.options import File, Overrides, StoreFolder, Verbose, number
from hdm.stage_list import stage_names
from hdm.store import store_root
from hdm.training.process.running import SAMPLE, SAVE, ask, trainings
from tasks.configuration import Project
from tasks.services import runs, serving, stop_runs, visible

__all__ = ["app"]

STOP_SEC = 35.0  # training saves within 20; Prefect gives 30
Wait = Annotated[float, number(values.Seconds, metavar="SEC", help="How long to wait for it.")]
console = Terminal(stderr=True, highlight=False, soft_wrap=True)


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="Entry of pipelines.yaml.")],
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help=f"First stage: {', '.join(stage_names())}, or an output such as train.256px. "
            "Everything before it must be in the store.",
        ),
    ] = None,
    stop_after: Annotated[
        str | None, typer.Option("--until", metavar="STAGE", help="Last stage or output.")
    ] = None,
    settings: Overrides = [],
    executor: Annotated[
        Literal["local", "dask"] | None,
        typer.Option(
            help="Who makes the parts of data stages: this machine, or a Dask cluster"
            " (execution.address; without one, a cluster of this machine)."
        ),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Try the failed URLs of a finished download again: raises download.generation in"
            " pipelines.yaml. What did not change is not made again.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a summary of the run in JSON, as the last line.")
    ] = False,
    store: StoreFolder = None,
    file: File = None,
    verbose: Verbose = False,
) -> None:
    """Run a pipeline; finished outputs are reused."""
    from flows.commands.run import print_json, run_pipeline, tell

    project = Project.chosen(store, file)
    if executor is not None:
        settings = [*settings, f"execution.executor={executor}"]  # the last one wins
    if retry_failed:
        _retry_failed(project, name, start_from, settings)
    summary = run_pipeline(project, name, start_from, stop_after, settings, verbose)
    tell(summary, name_store=store is not None)
    if as_json:
        print_json(summary)


def _retry_failed(project: Project, name: str, start_from: str | None, settings: list[str]) -> None:
    from hdm.retrying import retry_failed

    if start_from not in (None, "download"):
        raise ConfigError(
            f"--retry-failed begins with the download, and --from {start_from} comes after it",
            do="leave --from out: finished outputs are reused",
        )
    console.print(escape(retry_failed(name, settings, project.file, project.store)))


@app.command()
def serve(
    store: StoreFolder = None,
    file: File = None,
    prefect_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Default: the store's last port, or 4200."),
    ] = None,
    mlflow_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Default: the store's last port, or 5000."),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=(
                "Also serve Prefect's pages at this name or address of this machine; needs TLS or a"
                " proxy."
            ),
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--tls-certificate", metavar="FILE", help="Certificate chain for --host, PEM."
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Its private key, PEM.")
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            "--behind-proxy",
            metavar="URL",
            help="The https:// address of the reverse proxy through which others reach the pages.",
        ),
    ] = None,
) -> None:
    """Serve Prefect's and MLflow's pages, and run a worker, on this machine until Ctrl-C.

    Prefect's pages ask for the store's password once. Whoever has it can run commands on this
    machine as you; docs/serving.md explains how to give others access.
    """
    from flows.commands.serve import Reach, serve_pages

    reach = Reach(host, certificate, key, proxy)
    serve_pages(store_root(store), file, prefect_port, mlflow_port, reach)


@app.command()
def status(store: StoreFolder = None) -> None:
    """Show what is running, each pipeline's progress, and what the store holds."""
    show_status(store_root(store))


app.command()(lab)
app.command()(compare)


@app.command("save-now")
def save_now(store: StoreFolder = None, wait: Wait = 600.0) -> None:
    """Have every training of this store write a checkpoint after its current step and continue."""
    _ask(store_root(store), SAVE, wait)


@app.command("sample-now")
def sample_now(store: StoreFolder = None, wait: Wait = 600.0) -> None:
    """Have every training of this store generate pictures of its prompts with its current weights
    and continue.
    """
    _ask(store_root(store), SAMPLE, wait)


def _ask(root: Path, what: str, timeout_sec: float) -> None:
    found = trainings(root)
    if not found:
        raise InputError(
            "nothing trains in this store",
            where=root,
            do="start a run, or name another store with --store",
        )
    for job in found:
        console.print(f"{escape(place(job))}")
        say(str(ask(job, what, timeout_sec)))


@app.command()
def stop(
    store: StoreFolder = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Stop the services of `hdm serve` too.")
    ] = False,
) -> None:
    """Ask the runs of this store to save and stop."""
    root = store_root(store)
    # Another user's services folder cannot be read: without this check, nothing would seem to run.
    if not visible(root):
        raise HdmError(
            "the services of this store, and so its runs, belong to another user",
            where=root,
            do="ask the user who started them, or run as that user",
        )
    found = runs(root)
    for one in found:
        console.print(f"stopping {escape(one['pipeline'])} (pid {one['pid']})")
    left = stop_runs(found, root, STOP_SEC)
    # After the runs, which report their end to the server among these services.
    alive = serving(root)
    if everything and alive:
        console.print(f"stopping the services (pid {alive.pid})")
        os.kill(alive.pid, signal.SIGTERM)
    if left:
        raise HdmError(
            f"still running after {STOP_SEC:.0f} s",
            where=", ".join(f"pid {pid}" for pid in left),
            do="run hdm stop again",
        )
    if found:
        console.print("stopped; run the same command again to continue")
    elif not (everything and alive):
        console.print("nothing was running")
