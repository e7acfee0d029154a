"""`hdm plan`: estimates a pipeline's cost before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape
from rich.table import Table

from hdm import values
from hdm.errors import ConfigError, DoesNotFitError
from hdm.messages import Terminal, say, say_json
from hdm.options import File, Overrides, StoreFolder, number

if TYPE_CHECKING:
    from hdm.planning.hardware import Card
    from hdm.planning.plan import Measured, Plan, Question, Row

ON_WHAT = "Hardware"
COSTS = "Costs"
HOW = "Method"
# Without a terminal, where rich would wrap the table at 80 columns.
PLAIN_WIDTH = 160

NAME = typer.Argument(help="Entry of pipelines.yaml.")
GPU = typer.Option(
    metavar="CARD",
    help=(
        "rtx5090, rtx4090, rtx3090, a100, h100, h200 or cpu; default: the device that train.device"
        " finds here, or else rtx5090."
    ),
    rich_help_panel=ON_WHAT,
)
NUM_GPUS = number(
    values.Workers,
    help="Number of cards for training and latents; default: train.num_processes.",
    rich_help_panel=ON_WHAT,
)
PRICE = number(
    values.Price,
    help="Price of one card for an hour; default: its published price, if there is one.",
    rich_help_panel=COSTS,
)
POWER_PRICE = number(values.Price, help="Price of a kWh.", rich_help_panel=COSTS)
LIVE = typer.Option(
    "--live-encoders",
    help=(
        "The autoencoder runs in training for every sample, and no latents are kept, as in the"
        " published run."
    ),
    rich_help_panel=HOW,
)
SOLVE = typer.Option(
    metavar="batch_size",
    help="Find the largest micro-batch that fits in each phase; this changes no result.",
    rich_help_panel=HOW,
)
MEASURE = typer.Option(
    "--measure",
    help="Run three training steps of each phase on this machine, and use their measured cost.",
    rich_help_panel=HOW,
)
MEASURED = typer.Option(
    "--measured",
    metavar="FILE",
    help="Take the figures of this card that hdm bench wrote, in place of assumed ones.",
    rich_help_panel=ON_WHAT,
)


def plan(
    name: Annotated[str, NAME],
    gpu: Annotated[str | None, GPU] = None,
    num_gpus: Annotated[int | None, NUM_GPUS] = None,
    price: Annotated[float | None, PRICE] = None,
    power_price: Annotated[float | None, POWER_PRICE] = None,
    live_encoders: Annotated[bool, LIVE] = False,
    solve: Annotated[Literal["batch_size"] | None, SOLVE] = None,
    measure: Annotated[bool, MEASURE] = False,
    measured: Annotated[Path | None, MEASURED] = None,
    settings: Overrides = [],  # noqa: B006  (typer copies it)
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan in JSON.")] = False,
    store: StoreFolder = None,
    file: File = None,
) -> None:
    """Estimate a pipeline's items, disk, GPU-hours, money, electricity and memory before it runs.

    Work is computed from the sizes of model and data, and memory from what each layer keeps; tests
    compare both with measurements. The speed of a card is assumed, with two constants fitted to the
    four phases of the published run; --measure replaces this assumption with steps on this machine,
    and --measured with the figures of a card that hdm bench measured. All assumptions are listed
    below the table.

    Outputs in the store are marked as done and excluded from the remaining total. Latents are
    encoded on all cards, other data stages run on one. Their hours count matrix products only,
    without reading, decoding and the network.

    Exit 0 if the remaining work fits, 3 if a training phase does not fit in the card's memory or
    the outputs do not fit on the disk.

    Examples:

    hdm plan hdm-xut-fast --gpu rtx5090 --num-gpus 4 --power-price 0.30

    hdm plan hdm-xut-fast --gpu h200 --price 3.50 --solve batch_size

    hdm plan hdm-xut-base --gpu rtx5090 --num-gpus 4 --live-encoders     (the published run)

    hdm plan demo --measure

    hdm plan hdm-xut-fast --measured store/measured-card.json --num-gpus 4
    """
    from hdm.pipelines import load_pipeline
    from hdm.planning import hardware
    from hdm.planning.measured_file import measured_card
    from hdm.planning.plan import Question, make_plan, with_largest_micro_batches
    from hdm.stages import problems
    from hdm.store import Store, store_root

    if measured is not None and gpu is not None:
        raise ConfigError(
            "the file says which card it is of", where="--gpu", do="leave --gpu or --measured out"
        )
    pipeline = load_pipeline(name, settings, file)
    own = None if measured is None else measured_card(measured)
    asks = measure or gpu is None
    here = own or (hardware.card_here(pipeline.train.device) if asks else None)
    # The card that is named or was measured; else this machine's; else its CPU if it is to measure,
    # or the published run's card.
    card = (
        hardware.card(gpu)
        if gpu
        else here or (hardware.cpu() if measure else hardware.CARDS[hardware.PUBLISHED_CARD])
    )
    asked = Question(
        pipeline,
        Store(store_root(store)),
        card,
        num_gpus or pipeline.train.num_processes,
        live_encoders,
    )
    if solve:
        asked = replace(asked, pipeline=with_largest_micro_batches(asked))
    found = make_plan(replace(asked, measured=_measured(asked)) if measure else asked)
    prices = Prices(card, card.price if price is None else price, power_price)
    # Reported, not raised: a plan for other hardware is useful even if this machine cannot run it.
    refused = [str(problem) for problem in problems(pipeline, asked.store)]
    if as_json:
        say_json({**_values(found, prices), "refused": refused}, indent=1)
    else:
        _tell(found, prices)
        if refused:
            say(
                f"· hdm run would not start here: hdm config {name} --check lists {len(refused)}"
                " reasons"
            )
    # After the table, which shows by how much it does not fit.
    if found.problems:
        raise DoesNotFitError(
            "; ".join(found.problems), do=_advice(found, solved=solve is not None)
        )


def _measured(asked: Question) -> Mapping[str, Measured]:
    from hdm.planning.timed_steps import measure

    if asked.live_encoders:
        raise ConfigError(
            "training here reads latents, so steps with a live autoencoder cannot be measured",
            do="leave one of the two out",
        )
    return {
        phase.name: measure(asked.pipeline, number, asked.num_gpus)
        for number, phase in enumerate(asked.pipeline.train.phases)
    }


@dataclass(frozen=True)
class Prices:
    """The price of a card's hours; None: unknown."""

    card: Card
    hour: float | None
    kwh: float | None

    def energy_kwh(self, hours: float) -> float | None:
        """Energy at the board's full power, without the rest of the machine."""
        return hours * self.card.watts / 1000 if self.card.watts else None

    def of(self, hours: float) -> dict[str, float | None]:
        """The price of the hours, their energy in kWh, and the price of that energy."""
        energy = self.energy_kwh(hours)
        return {
            "money": None if self.hour is None else hours * self.hour,
            "kwh": energy,
            "power_money": None if energy is None or self.kwh is None else energy * self.kwh,
        }


def _values(plan: Plan, prices: Prices) -> dict[str, Any]:
    rows = [
        {**asdict(row), "wall_hours": row.hours / row.processes, **prices.of(row.hours)}
        for row in plan.rows
    ]
    return {
        "outputs": rows,
        "left": _sum(plan.left, prices),
        "all": _sum(plan.rows, prices),
        "notes": plan.notes,
        "problems": plan.problems,
    }


def _sum(rows: Any, prices: Prices) -> dict[str, Any]:
    hours = sum(row.hours for row in rows)
    wall = sum(row.hours / row.processes for row in rows)
    return {
        "bytes": sum(row.bytes for row in rows),
        "hours": hours,
        "wall_hours": wall,
        **prices.of(hours),
    }


def _tell(plan: Plan, prices: Prices) -> None:
    console = Terminal(highlight=False, soft_wrap=True)
    # Only columns about which something is known.
    shown = {
        "money": prices.hour is not None,
        "kWh": bool(prices.card.watts),
        "power": prices.kwh is not None and bool(prices.card.watts),
    }
    extra = [name for name, wanted in shown.items() if wanted]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("output")
    unit = "CPU" if prices.card.is_cpu else "GPU"
    for heading in ("items", "disk", f"{unit}-hours", "hours", *extra, "memory", "micro-batch"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in plan.rows:
        table.add_row(*_cells(row, prices, extra), "[green]done[/]" if row.done else "")
    # The last two lines: what is still to be paid, and the whole.
    for title, rows in (("left", plan.left), ("in all", list(plan.rows))):
        total = _sum(rows, prices)
        cells = [
            amount(total["hours"]),
            amount(total["wall_hours"]),
            *_costs(total["hours"], prices, extra),
        ]
        table.add_row(f"[bold]{title}[/]", "", size(total["bytes"]), *cells)
    (console if console.is_terminal else Terminal(width=PLAIN_WIDTH, highlight=False)).print(table)
    for note in plan.notes:
        console.print(f"· {escape(note)}")


def _cells(row: Row, prices: Prices, extra: list[str]) -> list[str]:
    worked = row.hours > 0
    return [
        escape(row.name),
        f"{row.items:,}",
        size(row.bytes),
        amount(row.hours) if worked else "",
        amount(row.hours / row.processes) if worked else "",
        *(_costs(row.hours, prices, extra) if worked else [""] * len(extra)),
        size(row.memory_bytes) if row.memory_bytes else "",
        f"{row.micro_batch:,}" if row.micro_batch else "",
    ]


def _costs(hours: float, prices: Prices, extra: list[str]) -> list[str]:
    found = prices.of(hours)
    values = {"money": found["money"], "kWh": found["kwh"], "power": found["power_money"]}
    return [amount(values[name] or 0.0) for name in extra]


def amount(value: float) -> str:
    """Hours, money or kWh, rounded to a tenth; values below 1 to two digits."""
    return f"{value:,.1f}" if value >= 1 or value == 0 else f"{value:.2g}"


def size(count: float) -> str:
    """Bytes in the largest decimal unit: 2_500_000 is 2.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.2f} TB"


def _advice(plan: Plan, *, solved: bool) -> str:
    # A problem begins with the name of its output.
    if any(problem.startswith("train.") for problem in plan.problems):
        more = "raise train.phases.N.checkpoint_blocks, or take a larger card"
        return more if solved else f"--solve batch_size finds micro-batches that fit; or {more}"
    return "make room, or choose another --store"
