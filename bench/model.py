"""How fast the denoiser is, measured against what the machine can do.

Each figure is a ratio of things measured in one process, in turns, so that a slow moment slows all
of them. Printed are medians over the rounds. The limit is the machine's own matrix product at the
same precision: the faster of 2048³ and the largest product of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.models.cpu import KEEPING_MEMORY, training_environment

if __name__ == "__main__" and any(name not in os.environ for name in KEEPING_MEMORY):
    # As the training's own processes are started; torch reads it when it is imported.
    os.execve(sys.executable, [sys.executable, *sys.argv], training_environment() | os.environ)

import torch
from machine import add_device, add_number, add_only, machine, parser_of
from torch import Tensor

from hdm.architecture import XUTConfig
from hdm.diffusion.guidance import Text
from hdm.diffusion.sampler import Sampling, generate
from hdm.kernels import install
from hdm.kernels.linear import linear
from hdm.models.execution import compile_blocks, recompute_activations
from hdm.models.flops import Pass, training_flops
from hdm.models.layers import Block
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from hdm.positions import full_map
from tests.models import oracle

EXPLANATION = """\
On the CPU (--device cpu), the rows of the table:
  width512   training step, float32, batch 4, 256 image + 64 text tokens: share of the rate of
             torch's matrix product, and of the one that the blocks' linear layers take, which is
             oneDNN's where torch takes MKL's
  width256   the same at batch 8, 256 + 32 tokens
  width128   the demo's kind, batch 64, 16 + 8 tokens: how many times as fast as the oracle
  bfloat16   width512 in bfloat16 autocast: how many times as fast as in float32
  sampling   16 guided steps at width 256: how many times as fast as the oracle with two passes each
  memory     width512's step with every block recomputed: share of the peak memory without
  padding    the demo's kind with half of the text tokens padding: share of the time that it takes
             where the feed-forward computes them too
  tread      half the tokens dropped of 1024: share of the saved FLOPs that becomes time
A training step is the forward pass, the mean squared error and the backward pass; the optimizer is
not in it. The oracle is tests/models/oracle.py, a straightforward eager implementation with torch's
own functions.

On a GPU (--device cuda): xut-base in bfloat16 at the four resolutions of the published recipe, with
images/s, TFLOP/s, share of that card's measured matrix product, and peak memory. --tiny takes small
sizes instead, to see that everything runs (also on the CPU).

Examples:
  python bench/model.py                          # the CPU's table: some minutes
  python bench/model.py --only width128 --repeats 20
  python bench/model.py --compile --repeats 3    # the same with compiled blocks beside it
  python bench/model.py --device cuda --compile  # on a GPU; needs torch, numpy, safetensors alone
  python bench/model.py --device cpu --tiny      # the GPU's path with small sizes
"""


@dataclass(frozen=True)
class Case:
    """A model and a batch for it: `side`² image tokens and `num_text` text tokens."""

    config: XUTConfig
    batch: int
    side: int
    num_text: int
    rate: float = 0.5

    @property
    def tokens(self) -> tuple[int, int]:
        return self.side**2, self.num_text

    def flops(self) -> int:
        return training_flops(self.config, Pass(*self.tokens, self.batch, self.rate))

    def largest_product(self) -> tuple[int, int, int]:
        """Of the step, as (tokens, inputs, outputs): the feed-forward's first layer."""
        return self.batch * sum(self.tokens), self.config.width, 2 * self.config.mlp_width


def sized(width: int, head_size: int, **changes: Any) -> XUTConfig:
    """Depth 4, enc 1, dec 3, prev 1, post 3, as xut-base; feed-forward three times the width."""
    sizes: dict[str, Any] = dict(
        width=width,
        num_heads=width // head_size,
        head_size=head_size,
        mlp_width=3 * width,
        text_width=width,
    )
    return replace(XUTConfig(), **{**sizes, **changes})


WIDTH512 = Case(sized(512, 64), batch=4, side=16, num_text=64)
WIDTH256 = Case(sized(256, 64), batch=8, side=16, num_text=32)
WIDTH128 = Case(sized(128, 32, channels=8).recommended(), batch=64, side=4, num_text=8)
TREAD = Case(sized(256, 64), batch=2, side=32, num_text=64)


class Bench:
    """A model with weights that all matter, its inputs, and the steps to be timed."""

    def __init__(self, case: Case, device: str = "cpu", *, compiled: bool = False) -> None:
        torch.manual_seed(0)
        self.case, self.device, config = case, device, case.config
        self.model = XUT(config).to(device)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        if compiled:
            compile_blocks(self.model)
        install(self.model)
        side = case.side * config.patch_size
        self.latent = torch.randn(case.batch, config.channels, side, side, device=device)
        self.target, self.timestep = (
            torch.randn_like(self.latent),
            torch.rand(case.batch, device=device),
        )
        self.text = torch.randn(case.batch, case.num_text, config.text_width, device=device)
        self.mask = torch.arange(case.num_text, device=device) < torch.randint(
            1, case.num_text + 1, (case.batch, 1), device=device
        )
        self.positions, self.aspect = (
            full_map(case.side, case.side).to(device),
            torch.zeros(case.batch, device=device),
        )
        self.kept = draw_kept(case.batch, case.side**2, case.rate, device=device)
        self.keep = None
        if self.kept is not None:
            self.keep = torch.zeros(
                case.batch, case.side**2, dtype=torch.bool, device=device
            ).scatter(1, self.kept, True)

    def _learn(self, predicted: Tensor) -> None:
        (predicted.float() - self.target).square().mean().backward()
        self.model.zero_grad(set_to_none=True)

    def ours(self) -> None:
        given = dict(positions=self.positions, log_aspect=self.aspect, text_mask=self.mask)
        self._learn(self.model(self.latent, self.timestep, self.text, **given, kept=self.kept))

    def ours_bfloat16(self) -> None:
        with torch.autocast(self.device, torch.bfloat16):
            given = dict(positions=self.positions, log_aspect=self.aspect, text_mask=self.mask)
            predicted = self.model(self.latent, self.timestep, self.text, **given, kept=self.kept)
        self._learn(predicted)

    def oracle(self) -> None:
        inputs = (
            self.latent,
            self.timestep,
            self.text,
            self.positions,
            self.aspect,
            self.mask,
            self.keep,
        )
        self._learn(oracle.xut({**dict(self.model.named_parameters())}, self.case.config, *inputs))


def product(
    size: tuple[int, int, int], dtype: torch.dtype, device: str = "cpu", *, by_layer: bool = False
) -> tuple[Callable[[], None], float]:
    """A matrix product to be timed, done as often as makes some 20 GFLOP, and its FLOPs.

    by_layer: by the linear layer of the blocks, which on some CPUs multiplies faster than torch's
        matrix product.
    """
    rows, inner, columns = size
    a, b = (
        torch.randn(rows, inner, device=device).to(dtype),
        torch.randn(inner, columns, device=device).to(dtype),
    )
    out, flops = torch.empty(rows, columns, device=device, dtype=dtype), 2 * rows * inner * columns
    multiply = (
        partial(linear, a, b.T.contiguous(), None) if by_layer else partial(torch.mm, a, b, out=out)
    )
    times = max(1, round(2e10 / flops))

    @torch.no_grad()
    def run() -> None:
        for _ in range(times):
            multiply()

    return run, flops * times


def in_turns(
    contenders: dict[str, Callable[[], None]], repeats: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats + 1):
        for name, work in contenders.items():
            _wait(device)
            begun = time.perf_counter()
            work()
            _wait(device)
            if number:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(above: list[float], below: list[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


@dataclass(frozen=True)
class Figure:
    """A row's ratio, and the same with compiled blocks where that was asked for."""

    value: float
    detail: str
    compiled: float | None = None


def share_of_limit(case: Case, repeats: int, compiled: bool) -> Figure:
    bench = Bench(case)
    sizes = {"2048³": (2048,) * 3, "largest product": case.largest_product()}
    limits = {name: product(size, torch.float32) for name, size in sizes.items()}
    by_layer = {
        f"layer, {name}": product(size, torch.float32, by_layer=True)
        for name, size in sizes.items()
    }
    work = {
        "ours": bench.ours,
        "oracle": bench.oracle,
        **{name: run for name, (run, _) in (limits | by_layer).items()},
    }
    if compiled:
        work["compiled"] = Bench(case, compiled=True).ours
    seconds = in_turns(work, repeats)
    rates = {name: flops / statistics.median(seconds[name]) for name, (_, flops) in limits.items()}
    limit = max(rates, key=rates.__getitem__)
    # Seconds that the step would take at the limit, by round.
    ideal = [case.flops() / limits[limit][1] * value for value in seconds[limit]]
    best = max(flops / statistics.median(seconds[name]) for name, (_, flops) in by_layer.items())
    of_best = ratio(ideal, seconds["ours"]) * rates[limit] / best
    detail = (
        f"oracle {ratio(ideal, seconds['oracle']):.2f}; "
        f"limit {rates[limit] / 1e9:.0f} GFLOP/s ({limit}); "
        f"{of_best:.2f} of the layer's {best / 1e9:.0f}"
    )
    value, shown = (
        ratio(ideal, seconds["ours"]),
        ratio(ideal, seconds["compiled"]) if compiled else None,
    )
    return Figure(value, f"{detail}; step {statistics.median(seconds['ours']):.3f} s", shown)


def against_oracle(case: Case, repeats: int, compiled: bool) -> Figure:
    bench = Bench(case)
    work = {"ours": bench.ours, "oracle": bench.oracle}
    if compiled:
        work["compiled"] = Bench(case, compiled=True).ours
    seconds = in_turns(work, repeats)
    step = statistics.median(seconds["ours"])
    detail = f"step {1e3 * step:.0f} ms, {case.flops() / step / 1e9:.0f} GFLOP/s"
    return faster_than_oracle(seconds, detail)


def faster_than_oracle(seconds: Mapping[str, list[float]], detail: str) -> Figure:
    """How many times as fast as the oracle, and the same compiled where that was measured."""
    oracle_seconds = seconds["oracle"]
    compiled = ratio(oracle_seconds, seconds["compiled"]) if "compiled" in seconds else None
    return Figure(ratio(oracle_seconds, seconds["ours"]), detail, compiled)


def bfloat16(repeats: int, compiled: bool) -> Figure:
    bench = Bench(WIDTH512)
    products = {
        str(dtype): product((2048,) * 3, dtype)[0] for dtype in (torch.float32, torch.bfloat16)
    }
    seconds = in_turns(
        {"float32": bench.ours, "bfloat16": bench.ours_bfloat16, **products}, repeats
    )
    machine = ratio(seconds["torch.float32"], seconds["torch.bfloat16"])
    return Figure(
        ratio(seconds["float32"], seconds["bfloat16"]),
        f"the machine's product is {machine:.1f}× as fast",
    )


def sampling(repeats: int, compiled: bool, steps: int = 16, scale: float = 3.0) -> Figure:
    case = replace(WIDTH256, batch=4)
    bench = Bench(case)
    model, text, empty = bench.model.eval(), bench.text, torch.randn_like(bench.text[:1])
    settings = Sampling(steps, guidance_scale=scale)
    size = bench.latent.shape[-1]
    weights = dict(model.named_parameters())

    def ours(model: XUT) -> None:
        generate(
            model,
            Text(text, None),
            Text(empty, None),
            height=size,
            width=size,
            seeds=range(len(text)),
            sampling=settings,
        )

    @torch.no_grad()
    def plain() -> None:
        latent = torch.randn_like(bench.latent)
        for step in range(steps):
            timestep = torch.full((len(latent),), 1 - step / steps)
            velocities = [
                oracle.xut(
                    weights, model.config, latent, timestep, words, bench.positions, bench.aspect
                )
                for words in (text, empty.expand_as(text))
            ]
            latent = latent - (velocities[1] + scale * (velocities[0] - velocities[1])) / steps

    work: dict[str, Callable[[], None]] = {"ours": partial(ours, model), "oracle": plain}
    if compiled:
        work["compiled"] = partial(ours, Bench(case, compiled=True).model.eval())
    seconds = in_turns(work, repeats)
    detail = f"batch 4, {statistics.median(seconds['ours']):.2f} s"
    return faster_than_oracle(seconds, detail)


def tread(repeats: int, compiled: bool) -> Figure:
    dense, half = Bench(replace(TREAD, rate=0.0)), Bench(TREAD)
    seconds = in_turns({"dense": dense.ours, "half": half.ours}, repeats)
    saved_time, saved_flops = (
        1 - ratio(seconds["half"], seconds["dense"]),
        1 - half.case.flops() / dense.case.flops(),
    )
    return Figure(
        saved_time / saved_flops,
        f"{saved_time:.1%} of the time for {saved_flops:.1%} of the FLOPs; width 256, batch 2",
    )


def padding(repeats: int, compiled: bool) -> Figure:
    case = replace(WIDTH128, batch=32, num_text=24)
    ours, without = Bench(case), Bench(case)
    for block in without.model.blocks():
        block.__class__ = Block  # all other kernels stay
    seconds = in_turns({"ours": ours.ours, "without": without.ours}, repeats)
    share = 1 - float(ours.mask.float().mean())
    return Figure(
        ratio(seconds["ours"], seconds["without"]),
        f"{share:.0%} of 24 text tokens, beside 16 of the picture; batch 32",
    )


MEMORY = {
    "width512": WIDTH512,
    "width512, batch 16": replace(WIDTH512, batch=16),
    "width256": WIDTH256,
}


def memory(repeats: int, compiled: bool) -> Figure:
    """How far a step raises a whole process's peak of resident memory.

    The growth counts from before the model was made.
    """
    peaks = {name: [_peak_bytes(name, share) for share in (0.0, 1.0)] for name in MEMORY}
    details = []
    for name, (none, full) in peaks.items():
        constant = 8 * sum(value.numel() for value in XUT(MEMORY[name].config).parameters())
        without = (full - constant) / (none - constant)
        shown = f"{none / 1e6:.0f} MB → {full / 1e6:.0f} MB ({full / none:.2f})"
        details.append(f"{name}: {shown}, without weights and gradients {without:.2f}")
    none, full = peaks["width512"]
    return Figure(full / none, "; ".join(details))


def _peak_bytes(name: str, share: float) -> int:
    command = [sys.executable, __file__, "--memory-of", json.dumps([name, share])]
    # What is freed goes back at once, so that the peak is of memory in use.
    returning = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_MMAP_MAX_": "1000000",
        "MALLOC_TRIM_THRESHOLD_": "131072",
    }
    return int(
        subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | returning
        ).stdout
    )


def measure_memory(name: str, share: float) -> int:
    torch.mm(torch.randn(64, 64), torch.randn(64, 64))  # what the libraries take for themselves
    before = _peak_resident_bytes()
    bench = Bench(MEMORY[name])
    recompute_activations(bench.model, share)
    for _ in range(2):
        bench.ours()
    return _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    """Of this program alone: getrusage's figure begins with that of the process that started it."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


@dataclass(frozen=True)
class Row:
    what: str
    must: str
    aim: str
    measure: Callable[[int, bool], Figure]


ROWS = {
    "width512": Row(
        "float32 step, width 512: share of the matmul rate",
        "≥ 0.80",
        "≥ 0.92",
        partial(share_of_limit, WIDTH512),
    ),
    "width256": Row(
        "float32 step, width 256: share of the matmul rate",
        "≥ 0.70",
        "≥ 0.85",
        partial(share_of_limit, WIDTH256),
    ),
    "width128": Row(
        "float32 step, width 128, against the oracle",
        "≥ 1.3",
        "≥ 2",
        partial(against_oracle, WIDTH128),
    ),
    "bfloat16": Row("bfloat16 autocast against float32, width 512", "≥ 1.4", "≥ 1.8", bfloat16),
    "sampling": Row(
        "guided sampling, 16 steps, width 256, against the oracle", "≥ 1.2", "≥ 1.6", sampling
    ),
    "memory": Row(
        "peak memory of a step, all blocks recomputed against none", "≤ 0.5", "≤ 0.35", memory
    ),
    "padding": Row("a step without padding in the feed-forward against one with", "", "", padding),
    "tread": Row(
        "TREAD 0.5 at 1024 image tokens: FLOPs saved that become time", "≥ 0.80", "≥ 0.95", tread
    ),
}


def cpu_table(names: list[str], repeats: int, *, compiled: bool) -> None:
    print("| row | | measured | compiled | must | aim | |\n|---|---|---|---|---|---|---|")
    for name in names:
        row, figure = (
            ROWS[name],
            ROWS[name].measure(repeats * (5 if name == "width128" else 1), compiled),
        )
        shown = "" if figure.compiled is None else f"**{figure.compiled:.2f}**"
        figures = f"**{figure.value:.2f}** | {shown} | {row.must} | {row.aim}"
        print(f"| {name} | {row.what} | {figures} | {figure.detail} |", flush=True)


# The four resolutions of the published recipe: image tokens a side, text tokens, TREAD rate,
# micro-batch, share of recomputed blocks.
RESOLUTIONS = {
    256: (16, 256, 0.5, 128, 0.0),
    512: (32, 256, 0.5, 64, 1.0),
    768: (48, 256, 0.5, 64, 1.0),
    1024: (64, 512, 0.0, 16, 1.0),
}
GOALS_H200 = {256: 520.0, 512: 229.0, 768: 109.0, 1024: 27.7}


def base_table(
    device: str, repeats: int, *, tiny: bool, compiled: bool, share: float | None
) -> None:
    """xut-base (or a tiny one) at the four resolutions."""
    peak = _product_peak(device, tiny)
    print(f"matrix product in bfloat16: {peak / 1e12:.3g} TFLOP/s\n")
    columns = (
        "px",
        "batch",
        "recomputed",
        "images/s",
        "goal (H200)",
        "TFLOP/s",
        "of the product's rate",
        "peak memory",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for px, (side, num_text, rate, batch, published) in RESOLUTIONS.items():
        recompute = published if share is None else share
        case = Case(XUTConfig.preset("base"), batch, side, num_text, rate)
        if tiny:
            case = Case(sized(64, 16), 2, side // 8, num_text // 32, rate)
        images, memory_gb = _images_per_sec(
            case, device, repeats, compiled=compiled, share=recompute
        )
        rate_flops = images * case.flops() / case.batch
        speed = (
            f"{images:.1f} | {GOALS_H200[px]} | {rate_flops / 1e12:.3g} | {rate_flops / peak:.1%}"
        )
        print(
            f"| {px} | {case.batch} | {recompute:g} | {speed} | {memory_gb:.2f} GB |",
            flush=True,
        )


def _images_per_sec(
    case: Case, device: str, repeats: int, *, compiled: bool, share: float
) -> tuple[float, float]:
    bench = Bench(case, device, compiled=compiled)
    recompute_activations(bench.model, share)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = in_turns({"step": bench.ours_bfloat16}, repeats, device)["step"]
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return case.batch / statistics.median(seconds), peak / 1e9


def _product_peak(device: str, tiny: bool) -> float:
    """FLOP/s of the faster of a large cube and the largest product at 1024 px."""
    sizes = [(512,) * 3] if tiny else [(8192,) * 3, (16 * (4096 + 512), 1024, 6144)]
    rates = []
    for size in sizes:
        run, flops = product(size, torch.bfloat16, device)
        rates.append(flops / statistics.median(in_turns({"product": run}, 20, device)["product"]))
    return max(rates)


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_device(parser)
    add_only(parser, ROWS)
    add_number(parser, "--repeats", 7, "rounds, five times as many for width128")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)"
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile block by block; the CPU's table shows both (needs g++, a minute a row)",
    )
    parser.add_argument(
        "--recompute",
        type=float,
        metavar="SHARE",
        help="share of recomputed blocks (GPU's table; default: as published)",
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(measure_memory(*json.loads(arguments.memory_of)))
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(machine(arguments.device) + "\n")
    if arguments.device == "cuda" or arguments.tiny:
        base_table(
            arguments.device,
            arguments.repeats,
            tiny=arguments.tiny,
            compiled=arguments.compile,
            share=arguments.recompute,
        )
    else:
        cpu_table(arguments.only or list(ROWS), arguments.repeats, compiled=arguments.compile)


if __name__ == "__main__":
    main()
