"""Account for each file, line and column of a source: taken, refused, lost or not looked at."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any, Literal

from hdm.acquisition.items import Item
from hdm.acquisition.texts import Captions
from hdm.errors import InputError, counted

NAME = "inventory.json"  # its file in the download's output
LISTED = 10_000  # at most this many entries are listed; all are counted
SAMPLE = 10
EXAMPLES = 5
SHOWN_CHARS = 160

What = Literal["file", "folder", "line", "column", "caption", "member"]


class Fate(StrEnum):
    """How an entry of a source ended."""

    TAKEN = "taken"
    REFUSED = "refused"
    """It cannot or must not be read: dangling links, devices, files without permission."""
    LOST = "lost"
    """A caption, or a file or line with one, that fits no picture or is not understood."""
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
    """Counts, a list of entries that were not taken, and a sample of the captions that arrived.

    A reader fills it while its items are read. The same source always fills it in the same way.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.entries: list[Entry] = []
        self._losses: list[Entry] = []
        self._sample: list[tuple[str, str, tuple[str, ...]]] = []

    def take(self, what: What, count: int = 1) -> None:
        """Count entries that were taken."""
        self.counts[f"{what}s_{Fate.TAKEN}"] += count

    def leave(self, what: What, fate: Fate, place: str, reason: str) -> None:
        """Record something that was not taken."""
        self.add(Entry(what, fate, place, reason))

    def add(self, entry: Entry) -> None:
        """Record an entry that was not taken."""
        self.counts[_name(entry)] += 1
        # Losses are kept apart: they are shown even if many other entries come first.
        if len(self.entries) < LISTED:
            self.entries.append(entry)
        if entry.fate is Fate.LOST and len(self._losses) < EXAMPLES:
            self._losses.append(entry)

    def add_all(self, other: Inventory) -> None:
        """Add another inventory of lines and files."""
        for entry in other.entries:
            self.add(entry)
        # `add` has counted the listed entries; the others are only in the counts.
        self.counts = self.counts + (other.counts - Counter(map(_name, other.entries)))

    def columns(
        self,
        known: Iterable[str],
        used: Iterable[str | None],
        where: str,
        wordy: Collection[str] = (),
    ) -> None:
        """Record which columns of a table were taken.

        Args:
            known: all of them.
            used: those that are read.
            where: the table.
            wordy: columns that may hold the captions of a table in which none were found.
        """
        taken = set(used)
        for name in known:
            if name in taken:
                self.take("column")
            elif name in wordy:
                reason = f"it may hold captions: --set download.caption_column={name}"
                self.leave("column", Fate.LOST, f"{where}: {name}", reason)
            else:
                self.leave("column", Fate.NOT_LOOKED_AT, f"{where}: {name}", "no setting names it")

    def captions(self, found: Captions, place: str) -> tuple[str, ...]:
        """Record guesses and losses in one place, and return its captions."""
        self.counts["captions_guessed"] += found.guessed
        for reason in found.losses:
            self.leave("caption", Fate.LOST, place, reason)
        for _ in range(found.unused):
            self.leave("caption", Fate.NOT_LOOKED_AT, place, "another field's caption was taken")
        return tuple(found.captions)

    def arrived(self, item: Item) -> Item:
        """Count an item and its captions."""
        self.counts["captions_taken"] += len(item.captions)
        self.counts["items_uncaptioned"] += not item.captions
        if item.captions:
            # Keys are hashes, so the items with the largest keys are a random sample that is the
            # same in every run.
            push = heapq.heappush if len(self._sample) < SAMPLE else heapq.heappushpop
            push(self._sample, (item.key, item.source, item.captions))
        return item

    @property
    def lost(self) -> int:
        """Number of captions, or files and lines with captions, that did not arrive."""
        return sum(count for name, count in self.counts.items() if name.endswith("_lost"))

    def check(self, max_lost: int, where: object) -> None:
        """Stop if too much was lost.

        Raises:
            InputError: naming the first losses, and what to do.
        """
        if self.lost <= max_lost:
            return
        examples = "".join(f"\n    {entry.place}: {entry.reason}" for entry in self._losses)
        more = self.lost - len(self._losses)
        rest = f"\n    … and {more:,} more" if more else ""
        raise InputError(
            "captions are lost:"
            f" {counted(self.lost, 'file, line or caption does', 'files, lines and captions do')}"
            f" not arrive at a picture, more than download.max_lost_captions = {max_lost}"
            f" allows:{examples}{rest}\n ",
            where=where,
            do=(
                "mend or remove them (docs/own-pictures.md says what is understood), or accept the"
                f" loss: --set download.max_lost_captions={self.lost}"
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        sample = []
        for _, source, captions in sorted(self._sample, key=itemgetter(1)):
            sample.append({"source": source, "captions": list(captions)})
        return {
            "counts": dict(sorted(self.counts.items())),
            "sample": sample,
            "entries": list(map(asdict, self.entries)),
        }


def _name(entry: Entry) -> str:
    """The name under which an entry is counted."""
    return f"{entry.what}s_{entry.fate}"


def summary_lines(inventory: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal or a page from the result of `to_json`."""
    counts = Counter(inventory["counts"])
    arrived = counted(counts["captions_taken"], "caption")
    without = counted(counts["items_uncaptioned"], "picture has", "pictures have")
    lost = sum(count for name, count in counts.items() if name.endswith("_lost"))
    yield (
        f"captions: {arrived} arrived ({counts['captions_guessed']:,} in a guessed encoding, "
        f"{counts['captions_made_up']:,} made up from class names); {without} none; {lost:,} lost"
    )
    for fate in (Fate.LOST, Fate.REFUSED, Fate.NOT_LOOKED_AT):
        yield from _not_taken(inventory, counts, fate)
    if inventory["sample"]:
        yield "captions as they arrived:"
        for entry in inventory["sample"]:
            yield f"  {entry['source']}: {' | '.join(entry['captions'])[:SHOWN_CHARS]}"


def _not_taken(inventory: Mapping[str, Any], counts: Counter[str], fate: Fate) -> Iterator[str]:
    """Lines with the number of entries of one fate and the first of them."""
    amounts = []
    for name, count in counts.items():
        if name.endswith(f"s_{fate}") and count:
            amounts.append(counted(count, name.removesuffix(f"s_{fate}")))
    if not amounts:
        return
    yield f"{fate.replace('_', ' ')}: {', '.join(amounts)}"
    entries = [entry for entry in inventory["entries"] if entry["fate"] == fate]
    for entry in entries[:EXAMPLES]:
        yield f"  {entry['place']}: {entry['reason']}"
    if len(entries) > EXAMPLES:
        yield f"  … and more, all of them in the output's {NAME}"
