"""The command line of the library: what needs neither Prefect nor MLflow. `flows.cli` adds run, serve, status and stop."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from hdm import values
from hdm.child import forget_launchers
from hdm.commands import ema, gc, init, plan, sample, vae, verify, weights
from hdm.databases import set_aside
from hdm.errors import HdmError
from hdm.files import REFUSALS, explain_os_error
from hdm.messages import Terminal, guard_output, printing, say
from hdm.options import File, number
from hdm.pipelines import load_pipeline, pipeline_names
from hdm.progress import show_log
from hdm.provenance import code_version
from hdm.store import Store, store_root
from hdm.terminal import survive_closing

Settings = Annotated[
    list[str], typer.Option("--set", metavar="a.b=c", help="A setting; may be given several times.")
]
StoreFolder = Annotated[
    Path | None, typer.Option("--store", help="Folder of outputs; else HDM_STORE, else ./store.")
]


class Commands(TyperGroup):
    """Commands whose known errors are told in their own words, with their exit codes."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        survive_closing()
        return super().main(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        forget_launchers()
        guard_output()
        try:
            found = super().invoke(ctx)
            with printing():  # here a full disk can still be told of
                sys.stdout.flush()
            return found
        except HdmError as error:
            _fail(error)
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
    help="From a list of pictures to a measured text-to-image model.",
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
            "--version", callback=_print_version, is_eager=True, help="Print which code this is."
        ),
    ] = False,
) -> None:
    """From a list of pictures to a measured text-to-image model."""


app.command("init")(init.init)
app.command("plan")(plan.plan)
app.command("sample")(sample.sample)
app.command("ema")(ema.ema)
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
            help="Print nothing, but look for what would not work here, as hdm run does before it starts.",
        ),
    ] = False,
    settings: Settings = [],  # noqa: B006
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


@app.command()
def bootstrap(
    source: Annotated[
        str,
        typer.Option(
            help='A folder of captioned pictures, WebDataset tars, a data set on this machine, or "scenes".'
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="A new folder; components.folder of a pipeline names it.")
    ],
    minutes: Annotated[
        float | None,
        number(
            values.Minutes,
            help="How long it takes in all, measuring included; else as long as the demo's components took.",
        ),
    ] = None,
    seed: Annotated[int, number(values.Seed, help="Of weights, order and crops.")] = 0,
    size_px: Annotated[
        int,
        number(values.Side, help="Shorter side of the pictures that the autoencoder sees most."),
    ] = 64,
    channels: Annotated[int, number(values.Few, help="Of a latent.")] = 8,
    max_pictures: Annotated[
        int | None, number(values.Count, help="Take only the first so many.")
    ] = None,
    caption_column: Annotated[
        str | None,
        typer.Option(
            help="Column or field that holds the captions; else caption, captions, text or prompt."
        ),
    ] = None,
    metadata: Annotated[
        str | None,
        typer.Option(
            help="A folder's metadata file, relative to it; else every metadata.jsonl, .csv, .tsv and .parquet."
        ),
    ] = None,
    max_lost_captions: Annotated[
        int | None,
        number(values.CountOrNone, help="Accept the loss of so many captions; else of none."),
    ] = None,
    matte: Annotated[
        str | None, typer.Option(help="Colour behind transparent pixels; else #ffffff.")
    ] = None,
    settings: Settings = [],  # noqa: B006
) -> None:
    """Train small components on captioned pictures: a whole pipeline without any hub.

    Stopped by Ctrl-C or killed, the same command goes on from the last checkpoint (one is written every half minute, and on Ctrl-C).

    --set takes what `hdm run` takes for the source: fields of download and images.

    Example: hdm bootstrap --source PICTURES --out models/mine --set download.encoding=cp1251
    """
    begun = time.monotonic()  # before the seconds that torch's import takes
    from hdm.bootstrap_sources import bootstrap_from

    show_log()
    record = bootstrap_from(
        source, out, seed=seed, minutes=minutes, size_px=size_px, channels=channels, max_pictures=max_pictures,
        caption_column=caption_column, metadata=metadata, max_lost_captions=max_lost_captions, matte=matte,
        begun=begun,
        overrides=settings,
    )  # fmt: skip
    Terminal().print_json(data=record["measured"])
    Terminal().print(f"use them: components: {{folder: {escape(str(out))}}}", soft_wrap=True)


app.command("verify")(verify.verify)
app.command("gc")(gc.gc)


@app.command()
def doctor(
    store: StoreFolder = None,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Set aside the store's databases that cannot be read."),
    ] = False,
) -> None:
    """Look at this machine and say what would not work."""
    from hdm.diagnosis import checks

    console, wrong, root = Terminal(), 0, store_root(store)
    for path, aside in (set_aside(root) if fix else {}).items():
        console.print(
            f"{escape(str(path))} is now {escape(aside.name)}; the next run makes a new one",
            soft_wrap=True,
        )
    for check in checks(root):
        wrong += not check.fine
        console.print(
            f"[{'green' if check.fine else 'red'}]{'✓' if check.fine else '✗'}[/] {check.name:<12} {escape(check.found)}",
            soft_wrap=True,
        )
        if check.do:
            console.print(f"  → {escape(check.do)}", soft_wrap=True)
    raise typer.Exit(2 if wrong else 0)


if __name__ == "__main__":
    app()
