"""`hdm compare`: says which of several runs generates better pictures, and shows them together."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from hdm.errors import ConfigError, DamagedError, InputError
from hdm.last_runs import last_runs
from hdm.messages import Terminal, say
from hdm.options import StoreFolder
from hdm.pipelines import did_you_mean
from hdm.store import MANIFEST, Output, read_output, store_root

if TYPE_CHECKING:
    from hdm.evaluation.comparison import Comparison

IMAGES = "evaluate.images"
MLFLOW_ID = re.compile(r"[0-9a-f]{32}")
Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN RUN ...",
        help="Names of pipelines (their last runs), folders of outputs as"
        f" STORE/{IMAGES}/DIGEST or STORE/train.64px/DIGEST, or ids of MLflow runs. All others are"
        " compared with the first.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder for the page; else one in the store's reports."
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print what was found in JSON instead of tables.")
]
console = Terminal(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Named:
    """A run as it was asked for: its name, its pictures, and its id where it is MLflow's."""

    name: str
    images: Output
    mlflow_run: str | None = None


def compare(
    runs: Runs, out: Out = None, as_json: AsJson = False, store: StoreFolder = None
) -> None:
    """Compare the generated pictures of two runs or more, prompt by prompt and seed by seed.

    Every measure gets the difference with its interval and a verdict in words, all measures taken
    together. The page shows the same prompts and seeds side by side; docs/evaluation.md explains
    how to read it. Runs that are named by MLflow's ids get the page as an artifact.

    Examples:

    hdm compare demo mine

    hdm compare store/train.64px/DIGEST store/train.64px/DIGEST --json
    """
    if len(runs) < 2:
        raise ConfigError("one run is nothing to compare", do="name two, as hdm compare demo mine")
    root = store_root(store)
    named = [_named(root, run) for run in runs]

    from hdm.evaluation.compared_runs import read_run
    from hdm.evaluation.comparison import compare as compared
    from hdm.evaluation.comparison import judged
    from hdm.evaluation.comparison_page import FACTS, described, write_comparison
    from hdm.evaluation.report_index import new_folder

    first, *others = [read_run(name, one.images) for name, one in _distinct(named)]
    comparisons = judged([compared(first, other) for other in others])
    folder = out or new_folder(root, "compare", first.images.digest)
    page = write_comparison(comparisons, folder)
    for one in named:
        if one.mlflow_run is not None:
            from tasks.tracking import log_files

            log_files(root, one.mlflow_run, [page, folder / FACTS], "compare")
    if as_json:
        say(json.dumps(described(comparisons), indent=1, ensure_ascii=False))
    else:
        _tell(comparisons)
    console.print(escape(str(page)))


def _distinct(named: Sequence[_Named]) -> list[tuple[str, _Named]]:
    """Each with a name that no other has."""
    names = [one.name for one in named]
    found = []
    for one in named:
        twice = names.count(one.name) > 1
        found.append((f"{one.name} {one.images.digest[:6]}" if twice else one.name, one))
    return found


def _named(root: Path, run: str) -> _Named:
    """The pictures of a run.

    Raises:
        InputError: there is no such run, or it has generated none.
    """
    for folder in (Path(run), root / run):
        if (folder / MANIFEST).is_file():
            return _of_folder(folder.resolve())
    pipelines = {last.pipeline: last.outputs for last in last_runs(root)}
    if run in pipelines:
        return _Named(run, _of_outputs(root, run, pipelines[run].get(IMAGES)))
    if MLFLOW_ID.fullmatch(run):
        from tasks.tracking import tracked_outputs

        digests = tracked_outputs(root, run)
        return _Named(run[:8], _of_outputs(root, run[:8], digests.get(IMAGES)), run)
    if Path(run).is_dir():
        raise InputError(
            "this folder holds no finished output",
            where=run,
            do=f"name an output of a store, as STORE/{IMAGES}/DIGEST",
        )
    known = ", ".join(sorted(pipelines)) or "none"
    raise InputError(
        f"there is no run {run!r}{did_you_mean(run, pipelines)}",
        where=root,
        do=f"name a pipeline that ran in this store ({known}), the folder of an output, or the id"
        " of an MLflow run",
    )


def _of_folder(folder: Path) -> _Named:
    from hdm.evaluation.compared_runs import images_made_from

    output = read_output(folder)
    name = f"{output.name.removeprefix('evaluate.')} {output.digest[:6]}"
    root = folder.parent.parent
    if output.name == IMAGES:
        return _Named(name, output)
    # A score is made from pictures, and pictures are made from a training.
    if IMAGES in output.inputs:
        return _Named(name, read_output(root / IMAGES / output.inputs[IMAGES]))
    images = images_made_from(root, output.digest)
    if images is None:
        raise InputError(
            f"no pictures were generated from {output.name}",
            where=folder,
            do="run its pipeline to the end, or name one of its evaluate.images",
        )
    return _Named(name, images)


def _of_outputs(root: Path, name: str, digest: str | None) -> Output:
    try:
        if digest is not None:
            return read_output(root / IMAGES / digest)
    except (FileNotFoundError, DamagedError):
        pass
    raise InputError(
        f"the run {name} has no finished pictures in this store",
        where=root / IMAGES / digest if digest else root,
        do="run its pipeline to the end, or name another store with --store",
    )


def _tell(comparisons: Sequence[Comparison]) -> None:
    from hdm.evaluation.comparison_page import ONE_TRAINING, rows_of, summary

    out = Terminal(highlight=False, soft_wrap=True)
    for comparison in comparisons:
        out.print(f"[bold]{escape(summary(comparison))}[/]")
        for group, rows in rows_of(comparison).items():
            out.print(f"\n[bold]{escape(group)}[/]")
            width = max(len(row["label"]) for row in rows)
            for row in rows:
                values = f"{row['first']} → {row['second']}"
                apart = f"{row['difference']} ({row['interval']})" if row["interval"] else ""
                line = f"  {row['label']:<{width}}  {values}  {apart}  {row['sentence']}"
                out.print(escape(line.rstrip()))
        out.print()
        for note in comparison.notes:
            out.print(escape(note))
    out.print(ONE_TRAINING)
