"""Take Prefect's server away from a run for minutes, and compare what Prefect knows after its return with what happened.

    python -m tests.faults.outage [--minutes 10] [--work DIR]

The server is the user's own, as PREFECT_API_URL names it. It is killed in the first stage, so that the end of that stage and the start
of the next fall into the outage.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from flows.prefect_api import post
from flows.processes import Service, nearest_listener, pages_at, prefect_server_command, wait_for
from hdm.child import child_environment
from tasks.services import runs
from tests.faults.kill_anywhere import PROJECT, SMALL

RIGHT_SEC = 60.0


def states(api: str) -> dict[str, str]:
    """Names of flow runs → their states, as the server tells them."""
    found = post(f"{api}/flow_runs/filter", {}, None)
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
    store = work / "store"
    store.mkdir(parents=True)
    with nearest_listener(0) as listener:
        page = pages_at(listener.getsockname()[1])[0]
        command = prefect_server_command([listener], [page])
        environment = {**child_environment(), "PREFECT_HOME": str(work / "prefect")}
        with Service("prefect", command, environment, work / "server", work, [listener]) as server:
            wait_for(f"{page}/api/health", server.process, work / "server")
            return outage(server, f"{page}/api", store, asked.minutes * 60)


def outage(server: Service, api: str, store: Path, seconds: float) -> int:
    """0 if the run ends well and all of its states are right a minute after the server's return."""
    words = [str(Path(sys.executable).with_name("hdm")), "run", "demo", "--until", "caption"]
    settings = [word for text in SMALL for word in ("--set", text)]
    environment = {**child_environment(), "PREFECT_API_URL": api, "HDM_TRACKING": "off"}
    command = [*words, "--store", str(store), *settings]
    with subprocess.Popen(command, cwd=PROJECT, env=environment) as run:
        while not any(found["pipeline"] == "demo" for found in runs(store)):
            time.sleep(0.1)
        os.kill(server.process.pid, signal.SIGKILL)
        print(f"no server for {seconds:.0f} s", flush=True)
        time.sleep(seconds)
        if run.poll() is not None:
            print(f"the run ended with code {run.returncode} during the outage")
            return 1
        server.revived()
        returned = time.monotonic()
        wait_for(f"{api}/health", server.process, server.root)
        while time.monotonic() - returned < RIGHT_SEC and "Running" not in states(api).values():
            time.sleep(0.5)
        print(f"{time.monotonic() - returned:.0f} s after its return: {states(api)}", flush=True)
        if run.wait() != 0:
            print(f"the run ended with code {run.returncode}")
            return 1
    last = states(api)
    print(last)
    return 0 if set(last.values()) == {"Completed"} else 1


if __name__ == "__main__":
    sys.exit(main())
