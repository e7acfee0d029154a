"""The library's command line: the commands that need neither Prefect nor MLflow. `flows.cli` adds
the others, such as run, serve, status and stop.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from hdm.child import forget_launchers
from hdm.commands import (
    bench,
    bootstrap,
    ema,
    gc,
    init,
    merge,
    migrate,
    plan,
    sample,
    vae,
    verify,
    weights,
)
from hdm.databases import set_aside
from hdm.errors import HdmError
from hdm.files import REFUSALS, explain_os_error
from hdm.messages import Terminal, guard_output, printing, say
from hdm.options import File, Overrides, StoreFolder
from hdm.pipelines import load_pipeline, pipeline_names
from hdm.provenance import code_version
from hdm.store import Store, store_root
from hdm.terminal import survive_closing


class Commands(TyperGroup):
    """Commands that report known errors by their message, without a traceback, and with their exit
    codes.
    """

    # First of all: even `--help` may be piped into `head`.
    def main(self, *args: Any, **kwargs: Any) -> Any:
        survive_closing()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        # In every command: a launcher's variables change how torch computes, but no digest.
        forget_launchers()
        guard_output()
        try:
            found = super().invoke(ctx)
            # Otherwise Python flushes at exit, where a full disk can no longer be reported.
            with printing():
                sys.stdout.flush()
            return found
        except HdmError as error:
            _fail(error)
        # What the machine refuses, such as a full disk, is no fault of the program: a line, not a
        # traceback.
        except OSError as error:
            if error.errno not in REFUSALS:
                raise
            _fail(explain_os_error(error, Path(error.filename or tempfile.gettempdir())))


def _fail(error: HdmError) -> NoReturn:
    Terminal(stderr=True).print(
        f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True, highlight=False
    )
    raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a text-to-image model, from a list of pictures to a measured model.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"hdm {code_version()}")
        raise typer.Exit


@app.callback()
def hdm(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            # Eager: handled before the missing command is reported.
            is_eager=True,
            help="Print the version of the code.",
        ),
    ] = False,
) -> None:
    """Train a text-to-image model, from a list of pictures to a measured model."""


# These modules import what needs torch within their functions, so that `hdm --help` does not wait
# for it.
app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("bench")(bench.bench)
app.command("sample")(sample.sample)
app.command("ema")(ema.ema)
app.command("merge")(merge.merge)
app.add_typer(vae.app, name="vae")
app.add_typer(weights.app, name="weights")


@app.command("pipelines")
def list_pipelines(file: File = None) -> None:
    """List the entries of pipelines.yaml."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, description in pipeline_names(file).items():
        table.add_row(f"[bold]{escape(name)}[/]", escape(description))
    Terminal().print(table)


@app.command()
def config(
    name: Annotated[str, typer.Argument(help="Entry of pipelines.yaml.")],
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help=(
                "Check the settings against this machine, as hdm run does before it starts, and do"
                " not print them."
            ),
        ),
    ] = False,
    settings: Overrides = [],  # noqa: B006
    store: StoreFolder = None,
    file: File = None,
) -> None:
    """Print a pipeline with every setting resolved."""
    from ruamel.yaml import YAML

    pipeline = load_pipeline(name, settings, file)
    if check:
        from hdm.stages import preflight  # torch: seconds

        preflight(pipeline, Store(store_root(store)))
        say(f"{name} can run here")
        return
    text = io.StringIO()
    YAML().dump(pipeline.model_dump(mode="json", exclude={"mixed"}), text)
    say(text.getvalue().rstrip())


app.command("bootstrap")(bootstrap.bootstrap)
app.command("verify")(verify.verify)
app.command("migrate")(migrate.migrate)
app.command("gc")(gc.gc)


@app.command()
def doctor(
    store: StoreFolder = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Set aside the store's unreadable databases."),
    ] = False,
) -> None:
    """Check this machine and report what would not work."""
    from hdm.diagnosis import checks

    console = Terminal()
    wrong = 0
    # Set aside first: the checks below then report what is left.
    root = store_root(store)
    for path, aside in (set_aside(root) if fix else {}).items():
        console.print(
            f"{escape(str(path))} is now {escape(aside.name)}; the next run makes a new one",
            soft_wrap=True,
        )
    for check in checks(root):
        wrong += not check.fine
        console.print(
            f"[{'green' if check.fine else 'red'}]{'✓' if check.fine else '✗'}[/] {check.name:<12}"
            f" {escape(check.found)}",
            soft_wrap=True,
        )
        if check.do:
            console.print(f"  → {escape(check.do)}", soft_wrap=True)
    raise typer.Exit(2 if wrong else 0)


if __name__ == "__main__":
    app()
