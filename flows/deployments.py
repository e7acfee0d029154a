"""The work pool and the deployments that `hdm serve` offers, made again only where something
changed: Prefect's own command takes seconds.

<store>/.services/deployed.json    what they were made from, and how Prefect described them then
"""

from __future__ import annotations

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.dead_runs import POOL
from flows.prefect_api import post
from flows.processes import prefect_command
from hdm.definitions import has_deployments, packaged_file
from hdm.errors import HdmError
from hdm.files import write_json
from hdm.stage_list import added_stages
from tasks.services import password, services

RECORD = "deployed.json"
JOB_TEMPLATE = {
    # Only literals, and no variables below: whoever starts a run chooses its parameters, but not
    # its command, environment or folder.
    "job_configuration": {
        "command": f"{shlex.quote(sys.executable)} -m flows.deployed_run",
        "env": {},
        "labels": {},
        "name": None,
        "stream_output": True,
        "working_dir": None,
    },
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
POOL_FIELDS = ("id", "type", "base_job_template", "is_paused")
DEPLOYMENT_FIELDS = (
    "id",
    "name",
    "description",
    "entrypoint",
    "path",
    "pull_steps",
    "work_pool_name",
    "job_variables",
    "parameters",
    "parameter_openapi_schema",
    "enforce_parameter_schema",
)
"""What Prefect's commands set. Schedules that people add on its pages are not among them."""


def deploy(root: Path, own: Path | None, environment: Mapping[str, str], folder: Path) -> None:
    """Make the work pool and every deployment of the package's pipelines.yaml, of added stages and
    of a person's own file, unless all of them are in place.

    Args:
        root: the store.
        own: a person's own pipelines.yaml.
        environment: names Prefect's server, which has to answer.
        folder: where Prefect's commands run.

    Raises:
        HdmError: one of Prefect's commands failed.
    """
    template = services(root) / "job-template.json"
    write_json(template, JOB_TEMPLATE)
    files = _files(root, own)
    sources = _digest([template, *files])
    # A person's own deployments may name code that lies anywhere.
    is_ours = own is None or not has_deployments(own)
    if is_ours and _recorded(root) == {"sources": sources, "found": _found(root, environment)}:
        return
    # Overwritten: the pool of an earlier version let whoever started a run choose its command.
    pool = ("work-pool", "create", POOL, "--type", "process", "--overwrite")
    commands = [prefect_command(*pool, "--base-job-template", str(template))]
    for path in files:
        words = ("--no-prompt", "deploy", "--prefect-file", str(path), "--all")
        commands.append(prefect_command(*words))
    for command in commands:
        done = subprocess.run(
            command, env=dict(environment), cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise HdmError(
                f"{' '.join(command[1:])} failed:\n{(done.stdout + done.stderr)[-2000:]}",
                where=own or packaged_file(),
            )
    write_json(services(root) / RECORD, {"sources": sources, "found": _found(root, environment)})


def added_deployments() -> list[dict[str, Any]]:
    """Deployments of the stages that other packages add, in the format of Prefect's files. Those of
    this package are in pipelines.yaml.
    """
    return [
        {
            "name": stage.flow,
            "description": stage.help,
            "entrypoint": f"flows.stages.{stage.flow.replace('-', '_')}",
            "work_pool": {"name": POOL},
        }
        for stage in added_stages().values()
    ]


def _files(root: Path, own: Path | None) -> list[Path]:
    files = [packaged_file()]
    if added := added_deployments():
        files.append(services(root) / "added-stages.yaml")
        write_json(files[-1], {"deployments": added})  # JSON is YAML too
    if own is not None and has_deployments(own):
        files.append(own.resolve())
    return files


def _digest(files: list[Path]) -> str:
    """Of all that deployments are made from: the files, Prefect, and this project's code, whose
    flows declare the forms on Prefect's pages.
    """
    sha256 = hashlib.sha256(version("prefect").encode())
    for path in (*files, *_code()):
        sha256.update(f"\0{path}\0".encode())
        sha256.update(path.read_bytes())
    return sha256.hexdigest()


def _code() -> Iterator[Path]:
    top = Path(__file__).parents[1]
    for package in ("flows", "tasks", "hdm"):
        yield from sorted((top / package).rglob("*.py"))


def _found(root: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """The pool and the deployments as Prefect knows them."""
    asked = {"work_pools": {"name": {"any_": [POOL]}}}
    api = environment["PREFECT_API_URL"]
    authorization = password(root)
    pools = post(f"{api}/work_pools/filter", asked, authorization)
    deployments = post(f"{api}/deployments/filter", asked, authorization)
    return {
        "pools": [{name: pool.get(name) for name in POOL_FIELDS} for pool in pools],
        "deployments": sorted(
            ({name: one.get(name) for name in DEPLOYMENT_FIELDS} for one in deployments),
            key=lambda one: one["id"],
        ),
    }


def _recorded(root: Path) -> Any:
    try:
        return json.loads((services(root) / RECORD).read_bytes())
    except (OSError, ValueError):  # never deployed, or half a file: deploy again
        return None
