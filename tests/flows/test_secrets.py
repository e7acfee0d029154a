"""A planted secret, looked for in everything that a real run leaves and says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.settings import get_current_settings

from flows import full_pipeline as deployed
from flows import stages
from hdm.data.tables import read_tables
from hdm.errors import ConfigError, InputError
from hdm.pipelines import load_pipeline
from hdm.redaction import visible
from hdm.secrets import resolved
from hdm.store import Store, read_output
from hdm.training.process.job import Job
from tests.acquisition.misbehaving import Site, http, png
from tests.flows.served import with_tables

PROJECT = Path(__file__).parents[2]
PLANTED, OF_ITEM = "c2VjcmV0LXBsYW50ZWQ", "aXRlbS1wbGFudGVk"
PIPELINES = """
pipelines:
  small:
    download: {kind: urls, source: "env:LIST", allow_loopback: true, retries: 0}
"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site() as found:
        item = f"http://127.0.0.1:{found.port}/1.png?token={OF_ITEM}"
        found.pages[f"/list.csv?sig={PLANTED}"] = http(f"url,caption\n{item},one\n".encode())
        found.pages[f"/1.png?token={OF_ITEM}"] = http(png(1))
        found.pages["/api/health"] = http(b"", "503 \x1b[31mBroken\x9b2J")
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def pipelines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "pipelines.yaml"
    file.write_text(PIPELINES)
    monkeypatch.setenv("HDM_PIPELINES", str(file))
    return file


def hdm(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import app; app()", *words],
        env={**os.environ, "PYTHONPATH": str(PROJECT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def holding(root: Path, secret: str) -> list[str]:
    """Every file below a folder that holds the secret."""
    files = (path for path in root.rglob("*") if path.is_file())
    return sorted(
        path.relative_to(root).as_posix() for path in files if secret.encode() in path.read_bytes()
    )


def test_a_run_leaves_and_says_nothing_of_its_secret(
    site: Site, pipelines: Path, tmp_path: Path, prefect_tables: Path
) -> None:
    store = with_tables(tmp_path / "store", prefect_tables)
    words = ["run", "small", "--until", "download", "--json", "--verbose", "--store", str(store)]
    words += ["--file", str(pipelines)]
    address = f"http://127.0.0.1:{site.port}/list.csv?sig="
    done = hdm(*words, LIST=address + PLANTED)
    assert done.returncode == 0, done.stderr
    assert site.asked[f"/list.csv?sig={PLANTED}"] > 0

    failed = hdm(*words, "--set", "download.max_items=7", LIST=f"{address}{PLANTED}gone")
    assert failed.returncode == 2
    assert "the site answered 404 (env:LIST)" in failed.stderr

    for secret in (PLANTED, OF_ITEM):
        said = done.stdout + done.stderr + failed.stdout + failed.stderr
        assert secret not in said
    assert holding(store, PLANTED) == []
    databases = {path.name for path in (store / ".services").glob("*.db")}
    assert databases == {"prefect.db", "mlflow.db"}, "what was searched"
    assert holding(store, "env:LIST"), "the reference is what is written down"

    (output,) = Store(store).outputs()
    samples = read_tables(output, "samples").to_pylist()
    assert [row["status"] for row in samples] == ["ok"]
    assert samples[0]["source"].endswith(f"token={OF_ITEM}"), "an item's URL stays as given"
    beside = [name for name in holding(store, OF_ITEM) if "/samples-" not in name]
    assert beside == []


def test_what_a_training_is_told_holds_references_alone(
    pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIST", f"https://host/list.csv?sig={PLANTED}")
    pipeline = load_pipeline("small", (), pipelines, {})
    assert PLANTED in resolved(pipeline.download.source or "")
    Job.apart(pipeline, 0, {}, tmp_path / "training").write()
    assert holding(tmp_path / "training", PLANTED) == []
    assert holding(tmp_path / "training", "env:LIST") == ["scratch/job.json"]


@pytest.mark.usefixtures("prefect_server")
def test_a_deployment_names_a_block_and_may_not_spell_the_secret_out(
    site: Site, pipelines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HDM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("HDM_TRACKING", "off")
    address = f"http://127.0.0.1:{site.port}/list.csv?sig={PLANTED}"
    spelled_out = deployed.full_pipeline(
        "small", overrides=[f"download.source={address}"], return_state=True
    )
    assert isinstance(spelled_out.result(raise_on_failure=False), ConfigError)
    assert "block:NAME" in str(spelled_out.message)
    assert PLANTED not in str(spelled_out.message)

    by_block = ["download.source=block:my-list"]
    absent = stages.download_images("small", overrides=by_block, return_state=True)
    assert isinstance(error := absent.result(raise_on_failure=False), InputError)
    assert "no Secret block my-list" in str(error)
    Secret(value=address).save("my-list", _sync=True)  # type: ignore[call-arg]
    (record,) = stages.download_images("small", overrides=by_block)
    assert read_output(Path(record.path)).counts["ok"] == 1
    assert holding(tmp_path / "store", PLANTED) == []


@pytest.mark.usefixtures("prefect_server")
def test_captions_and_file_names_do_not_steer_the_terminal(tmp_path: Path) -> None:
    api = get_current_settings().api.url
    assert api is not None
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a\x1b[31m.png").write_bytes(png(1))
    (folder / "a\x1b[31m.txt").write_text("a caption \x1b[2J \u202e that steers \x9b31m")
    file = tmp_path / "pipelines.yaml"
    file.write_text(f"pipelines: {{own: {{download: {{source: '{folder}'}}}}}}")
    words = ("run", "own", "--until", "download", "--file", str(file), "--verbose")
    store = str(tmp_path / "store")
    done = hdm(*words, HDM_STORE=store, HDM_TRACKING="off", PREFECT_API_URL=api)
    assert done.returncode == 0, done.stderr
    assert visible(done.stderr) == done.stderr
    assert "a\\u001b[31m.png" in done.stderr
    assert "a caption \\u001b[2J \\u202e that steers" in done.stderr
    (output,) = Store(tmp_path / "store").outputs()
    (row,) = read_tables(output, "samples").to_pylist()
    assert "\x1b[31m" in row["source"], "the table keeps what was given"


def test_names_and_a_servers_words_do_not_steer_the_terminal(
    site: Site, pipelines: Path, tmp_path: Path
) -> None:
    api, small = f"http://127.0.0.1:{site.port}/api", ("small", "--file", str(pipelines))
    source = f"http://127.0.0.1:{site.port}/list.csv?sig={PLANTED}"
    said = [
        hdm("run", *small, "--until", "download", PREFECT_API_URL=api, LIST=source).stderr,
        hdm("verify", "--store", str(tmp_path / "st\x1b[31more")).stdout,
        hdm("config", *small, "--set", 'download.split="\\u001b[31m\\u202e"').stdout,
        hdm("config", *small, "--set", 'filter.min_side_px="\\u001b[31m"').stderr,
    ]
    for text in said:
        assert text.strip()
        assert visible(text) == text
    assert "\\u001b[31mBroken" in said[0]
    assert "st\\u001b[31more" in said[1]
