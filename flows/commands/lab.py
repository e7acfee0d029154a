"""`hdm lab`: the flow compare-settings in this process, and what it says on a terminal."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from flows.commands.run import prepare, server, traceback_once
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
        help="Only this one of its comparisons; may be given several times.",
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
        int | None, number(values.Few, help="Trainings of every setting; else as the lab says.")
    ] = None,
    images: Annotated[
        int | None, number(values.Count, help="Seen in every training; else as the lab says.")
    ] = None,
    settings: Overrides = [],
    show: Annotated[
        bool, typer.Option("--list", help="Say what would be trained, and stop.")
    ] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing: write the table of what is finished.")
    ] = False,
    as_json: AsJson = False,
    store: StoreFolder = None,
    file: File = None,
    verbose: Verbose = False,
) -> None:
    """Short trainings that differ in one setting each: which setting learns better?

    Every setting of a comparison is trained at every seed and compared with the comparison's first,
    seed by seed: held-out loss at equal samples and at equal time, and prompts right. All settings
    of a seed come before the next seed, so what an interrupted lab has is balanced. The same
    command goes on; finished cells are found. Table and curves are in reports/lab-NAME of the
    store; docs/lab.md tells how to read them.

    Examples:

    hdm lab --list

    hdm lab --only residual --only skips --seeds 2

    hdm lab --images 20000
    """
    project = Project.chosen(store, file)
    overrides = [*settings, *([f"train.phases.0.num_images={images}"] if images else [])]
    grid = configured_grid(project, name, only, seeds, overrides)
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
    threading.Thread(target=importlib.import_module, args=("hdm.stages",), daemon=True).start()
    with server(project.root), traceback_once(verbose):
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
