"""Kill a small pipeline at seeded moments, run it to its end, and compare every byte with an
undisturbed run.

    python -m tests.faults.kill_anywhere [--kills 20] [--kills-per-store 5] [--seed 0]
                                         [--through stages|ephemeral|server] [--work DIR]

Each try starts on an empty store and kills the same command several times in a row, so that runs
that recover from a kill are killed too. After each kill no process of the run may be left.

Resumable: finished tries are in DIR/results.jsonl, and the same command goes on from there.
`--through server` starts one Prefect server and keeps it for all tries.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from flows.processes import nearest_listener, prefect_command, running, wait_for

PROJECT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SURVIVORS_SEC = 20.0
SMALL = (
    "download.scenes.count=120",
    "download.shard_items=32",
    "download.timeout_sec=3",
    "train.checkpoint_sec=1",
    "filter.held_out=0.1",
    "filter.validation=0.1",
    "train.prompts=[a red circle]",
    "train.phases.0.num_images=640",
    "train.phases.0.batch_size=32",
    "train.phases.1.num_images=640",
    "train.phases.1.batch_size=32",
    "evaluate.num_images=16",
    "evaluate.steps=4",
)
# Outside every comparison, by design: times, locks, the order in which shards were finished, what
# people look at.
NOT_COMPARED = ("run.json", "timing.jsonl")


def contents(store: Path) -> dict[str, str]:
    """Relative path → sha256 of everything that the store vouches for."""
    found = {}
    for path in sorted(store.glob("*/*/**/*")):
        relative = path.relative_to(store)
        hidden = any(part.startswith(".") for part in relative.parts)
        if (
            path.is_file()
            and not hidden
            and relative.parts[0] != "reports"
            and path.name not in NOT_COMPARED
        ):
            found[str(relative)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def command(through: str, store: Path, overrides: tuple[str, ...]) -> list[str]:
    if through == "stages":
        return [sys.executable, str(HERE / "run_stages.py"), str(store), "demo", *overrides]
    settings = [word for text in overrides for word in ("--set", text)]
    return [
        str(Path(sys.executable).parent / "hdm"),
        "run",
        "demo",
        "--store",
        str(store),
        *settings,
    ]


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        return subprocess.Popen(
            words, cwd=PROJECT, stdout=file, stderr=file, start_new_session=True
        )


def survivors(store: Path) -> list[str]:
    """Command lines of processes that work on that store."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and str(store) in " ".join(process.info["cmdline"] or []):
                found.append(f"{process.pid}: {' '.join(process.info['cmdline'])[:200]}")
    return found


def kill_after(words: list[str], store: Path, seconds: float, log: Path) -> tuple[bool, str | None]:
    """Start the command and kill its whole process group after so many seconds.

    Returns:
        Whether it was killed (else it had ended by itself), and what went wrong, or None.
    """
    run = start(words, log)
    with contextlib.suppress(subprocess.TimeoutExpired):
        run.wait(timeout=seconds)
        return False, None if run.returncode == 0 else f"ended by itself with code {run.returncode}"
    return True, kill(run, store)


def kill(run: subprocess.Popen[bytes], store: Path) -> str | None:
    """Kill the run's whole process group; what survived it, or None."""
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + SURVIVORS_SEC
    while left := survivors(store):
        if time.monotonic() > deadline:
            return f"survived the kill: {left}"
        time.sleep(0.2)
    return None


def undisturbed(
    through: str, work: Path, overrides: tuple[str, ...]
) -> tuple[dict[str, str], float]:
    """What a run that nobody disturbs writes, and how long it takes."""
    record = work / f"undisturbed-{through}.json"
    if record.exists():
        saved = json.loads(record.read_text())
        return saved["contents"], saved["seconds"]
    store = work / "undisturbed"
    shutil.rmtree(store, ignore_errors=True)
    begun = time.monotonic()
    run = start(command(through, store, overrides), work / "undisturbed.log")
    if run.wait() != 0:
        sys.exit(f"the undisturbed run failed: see {work / 'undisturbed.log'}")
    seconds = time.monotonic() - begun
    record.write_text(json.dumps({"contents": contents(store), "seconds": seconds}))
    return contents(store), seconds


def one_try(
    number: int, seed: int, through: str, work: Path, overrides: tuple[str, ...], kills: int = 1
) -> dict[str, Any]:
    """Kill up to `kills` times in a row at moments that (seed, number) names, run to the end,
    compare.

    With several kills each run lives for half of an undisturbed run at most: later stages are
    reached by runs that went on from what killed ones had left.
    """
    expected, seconds = undisturbed(through, work, overrides)
    longest = seconds if kills == 1 else seconds / 2
    moments = random.Random(f"{seed}-{number}")
    store, log = work / f"try-{number}", work / f"try-{number}.log"
    shutil.rmtree(store, ignore_errors=True)
    words = command(through, store, overrides)
    killed_at_sec: list[float] = []
    outputs_then: list[int] = []
    wrong = None
    for _ in range(kills):
        moment = moments.uniform(0.02, 0.98) * longest
        killed, wrong = kill_after(words, store, moment, log)
        if not killed:
            break
        killed_at_sec.append(round(moment, 2))
        outputs_then.append(len(list(store.glob("*/*/manifest.json"))))
        if wrong:
            break
    if wrong is None and start(words, log).wait() != 0:
        wrong = f"the run after the kill failed: see {log}"
    if wrong is None and (found := contents(store)) != expected:
        differ = sorted(
            name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
        )
        wrong = f"{len(differ)} files differ: {differ[:5]}"
    if wrong is None:
        shutil.rmtree(store)
        log.unlink()
    return {
        "number": number,
        "seed": seed,
        "through": through,
        "killed_at_sec": killed_at_sec,
        "outputs_then": outputs_then,
        "wrong": wrong,
    }


def kills_of(entry: dict[str, Any]) -> int:
    """How many kills a try counts for: at least one, so that tries that fail at once come to an
    end.
    """
    return max(1, len(entry["killed_at_sec"]))


@contextlib.contextmanager
def prefect_server(through: str, work: Path) -> Iterator[None]:
    """One standing server for all tries, where asked for."""
    if through != "server":
        yield
        return
    with nearest_listener(0) as probe:
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    environment = {**os.environ, "PREFECT_HOME": str(work / "prefect")}
    words = prefect_command(
        "server", "start", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-ui"
    )
    # Not from the project's folder: a store there would give the server its password.
    with running("prefect", words, environment, work / "server", work) as server:
        wait_for(f"{address}/api/health", server, work / "server")
        yield


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--kills-per-store", type=int, default=5, help="kills in a row before a run may end (5)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--through", choices=("stages", "ephemeral", "server"), default="server")
    parser.add_argument("--work", type=Path, default=PROJECT / "build" / "faults")
    asked = parser.parse_args()
    work = asked.work.resolve() / asked.through
    work.mkdir(parents=True, exist_ok=True)
    results = work / "results.jsonl"
    tried = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    tried = [entry for entry in tried if entry["seed"] == asked.seed]
    done = {entry["number"] for entry in tried}
    kills = sum(kills_of(entry) for entry in tried)
    with prefect_server(asked.through, work):
        for number in itertools.count():
            if kills >= asked.kills:
                break
            if number in done:
                continue
            in_a_row = min(asked.kills_per_store, asked.kills - kills)
            entry = one_try(number, asked.seed, asked.through, work, SMALL, in_a_row)
            tried.append(entry)
            kills += kills_of(entry)
            with results.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(
                f"try {number}: killed at {entry['killed_at_sec']} s "
                f"with {entry['outputs_then']} outputs finished: "
                f"{entry['wrong'] or 'same bytes'} ({kills} of {asked.kills} kills)",
                flush=True,
            )
    bad = [entry for entry in tried if entry["wrong"]]
    good = len(tried) - len(bad)
    print(f"{kills} kills in {len(tried)} stores; {good} stores ended in the same bytes")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
