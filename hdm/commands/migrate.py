"""`hdm migrate`: adopts a store's outputs from earlier versions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from hdm.errors import HdmError, counted
from hdm.last_runs import LastRun, last_runs
from hdm.messages import Terminal
from hdm.options import File, StoreFolder
from hdm.pipelines import load_pipeline
from hdm.provenance import code_version
from hdm.store import Store, store_root

if TYPE_CHECKING:
    from hdm.migration import Verdict


def migrate(
    store: StoreFolder = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what would be done.")
    ] = False,
    file: File = None,
) -> None:
    """Adopt finished outputs of earlier versions whose results this version would not change.

    An adopted output gets a folder for its new digest, with the same files; the earlier folder
    stays until `hdm gc` removes it. Outputs whose results changed are listed: a run makes them
    again. Then the last run of each pipeline is compared with the digests that its settings have
    now.
    """
    from hdm.migration import adopt, verdicts  # torch: seconds

    root = Store(store_root(store))
    console = Terminal(highlight=False, soft_wrap=True)
    found = verdicts(root.outputs())
    if not found:
        console.print(f"there is nothing in {escape(str(root.root))}")
        return
    for verdict in found:
        console.print(f"{escape(_line(verdict))}")
        if verdict.now is not None and not verdict.is_found and not dry_run:
            adopt(root, verdict)
    changed = sum(not verdict.is_found for verdict in found)
    version = code_version()
    if changed:
        console.print(
            f"{counted(len(found) - changed, 'output')} of {len(found)} found by {version} as"
            " they are"
        )
    else:
        console.print(
            f"nothing is to be done: {version} finds {counted(len(found), 'output')} as they are"
        )
    for run in last_runs(root.root):
        console.print(escape(_compared(run, file)))


def _line(verdict: Verdict) -> str:
    name = f"{verdict.output.name} {verdict.output.digest}"
    if verdict.now is None:
        return f"made again  {name}: {verdict.why}"
    if verdict.is_found:
        return f"found       {name}"
    return f"adopted     {name} as {verdict.now.digest}"


def _compared(run: LastRun, file: Path | None) -> str:
    """Whether the last run of a pipeline would ask for the same outputs today."""
    from hdm.stages import OutputGraph

    # Outputs after the run's `--until` were never identified.
    asked = {name: digest for name, digest in run.outputs.items() if digest is not None}
    try:
        pipeline = load_pipeline(run.pipeline, (), file)
        now = {name: one.digest for name, one in OutputGraph(pipeline).identities().items()}
    except HdmError as error:
        return f"{run.pipeline}: its last run cannot be compared: {error.what}"
    same = sum(now.get(name) == digest for name, digest in asked.items())
    if same == len(asked):
        return f"{run.pipeline}: the same digests as its last run, {same} of {len(asked)}"
    return (
        f"{run.pipeline}: {same} of {len(asked)} digests as in its last run; "
        "the others had other settings (--set) or are made again"
    )
