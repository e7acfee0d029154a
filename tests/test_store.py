"""What a person relies on: an output is there if and only if it is whole, and a restart keeps what was finished."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hdm.errors import DamagedError, LockedError
from hdm.files import written_aside
from hdm.store import Identity, Store, check_files, read_output

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
        if path.name != "run.json" and not path.name.startswith(".")
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


@pytest.mark.parametrize("position", [0, 40, -3])
@pytest.mark.parametrize("name", ["b.json", "manifest.json"])
def test_one_flipped_bit_is_found_and_mended_and_the_rest_is_kept(tmp_path, name, position):
    store = Store(tmp_path)
    fill(store, identity())
    folder = store.folder(identity())
    whole = everything(folder)
    data = bytearray(whole[name])
    data[position % len(data)] ^= 1
    (folder / name).write_bytes(data)

    again = Store(tmp_path)
    assert again.find(identity()) is None
    assert (folder / f"{name}.damaged").read_bytes() == bytes(data)
    assert fill(again, identity()) == ([name] if name != "manifest.json" else [])
    restored = everything(folder)
    assert {key: restored[key] for key in whole} == whole


def test_verify_names_the_damaged_file_even_beyond_the_start_up_check(tmp_path):
    store = Store(tmp_path, verify_bytes=0)
    fill(store, identity())
    path = store.folder(identity()) / "c.json"
    data = bytearray(path.read_bytes())
    data[3] ^= 4
    path.write_bytes(data)
    output = store.find(identity())
    assert output is not None, "beyond verify_bytes only sizes are checked at start"
    with pytest.raises(DamagedError, match=r"c\.json"):
        check_files(output)


@pytest.mark.parametrize(
    "moment", ["in_temporary", "before_rename", "before_manifest", "in_manifest"]
)
def test_killed_at_any_moment_the_rerun_gives_the_same_bytes(tmp_path, moment):
    """SIGKILL in a process of its own, at the four moments that differ; finished files are adopted, not redone."""
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
            hdm.store.json.dumps = lambda value, **k: die() if value == {{"number": 1}} else dump(value, **k)
        elif moment == "before_rename":
            append = hdm.store._append_line
            hdm.store._append_line = lambda path, line: (append(path, line), b'b.json' in line and die())
        elif moment == "before_manifest":
            hdm.store.Draft._log_run = die
        else:
            hdm.store.write_bytes = lambda path, data: (Path(path.parent / ".tmp-1-manifest.json").write_bytes(data[:50]), die())
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
    script = "import sys, os, signal; sys.path.insert(0, sys.argv[2])\nfrom pathlib import Path\nfrom hdm.store import locked\n"
    script += "with locked(Path(sys.argv[1]), 'it'): os.kill(os.getpid(), signal.SIGKILL)"
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
        from hdm.store import Identity, Store
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


def test_nothing_of_the_moment_is_in_a_manifest(tmp_path):
    store = Store(tmp_path)
    fill(store, identity())
    manifest = json.loads((store.folder(identity()) / "manifest.json").read_text())
    text = json.dumps(manifest)
    assert str(tmp_path) not in text
    assert str(os.getpid()) not in text
    assert set(manifest) == {
        "name", "schema", "config", "inputs", "weights", "digest", "files", "summary", "manifest_sha256",
    }  # fmt: skip
    assert read_output(store.folder(identity())).run()["seconds"] >= 0
