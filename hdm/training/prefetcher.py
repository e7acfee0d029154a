"""What one step needs, made ahead of it: the batch, its noise, its timesteps and the tokens that
TREAD keeps.

All of it is a function of the seed and the number of images seen. Draws are made for the whole
global batch and cut by process, so they do not depend on how many there are, and no generator's
state has to be saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hdm.chance import seed_at
from hdm.data.batch import Batch
from hdm.data.loader import Loader
from hdm.data.mixture import Mixture
from hdm.models.tread import draw_kept, rate_at
from hdm.training.objective import Objective
from hdm.training.process.threads import compute_with_one_thread_here

# Apart from each other and from the loader's own draws.
# These numbers are part of every seed, so they are never changed.
TRAINING = 1
VALIDATION = 2
DROPOUT = 3
PROJECTION = 4
ADAPTER = 5


@dataclass(frozen=True)
class Example:
    """A process's share of one global batch, and what was drawn for it.

    Args:
        batch: b samples.
        noise: (b, C, S, S), standard normal.
        timestep: (b,) in [0, 1].
        kept: (b, K) indices of the image tokens that TREAD keeps; None: all.
        tread_rate: share of the image tokens that it drops.
    """

    batch: Batch
    noise: Tensor
    timestep: Tensor
    kept: Tensor | None
    tread_rate: float = 0.0

    def part(self, start: int, stop: int) -> Example:
        """Some of its samples, as a micro-batch."""
        kept = None if self.kept is None else self.kept[start:stop]
        return replace(
            self,
            batch=self.batch.part(start, stop),
            noise=self.noise[start:stop],
            timestep=self.timestep[start:stop],
            kept=kept,
        )

    def to(self, device: torch.device) -> Example:
        """The same on a device."""
        return self._with(self.batch.to(device), lambda value: value.to(device, non_blocking=True))

    def pinned(self) -> Example:
        """The same in memory from which an accelerator copies by itself; needs CUDA."""
        return self._with(self.batch.pinned(), Tensor.pin_memory)

    def _with(self, batch: Batch, move: Callable[[Tensor], Tensor]) -> Example:
        kept = None if self.kept is None else move(self.kept)
        return replace(
            self, batch=batch, noise=move(self.noise), timestep=move(self.timestep), kept=kept
        )


def generator(seed: int, purpose: int, position: int) -> torch.Generator:
    """The CPU generator of everything that is drawn for one purpose at one position of the training
    clock.
    """
    return torch.Generator().manual_seed(seed_at(seed, purpose, position))


@dataclass(eq=False)
class Prefetcher:
    """Examples in order, each made in a thread while the one before is used.

    Args:
        loader: of this process.
        seed: of the draws.
        objective: draws the timesteps.
        tread_rates: share of the image tokens that skip the route, over the phase
            (`tread.rate_at`).
        num_images: of the phase.
        pin: keep examples in pinned memory; needs CUDA.
        waited_sec: how long training has waited for examples so far.
    """

    loader: Loader | Mixture
    seed: int
    objective: Objective
    tread_rates: Sequence[tuple[float, float]]
    num_images: int
    pin: bool = False
    waited_sec: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "feed", compute_with_one_thread_here)
        self._ahead: dict[int, Future[Example]] = {}

    def example(self, num_images_seen: int) -> Example:
        """This process's share of the global batch that begins after `num_images_seen` images."""
        begun = time.perf_counter()
        ready = self._ahead.pop(num_images_seen, None)  # None: the first of a run
        result = ready.result() if ready else self.make(num_images_seen)
        following = num_images_seen + self.loader.batch_size
        # The next example is requested only now, so at most two are in memory.
        self._ahead = {following: self._thread.submit(self.make, following)}
        self.waited_sec += time.perf_counter() - begun
        return result

    def make(self, num_images_seen: int) -> Example:
        """As `example`, here and now: a pure function of its argument."""
        batch = self.loader.batch(num_images_seen)
        size = self.loader.batch_size
        # Drawn for the global batch on every rank: the draws do not depend on how many there are.
        drawn = generator(self.seed, TRAINING, num_images_seen)
        # All draws come from one generator, so their order is part of the result.
        timestep = self.objective.draw_timesteps(size, drawn)
        noise = torch.randn((size, *batch.raw.shape[1:]), generator=drawn)
        # The rate depends on the share of the phase that is done before this step.
        rate = rate_at(self.tread_rates, num_images_seen / self.num_images)
        kept = draw_kept(size, batch.crops.shape[1], rate, drawn)
        # Contiguous shares in order of rank, as the loader's.
        start = size * self.loader.rank // self.loader.world_size
        stop = size * (self.loader.rank + 1) // self.loader.world_size
        example = Example(
            batch,
            noise[start:stop],
            timestep[start:stop],
            None if kept is None else kept[start:stop],
            rate,
        )
        return example.pinned() if self.pin else example

    def close(self) -> None:
        """End the thread; what it is making is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)
