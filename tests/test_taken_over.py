"""Files that would be made from the same again are taken over, and the output is what it would be
in an empty store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from hdm import parts
from hdm.files import remove
from hdm.parts import Folders, Part, Step
from hdm.progress import Tracker
from hdm.store import Draft, Identity, Output, Store
from tests.steps import contents

TEXTS = ("one", "two", "three", "four")


def given(store: Store, texts: tuple[str, ...]) -> Output:
    """An output of one file for each text."""
    with store.draft(Identity("given", 1, {"texts": list(texts)})) as draft:
        for number, text in enumerate(texts):
            draft.write_json(f"{number}.json", text)
        return draft.commit()


@dataclass(frozen=True)
class Turning(Step[int, None]):
    """Every text backwards.

    Args:
        given: the texts.
        log: a line for each that was turned.
    """

    given: Output
    log: Path

    what = "turned"

    def plan(self) -> Iterator[Part[int]]:
        for number in range(len(self.given.files)):
            reads = {"given": (f"{number}.json",)}
            yield Part(number, {"turned": (f"{number}.txt",)}, reads=reads)

    @contextmanager
    def open(self) -> Iterator[None]:
        yield

    def make_part(self, part: Part[int], folders: Folders, tools: None, bar: Tracker) -> None:
        text = self.given.file(f"{part.task}.json").read_text().strip()
        with folders["turned"].write(f"{part.task}.txt") as file:
            file.path.write_text(text[::-1])
            file.counts["letters"] = len(text)
        with self.log.open("a") as log:
            log.write(f"{part.task}\n")

    def finish(self, draft: Draft) -> Mapping[str, int]:
        return draft.counts()


class Bench:
    """A store, and the texts that were turned in it since one last asked."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder / "store")
        self.log = folder / "log"

    def turn(
        self, texts: tuple[str, ...], store: Store | None = None, loud: bool = False
    ) -> Output:
        store = store or self.store
        source = given(store, texts)
        identity = Identity("turned", 1, {"loud": loud}, {"given": source.digest})
        self.log.write_text("")
        return parts.make_output(Turning(source, self.log), store, identity)

    @property
    def turned(self) -> list[int]:
        return [int(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_only_what_changed_is_made(bench: Bench, tmp_path: Path) -> None:
    bench.turn(TEXTS)
    assert bench.turned == [0, 1, 2, 3]
    changed = ("one", "TWO", "three", "four", "five")
    output = bench.turn(changed)
    assert bench.turned == [1, 4]
    shared = [name for name in contents(output) if (output.path / name).stat().st_nlink == 2]
    assert shared == ["0.txt", "2.txt", "3.txt"]
    assert contents(output) == contents(bench.turn(changed, Store(tmp_path / "empty")))


def test_several_outputs_together_have_what_is_needed(bench: Bench) -> None:
    bench.turn(("one", "x", "y"))
    bench.turn(("a", "two", "b"))
    bench.turn(("one", "two", "three"))
    assert bench.turned == [2]


def test_other_settings_share_nothing(bench: Bench) -> None:
    bench.turn(TEXTS)
    bench.turn((*TEXTS, "five"), loud=True)
    assert bench.turned == [0, 1, 2, 3, 4]


def test_what_is_damaged_or_gone_is_made(bench: Bench, tmp_path: Path) -> None:
    first = bench.turn(TEXTS)
    (first.path / "1.txt").write_text("xx")
    (first.path / "2.txt").unlink()
    output = bench.turn((*TEXTS, "five"))
    assert bench.turned == [1, 2, 4]
    assert contents(output) == contents(bench.turn((*TEXTS, "five"), Store(tmp_path / "empty")))


def test_without_the_other_outputs_inputs_nothing_is_known_to_be_equal(bench: Bench) -> None:
    bench.turn(TEXTS)
    (folder,) = (bench.store.root / "given").iterdir()
    remove(folder)
    bench.turn((*TEXTS, "five"))
    assert bench.turned == [0, 1, 2, 3, 4]


def test_the_other_output_may_go(bench: Bench) -> None:
    first = bench.turn(TEXTS)
    second = bench.turn((*TEXTS, "five"))
    before = contents(second)
    remove(first.path)
    assert contents(second) == before
    assert bench.store.find(second.identity) is not None
