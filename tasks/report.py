"""The report: one page about a pipeline, beside the store's outputs, since it tells times."""

from pathlib import Path

from prefect import task

from hdm.store import MANIFEST, Store, read_output, store_root
from tasks import reporter
from tasks.configuration import configured
from tasks.records import StageRecord


@task(name="report", task_run_name="report", persist_result=False)
def report(pipeline: str, overrides: list[str], records: list[StageRecord]) -> str:
    """Write the page about what is in the store with these settings.

    Returns:
        its path.
    """
    from hdm.evaluation.report import write_report
    from hdm.stages import Made, identities, steps

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
        Made(step, read_output(folders[step.name]), cached.get(step.name, True)) for step in there
    ]
    page = write_report(settings, made, report_folder(settings.name))
    reporter.artifact(page)
    return str(page)


def report_folder(pipeline: str) -> Path:
    """Where the page of a pipeline lies."""
    return store_root() / "reports" / pipeline
