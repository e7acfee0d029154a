"""Training and mending in the tests' own process: starting another takes seconds, which only tests
of processes need.
"""

from __future__ import annotations

import torch
from accelerate.state import AcceleratorState

from hdm.training.process.guard import StopRequest
from hdm.training.process.job import Job
from hdm.training.trainer import train


def train_here(job: Job) -> None:
    """In place of `run_training` and `make_companions` of hdm.training.phase."""
    threads = torch.get_num_threads()
    try:
        assert train(job, StopRequest())
    finally:
        torch.set_num_threads(threads)
        AcceleratorState._reset_state(reset_partial_state=True)
