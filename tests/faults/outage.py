"""Take Prefect's server away from a run for minutes, and compare what Prefect knows after its
return with what happened.

    python -m tests.faults.outage [--minutes 10] [--work DIR]

The server is the user's own, as PREFECT_API_URL names it. It is killed in the first stage, so that
the end of that stage and the start of the next fall into the outage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from flows.prefect_api import post
from flows.processes import Service, nearest_listener, pages_at, prefect_server_command, wait_for
from hdm.child import child_environment
from hdm.store import LOCK, MANIFEST, is_locked
from tests.faults.kill_anywhere import PROJECT

RIGHT_SEC, STAGE_SEC = 60.0, 300.0
LOG, NOTICED = "run.log", "does not answer"
PIPELINE = (
    "hdm", "run", "demo", "--until", "filter",
    "--set", "download.scenes.count=240", "--set", "download.timeout_sec=3", "--set", "threads=1",
)  # fmt: skip
BETWEEN = {  # the download is finished, the filter measures
    "demo": "Running",
    "download demo": "Completed",
    "download": "Completed",
    "filter-images demo": "Running",
    "filter.measures": "Running",
}
DONE = {"Completed", "UpToDate"}  # the filter makes what its models say along with its measures


def states(api: str) -> dict[str, str]:
    """Names of flow runs and task runs → their states, as the server tells them."""
    found = post(f"{api}/flow_runs/filter", {}, None) + post(f"{api}/task_runs/filter", {}, None)
    return {one["name"]: one["state_name"] for one in found}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, default=PROJECT / "build" / "faults")
    asked = parser.parse_args()
    work = asked.work.resolve() / "outage"
    shutil.rmtree(work, ignore_errors=True)
    problem = outage(work, asked.minutes * 60)
    print(problem or "every state was right")
    return int(problem is not None)


def outage(work: Path, seconds: float) -> str | None:
    """A run whose server is away at the end of its first stage; what went wrong, or None.

    Args:
        work: an empty folder.
        seconds: how long the server is away at least.
    """
    store = work / "store"
    store.mkdir(parents=True)
    with nearest_listener(0) as listener:
        page = pages_at(listener.getsockname()[1])[0]
        api, command = f"{page}/api", prefect_server_command([listener], [page])
        environment = {**child_environment(), "PREFECT_HOME": str(work / "prefect")}
        with Service("prefect", command, environment, work / "server", work, [listener]) as server:
            wait_for(f"{api}/health", server.process, server.root)
            words = [str(Path(sys.executable).with_name(PIPELINE[0])), *PIPELINE[1:]]
            tracked = {"PREFECT_API_URL": api, "HDM_TRACKING": "off"}
            with (
                (work / LOG).open("wb") as log,
                subprocess.Popen(
                    [*words, "--store", str(store)],
                    cwd=PROJECT,
                    env={**environment, **tracked},
                    stdout=log,
                    stderr=log,
                ) as run,
            ):
                try:
                    return _watched(run, server, api, work, seconds)
                finally:
                    run.kill()


def _watched(
    run: subprocess.Popen[bytes], server: Service, api: str, work: Path, seconds: float
) -> str | None:
    store = work / "store"
    while not list(store.glob(f"download/*/{LOCK}")):
        if run.poll() is not None:
            return f"the run ended with code {run.returncode} before the outage"
        time.sleep(0.1)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    begun = time.monotonic()
    print(f"no server for {seconds:.0f} s", flush=True)

    def noticed() -> bool:
        ended = list(store.glob(f"download/*/{MANIFEST}"))
        return bool(ended) and NOTICED in (work / LOG).read_text()

    while time.monotonic() - begun < seconds or not noticed():
        if run.poll() is not None or time.monotonic() - begun > seconds + STAGE_SEC:
            return f"the run noticed nothing, or ended: code {run.returncode}"
        time.sleep(0.1)
    server.revived()
    wait_for(f"{api}/health", server.process, server.root)
    returned = time.monotonic()
    # Who measures holds the lock: nothing that Prefect says is taken for what happens.
    while not (
        right(api, BETWEEN) and any(map(is_locked, store.glob(f"filter.measures/*/{LOCK}")))
    ):
        if time.monotonic() - returned > RIGHT_SEC:
            return f"{RIGHT_SEC:.0f} s after the server's return: {states(api)}"
        if run.poll() is not None:  # it measured faster than one could look; its end is looked at
            break
        time.sleep(0.1)
    print(
        f"right or ended {time.monotonic() - returned:.1f} s after the server's return", flush=True
    )
    if run.wait() != 0:
        return f"the run ended with code {run.returncode}"
    last = states(api)
    return None if set(last.values()) <= DONE else f"in the end: {last}"


def right(api: str, expected: Mapping[str, str]) -> bool:
    """Whether the server knows these runs in these states."""
    return expected.items() <= states(api).items()


if __name__ == "__main__":
    sys.exit(main())
