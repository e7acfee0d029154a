"""What a change costs: the same work in two checkouts of this project, in turns.

Each turn is a process of its own that imports the checkout's code and its benches, warms up and
measures the work's processor time, which waiting for a busy core does not lengthen.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import comb
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
EXPLANATION = """\
Rows, each the processor time in this checkout over that in the other one:
  model     forward and backward passes at width 128 and 256
  sampling  guided sampling, 4 steps, width 256
  train     steps of the trainer with all that surrounds them, width 128, Muon
  loader    shuffled training batches
  encode    the encode stage on photographs, its decoding processes included (needs ../shared/data)
  demo      the whole demo, on an eighth of its pictures

Examples:
  git worktree add ../before v0.1.0
  python bench/checkouts.py ../before
  python bench/checkouts.py ../before --only train --pairs 21
"""
CONFIDENCE = 0.95


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hdm-bench-") as folder:
        yield Path(folder)


def _model() -> None:
    from model import WIDTH128, WIDTH256, Bench

    small, large = Bench(WIDTH128), Bench(WIDTH256)

    def both() -> None:
        small.ours()
        large.ours()

    _measure(both, 3)


def _sampling() -> None:
    import torch
    from model import WIDTH256, Bench

    from hdm.diffusion.guidance import Text
    from hdm.diffusion.sampler import Sampling, generate

    bench = Bench(WIDTH256)
    model = bench.model.eval()
    size = bench.latent.shape[-1]
    prompt = Text(bench.text, None)
    empty = Text(torch.randn_like(bench.text[:1]), None)
    sampling = Sampling(4, guidance_scale=3.0)
    seeds = range(len(bench.text))
    _measure(
        lambda: generate(
            model, prompt, empty, height=size, width=size, seeds=seeds, sampling=sampling
        ),
        1,
    )


def _train() -> None:
    from model import WIDTH128
    from train import pipeline_of, trainer_of, turn

    with trainer_of(pipeline_of(WIDTH128, "muon", "cpu")) as trainer:
        _measure(lambda: turn(trainer), 10)


def _loader() -> None:
    from loader import World, shuffled

    with _folder() as folder:
        epoch = shuffled(World(folder, 20_000, 256), normalized=False)
        _measure(epoch, 60)


def _encode() -> None:
    from encode import DATA, World

    with _folder() as folder:
        world = World(folder, DATA, batches=4, batch_size=4, device="cpu")
        _measure(world.make, 1)


def _demo() -> None:
    small = {
        "download.scenes.count": 400,
        "train.phases.0.num_images": 320,
        "train.phases.1.num_images": 960,
        "evaluate.num_images": 32,
    }
    settings = [word for name, value in small.items() for word in ("--set", f"{name}={value}")]
    with _folder() as folder:
        command = [sys.executable, "-c", "from flows.cli import app; app()", "run", "demo"]
        _measure(
            lambda: subprocess.run(
                [*command, "--store", str(folder), *settings], check=True, capture_output=True
            ),
            1,
            warm_up=False,  # a second run would find everything made
        )


ROWS: dict[str, Callable[[], None]] = {
    "model": _model,
    "sampling": _sampling,
    "train": _train,
    "loader": _loader,
    "encode": _encode,
    "demo": _demo,
}


def _measure(work: Callable[[], object], count: int, *, warm_up: bool = True) -> None:
    """Print the seconds of processor time of the work done so many times."""
    if warm_up:
        work()
    before = _cpu_sec()
    for _ in range(count):
        work()
    print(_cpu_sec() - before)


def _cpu_sec() -> float:
    """Of this process and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def seconds(checkout: Path, row: str) -> float:
    """The processor time of a row's work in a checkout, measured in a process of its own."""
    environment = os.environ | {
        "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'bench'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, __file__, str(checkout), "--work", row]
    printed = subprocess.run(
        command, env=environment, check=True, stdout=subprocess.PIPE, text=True, cwd=checkout
    ).stdout
    return float(printed.split()[-1])


def median_interval(ratios: list[float]) -> tuple[float, float]:
    """The interval of the median whose ends are order statistics (the sign test's): it holds the
    median with a probability of at least CONFIDENCE whatever the distribution; of few pairs it
    is the whole range.
    """
    ordered = sorted(ratios)
    count = len(ordered)
    outside = 0.0
    cut = 0
    while cut < count // 2:
        outside += 2 * comb(count, cut) / 2**count
        if outside > 1 - CONFIDENCE:
            break
        cut += 1
    first = max(cut - 1, 0)
    return ordered[first], ordered[count - 1 - first]


def compare(other: Path, names: list[str], pairs: int) -> None:
    print("| row | median ratio | 95 % interval | here | there |\n|---|---|---|---|---|")
    for name in names:
        times: dict[Path, list[float]] = {HERE: [], other: []}
        for number in range(pairs):
            # Who goes first changes, so that a drift of the machine's speed favours nobody.
            order = (HERE, other) if number % 2 == 0 else (other, HERE)
            for checkout in order:
                times[checkout].append(seconds(checkout, name))
        ratios = [here / there for here, there in zip(times[HERE], times[other], strict=True)]
        low, high = median_interval(ratios)
        print(
            f"| {name} | **{statistics.median(ratios):.3f}** | {low:.3f} to {high:.3f} "
            f"| {statistics.median(times[HERE]):.2f} s | {statistics.median(times[other]):.2f} s |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--only", action="append", choices=ROWS, help="a row; may be repeated")
    parser.add_argument("--pairs", type=int, default=11, help="pairs a row (default: 11)")
    parser.add_argument("--work", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        ROWS[options.work]()
        return
    compare(options.other.resolve(), options.only or list(ROWS), options.pairs)


if __name__ == "__main__":
    main()
