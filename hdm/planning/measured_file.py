"""What `hdm bench` writes about a machine: each figure with its limit, and the card and versions
they belong to. A plan may take them in place of its assumptions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hdm.errors import ConfigError
from hdm.files import read_record, write_json
from hdm.planning.hardware import PEAK_SHARE, Card, named_in

Group = Literal["right", "fast"]
FORMAT = 1
NAME = "measured-card.json"
TINY_NAME = "measured-card-tiny.json"
AGAIN = "write it again: hdm bench --out FILE"
# Of rows that a plan reads.
PRODUCT = "matrix product in {precision}"
STEP = "step at {resolution} px"


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        item: that measured it, as its name on the command line.
        group: whether it says that something is right or how fast it is.
        what: is measured.
        value: in `unit`; None: there is none, and `note` says why.
        unit: of value and limit.
        limit: the most that a right value may be; None: none is set.
        ok: whether the figure is as it must be; None: nothing is asked of it, or it was skipped.
        note: why there is no value, or what belongs to it.
        details: further figures of it, by name.
    """

    item: str
    group: Group
    what: str
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    ok: bool | None = None
    note: str = ""
    details: dict[str, float] = field(default_factory=dict)


@dataclass
class MeasuredFile:
    """What was measured of a card so far.

    Args:
        card: as its driver calls it.
        device: on which everything ran: cuda or cpu.
        memory_bytes: of the card, or of the computer.
        tiny: sizes were small: nothing can be planned by it.
        precision: of the training steps: bfloat16 or float32.
        complete: every item was begun.
        began: in UTC.
        provenance: of code, libraries and machine.
        rows: in the order in which they were measured.
        format: of the file.
    """

    card: str
    device: str
    memory_bytes: int
    tiny: bool
    precision: str
    began: str
    provenance: dict[str, Any]
    complete: bool = False
    rows: list[Row] = field(default_factory=list)
    format: int = FORMAT

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_json(path, asdict(self))

    @property
    def wrong(self) -> list[Row]:
        """The rows that say that something is not right."""
        return [row for row in self.rows if row.group == "right" and row.ok is False]


def read_measured(path: Path) -> MeasuredFile:
    """What `hdm bench` wrote.

    Raises:
        DamagedError: the file holds something else.
        ConfigError: another version of this program wrote it.
    """
    found = read_record(path, MeasuredFile, AGAIN)
    if found.format != FORMAT:
        raise ConfigError(f"has format {found.format}, not {FORMAT}", where=path, do=AGAIN)
    return found


def measured_card(path: Path) -> Card:
    """The card of a file as `hdm.planning.hardware` describes cards, with what was measured: the
    rate of its products, its memory, and the share of that rate which steps reach on sequences of
    different lengths.

    Raises:
        DamagedError: the file holds something else.
        ConfigError: its sizes were tiny, or it lacks the figures.
    """
    found = read_measured(path)
    if found.tiny:
        raise ConfigError(
            "was measured with --tiny, which says nothing of real sizes", where=path, do=AGAIN
        )
    values = {row.what: row.value for row in found.rows if row.value is not None}
    rate = values.get(PRODUCT.format(precision=found.precision))
    steps = [row.details for row in found.rows if row.item == "step" and row.details]
    if rate is None or not steps:
        raise ConfigError(
            "has no rate of matrix products, or no training step", where=path, do=AGAIN
        )
    shares = [(step["tokens"], step["tflops"] / rate) for step in steps]
    peak_share, half_tokens = fitted_shares(shares)
    known = named_in(found.card)
    return Card(
        name="cpu" if found.device == "cpu" else found.card,
        tflops=rate,
        memory_gb=found.memory_bytes / 1e9,
        watts=known.watts if known else 0,
        source=f"measured by hdm bench on {found.began}: {path}",
        price=known.price if known else None,
        peak_share=peak_share,
        half_tokens=half_tokens,
        measured=True,
    )


def fitted_shares(points: list[tuple[float, float]]) -> tuple[float, float]:
    """`peak_share` and `half_tokens` of a Card, fitted to measured (tokens, share of the peak).

    1 / share is linear in 1 / tokens. Where the points do not say how shares rise with length, the
    mean share counts at every length.
    """
    tokens = np.array([point[0] for point in points])
    shares = np.array([point[1] for point in points])
    if len(set(tokens.tolist())) > 1:
        slope, level = np.polyfit(1 / tokens, 1 / shares, 1)
        if slope >= 0 and level > 0:
            return float(1 / level), float(slope / level)
    return float(shares.mean()) if len(points) else PEAK_SHARE, 0.0
