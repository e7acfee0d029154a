"""`hdm gc`: what it would remove, and what it must never touch."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from hdm.errors import LockedError
from hdm.garbage import Needs, discard, garbage, needs
from hdm.last_runs import LastRun, remember
from hdm.pipelines import load_pipeline
from hdm.stages import OutputGraph, run, run_step
from hdm.store import Identity, Store, in_use, locked

SMALL = ("download.scenes.count=12", "download.scenes.faults=0", "download.allow_loopback=true")
NOTHING = Needs(frozenset(), ())
OLD, OTHER, INPUT = (Identity(name, 1, {}) for name in ("old", "other", "input"))


def made(store: Store, which: Identity) -> Path:
    with store.draft(which) as draft:
        draft.write_json("a.json", 1)
        draft.commit()
    return store.folder(which)


def age(folder: Path, days: float) -> None:
    then = time.time() - days * 86400
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then), follow_symlinks=False)


def listed(store: Store, needed: Needs = NOTHING, days: float = 30) -> dict[str, str]:
    found = garbage(store, needed, days)
    return {one.path.relative_to(store.root).as_posix(): one.why for one in found}


def test_what_is_neither_needed_nor_used_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, fresh = made(store, OLD), made(store, OTHER)
    age(old, 40)
    assert listed(store) == {f"old/{OLD.digest}": "not needed"}
    assert listed(store, Needs(frozenset({("old", OLD.digest)}), ())) == {}
    (one,) = garbage(store, NOTHING, 30)
    discard(one)
    assert not old.exists()
    assert fresh.exists()
    assert list(old.parent.iterdir()) == []


def test_what_kept_outputs_were_made_from_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    age(made(store, INPUT), 40)
    made(store, Identity("train.64px", 1, {}, {"mix.0/input": INPUT.digest}))
    assert listed(store) == {}


def test_an_unfinished_output_goes_with_its_checkpoints(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft(OLD) as draft:
        (draft.scratch / "checkpoint-00000001").mkdir()
    age(store.folder(OLD), 40)
    assert listed(store) == {f"old/{OLD.digest}": "unfinished"}


@pytest.mark.parametrize(
    ("lock", "shared"), [(".lock", False), (".used", True), (".scratch/training.lock", True)]
)
def test_what_a_process_works_on_or_reads_is_not_touched(
    tmp_path: Path, lock: str, shared: bool
) -> None:
    store = Store(tmp_path)
    folder = made(store, OLD)
    (folder / lock).parent.mkdir(exist_ok=True)
    (folder / lock).touch()
    age(folder, 40)
    (before,) = garbage(store, NOTHING, 30)
    with locked(folder / lock, "it", shared=shared):
        age(folder, 40)
        assert listed(store) == {}
        with pytest.raises(LockedError):
            discard(before)
    assert (folder / "manifest.json").exists()


def test_nothing_of_an_output_in_work_is_listed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.draft(OLD) as draft, draft.write("a.json") as file:
        file.path.write_text("x")
        assert listed(store) == {}


def test_what_a_living_run_asked_for_is_kept_however_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for which in (INPUT, OTHER):
        age(made(store, which), 40)
    outputs = {"input": INPUT.digest, "old": OLD.digest, "later": None}
    remember(tmp_path, LastRun("mine", 0.0, outputs))
    with store.draft(OLD) as draft:
        age(draft.path, 40)  # it has been training since
        assert listed(store) == {f"other/{OTHER.digest}": "not needed"}


def test_files_that_come_and_go_meanwhile_are_no_error(tmp_path: Path) -> None:
    store, over = Store(tmp_path), threading.Event()

    def work() -> None:
        for number in itertools.count():
            # Whoever asks whether a lock is held holds it for a moment.
            with (
                contextlib.suppress(LockedError),
                store.draft(Identity("old", 1, {"part": number // 20})) as draft,
            ):
                draft.write_json(f"{number}.json", number)
            if over.is_set():
                return

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(100):
            garbage(store, NOTHING, 30)
    finally:
        over.set()
        worker.join()


def test_two_at_once_do_not_remove_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    age(made(store, OLD), 40)
    (one,) = garbage(store, NOTHING, 30)
    with locked(tmp_path / ".lock", "another"):
        result = CliRunner().invoke(app, ["gc", "--store", str(tmp_path), "--yes"])
    assert result.exit_code == LockedError.exit_code
    assert store.find(OLD) is not None
    discard(one)
    discard(one)  # gone by now


def test_what_was_used_since_it_was_listed_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = made(store, OLD)
    age(folder, 40)
    (one,) = garbage(store, NOTHING, 30)
    with in_use([folder]):
        pass
    with pytest.raises(LockedError, match="used since"):
        discard(one)
    assert store.find(OLD) is not None


def test_leftovers_of_damage_and_kills_go_and_the_output_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = made(store, OLD)
    (folder / "a.json.damaged").write_text("x")
    (folder / ".tmp-1-b").write_text("x")
    (folder / ".scratch").mkdir()
    (tmp_path / "old" / f"{OLD.digest}.damaged").mkdir()
    (tmp_path / "old" / ".tmp-gc-0123456789abcdef").mkdir()
    found = garbage(store, NOTHING, 30)
    assert {one.path.relative_to(tmp_path / "old").as_posix() for one in found} == {
        f"{OLD.digest}/a.json.damaged", f"{OLD.digest}/.tmp-1-b", f"{OLD.digest}/.scratch",
        f"{OLD.digest}.damaged", ".tmp-gc-0123456789abcdef",
    }  # fmt: skip
    for one in found:
        discard(one)
    assert store.find(OLD) is not None
    assert listed(store) == {}


def test_folders_of_others_are_not_touched(tmp_path: Path) -> None:
    """--store may lead anywhere, and other programs name folders by digests too."""
    for name in ("cache/0123456789abcdef", "cache/notes.damaged", "cache/.tmp-1-of-another"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "theirs").write_text("x")
    age(tmp_path / "cache", 40)
    assert listed(Store(tmp_path)) == {}


def test_a_run_keeps_what_it_makes_and_finds(tmp_path: Path) -> None:
    demo, store = load_pipeline("demo", SMALL), Store(tmp_path)
    list(run(demo, store, stop_after="download"))
    (folder,) = store.manifests()
    age(folder, 40)
    assert len(listed(store)) == 1
    run_step(demo, store, "download")
    assert listed(store) == {}


def test_the_pipelines_of_the_file_are_needed(tmp_path: Path) -> None:
    found = needs()
    demo = OutputGraph(load_pipeline("demo")).identities()
    assert {(one.name, one.digest) for one in demo.values()} <= found.outputs
    assert any(name.startswith("folder (") for name in found.unknown)


def test_the_command_asks_lists_and_removes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (made(store, OLD) / "b.json.damaged").write_bytes(bytes(3_000_000))
    age(store.folder(OLD), 40)

    def gc(*words: str, answer: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(app, ["gc", "--store", str(tmp_path), *words], input=answer)
        return result.exit_code, result.output

    code, shown = gc("--dry-run")
    assert code == 0
    assert f"old/{OLD.digest}" in shown
    assert "40 days ago" in shown
    assert "1 in all, 3.0 MB" in shown
    assert gc(answer="n\n")[0] != 0
    assert store.find(OLD) is not None
    assert "removed" in gc(answer="y\n")[1]
    assert store.find(OLD) is None
    assert "nothing to remove" in gc("--yes")[1]
