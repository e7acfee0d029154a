"""The items of the bench, in the order of their value."""

from __future__ import annotations

from hdm.bench import correctness, speed
from hdm.bench.asked import Item

ITEMS = (
    Item("ceilings", "fast", 30, speed.ceilings),
    Item("steps", "right", 90, correctness.training_steps),
    Item("device", "right", 20, correctness.stays_on_the_device),
    Item("step", "fast", 90, speed.eager_steps),
    Item("resumed", "right", 20, correctness.resumed),
    Item("compiled", "fast", 120, speed.compiled_steps),
    Item("sampling-right", "right", 20, correctness.sampling),
    Item("autoencoder", "right", 30, correctness.autoencoder),
    Item("optimizer", "fast", 20, speed.optimizer_step),
    Item("loader", "fast", 45, speed.loader),
    Item("encode", "fast", 45, speed.encoding),
    Item("text", "fast", 40, speed.text),
    Item("sampling", "fast", 45, speed.sampled),
    Item("largest", "fast", 90, speed.largest_micro_batch),
)
"""Ceilings come first: everything after is judged by them."""
