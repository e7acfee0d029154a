"""What became of everything in a source: each file, line and column was taken, refused, lost or not looked at."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from hdm.acquisition.items import Item
from hdm.acquisition.texts import Found
from hdm.errors import InputError

NAME = "inventory.json"
"""The file of the download's output that holds it."""
LISTED = 10_000
"""So many entries that were not taken are named one by one; all are counted."""
SAMPLE, EXAMPLES = 10, 5

What = Literal["file", "folder", "line", "column", "caption", "member"]


class Fate(StrEnum):
    """How an entry of a source ended."""

    TAKEN = "taken"
    REFUSED = "refused"
    """It cannot or must not be read: links that lead nowhere, devices, what has no permission."""
    LOST = "lost"
    """A caption, or a file or line with captions, that belongs to no picture or is not understood."""
    NOT_LOOKED_AT = "not_looked_at"


@dataclass(frozen=True)
class Entry:
    """One thing in a source that was not taken.

    Args:
        what: its kind.
        fate: how it ended.
        place: file, `file:line`, or column, relative to the source.
        reason: a sentence without its full stop.
    """

    what: What
    fate: Fate
    place: str
    reason: str


class Inventory:
    """Counts, what was not taken by name, and a sample of the captions that arrived.

    A reader fills it while its items are read; the same source fills it in the same way.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.entries: list[Entry] = []
        self._losses: list[Entry] = []
        self._sample: list[tuple[str, str, str]] = []

    def take(self, what: What, count: int = 1) -> None:
        """Count what was taken."""
        self.counts[f"{what}s_{Fate.TAKEN}"] += count

    def leave(self, what: What, fate: Fate, place: str, reason: str) -> None:
        """Write down what was not taken."""
        self.add(Entry(what, fate, place, reason))

    def add(self, entry: Entry) -> None:
        """Write down an entry that was not taken."""
        self.counts[_name(entry)] += 1
        if len(self.entries) < LISTED:
            self.entries.append(entry)
        if entry.fate is Fate.LOST and len(self._losses) < EXAMPLES:
            self._losses.append(entry)

    def add_all(self, other: Inventory) -> None:
        """Add what another inventory of lines and files says."""
        for entry in other.entries:
            self.add(entry)
        self.counts = self.counts + (
            other.counts - Counter(_name(entry) for entry in other.entries)
        )

    def columns(self, known: Iterable[str], used: Iterable[str | None], where: str) -> None:
        """Write down which columns of a table were taken."""
        taken = set(used)
        for name in known:
            if name in taken:
                self.take("column")
            else:
                self.leave("column", Fate.NOT_LOOKED_AT, f"{where}: {name}", "no setting names it")

    def captions(self, found: Found, place: str) -> tuple[str, ...]:
        """The captions found in a place, its guesses and losses written down."""
        self.counts["captions_guessed"] += found.guessed
        for reason in found.losses:
            self.leave("caption", Fate.LOST, place, reason)
        return tuple(found.captions)

    def arrived(self, item: Item) -> Item:
        """Count an item and its captions."""
        self.counts["captions_taken"] += len(item.captions)
        self.counts["items_uncaptioned"] += not item.captions
        for caption in item.captions[:1]:
            # Keys are hashes: the largest of them are a random sample, the same one every time.
            entry = (item.key, item.source, caption)
            push = heapq.heappush if len(self._sample) < SAMPLE else heapq.heappushpop
            push(self._sample, entry)
        return item

    @property
    def lost(self) -> int:
        """How many captions, or files and lines that hold some, did not arrive."""
        return sum(count for name, count in self.counts.items() if name.endswith("_lost"))

    def check(self, max_lost: int, where: object) -> None:
        """Stop if too much was lost.

        Raises:
            InputError: naming the first losses, and what to do.
        """
        if self.lost <= max_lost:
            return
        told = "".join(f"\n    {entry.place}: {entry.reason}" for entry in self._losses)
        more = (
            f"\n    … and {self.lost - len(self._losses)} more"
            if self.lost > len(self._losses)
            else ""
        )
        raise InputError(
            f"{self.lost} captions or lines of the source do not arrive at a picture:{told}{more}\n ",
            where=where,
            do="mend or remove them (docs/own-pictures.md says what is understood), or accept the loss: "
            f"--set download.max_lost_captions={self.lost}",
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "sample": [{"source": source, "caption": text} for _, source, text in self.sample()],
            "entries": [asdict(entry) for entry in self.entries],
        }

    def sample(self) -> list[tuple[str, str, str]]:
        """Key, source and first caption of up to ten items, in order of their sources."""
        return sorted(self._sample, key=lambda entry: entry[1])


def _name(entry: Entry) -> str:
    """What an entry is counted as."""
    return f"{entry.what}s_{entry.fate}"


def told(inventory: dict[str, Any]) -> Iterator[str]:
    """An inventory, as `to_json` gives it, in lines for a terminal or a page."""
    counts = Counter(inventory["counts"])
    yield (
        f"captions: {counts['captions_taken']:,} arrived, {counts['captions_guessed']:,} of them in a guessed encoding; "
        f"{sum(count for name, count in counts.items() if name.endswith('_lost')):,} lost; "
        f"{counts['captions_made_up']:,} made up of folder or class names; "
        f"{counts['items_uncaptioned']:,} pictures have none"
    )
    for fate in (Fate.LOST, Fate.REFUSED, Fate.NOT_LOOKED_AT):
        entries = [entry for entry in inventory["entries"] if entry["fate"] == fate]
        kinds = {
            name: count for name, count in counts.items() if name.endswith(f"s_{fate}") and count
        }
        if kinds:
            amounts = ", ".join(
                f"{count:,} {name.partition('_')[0]}" for name, count in kinds.items()
            )
            yield f"{fate.replace('_', ' ')}: {amounts}"
            yield from (f"  {entry['place']}: {entry['reason']}" for entry in entries[:EXAMPLES])
            if len(entries) > EXAMPLES:
                yield f"  … all of them are in {NAME} of the output"
    if inventory["sample"]:
        yield "captions as they arrived:"
        yield from (
            f"  {entry['source']}: {entry['caption'][:100]}" for entry in inventory["sample"]
        )
