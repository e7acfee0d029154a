"""The report: one page about a run, beside the store's outputs, since it tells times."""

from pathlib import Path

from prefect import task

from hdm.store import MANIFEST, Store, read_output, store_root
from tasks import reporter
from tasks.configuration import configured, recipe
from tasks.records import StageRecord

last_page: Path | None = None
"""The report of this process's last run."""


@task(name="report", task_run_name="report", persist_result=False)
def report(pipeline: str, overrides: list[str], records: list[StageRecord]) -> str:
    """Write the page about what is in the store with these settings.

    Returns:
        its path.
    """
    global last_page
    from hdm.evaluation.report import write_report
    from hdm.evaluation.report_index import new_folder, write_index
    from hdm.stages import StageResult, identities, steps

    settings, store = configured(pipeline, overrides), Store(store_root())
    folders = {
        name: store.folder(known) for name, known in identities(settings, records[-1].name).items()
    }
    folders |= {record.name: Path(record.path) for record in records}
    cached = {record.name: record.cached for record in records}
    there = [
        step
        for step in steps(settings)
        if step.name in folders and (folders[step.name] / MANIFEST).exists()
    ]
    made = [
        StageResult(step, read_output(folders[step.name]), cached.get(step.name, True))
        for step in there
    ]
    done = {step.name for step in there}
    missing = [step.name for step in steps(settings) if step.name not in done]
    folder = new_folder(store.root, settings.name, recipe(settings))
    last_page = write_report(settings, made, folder, overrides, missing)
    write_index(store.root)
    reporter.artifact(last_page)
    return str(last_page)
