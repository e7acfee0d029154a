"""The tests see nothing of the user's settings, of the shell's, or of the working folder's store
(tests/conftest.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]


def test_settings_are_the_tests_own() -> None:
    from accelerate.utils import parse_flag_from_env
    from huggingface_hub.constants import HF_HUB_CACHE
    from mlflow import get_tracking_uri
    from prefect.settings import get_current_settings

    from hdm.pipelines import load_pipeline
    from hdm.store import store_root

    settings = get_current_settings()
    for place in (HF_HUB_CACHE, settings.home, store_root(), Path.home()):
        assert "hdm-tests-" in str(place)
    database = settings.server.database.connection_url
    assert database is not None
    # Tests of flows that ran in this process before have left Prefect's own test server running.
    if not database.get_secret_value().endswith("/prefect-test.db"):
        assert "hdm-tests-" in database.get_secret_value()
        assert settings.api.url is None
    assert "127.0.0.1:9" not in get_tracking_uri()
    assert not parse_flag_from_env("ACCELERATE_USE_FSDP")
    assert load_pipeline("demo").filter.min_side_px == 48
    assert not {"http_proxy", "HTTPS_PROXY"} & os.environ.keys()


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["here", "xdist"])
def test_they_are_under_a_hostile_environment(workers: list[str], tmp_path: Path) -> None:
    (tmp_path / "store" / ".services" / "runs").mkdir(parents=True)
    hostile = {
        "HDM_STORE": str(tmp_path / "store"),
        "HDM__filter__min_side_px": "7",
        "HF_HOME": str(tmp_path),
        "HF_HUB_CACHE": str(tmp_path),
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/prefect.db",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
        "ACCELERATE_USE_FSDP": "true",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "RANK": "1",
    }
    tests = ["tests/test_isolation.py::test_settings_are_the_tests_own"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers, *tests],
        cwd=PROJECT,
        env={**os.environ, **hostile},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
