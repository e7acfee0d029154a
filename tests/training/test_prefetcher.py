"""Examples are made ahead of their use, in a thread that leaves nothing behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hdm.data.batch import Batch
from hdm.data.loader import Loader
from hdm.errors import DamagedError
from hdm.models.devices import cpu_threads
from hdm.training import assembly
from hdm.training.objective import FlowMatching
from hdm.training.prefetcher import Example, Prefetcher
from tests.training.workshop import Workshop

WAIT_SEC = 60.0


class Watched:
    """A loader that tells which batches were begun and by which thread, and fails at one of
    them.
    """

    def __init__(self, loader: Loader, fail_at: int | None = None) -> None:
        self.loader, self.fail_at = loader, fail_at
        self.threads: dict[int, str] = {}
        self.num_threads: dict[int, int] = {}
        self.batch_size, self.rank, self.world_size = (
            loader.batch_size,
            loader.rank,
            loader.world_size,
        )
        self.begun = threading.Condition()

    def batch(self, num_images_seen: int) -> Batch:
        with self.begun:
            self.num_threads[num_images_seen] = torch.get_num_threads()
            self.threads[num_images_seen] = threading.current_thread().name
            self.begun.notify_all()
        if num_images_seen == self.fail_at:
            raise DamagedError("a shard is damaged", where="there")
        return self.loader.batch(num_images_seen)

    def wait_for(self, num_images_seen: int) -> str:
        with self.begun:
            assert self.begun.wait_for(lambda: num_images_seen in self.threads, WAIT_SEC)
        return self.threads[num_images_seen]


@pytest.fixture
def loader(workshop: Workshop, tmp_path: Path) -> Loader:
    found = assembly.training_loader(workshop.job(tmp_path), 0, 1)
    assert isinstance(found, Loader)
    return found


def feed(loader: Loader | Watched, pin: bool = False) -> Prefetcher:
    return Prefetcher(loader, 0, FlowMatching(), ((0.0, 0.5),), 96, pin)  # type: ignore[arg-type]


def tensors(example: Example) -> Iterator[Tensor]:
    assert example.kept is not None
    yield from (example.noise, example.timestep, example.kept)
    yield from (value for value in vars(example.batch).values() if isinstance(value, Tensor))


def test_the_next_example_is_made_while_one_is_used(loader: Loader) -> None:
    watched = Watched(loader)
    ahead = feed(watched)
    ahead.example(0)
    assert watched.wait_for(8).startswith("feed"), "nobody has asked for it yet"
    for start in (8, 16, 40):  # 40: as after a resume, not the one that was made ahead
        expected = feed(loader).make(start)
        assert all(
            torch.equal(one, two)
            for one, two in zip(tensors(ahead.example(start)), tensors(expected), strict=True)
        )
    ahead.close()


def test_making_examples_takes_no_cores_from_the_training(loader: Loader) -> None:
    watched = Watched(loader)
    ahead = feed(watched)
    with cpu_threads(3):
        ahead.example(0)
        watched.wait_for(8)
        assert watched.num_threads == {0: 3, 8: 1}, "the first is made by the training itself"
        assert torch.get_num_threads() == 3
    ahead.close()


def test_an_error_reaches_who_asks_for_that_example(loader: Loader) -> None:
    watched = Watched(loader, fail_at=8)
    ahead = feed(watched)
    ahead.example(0)
    watched.wait_for(8)
    with pytest.raises(DamagedError, match="there"):
        ahead.example(8)
    ahead.close()


def shared_memory() -> list[str]:
    """What this process has mapped of it."""
    return [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line
    ]


def test_nothing_is_left_behind(loader: Loader) -> None:
    shared, threads = shared_memory(), set(threading.enumerate())
    ahead = feed(loader)
    for start in range(0, 80, 8):
        ahead.example(start)
    assert shared_memory() == shared
    ahead.close()
    assert set(threading.enumerate()) == threads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pinned_examples_are_the_same_there_and_on_the_accelerator(loader: Loader) -> None:
    plain, pinned = feed(loader).make(16), feed(loader, pin=True).make(16)
    assert all(value.is_pinned() for value in tensors(pinned))
    moved = pinned.to(torch.device("cuda"))
    torch.cuda.synchronize()
    for one, two in zip(tensors(plain), tensors(moved), strict=True):
        assert torch.equal(one, two.cpu())
    torch.testing.assert_close(moved.batch.latent.cpu(), plain.batch.latent)
    assert torch.equal(moved.batch.positions.cpu(), plain.batch.positions)
