"""How many processes train where the setting says "auto"."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hdm.pipelines import load_pipeline
from hdm.training.job import Job
from hdm.training.processes import fitting_processes, with_processes


def settings(*batches: int):
    phases = ", ".join(
        f"{{resolution: {32 * (number + 1)}, num_images: 64, batch_size: {batch}}}"
        for number, batch in enumerate(batches)
    )
    return load_pipeline("demo", [f"train.phases=[{phases}]"], None, {}).train


@pytest.mark.parametrize(
    ("batches", "most", "count"),
    [
        ((32,), 1, 1),
        ((32,), 2, 2),
        ((32,), 4, 4),
        ((32,), 100, 4),  # eight pictures each
        ((48,), 4, 4),
        ((48,), 5, 4),  # 5 does not divide 48
        ((36,), 4, 3),  # nine are no pairs
        ((32, 16), 4, 2),  # both batches are shared
        ((15,), 2, 1),
        ((), 3, 3),
    ],
)
def test_every_process_has_an_equal_even_share_of_at_least_eight(batches, most, count):
    assert fitting_processes(settings(*batches), most) == count


def test_on_cpus_there_is_one_for_each_core_up_to_four(monkeypatch):
    pipeline = load_pipeline("demo", (), None, {})
    for cores, count in ((1, 1), (2, 2), (64, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert with_processes(pipeline).train.processes == count


def test_on_gpus_there_is_one_for_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    pipeline = load_pipeline("demo", ["train.device=cuda"], None, {})
    assert with_processes(pipeline).train.processes == 2


def test_a_number_stays_what_it_is():
    pipeline = load_pipeline("demo", ["train.num_processes=3"], None, {})
    assert with_processes(pipeline) is pipeline


def test_a_training_keeps_the_number_that_it_began_with(tmp_path: Path):
    begun = load_pipeline("demo", ["train.num_processes=3"], None, {})
    job = Job.apart(begun, 0, {}, tmp_path)
    job.write()
    auto = load_pipeline("demo", (), None, {})
    here = with_processes(auto).train.processes
    assert with_processes(auto, Path(job.scratch)).train.processes == here, "nothing to go on from"
    (Path(job.scratch) / "checkpoint-00000001").mkdir()
    assert with_processes(auto, Path(job.scratch)).train.processes == 3
