"""Models spread over two processes: what they hold, and that training comes to what one process
alone comes to.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from hdm.errors import ConfigError
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import Job
from hdm.training.settings import TrainSettings
from tests.training.run_sharded import Stopped
from tests.training.workshop import FILES, Workshop

RUN_SHARDED = Path(__file__).with_name("run_sharded.py")
STOP, STEPS = 2, 6
MILESTONES = [
    f"ema-{length}-{step:08d}.safetensors" for length in (0.1, 0.2) for step in (3, 6)
] + ["generated-0000000048.png"]
# Gradients that are clipped, two micro-batches a step, half of the blocks recomputed.
PHASE = {
    "resolution": 16,
    "num_images": 8 * STEPS,
    "batch_size": 8,
    "micro_batch": 3,
    "checkpoint_blocks": 0.5,
}
OPTIMIZERS = {
    kind: {"kind": kind, "learning_rate": 1e-3, "clip_norm": 0.5} for kind in ("adamw", "muon")
}


def job_of(workshop: Workshop, folder: Path, kind: str, num_processes: int) -> Job:
    settings = {
        "phases": [{**PHASE, "optimizer": OPTIMIZERS[kind]}],
        "sharding": "full",
        "num_processes": num_processes,
        "checkpoint_sec": 1e7,
        "validate_raw": True,
        "keep": "best",
        "ema_snapshots": 2,
        "generate_every": 8 * STEPS,
    }
    return workshop.changed(**settings).job(folder)


def alone(job: Job, stop_step: int | None = None) -> None:
    """Train with this process."""
    threads = torch.get_num_threads()
    trainer = Stopped(job, StopRequest(), "cpu")
    trainer.stop_step = stop_step
    assert trainer.run() == (stop_step is None)
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def together(jobs: list[tuple[Job, int | None]], folder: Path) -> None:
    """Train with two processes, one job after another."""
    for job, _ in jobs:
        job.write()
    told = folder / "told.json"
    told.write_text(json.dumps([[str(job.path), stop] for job, stop in jobs]))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(RUN_SHARDED),
        str(told),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def copy_at_stop(job: Job, folder: Path) -> None:
    """What a training that was stopped had left behind."""
    shutil.copytree(job.folder, folder)
    scratch = folder / "scratch"
    shutil.rmtree(scratch / f"checkpoint-{STEPS:08d}", ignore_errors=True)
    for made_later in ("result", "milestones", "best"):
        shutil.rmtree(scratch / made_later, ignore_errors=True)


@pytest.fixture(scope="module")
def trained(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Trainings by one process and by two that share the model, and some that went on from what
    others left.
    """
    root, cached = tmp_path_factory.mktemp("sharded"), workshop.cached()
    counts = {"adamw, 1": 1, "adamw, 2": 2, "muon, 1": 1, "muon, 2": 2, "muon, 2 to 2": 2}
    jobs = {
        name: job_of(cached, root / name, name.partition(",")[0], count)
        for name, count in counts.items()
    }
    alone(jobs["adamw, 1"])
    alone(jobs["muon, 1"], STOP)
    copy_at_stop(jobs["muon, 1"], root / "muon, 1 to 2")
    jobs["muon, 1 to 2"] = job_of(cached, root / "muon, 1 to 2", "muon", 2)
    alone(jobs["muon, 1"])

    sharded = [jobs[name] for name in ("adamw, 2", "muon, 2", "muon, 1 to 2", "muon, 2 to 2")]
    together([(sharded[-1], STOP), *((job, None) for job in sharded)], root)
    copy_at_stop(sharded[-1], root / "muon, 2 to 1")
    jobs["muon, 2 to 1"] = job_of(cached, root / "muon, 2 to 1", "muon", 1)
    alone(jobs["muon, 2 to 1"])
    return jobs


def lines(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.result / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("which", ["adamw, 2", "muon, 2", "muon, 1 to 2", "muon, 2 to 1"])
def test_shards_come_to_what_one_process_comes_to(which: str, trained: dict[str, Job]) -> None:
    here, alone = trained[which], trained[f"{which.partition(',')[0]}, 1"]
    for mine, theirs in zip(lines(here), lines(alone), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert sorted(path.name for path in here.result.iterdir()) == sorted(
        path.name for path in alone.result.iterdir()
    )
    for path in alone.result.glob("*.safetensors"):
        torch.testing.assert_close(
            load_file(here.result / path.name), load_file(path), rtol=1e-3, atol=5e-5
        )


def test_stopped_and_gone_on_changes_no_byte(trained: dict[str, Job]) -> None:
    undisturbed, disturbed = (trained[name].result for name in ("muon, 2", "muon, 2 to 2"))
    assert {*FILES, *MILESTONES} < {path.name for path in disturbed.iterdir()}
    assert [
        path.name
        for path in undisturbed.iterdir()
        if path.read_bytes() != (disturbed / path.name).read_bytes()
    ] == []


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_process_holds_half(kind: str, trained: dict[str, Job]) -> None:
    job = trained[f"{kind}, 2"]
    # All sizes are even: 4 bytes of each parameter, and 8 of AdamW's averages and their steps.
    weights = 4 * json.loads((job.result / "summary.json").read_bytes())["parameters"]
    for rank in (0, 1):
        held = json.loads((Path(job.scratch) / f"held-{rank}.json").read_bytes())
        assert held["weights"] == held["average"] == weights / 2
        if kind == "adamw":
            assert held["optimizer"] == pytest.approx(weights, rel=0.01)


def test_what_cannot_be_sharded_is_refused(workshop: Workshop) -> None:
    settings = workshop.pipeline.train.model_dump(mode="json")
    uneven = {**settings, "num_processes": 3, "sharding": "full"}
    with pytest.raises(ConfigError, match="3 do not divide 8"):
        TrainSettings.model_validate(uneven)
    assert TrainSettings.model_validate({**uneven, "num_processes": 1}).sharding == "full"
    eight = {**settings["phases"][0], "optimizer": {"state_bits": 8}}
    with pytest.raises(ConfigError, match="bitsandbytes"):
        TrainSettings.model_validate(
            {**settings, "phases": [eight], "num_processes": 2, "sharding": "full"}
        )
