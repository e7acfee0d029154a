"""What a person relies on: an output is there if and only if it is whole, and a restart keeps what
was finished.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from hdm.errors import DamagedError, DoesNotFitError, HdmError, InputError, LockedError
from hdm.files import canonical_json, written_aside
from hdm.store import (
    Draft,
    Identity,
    Store,
    alone_with,
    check_files,
    checked,
    draft_in,
    in_use,
    is_locked,
    locked,
    read_output,
)
from tests.store_as_of_old import as_of_old

PROJECT = Path(__file__).resolve().parent.parent


def identity(**changes: object) -> Identity:
    return Identity("filter", 1, {"min_side_px": 32, **changes}, {"download": "0" * 16})


def fill(
    store: Store, which: Identity, names: tuple[str, ...] = ("a.json", "b.json", "c.json")
) -> list[str]:
    """Write the output's files; the names of those that had to be made."""
    made = []
    with store.draft(which) as draft:
        for number, name in enumerate(names):
            if not draft.has(name):
                draft.write_json(name, {"number": number}, {"kept": number})
                made.append(name)
        draft.commit({"note": "whole"})
    return made


def everything(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "run.json" and not path.name.startswith(".")
    }


def test_an_output_is_found_by_what_it_depends_on(tmp_path):
    store = Store(tmp_path)
    fill(store, identity())
    found = store.find(identity())
    assert found is not None
    assert found.counts == {"kept": 3}
    assert [path.name for path in found.paths(".json")] == ["a.json", "b.json", "c.json"]
    assert store.find(identity(min_side_px=64)) is None


def test_a_digest_does_not_depend_on_the_order_of_keys():
    one = Identity("x", 1, {"a": 1, "b": [1, 2]})
    other = Identity("x", 1, {"b": [1, 2], "a": 1})
    assert one.digest == other.digest
    assert Identity("x", 2, {"a": 1, "b": [1, 2]}).digest != one.digest


def flip(path: Path, position: int = 3) -> bytes:
    """Change one bit of a file; what is then in it."""
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1
    path.write_bytes(data)
    return bytes(data)


def flipped_output(root: Path, name: str, position: int) -> tuple[Path, dict[str, bytes], bytes]:
    """An output with one flipped bit: its folder, what was there, and the file as it is now."""
    store = Store(root)
    fill(store, identity())
    folder = store.folder(identity())
    whole = everything(folder)
    return folder, whole, flip(folder / name, position)


@pytest.mark.parametrize("position", [0, 40, -3])
def test_one_flipped_bit_is_found_and_mended_and_the_rest_is_kept(tmp_path, position):
    folder, whole, flipped = flipped_output(tmp_path, "b.json", position)
    again = Store(tmp_path)
    assert again.find(identity()) is None
    assert (folder / "b.json.damaged").read_bytes() == flipped
    assert fill(again, identity()) == ["b.json"]
    restored = everything(folder)
    assert {key: restored[key] for key in whole} == whole


@pytest.mark.parametrize("position", [0, 40, -3])
def test_a_flipped_bit_in_a_manifest_costs_nothing(tmp_path, position):
    folder, whole, flipped = flipped_output(tmp_path, "manifest.json", position)
    found = Store(tmp_path).find(identity())
    assert found is not None
    assert found.summary == {"note": "whole"}
    assert (folder / "manifest.json.damaged").read_bytes() == flipped
    restored = everything(folder)
    assert {key: restored[key] for key in whole} == whole


def test_a_manifest_of_an_older_release_is_made_again_from_the_journal(tmp_path):
    """Neither a copy of the manifest nor fast hashes: the files are adopted, none is written
    again.
    """
    store = Store(tmp_path)
    fill(store, identity())
    folder = store.folder(identity())
    as_of_old(folder)
    flip(folder / "manifest.json")
    assert Store(tmp_path).find(identity()) is None
    assert fill(store, identity()) == []


@pytest.mark.parametrize("field", ["kept", "sha256", "xxh3", "name", "bytes", "line_xxh3", "of"])
def test_a_journal_that_was_changed_gives_no_other_manifest(tmp_path, field):
    """A run that was killed left it: counts and sha256 are written nowhere else, and nothing that
    the files hold contradicts them.
    """
    store = Store(tmp_path / "one")
    fill(store, identity())
    whole = everything(store.folder(identity()))

    killed = Store(tmp_path / "other")
    fill(killed, identity())
    folder = killed.folder(identity())
    (folder / "manifest.json").unlink()
    (folder / ".copies" / "manifest.json").unlink()
    journal = folder / ".journal.jsonl"
    for key_too in (False, True):
        before = journal.read_bytes()
        start = before.index(f'"{field}":'.encode())
        flip(journal, start + 1 if key_too else start + len(field) + 4)
        fill(killed, identity())
        assert everything(folder) == whole
        (folder / "manifest.json").unlink()
        (folder / ".copies" / "manifest.json").unlink()


def test_a_file_with_a_copy_is_mended_at_once(tmp_path):
    store = Store(tmp_path)
    with store.draft(identity()) as draft:
        draft.write_json("dear.json", {"hours": 99}, copied=True)
        draft.write_json("cheap.json", {})
        draft.commit()
    folder = store.folder(identity())
    whole = everything(folder)
    flipped = flip(folder / "dear.json")
    assert Store(tmp_path).find(identity()) is not None
    assert everything(folder) == {**whole, "dear.json.damaged": flipped}


def test_an_output_of_another_identity_in_the_folder_is_not_taken_for_the_one_asked_for(tmp_path):
    store = Store(tmp_path)
    fill(store, identity())
    other = identity(min_side_px=64)
    shutil.copytree(store.folder(identity()), store.folder(other))
    assert Store(tmp_path).find(other) is None
    assert fill(Store(tmp_path), other) == ["a.json", "b.json", "c.json"]
    found = store.find(other)
    assert found is not None
    assert found.config == {"min_side_px": 64}
    assert [output.digest for output in store.outputs()] == sorted(
        [identity().digest, other.digest]
    )


def test_files_that_came_with_an_older_releases_foreign_manifest_are_not_adopted(tmp_path):
    store = Store(tmp_path)
    fill(store, identity())
    as_of_old(store.folder(identity()))
    other = identity(min_side_px=64)
    shutil.copytree(store.folder(identity()), store.folder(other))
    assert store.find(other) is None
    assert fill(store, other) == ["a.json", "b.json", "c.json"]


def test_a_manifest_that_contradicts_itself_is_damaged(tmp_path):
    """Its own hash holds, and its fields give another digest than it says."""
    store = Store(tmp_path)
    fill(store, identity())
    path = store.folder(identity()) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["manifest_sha256"]
    manifest["config"]["min_side_px"] = 33
    digest = hashlib.sha256(canonical_json(manifest)).hexdigest()
    path.write_text(json.dumps({**manifest, "manifest_sha256": digest}))
    with pytest.raises(DamagedError, match="digest"):
        read_output(path.parent)


def put_folder(path: Path) -> None:
    path.mkdir()
    (path / "something").write_text("else")


def put_loop(path: Path) -> None:
    path.symlink_to(path.name)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("put", [put_folder, put_loop, put_pipe])
@pytest.mark.parametrize("name", ["b.json", "manifest.json", ".journal.jsonl", ".copies"])
def test_what_stands_where_a_file_should_is_set_aside_like_any_damage(tmp_path, put, name):
    store = Store(tmp_path)
    fill(store, identity())
    folder = store.folder(identity())
    whole = everything(folder)
    path = folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    put(path)
    if Store(tmp_path).find(identity()) is None:
        fill(Store(tmp_path), identity())
    assert Store(tmp_path).find(identity()) is not None
    assert {key: everything(folder)[key] for key in whole} == whole
    if name in whole:
        assert os.path.lexists(f"{path}.damaged")


@pytest.mark.parametrize("put", [put_loop, lambda path: path.write_text("a file")])
def test_what_stands_where_an_outputs_folder_should_is_set_aside(tmp_path, put):
    store = Store(tmp_path)
    folder = store.folder(identity())
    folder.parent.mkdir(parents=True)
    put(folder)
    assert store.find(identity()) is None
    assert fill(store, identity()) == ["a.json", "b.json", "c.json"]
    assert [output.digest for output in store.outputs()] == [identity().digest]


IN_THE_WAY = {
    "list": lambda path: path.write_text("[]"),
    "other": lambda path: path.write_text('{"seconds": "x", "figures": [], "runs": 5}'),
    "deep": lambda path: path.write_text("[" * 100_000),
    "folder": lambda path: (path.mkdir(), (path / "x").write_text("x")),
    "pipe": os.mkfifo,
    "loop": lambda path: path.symlink_to(path.name),
    "dangling": lambda path: path.symlink_to("/nowhere/at/all"),
}


@pytest.mark.parametrize("put", IN_THE_WAY)
@pytest.mark.parametrize(
    "name",
    [
        "run.json",
        ".lock",
        ".used",
        ".journal.jsonl",
        ".copies",
        ".copies/manifest.json",
        ".hashes.json",
        ".scratch",
    ],
)
def test_whatever_stands_beside_the_files_a_damaged_one_is_made_again(tmp_path, name, put):
    """Two things are broken at once: what the store keeps for itself, and a file."""
    store = Store(tmp_path)
    fill(store, identity())
    folder = store.folder(identity())
    whole = everything(folder)
    (folder / "a.json").write_text("damaged")
    other = folder / name
    shutil.rmtree(other) if other.is_dir() else other.unlink(missing_ok=True)
    IN_THE_WAY[put](other)

    again = Store(tmp_path)
    assert again.find(identity()) is None
    assert "a.json" in fill(again, identity())
    found = again.find(identity())
    assert found is not None
    assert found.run()["seconds"] >= 0
    with in_use([folder]), pytest.raises(LockedError), alone_with(folder / ".used"):
        pass
    restored = everything(folder)
    assert {key: restored[key] for key in whole} == whole


def test_a_file_where_the_store_should_be_is_a_clear_error(tmp_path):
    (tmp_path / "filter").write_text("in the way")
    store = Store(tmp_path)
    with pytest.raises(HdmError, match="filter"), store.draft(identity()):
        pass
    assert Store(tmp_path / "filter").find(identity()) is None


def failing(code: int) -> Callable[[Path], str]:
    """Reads as the system does where it fails with that code."""

    def read(path: Path) -> str:
        raise OSError(code, os.strerror(code), str(path))

    return read


def test_a_disk_that_cannot_read_a_block_is_damage(tmp_path, monkeypatch):
    store = Store(tmp_path)
    fill(store, identity())

    monkeypatch.setattr("hdm.store.fast_hash", failing(errno.EIO))
    assert store.find(identity()) is None
    assert (store.folder(identity()) / "a.json.damaged").exists()


def test_a_file_that_may_not_be_read_is_a_clear_error_and_stays(tmp_path, monkeypatch):
    store = Store(tmp_path)
    fill(store, identity())

    monkeypatch.setattr("hdm.store.fast_hash", failing(errno.EACCES))
    with pytest.raises(InputError, match=r"Permission denied .*a\.json"):
        store.find(identity())
    assert not list(store.folder(identity()).glob("*.damaged"))


def test_a_file_is_compared_when_it_is_used_however_large(tmp_path):
    store = Store(tmp_path, verify_bytes=0)
    fill(store, identity())
    folder = store.folder(identity())
    flip(folder / "c.json")
    output = store.find(identity())
    assert output is not None
    assert checked(output.file("a.json")) == folder / "a.json"
    with pytest.raises(DamagedError, match=r"c\.json"):
        checked(output.file("c.json"))


def test_files_of_an_older_release_are_compared_too_and_their_fast_hashes_remembered(tmp_path):
    store = Store(tmp_path)
    fill(store, identity())
    folder = store.folder(identity())
    as_of_old(folder)
    manifest = (folder / "manifest.json").read_bytes()
    assert checked(folder / "a.json") == folder / "a.json"
    remembered = json.loads((folder / ".hashes.json").read_text())
    sha256 = hashlib.sha256((folder / "a.json").read_bytes()).hexdigest()
    assert remembered == {sha256: xxhash.xxh3_128_hexdigest((folder / "a.json").read_bytes())}
    assert (folder / "manifest.json").read_bytes() == manifest
    flip(folder / "a.json")
    with pytest.raises(DamagedError):
        checked(folder / "a.json")


def test_small_files_are_compared_even_behind_a_large_one(tmp_path):
    store = Store(tmp_path, verify_bytes=1000)
    with store.draft(identity()) as draft:
        draft.write_json("a-large.json", "x" * 2000)
        draft.write_json("b-small.json", "y")
        draft.commit()
    flip(store.folder(identity()) / "b-small.json", 1)
    assert store.find(identity()) is None


def test_what_a_kill_after_the_manifest_left_is_swept_at_the_next_look(tmp_path):
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = [{str(PROJECT)!r}]
        import hdm.store
        from hdm.store import Draft, Identity, Store
        remove = hdm.store.remove
        def killed_at_scratch(path):
            if path.name == ".scratch":
                os.kill(os.getpid(), signal.SIGKILL)
            remove(path)
        hdm.store.remove = killed_at_scratch
        with Store(Path(sys.argv[1])).draft(Identity("filter", 1, {{}})) as draft:
            (draft.scratch / "checkpoint-00000001").mkdir()
            draft.write_json("a.json", 1)
            draft.commit()
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    store, which = Store(tmp_path), Identity("filter", 1, {})
    folder = store.folder(which)
    assert (folder / ".scratch").exists()
    with locked(folder / ".lock", "it"):
        assert store.find(which) is not None
        assert (folder / ".scratch").exists(), "its owner lives"
    assert store.find(which) is not None
    assert not (folder / ".scratch").exists()


def test_verify_names_the_damaged_file_even_beyond_the_start_up_check(tmp_path):
    store = Store(tmp_path, verify_bytes=0)
    fill(store, identity())
    flip(store.folder(identity()) / "c.json")
    output = store.find(identity())
    assert output is not None, "beyond verify_bytes only sizes are checked at start"
    with pytest.raises(DamagedError, match=r"c\.json"):
        check_files(output)


@pytest.mark.parametrize(
    "moment", ["in_temporary", "before_rename", "before_manifest", "in_manifest"]
)
def test_killed_at_any_moment_the_rerun_gives_the_same_bytes(tmp_path, moment):
    """SIGKILL in a process of its own, at the four moments that differ; finished files are adopted,
    not redone.
    """
    script = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = [{str(PROJECT)!r}, {str(Path(__file__).parent)!r}]
        import hdm.store, hdm.files
        from test_store import fill, identity
        die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
        moment = {moment!r}
        if moment == "in_temporary":
            dump = hdm.store.json.dumps
            def dies_at_number_1(value, **k):
                return die() if value == {{"number": 1}} else dump(value, **k)
            hdm.store.json.dumps = dies_at_number_1
        elif moment == "before_rename":
            append = hdm.store._append_line
            def dies_after_b(path, line):
                append(path, line)
                if b"b.json" in line:
                    die()
            hdm.store._append_line = dies_after_b
        elif moment == "before_manifest":
            hdm.store.Draft._log_run = die
        else:
            def dies_half_written(path, data):
                (path.parent / ".tmp-1-manifest.json").write_bytes(data[:50])
                die()
            hdm.store.write_bytes = dies_half_written
        fill(hdm.store.Store(Path(sys.argv[1])), identity())
    """)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "killed")], check=False)
    assert killed.returncode == -signal.SIGKILL
    store = Store(tmp_path / "killed")
    assert store.find(identity()) is None
    remade = fill(store, identity())
    assert remade == (["b.json", "c.json"] if moment in ("in_temporary", "before_rename") else [])

    fill(Store(tmp_path / "calm"), identity())
    assert everything(store.folder(identity())) == everything(
        Store(tmp_path / "calm").folder(identity())
    )
    assert not list(store.folder(identity()).glob(".tmp-*"))


def test_two_runs_on_one_output_the_second_names_the_first(tmp_path):
    store = Store(tmp_path)
    with (
        store.draft(identity()),
        pytest.raises(LockedError, match=f"pid {os.getpid()} on .* since"),
        store.draft(identity()),
    ):
        pass


def test_a_lock_dies_with_its_process(tmp_path):
    script = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from hdm.store import locked
        with locked(Path(sys.argv[1]), "it"):
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "lock"), str(PROJECT)], check=False
    )
    store = Store(tmp_path)
    (tmp_path / "filter" / identity().digest).mkdir(parents=True)
    (tmp_path / "lock").rename(tmp_path / "filter" / identity().digest / ".lock")
    with store.draft(identity()):
        pass


def test_no_space_commits_nothing_and_says_so(tmp_path):
    """A limit on the size of files stands for a full disk."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from hdm.store import Draft, Identity, Store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with Store(Path(sys.argv[1])).draft(Identity("x", 1, {})) as draft:
            draft.write_json("big.json", "x" * 5000)
    """)
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(PROJECT)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "big.json" in run.stderr
    assert not list(tmp_path.glob("x/*/big.json"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "table"
    path.write_text("old")

    def fail() -> None:
        with written_aside(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_equal_pids_on_two_machines_write_aside_at_different_paths(tmp_path, monkeypatch):
    path = tmp_path / "table"
    with written_aside(path) as here:
        here.write_text("here")
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        with written_aside(path) as there:
            there.write_text("there")
        assert path.read_text() == "there"
    assert path.read_text() == "here"


def test_nothing_of_the_moment_is_in_a_manifest(tmp_path):
    store = Store(tmp_path)
    fill(store, identity())
    manifest = json.loads((store.folder(identity()) / "manifest.json").read_text())
    text = json.dumps(manifest)
    assert str(tmp_path) not in text
    assert str(os.getpid()) not in text
    assert set(manifest) == {
        "name",
        "schema",
        "config",
        "inputs",
        "weights",
        "digest",
        "files",
        "summary",
        "manifest_sha256",
    }
    assert read_output(store.folder(identity())).run()["seconds"] >= 0


def write_in_pieces(draft: Draft) -> None:
    with draft.write("pieces") as file, file.path.open("wb") as pieces:
        for _ in range(30):
            pieces.write(b"x" * 100_000)


def test_a_full_disk_names_what_is_free_and_what_is_needed(tmp_path):
    """A tmpfs of 1 MB: a file whose size is known beforehand, and one that is written piece by
    piece.
    """
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs a mount")
    try:
        with Store(tmp_path).draft(identity()) as draft:
            with pytest.raises(DoesNotFitError, match=r"[01]\.\d MB free, 3\.0 MB needed"):
                draft.write_json("known.json", "x" * 3_000_000)
            with pytest.raises(DoesNotFitError, match=r"MB free, more than \d\.\d MB needed"):
                write_in_pieces(draft)
            draft.write_json("small.json", 1)
            assert draft.commit().paths() == [draft.path / "small.json"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def killed_in(out: Path) -> None:
    """Work in a folder that ends in the middle."""
    with draft_in(out, identity(), "record.json") as draft:
        draft.write_json("deep/a.json", 1)
        (draft.scratch / "state").write_text("half")
        with (
            pytest.raises(LockedError, match=f"pid {os.getpid()}"),
            draft_in(out, identity(), "record.json"),
        ):
            pass
        raise KeyboardInterrupt


def test_work_in_a_folder_outside_every_store_goes_on_and_leaves_the_result_alone(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        killed_in(out)
    (out / "deep" / f".tmp-{os.getpid()}-b.json").write_text("of a run that was killed")
    with draft_in(out, identity(), "record.json") as draft:
        assert draft.has("deep/a.json")
        assert (draft.scratch / "state").read_text() == "half"
        draft.write_json("deep/b.json", 2)
        draft.publish("record.json", {"whole": True})
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {"deep/a.json", "deep/b.json", "record.json"}
    with (
        pytest.raises(InputError, match="holds something already"),
        draft_in(out, identity(), "record.json"),
    ):
        pass


def test_a_folder_of_something_else_is_refused_and_one_where_nothing_was_kept_is_removed(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "picture.png").touch()
    with pytest.raises(InputError, match="--out"), draft_in(tmp_path / "full", identity(), "r"):
        pass
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["picture.png"]
    with pytest.raises(ValueError, match="early"), draft_in(tmp_path / "new", identity(), "r"):
        raise ValueError("early")
    assert not (tmp_path / "new").exists()


def test_whoever_asks_whether_a_lock_is_held_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    lock.touch()
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            is_locked(lock)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            with locked(lock, "it"):
                pass
    finally:
        over.set()
        asking.join()
