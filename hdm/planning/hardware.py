"""Cards for which plans can be made: published figures, and the share of its peak that a card
reaches on this kind of work.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from hdm.errors import ConfigError, counted

PEAK_SHARE = 0.618
"""Fitted: the share of the peak that long sequences reach."""
HALF_TOKENS = 309.0
"""Fitted: the number of tokens in a sequence at which half of that share is reached."""
FITTED = (
    f"a step on sequences of S tokens runs at {PEAK_SHARE} · S / (S + {HALF_TOKENS:.0f}) of the"
    " card's dense bfloat16 peak"
)


@dataclass(frozen=True)
class Card:
    """One device.

    Args:
        name: as given to `--gpu`.
        tflops: dense bfloat16 products with float32 sums, per second (on a CPU: float32).
        memory_gb: in 10⁹ bytes, about what the driver leaves of the nominal size.
        watts: specified power of the whole board at full load; 0: not known.
        price: of an hour, if the published run names one; else None.
        source: source of these figures.
        peak_share, half_tokens: see `share`.
        measured: these figures are of this very card, by `hdm bench`.
    """

    name: str
    tflops: float
    memory_gb: float
    watts: float
    source: str
    price: float | None = None
    peak_share: float = PEAK_SHARE
    half_tokens: float = HALF_TOKENS
    measured: bool = False

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def share(self, tokens: float) -> float:
        """The share of the peak that becomes counted work on sequences of this length.

        Both figures are fitted to the hours of the four published phases (arXiv 2509.06068;
        bench/plan.py repeats the fit), in which phases of short sequences ran slower than their
        work alone suggests. For cards other than the RTX 5090 they are a guess.
        """
        return self.peak_share * tokens / (tokens + self.half_tokens)

    def seconds(self, flops: float, tokens: float) -> float:
        """Time for this work on sequences of this length."""
        return flops / (1e12 * self.tflops * self.share(tokens))


_ADA = "NVIDIA's Ada architecture whitepaper"
_BLACKWELL = "NVIDIA's RTX Blackwell architecture whitepaper"
_CARDS = (
    # $0.35 to 0.40 an hour: 1,540 hours for $535 to 620, as published with the recipe.
    Card("rtx5090", 209.5, 33.7, 575, _BLACKWELL, price=0.375),
    Card("rtx4090", 165.2, 25.2, 450, _ADA),
    Card("rtx3090", 71.0, 25.3, 350, "NVIDIA's Ampere GA102 whitepaper"),
    Card("a100", 312.0, 85.0, 400, "NVIDIA's A100 80GB SXM data sheet"),
    # The data sheets say 989, but 790 were measured on an H200; the H100 is the same chip.
    Card("h100", 790.0, 85.0, 700, "NVIDIA's H100 SXM data sheet; rate as measured on an H200"),
    Card("h200", 790.0, 150.1, 700, "NVIDIA's H200 SXM data sheet; measured rate"),
)
CARDS = {card.name: card for card in _CARDS}
PUBLISHED_CARD = "rtx5090"
CPU_GFLOPS_A_CORE = 88.0  # float32 product of 2048³, AMD EPYC with AVX-512: bench/RESULTS.md
CPU_SHARE = 0.55  # of it, by the demo's kind of step: bench/RESULTS.md, width128


def cpu() -> Card:
    """This machine's CPU, at the rate of one that was measured."""
    # The cores that this process may use.
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    source = (
        f"{counted(cores, 'core')} at {CPU_GFLOPS_A_CORE:g} GFLOP/s, as measured on another CPU"
    )
    return Card(
        "cpu",
        cores * CPU_GFLOPS_A_CORE / 1000,
        memory,
        0,
        source,
        peak_share=CPU_SHARE,
        half_tokens=0.0,
    )


def card(name: str) -> Card:
    """The card called `name`, or this machine's CPU.

    Raises:
        ConfigError: there is no such card here.
    """
    if name == "cpu":
        return cpu()
    if name not in CARDS:
        raise ConfigError(
            f"no figures of a card {name!r}",
            where="--gpu",
            do=f"use one of {', '.join(CARDS)}, cpu",
        )
    return CARDS[name]


def named_in(name: str) -> Card | None:
    """The card of the table that a driver means, as by "NVIDIA GeForce RTX 4090"."""
    compact = name.lower().replace(" ", "")
    return next((card for card in CARDS.values() if card.name in compact), None)


def card_here(device: str) -> Card | None:
    """This machine's card for a pipeline's device; None if it has none and the device is "auto".

    Args:
        device: `train.device`.

    Raises:
        ConfigError: this machine's card is not in the table.
    """
    import torch

    if device == "cpu":
        return cpu()
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    found = named_in(name)
    if found is not None:
        return found
    raise ConfigError(
        f"no figures of this machine's {name}",
        do=f"name the card nearest to it: --gpu {', '.join(CARDS)}",
    )
