"""The environment of every test: nothing of this machine's user, of the shell or of the working
folder's store.

Pytest imports this file before any test module, and so before Prefect, MLflow, accelerate or the
Hugging Face libraries read their settings; every worker of pytest-xdist is a process of its own and
gets a home of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

OTHERS = (
    # libraries
    "ACCELERATE_",
    "DATASETS_",
    "DIFFUSERS_",
    "HF_",
    "HUGGINGFACE_",
    "MLFLOW_",
    "OTEL_",
    "PREFECT_",
    "TRANSFORMERS_",
    "XDG_",
    # the product: HDM_STORE, HDM_TRACKING, HDM_PIPELINES and HDM__stage__field
    "HDM_",
    # a launcher of several processes
    "LOCAL_",
    "MASTER_",
    "TORCHELASTIC_",
)
NAMES = {"RANK", "WORLD_SIZE", "COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR"}
PROXY = "_proxy"
loaded = {"prefect", "mlflow", "accelerate", "huggingface_hub"} & sys.modules.keys()
assert not loaded, f"read their settings before the tests' were made: {', '.join(loaded)}"

home = Path(tempfile.mkdtemp(prefix="hdm-tests-"))
for name in list(os.environ):
    if name.startswith(OTHERS) or name in NAMES or name.lower().endswith(PROXY):
        del os.environ[name]
os.environ |= {
    "HOME": str(home),
    "PREFECT_HOME": str(home / "prefect"),
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "HF_HOME": str(home / "huggingface"),
    "HDM_STORE": str(home / "store"),
    "DO_NOT_TRACK": "1",
}
# A shell ignores SIGINT in what it starts in the background, and children inherit that: tests of
# Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On a busy machine an example takes any time, and so does making one.
hypothesis.settings.register_profile(
    "any_speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any_speed")


LONGEST_FIRST = (
    "flows/test_services_that_die.py",
    "flows/test_serve_saves.py",
    "training/test_phase.py",
    "training/test_trainer.py",
    "flows/test_closed_doors.py",
    "tasks/test_tracking.py",
    "flows/test_secrets.py",
    "training/test_sharding.py",
    "faults/test_kill_stages.py",
    "bootstrap/test_stopped.py",
    "flows/test_full_pipeline.py",
    "flows/test_retry_failed.py",
    "demo/test_detector.py",
    "planning/test_timed_steps.py",
    "encoding/test_threads.py",
    "training/test_memory.py",
    "training/test_alignment.py",
    "test_wheel.py",
    "test_isolation.py",
    "test_foreign_store.py",
)
"""Files of half a minute and more: begun last, one of them would leave the other workers idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files before the others, which keep their order."""
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def pytest_unconfigure() -> None:
    """Prefect's and MLflow's last threads may still write there."""
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database before anything has run. A server takes 5 s of CPU time to make it; here
    it is made once for all workers.
    """
    from tasks.services import alone_at  # not before the environment is the tests' own

    mine = tmp_path_factory.getbasetemp()
    shared = mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine
    made, making = shared / "prefect.db", shared / "prefect.db.making"
    with alone_at(shared / "prefect.db.lock"):
        if not made.exists():
            words = ("server", "database", "upgrade", "--yes")
            variables = {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{making}",
                "PREFECT_PLUGINS_ENABLED": "false",
            }
            subprocess.run(
                [sys.executable, "-m", "prefect", *words],
                env={**os.environ, **variables},
                check=True,
                capture_output=True,
            )
            with contextlib.closing(sqlite3.connect(making)) as database:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            making.rename(made)
    return made


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Commands that a test calls in this process set variables; none of them reaches the next
    test.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
