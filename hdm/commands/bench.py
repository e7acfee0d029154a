"""`hdm bench`: checks and measures the card of this machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from hdm import values
from hdm.errors import ConfigError, HdmError, counted
from hdm.messages import Terminal, say
from hdm.options import StoreFolder, number
from hdm.planning.measured_file import NAME, TINY_NAME, MeasuredFile, Row
from hdm.provenance import cpu_model, provenance
from hdm.store import store_root

if TYPE_CHECKING:
    from hdm.bench.asked import Item

# Without a terminal, where rich would wrap the table at 80 columns.
PLAIN_WIDTH = 160
MINUTES = number(values.Minutes, help="The most that all of it may take.")
OUT = typer.Option(
    metavar="FILE",
    help=f"Where the figures are written; else {NAME} in the store ({TINY_NAME} with --tiny).",
)
TINY = typer.Option(
    "--tiny", help="Small sizes, to see within a minute that everything runs, on a CPU too."
)
ONLY = typer.Option(metavar="NAME", help="An item; may be given several times.")
DEVICE = typer.Option(metavar="auto|cuda|cpu", help="What to check and measure.")


def bench(
    minutes: Annotated[float, MINUTES] = 8.0,
    out: Annotated[Path | None, OUT] = None,
    tiny: Annotated[bool, TINY] = False,
    only: Annotated[list[str], ONLY] = [],  # noqa: B006  (typer copies it)
    device: Annotated[str, DEVICE] = "auto",
    store: StoreFolder = None,
) -> None:
    """Check that this machine's card computes what it should, and measure how fast it is.

    No data and no model is needed: weights and inputs are random. Everything is compared with the
    same code on the CPU in float64: ten optimizer steps (plain, with TREAD, text masks, recomputed
    and compiled blocks; in float32 and in bfloat16), sampling, an autoencoder, a resumed training;
    and whether work falls back to the CPU. Then come the card's own ceilings and, beside these, the
    published model's training steps at 256 to 1024 px, the optimizer, the loader, the encoders and
    sampling.

    Each item has its time. One that fails, or takes too long, is a line with its reason, and the
    others go on. FILE is written after each figure. hdm plan --measured FILE takes its figures in
    place of assumed ones.

    Items, in order: ceilings, steps, device, step, resumed, compiled, sampling-right, autoencoder,
    optimizer, loader, encode, text, sampling, largest.

    Exit 0 if nothing is wrong, also where something was too slow or was skipped; 1 if a figure is
    beyond its limit, or a check failed.

    Examples:

    hdm bench

    hdm bench --only ceilings --only step --out h200.json

    hdm bench --tiny --device cpu                (as CI runs it)

    hdm plan hdm-xut-fast --measured store/measured-card.json
    """
    from hdm.bench.asked import Asked
    from hdm.bench.budgets import run_items
    from hdm.models.devices import check_device, quiet_device

    check_device(device, "--device")
    items = chosen(only)
    asked = Asked(quiet_device(device), tiny)
    path = out or store_root(store) / (TINY_NAME if tiny else NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _about(asked.device, tiny=tiny, precision=asked.precision)
    found.write(path)
    for item, row in run_items(items, asked, 60 * minutes):
        found.rows.append(row)
        found.write(path)
        say(_line(item.name, row), sys.stderr)
    found.complete = True
    found.write(path)
    _tell(found, path)
    if found.wrong:
        raise HdmError(
            f"{counted(len(found.wrong), 'check')} failed on {found.card}",
            where=path,
            do="trust no training on this card before its driver, torch and cooling were looked at",
        )


def chosen(only: Sequence[str]) -> list[Item]:
    """The items of these names, in the registry's order; all, if none is named.

    Raises:
        ConfigError: there is no such item.
    """
    from hdm.bench.registry import ITEMS

    names = [item.name for item in ITEMS]
    for name in only:
        if name not in names:
            raise ConfigError(
                f"no item is called {name!r}", where="--only", do=f"use one of {', '.join(names)}"
            )
    return [item for item in ITEMS if not only or item.name in only]


def _about(device: str, *, tiny: bool, precision: str) -> MeasuredFile:
    import torch

    from hdm.training.process.memory_use import system_memory_bytes

    if device == "cpu":
        name = cpu_model()
        memory = system_memory_bytes("MemTotal") or 0
    else:
        card = torch.cuda.get_device_properties(device)
        name = card.name
        memory = card.total_memory
    about = provenance()
    about["cuda"] = torch.version.cuda
    about["driver"] = _driver() if device != "cpu" else None
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return MeasuredFile(name, device, memory, tiny, precision, began, about)


def _driver() -> str | None:
    """NVIDIA's, as the kernel names it."""
    path = Path("/proc/driver/nvidia/version")
    return path.read_text().splitlines()[0].strip() if path.exists() else None


def _line(item: str, row: Row) -> str:
    return f"{item}: {row.what} {_value(row)} {row.note}".strip()


def _value(row: Row) -> str:
    return "" if row.value is None else f"{row.value:.3g} {row.unit}".strip()


def _verdict(row: Row) -> str:
    if row.ok is None:
        return ""
    return "[green]ok[/]" if row.ok else "[red]failed[/]"


def _tell(found: MeasuredFile, path: Path) -> None:
    console = Terminal(highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("item", "what"):
        table.add_column(heading)
    for heading in ("value", "limit"):
        table.add_column(heading, justify="right")
    table.add_column("")
    table.add_column("besides")
    for row in found.rows:
        besides = [f"{name} {value:.4g}" for name, value in row.details.items()]
        table.add_row(
            row.item,
            escape(row.what),
            _value(row),
            "" if row.limit is None else f"≤ {row.limit:g}",
            _verdict(row),
            escape("; ".join(filter(None, [row.note, *besides]))),
        )
    (console if console.is_terminal else Terminal(width=PLAIN_WIDTH, highlight=False)).print(table)
    versions = found.provenance["libraries"]
    about = [f"{found.card}, {found.memory_bytes / 1e9:.0f} GB", found.provenance["driver"] or ""]
    about += [f"torch {versions['torch']}", f"CUDA {found.provenance['cuda']}"]
    sizes = "small sizes" if found.tiny else "real sizes"
    about += [f"hdm {found.provenance['code']['version']}", sizes]
    say(f"· {', '.join(filter(None, about))}")
    say(f"· written to {path}")
