"""`hdm lab`: runs the flow compare-settings in this process and prints its results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.run import begin_server, prepare, server, traceback_once
from hdm import values
from hdm.errors import SavedOnSignal
from hdm.lab.grid import Grid, lab_names
from hdm.messages import Terminal, say
from hdm.options import File, Overrides, StoreFolder, Verbose, number
from hdm.store import Store
from tasks.configuration import Project
from tasks.grid import configured_grid

Only = Annotated[
    list[str],
    typer.Option(
        "--only",
        metavar="COMPARISON",
        help="Run only this comparison; may be given several times.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the figures in JSON instead of the table.")
]
console = Terminal(stderr=True, highlight=False, soft_wrap=True)


def lab(
    name: Annotated[str, typer.Argument(help="Entry of `labs:` in pipelines.yaml.")] = "scenes",
    only: Only = [],
    seeds: Annotated[
        int | None, number(values.Few, help="Trainings of every setting; default: the lab's.")
    ] = None,
    images: Annotated[
        int | None, number(values.Count, help="Images seen in every training; default: the lab's.")
    ] = None,
    settings: Overrides = [],
    show: Annotated[
        bool, typer.Option("--list", help="List what would be trained, and stop.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing; write the table of finished trainings.")
    ] = False,
    as_json: AsJson = False,
    store: StoreFolder = None,
    file: File = None,
    verbose: Verbose = False,
) -> None:
    """Compare settings by short trainings that differ in one setting each.

    Every setting of a comparison is trained with every seed and compared with the first setting,
    seed by seed: held-out loss at equal samples and at equal time, and prompts right. All settings
    of a seed come before the next seed, so the results of an interrupted lab are balanced. The same
    command continues; finished cells are reused. Table and curves are in the store's
    reports/lab-NAME; docs/lab.md explains how to read them.

    Examples:

    hdm lab --list

    hdm lab --only residual --only skips --seeds 2

    hdm lab --images 20000
    """
    project = Project.chosen(store, file)
    # --images comes last, so it wins over --set.
    overrides = [*settings, *([f"train.phases.0.num_images={images}"] if images else [])]
    grid = configured_grid(project, name, only, seeds, overrides)
    # Both answer from settings and the store, without starting a server.
    if show:
        _list(grid, file)
        return
    if table:
        from hdm.lab.lab_folder import write_lab  # torch: seconds

        write_lab(grid, project.store)
    else:
        _run(project, grid, only, seeds, overrides, verbose)
    _tell(project.store, name, as_json)


def _run(
    project: Project,
    grid: Grid,
    only: list[str],
    seeds: int | None,
    overrides: list[str],
    verbose: bool,
) -> None:
    prepare(project.root, verbose)
    begun = begin_server(project.root)
    import hdm.stages  # noqa: F401  (torch: seconds, in which Prefect's server starts)

    with server(project.root, begun), traceback_once(verbose):
        from flows.compare_settings import lab_flow

        compare_settings = lab_flow(project)
        state: Any = compare_settings(grid.lab.name, only, seeds, overrides, return_state=True)
        found = state.result(raise_on_failure=False)
    if state.is_cancelled():
        raise SavedOnSignal(state.message or "stopped")
    if isinstance(found, Exception):
        raise found


def _list(grid: Grid, file: Path | None) -> None:
    out = Terminal(highlight=False, soft_wrap=True)
    for name, description in lab_names(file).items():
        out.print(f"[bold]{escape(name)}[/]  {escape(description)}")
    shown = Table(
        "comparison", "settings, the reference first", "question", box=None, padding=(0, 2, 0, 0)
    )
    for name, comparison in grid.comparisons.items():
        shown.add_row(
            escape(name), escape(", ".join(comparison.settings)), escape(comparison.question)
        )
    out.print(shown)
    out.print(
        f"{len(grid.cells())} trainings of {grid.lab.name} in all, {grid.seeds} of each setting"
    )


def _tell(store: Store, name: str, as_json: bool) -> None:
    from hdm.lab.lab_folder import FIGURE, TABLE, TABLE_JSON, lab_folder

    folder = lab_folder(store, name)
    say((folder / (TABLE_JSON if as_json else TABLE)).read_text())
    for file in (TABLE, FIGURE):
        console.print(escape(str(folder / file)))
