"""What the benchmarks share: how they take options, and how they describe the machine."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from pathlib import Path


def parser_of(description: str | None, explanation: str) -> argparse.ArgumentParser:
    """A parser whose help shows both texts as they are written."""
    return argparse.ArgumentParser(
        description=description,
        epilog=explanation,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_number(parser: argparse.ArgumentParser, name: str, default: float, what: str = "") -> None:
    """An option that takes a number of the default's type."""
    shown = f"{what} (default: %(default)s)" if what else "default: %(default)s"
    parser.add_argument(name, type=type(default), default=default, metavar="N", help=shown)


def add_only(parser: argparse.ArgumentParser, rows: Iterable[str]) -> None:
    """The option that names rows of the table."""
    names = list(rows)
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"a row; may be repeated: {', '.join(names)}",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks that have a table for the CPU and one for a GPU."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--tiny", action="store_true", help="the GPU's table with small sizes, on any device"
    )


def machine(device: str = "cpu") -> str:
    """The processor, and the accelerator where that is measured, with what runs on them."""
    import torch  # late: some benchmarks set its environment first

    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    card = ""
    if device == "cuda":
        card = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; "
    threads = f"{torch.get_num_threads()} threads of {len(names)} cores"
    return f"{card}{cpu}, {threads}, torch {torch.__version__}, Python {platform.python_version()}"
