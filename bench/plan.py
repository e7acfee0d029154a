"""How good `hdm plan` is: against the published run's hours, and against training here."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from machine import parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.pipelines import load_pipeline
from hdm.planning import counts, hardware, work
from hdm.planning.hardware import CARDS, PUBLISHED_CARD
from hdm.planning.plan import Measured
from hdm.planning.work import Work
from hdm.store import Store
from hdm.training.process.job import TIMING
from hdm.training.settings import Phase

EXPLANATION = """\
published   The four phases of arXiv 2509.06068 on four RTX 5090s: hours as published and as counted
            work and two fitted figures give them; the figures fitted anew (least squares of the
            relative errors); and each phase foretold from the other three.
training    A short training of the demo's kind: what `hdm plan --measure` foretells of its time and
            peak memory, and what it took.

Examples:
  python bench/plan.py published          # arithmetic
  python bench/plan.py training           # some minutes on a CPU with nothing else to do
"""
PUBLISHED_HOURS = {"256px": 174.0, "512px": 120.0, "768px": 42.0, "1024px": 49.0}
PUBLISHED_GPUS = 4
WHAT = ["published", "training"]


def published_work() -> list[tuple[Phase, Work]]:
    """Of a sample of each phase, encoders and recomputation counted, texts padded."""
    train = load_pipeline("hdm-xut-base", environment={}).train
    text, pictures = counts.PUBLISHED_TEXT["Qwen/Qwen3-0.6B"], counts.SDXL_ENCODER
    return [
        (
            phase,
            work.training(
                train.model,
                phase,
                ((phase.resolution // 16) ** 2, phase.max_tokens or 256),
                text,
                pictures,
            ),
        )
        for phase in train.phases
    ]


@dataclass(frozen=True)
class Fit:
    """As `hdm.planning.hardware.Card.share` has them."""

    peak_share: float
    half_tokens: float

    def hours(self, phase: Phase, done: Work) -> float:
        """Of four cards."""
        share = self.peak_share * done.tokens / (done.tokens + self.half_tokens)
        return (
            phase.num_images
            * done.flops
            / (1e12 * CARDS[PUBLISHED_CARD].tflops * share)
            / 3600
            / PUBLISHED_GPUS
        )


def fitted(cases: list[tuple[Phase, Work]]) -> Fit:
    """hours = a·work + b·work/tokens, by least squares of hours/published - 1."""
    whole = Fit(1.0, 0.0)
    columns = np.array(
        [
            [whole.hours(phase, done), whole.hours(phase, done) / done.tokens]
            for phase, done in cases
        ]
    )
    published = np.array([PUBLISHED_HOURS[phase.name] for phase, _ in cases])
    (a, b), *_ = np.linalg.lstsq(columns / published[:, None], np.ones(len(cases)), rcond=None)
    return Fit(float(1 / a), float(b / a))


def against_published() -> None:
    cases = published_work()
    kept, anew = Fit(hardware.PEAK_SHARE, hardware.HALF_TOKENS), fitted(cases)
    print(f"in use: {kept}\nfitted anew: {anew}\n")
    print(
        "| phase | GFLOP an image | tokens "
        "| published h | planned h | | from the other three h | |\n" + "|---" * 8 + "|"
    )
    for phase, done in cases:
        hours, published = kept.hours(phase, done), PUBLISHED_HOURS[phase.name]
        others = fitted([case for case in cases if case[0] is not phase]).hours(phase, done)
        work = f"{done.flops / 1e9:,.0f} | {done.tokens:,.0f}"
        planned = f"{published:.0f} | **{hours:.0f}** | {hours / published - 1:+.0%}"
        from_others = f"{others:.0f} | {others / published - 1:+.0%}"
        print(f"| {phase.name} | {work} | {planned} | {from_others} |")


TRAINING = (
    "download.scenes.count=400",
    "train.phases.0.num_images=1920",
    "train.phases.1.num_images=1920",
)


def against_training(settings: list[str]) -> None:
    """Each phase is measured as the plan does, trained, and measured once more.

    The second measurement shows how the rest of the machine's load changed meanwhile.
    """
    from hdm.planning.timed_steps import measure
    from hdm.stages import run_step, steps

    pipeline = load_pipeline("demo", [*TRAINING, *settings], environment={})
    print(
        "| phase | steps | foretold s | trained s | "
        "| foretold GB | trained GB | | foretold again s |\n" + "|---" * 9 + "|"
    )
    with tempfile.TemporaryDirectory(prefix="hdm-bench-") as folder:
        store = Store(Path(folder))
        for step in steps(pipeline):
            if step.stage == "evaluate":
                continue
            number = (
                [f"train.{phase.name}" for phase in pipeline.train.phases].index(step.name)
                if step.stage == "train"
                else None
            )
            before = None if number is None else measure(pipeline, number)
            made = run_step(pipeline, store, step.name)
            if number is not None and before is not None:
                print(
                    _row(
                        pipeline.train.phases[number],
                        before,
                        made.output.path,
                        measure(pipeline, number),
                    ),
                    flush=True,
                )


def _row(phase: Phase, before: Measured, folder: Path, after: Measured) -> str:
    lines = [json.loads(line) for line in (folder / TIMING).read_text().splitlines()]
    last, count = lines[-2], lines[-2]["step"]  # with the last one comes the held-out loss
    seconds, memory = count * before.step_sec, before.memory_bytes / 1e9
    time_off, memory_off = seconds / last["seconds"] - 1, memory / last["peak_memory_gb"] - 1
    times = f"{seconds:.1f} | {last['seconds']:.1f} | **{time_off:+.0%}**"
    memories = f"{memory:.2f} | {last['peak_memory_gb']:.2f} | **{memory_off:+.1%}**"
    return f"| {phase.name} | {count} | {times} | {memories} | {count * after.step_sec:.1f} |"


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    parser.add_argument("what", nargs="*", default=WHAT, help=f"{', '.join(WHAT)} (default: both)")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="a.b=c",
        help="another setting of the training",
    )
    given = parser.parse_args()
    if unknown := set(given.what) - set(WHAT):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {' and '.join(WHAT)}")
    if "published" in given.what:
        against_published()
    if "training" in given.what:
        against_training(given.settings)


if __name__ == "__main__":
    main()
