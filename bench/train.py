"""What the trainer costs beyond its model.

It is measured against the bare step, against a plain loop, and beside an MLflow that is gone. Each
figure is a ratio of things done in one process, in turns, so that a slow moment slows all of them.
Printed are medians over the rounds, and the same in CPU time, in which waiting for a busy core does
not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.models.cpu import KEEPING_MEMORY, training_environment

if (
    __name__ == "__main__"
    and "cuda" not in sys.argv
    and any(name not in os.environ for name in KEEPING_MEMORY)
):
    # As the training's own processes are started; torch reads it when it is imported.
    os.execve(sys.executable, [sys.executable, *sys.argv], training_environment() | os.environ)

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from machine import add_device, add_number, add_only, machine, parser_of
from model import WIDTH128, WIDTH256, Case, sized
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.data.loader import Loader
from hdm.diffusion.flow_matching import draw_timesteps
from hdm.kernels import install
from hdm.models.devices import deterministic
from hdm.models.tread import draw_kept
from hdm.models.xut import XUT
from hdm.pipelines import load_pipeline
from hdm.planning.rehearsal import Rehearsal
from hdm.store import Store
from hdm.training.process.guard import StopRequest
from hdm.training.process.job import TIMING, Job
from hdm.training.state.optimizers import Optimizers, is_muon
from hdm.training.trainer import Trainer
from tests.models import oracle

EXPLANATION = """\
On the CPU (--device cpu), the rows of the table:
  bare       the trainer's step, its optimizers' time taken off, against forward, loss and backward
             pass alone (bench/model.py's step)
  plain      a plain loop over the same model, latents and optimizer, as Hugging Face accelerate's
             examples write it: DataLoader, accumulate, clip_grad_norm_, EMAModel; its time over the
             trainer's. Beside it the same loop with the model as the tests' oracle writes it: what
             somebody has who has not got ours
  tracker    the trainer's step beside the tracking process whose MLflow is dead, hung or answers
             errors, over the step beside that process halted
each for the demo's kind of model (width 128, batch 64, 16 + 8 tokens, Muon) and for width 256
(batch 8, 256 + 32 tokens, AdamW).

On a GPU (--device cuda): xut-base's phases at 256, 512, 768 and 1024 px on made-up latents through
the whole trainer: images/s, utilisation, memory. --tiny takes small sizes instead, to see that
everything runs (also on the CPU).

Examples:
  python bench/train.py                                  # some minutes
  python bench/train.py --only plain --rounds 9
  python bench/train.py --device cuda --compile
  python bench/train.py --device cpu --tiny
"""
STEPS = 3  # a turn
GOALS_H200 = {256: 520.0, 512: 229.0, 768: 109.0, 1024: 27.7}


def pipeline_of(case: Case, kind: str, device: str) -> Pipeline:
    """The demo with one phase of the case's model, batch and lengths; long enough never to end."""
    px = case.side * case.config.patch_size * 8
    optimizer = {
        "kind": kind,
        "learning_rate": 1e-3,
        "muon_learning_rate": 0.01,
        "schedule": "constant",
    }
    phase = {
        "resolution": px,
        "num_images": 10**7,
        "batch_size": case.batch,
        "tread_rate": case.rate,
        "optimizer": optimizer,
    }
    settings = [
        f"train.model={json.dumps(case.config.to_dict())}",
        f"train.phases=[{json.dumps(phase)}]",
        f"encode.max_tokens={case.num_text}",
        f"train.device={device}",
        "train.caption_dropout=0",  # every text as long as the bare step's
    ]
    return load_pipeline("demo", settings, environment={})


def job_of(pipeline: Pipeline, folder: Path, number: int = 0) -> Job:
    """A training of one of its phases on made-up latents and text embeddings."""
    inputs = Rehearsal(
        Store(folder / "store"), pipeline, pipeline.train.phases[number], downscale=8
    ).inputs()
    return Job.apart(pipeline, number, inputs, folder)


@contextlib.contextmanager
def trainer_of(pipeline: Pipeline, number: int = 0) -> Iterator[Trainer]:
    with tempfile.TemporaryDirectory(prefix="hdm-bench-") as folder:
        job = job_of(pipeline, Path(folder), number)
        trainer = Trainer(job, StopRequest(), pipeline.train.device)
        try:
            yield trainer
        finally:
            trainer.prefetcher.close()


def turn(trainer: Trainer) -> None:
    """What the trainer's loop does for a step."""
    trainer.report()
    trainer.step()


class Bare:
    """Forward, loss and backward pass on one batch; then the trainer's optimizers, timed apart."""

    def __init__(self, trainer: Trainer) -> None:
        self.model = XUT(trainer.settings.model)
        install(self.model)
        self.optimizers = Optimizers(self.model, trainer.phase.optimizer)
        self.example, self.route = trainer.prefetcher.make(0), trainer.phase.tread_route
        self.batch = self.example.batch
        self.noisy, self.target = (
            torch.randn_like(self.batch.latent),
            torch.randn_like(self.batch.latent),
        )
        self.positions = self.batch.positions

    def forward_backward(self) -> None:
        batch, example = self.batch, self.example
        assert batch.text is not None
        given = dict(
            positions=self.positions, log_aspect=batch.log_aspect, text_mask=batch.text_mask
        )
        predicted = self.model(
            self.noisy, example.timestep, batch.text, **given, kept=example.kept, route=self.route
        )
        (predicted.float() - self.target).square().mean().backward()

    def optimize(self) -> None:
        self.optimizers.step(1.0)
        self.model.zero_grad(set_to_none=True)


class Rows(Dataset[tuple[Tensor, ...]]):
    """Latents, text embeddings and masks in memory, a picture each.

    This is what an example's script has after its preprocessing.
    """

    def __init__(self, loader: Loader, count: int) -> None:
        rows = [loader.batch(start) for start in range(0, count, loader.batch_size)]
        texts = [row.text for row in rows if row.text is not None]
        self.columns = [
            torch.cat(part)
            for part in ([row.latent for row in rows], texts, [row.text_mask for row in rows])
        ]
        self.positions, self.log_aspect = rows[0].positions[0], rows[0].log_aspect[0]

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:
        return tuple(column[number] for column in self.columns)


class Straightforward(torch.nn.Module):
    """The same model as the tests' oracle writes it, with torch's own functions."""

    def __init__(self, config: XUTConfig) -> None:
        super().__init__()
        self.xut = XUT(config)

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        text: Tensor,
        *,
        positions: Tensor,
        log_aspect: Tensor,
        text_mask: Tensor,
        kept: Tensor,
    ) -> Tensor:
        keep = torch.zeros(positions.shape[:2], dtype=torch.bool).scatter(1, kept, True)
        weights = dict(self.xut.named_parameters())
        predicted: Tensor = oracle.xut(
            weights, self.xut.config, latent, timestep, text, positions, log_aspect, text_mask, keep
        )
        return predicted


class PlainLoop:
    """A loop as the examples of accelerate and diffusers write it.

    Nothing is read ahead or fused, and the loss is read at every step.
    """

    def __init__(
        self, trainer: Trainer, make_model: Callable[[XUTConfig], torch.nn.Module] = XUT
    ) -> None:
        self.phase, settings = trainer.phase, trainer.phase.optimizer
        assert isinstance(trainer.prefetcher.loader, Loader)
        rows = Rows(trainer.prefetcher.loader, 16 * self.phase.batch_size)
        model = make_model(trainer.settings.model).train()
        install(model)
        self.accelerator = Accelerator(cpu=True)
        self.data = DataLoader(rows, batch_size=self.phase.batch_size, shuffle=True, drop_last=True)
        muon = [
            value
            for name, value in model.named_parameters()
            if settings.kind == "muon" and is_muon(name, value)
        ]
        others = [
            value for value in model.parameters() if not any(value is taken for taken in muon)
        ]
        found: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(others, lr=settings.learning_rate, betas=settings.betas)
        ]
        if muon:
            rate, decay = settings.muon_learning_rate, settings.weight_decay
            found.append(torch.optim.Muon(muon, lr=rate, weight_decay=decay))
        self.model, self.data, *self.optimizers = self.accelerator.prepare(model, self.data, *found)
        self.schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0) for optimizer in found
        ]
        self.average = EMAModel(self.model.parameters(), decay=0.999)
        self.positions, self.log_aspect = rows.positions, rows.log_aspect
        self._batches: Iterator[tuple[Tensor, ...]] = iter(self.data)

    def _next(self) -> tuple[Tensor, ...]:
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.data)
            batch = next(self._batches)
        return batch

    def step(self) -> float:
        latents, text, mask = self._next()
        with self.accelerator.accumulate(self.model):
            noise, timestep = (
                torch.randn_like(latents),
                draw_timesteps(len(latents), torch.default_generator),
            )
            noisy = timestep.view(-1, 1, 1, 1) * noise + (1 - timestep.view(-1, 1, 1, 1)) * latents
            given = dict(
                positions=self.positions.expand(len(latents), -1, -1),
                log_aspect=self.log_aspect.expand(len(latents)),
            )
            kept = draw_kept(len(latents), len(self.positions), self.phase.tread_rate)
            predicted = self.model(noisy, timestep, text, text_mask=mask, kept=kept, **given)
            loss = F.mse_loss(predicted.float(), noise - latents, reduction="mean")
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(
                    self.model.parameters(), self.phase.optimizer.clip_norm
                )
            for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.average.step(self.model.parameters())
        return loss.detach().item()


@dataclass(frozen=True)
class Seconds:
    """Of one contender, a round each: by the clock and of this process's CPU time."""

    wall: list[float]
    cpu: list[float]

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(
            *(
                [a - b for a, b in zip(*pair, strict=True)]
                for pair in ((self.wall, other.wall), (self.cpu, other.cpu))
            )
        )

    def over(self, other: Seconds) -> tuple[float, float]:
        """The median ratio, by the clock and of CPU time."""
        pairs = ((self.wall, other.wall), (self.cpu, other.cpu))
        wall, cpu = (statistics.median(a / b for a, b in zip(*pair, strict=True)) for pair in pairs)
        return wall, cpu


def in_turns(contenders: dict[str, Callable[[], object]], rounds: int) -> dict[str, Seconds]:
    """A turn of each contender in each round, every other round backwards.

    One round before them does not count.
    """
    seconds = {name: Seconds([], []) for name in contenders}
    for number in range(rounds + 1):
        order = list(contenders.items())
        for name, work in order if number % 2 else reversed(order):
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            if number:
                seconds[name].wall.append(time.perf_counter() - wall)
                seconds[name].cpu.append(time.process_time() - cpu)
    return seconds


def times(count: int, work: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            work()

    return run


def against_bare(trainer: Trainer, rounds: int) -> tuple[tuple[float, float], str]:
    bare, spent = Bare(trainer), Seconds([], [])

    def both() -> None:
        wall = cpu = 0.0
        for _ in range(STEPS):
            bare.forward_backward()
            wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
            bare.optimize()
            wall, cpu = wall + time.perf_counter(), cpu + time.process_time()
        spent.wall.append(wall)
        spent.cpu.append(cpu)

    found = in_turns({"trainer": times(STEPS, partial(turn, trainer)), "both": both}, rounds)
    optimizing = Seconds(spent.wall[1:], spent.cpu[1:])  # the first round does not count
    step = statistics.median(found["trainer"].wall) / STEPS
    share = statistics.median(optimizing.wall) / STEPS / step
    detail = f"step {1e3 * step:.0f} ms, optimizers {share:.0%} of it"
    return (found["trainer"] - optimizing).over(found["both"] - optimizing), detail


def against_plain(trainer: Trainer, rounds: int) -> tuple[tuple[float, float], str]:
    loops = {"plain": PlainLoop(trainer), "straightforward": PlainLoop(trainer, Straightforward)}
    seconds = in_turns(
        {"trainer": partial(turn, trainer), **{name: loop.step for name, loop in loops.items()}},
        rounds * STEPS,
    )
    eager = seconds["straightforward"].over(seconds["trainer"])[0]
    plain_ms = 1e3 * statistics.median(seconds["plain"].wall)
    detail = f"plain step {plain_ms:.0f} ms; with the oracle's writing of the model {eager:.2f}"
    return seconds["plain"].over(seconds["trainer"]), detail


class Refusing(BaseHTTPRequestHandler):
    """Answers everything with an error."""

    def _answer(self) -> None:
        self.send_error(500)

    do_GET = do_POST = do_PATCH = _answer  # noqa: N815  (the library's names)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def ailing_server(kind: str) -> Iterator[str]:
    """An address of an MLflow that is dead, hung or answers errors."""
    if kind == "dead":
        yield "http://127.0.0.1:9"
    elif kind == "hung":
        with socket.create_server(
            ("127.0.0.1", 0), backlog=64
        ) as server:  # takes connections and says nothing
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
    else:
        with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_address[1]}"
            server.shutdown()


@contextlib.contextmanager
def tracking_process(folder: Path, uri: str) -> Iterator[subprocess.Popen[str]]:
    """The process that follows a training's files, and tries to hand them on."""
    command = [sys.executable, "-m", "tasks.tracker", str(folder)]
    paths = {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "MLFLOW_TRACKING_URI": uri}
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, text=True, env={**os.environ, **paths}, **quiet
    )  # type: ignore[call-overload]
    assert process.stdin
    run = {
        "event": "run",
        "at": time.time(),
        "pipeline": "bench",
        "recipe": "b" * 16,
        "params": {},
        "overrides": [],
        "pid": 1,
        "flow_run": "",
    }
    for event in (
        run,
        {"event": "begin", "at": time.time(), "name": "train.64px", "folder": str(folder)},
    ):
        process.stdin.write(json.dumps({**event, "at": time.time()}) + "\n")
    process.stdin.flush()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def beside_tracker(trainer: Trainer, rounds: int) -> tuple[tuple[float, float], str]:
    found, shown = [], []
    steps = times(5 * STEPS, partial(turn, trainer))
    for kind in ("dead", "hung", "errors"):
        with ailing_server(kind) as uri, tracking_process(Path(trainer.job.folder), uri) as process:
            time.sleep(12)  # its imports are over

            def beside(process: subprocess.Popen[str] = process, halted: bool = False) -> None:
                process.send_signal(signal.SIGSTOP if halted else signal.SIGCONT)
                steps()

            seconds = in_turns({"halted": partial(beside, halted=True), "alive": beside}, rounds)
        found.append(seconds["alive"].over(seconds["halted"]))
        shown.append(f"{kind} {found[-1][0]:.3f}")
    return max(found), "the worst of " + ", ".join(shown)


@dataclass(frozen=True)
class Row:
    what: str
    must: str
    aim: str
    measure: Callable[[Trainer, int], tuple[tuple[float, float], str]]


ROWS = {
    "bare": Row(
        "trainer's step against the bare model's, optimizers apart",
        "≤ 1.10",
        "≤ 1.03",
        against_bare,
    ),
    "plain": Row(
        "plain accelerate loop's step over the trainer's", "≥ 1.0", "≥ 1.3", against_plain
    ),
    "tracker": Row(
        "step beside a tracker without MLflow, over one beside none", "≤ 1.01", "", beside_tracker
    ),
}
CASES = {"width128": (WIDTH128, "muon"), "width256": (WIDTH256, "adamw")}


def cpu_table(names: list[str], rounds: int) -> None:
    print("| row | model | | measured | CPU time | must | aim | |\n" + "|---" * 8 + "|")
    for name in names:
        for model, (case, kind) in CASES.items():
            if name == "tracker" and model != "width128":
                continue
            with trainer_of(pipeline_of(case, kind, "cpu")) as trainer, deterministic(True):
                (wall, cpu), detail = ROWS[name].measure(trainer, rounds)
            row = ROWS[name]
            what = f"{name} | {model}, {kind} | {row.what}"
            figures = f"**{wall:.2f}** | {cpu:.2f} | {row.must} | {row.aim}"
            print(f"| {what} | {figures} | {detail} |", flush=True)


def base_table(device: str, steps: int, *, tiny: bool, compiled: bool) -> None:
    """xut-base's phases on made-up latents.

    They are as published but for `num_processes: 1` and texts of the phase's full length.
    """
    columns = (
        "px",
        "micro-batch",
        "images/s",
        "goal (H200)",
        "TFLOP/s",
        "utilisation",
        "waiting for data",
        "peak memory",
    )
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for number in range(4):
        with trainer_of(base_pipeline(device, number, tiny=tiny, compiled=compiled)) as trainer:
            for _ in range(steps):
                turn(trainer)
            trainer.report()
            last = json.loads((Path(trainer.job.folder) / TIMING).read_text().splitlines()[-1])
            px, micro = (
                (256, 512, 768, 1024)[number],
                trainer.phase.micro_batch or trainer.phase.batch_size,
            )
            speed = f"{last['images_per_sec']:.1f} | {GOALS_H200[px]}"
            work = f"{last['tflops']:.3g} | {last['utilisation']:.1%}"
            cost = f"{last['data_wait']:.1%} | {last['peak_memory_gb']:.2f} GB"
            print(f"| {px} | {micro} | {speed} | {work} | {cost} |", flush=True)


def base_pipeline(device: str, number: int, *, tiny: bool, compiled: bool) -> Pipeline:
    """With that phase alone, four micro-batches a step, and text embeddings from the cache."""
    settings = [
        "encode.text_embeddings=true",
        *(f"train.{name}=0" for name in ("tag_drop", "group_drop")),
        "train.tag_shuffle=false",
    ]
    base = load_pipeline("hdm-xut-base", settings, environment={})
    phase = base.train.phases[number].model_copy(
        update={"batch_size": 4 * (base.train.phases[number].micro_batch or 1)}
    )
    model = XUTConfig.preset("base")
    if tiny:
        phase = phase.model_copy(
            update={
                "resolution": phase.resolution // 8,
                "batch_size": 4,
                "micro_batch": 2,
                "max_tokens": 8,
            }
        )
        model = replace(sized(64, 16), text_width=64)
    changes = {
        "phases": (phase,),
        "model": model,
        "device": device,
        "compile": compiled,
        "num_processes": 1,
    }
    return base.model_copy(update={"train": base.train.model_copy(update=changes)})


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_device(parser)
    add_only(parser, ROWS)
    add_number(parser, "--rounds", 9, f"of {STEPS} steps each")
    add_number(parser, "--steps", 20, "of the GPU's table")
    parser.add_argument(
        "--compile", action="store_true", help="compile block by block (GPU's table)"
    )
    given = parser.parse_args()
    print(machine(given.device) + "\n")
    if given.device == "cuda" or given.tiny:
        base_table(given.device, given.steps, tiny=given.tiny, compiled=given.compile)
    else:
        cpu_table(given.only or list(ROWS), given.rounds)


if __name__ == "__main__":
    main()
