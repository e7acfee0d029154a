"""The report: one page about a run. It contains times, so it is not an output of the store."""

from __future__ import annotations

from pathlib import Path

from prefect import Task, task

from hdm.store import MANIFEST, read_output
from tasks.configuration import recipe
from tasks.records import StageRecord
from tasks.run import Run


def report_task(run: Run) -> Task[[list[StageRecord]], str]:
    """The task that writes a run's page."""

    @task(name="report", task_run_name="report", persist_result=False)
    def report(records: list[StageRecord]) -> str:
        """Write the page about what is in the store with these settings.

        Returns:
            its path.
        """
        page = _write(run, records)
        run.outcome.report = page
        run.reporter.artifact(page)
        return str(page)

    return report


def _write(run: Run, records: list[StageRecord]) -> Path:
    from hdm.evaluation.report import write_report
    from hdm.evaluation.report_index import new_folder, write_index
    from hdm.stages import OutputGraph, StageResult

    settings = run.settings
    store = run.store
    # Where the settings say that outputs lie, and then what this run made or found.
    folders = {}
    graph = OutputGraph(settings)
    for name, identity in graph.identities(records[-1].name).items():
        folders[name] = store.folder(identity)
    cached = {}
    for record in records:
        folders[record.name] = Path(record.path)
        cached[record.name] = record.cached
    # What is in the store is described; the rest is named as missing.
    results = []
    missing = []
    for step in graph.steps:
        folder = folders.get(step.name)
        if folder is not None and (folder / MANIFEST).exists():
            results.append(StageResult(step, read_output(folder), cached.get(step.name, True)))
        else:
            missing.append(step.name)
    folder = new_folder(store.root, settings.name, recipe(settings))
    page = write_report(settings, results, folder, list(run.overrides), missing)
    write_index(store.root)
    return page
