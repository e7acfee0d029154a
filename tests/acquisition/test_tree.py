"""Links, loops, pipes and hidden files below a folder: each is read once or named with its
reason.
"""

import os

import pytest

from hdm.acquisition.inventory import Fate
from hdm.acquisition.tree import walk


@pytest.fixture
def root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "a" / "one.png", outside / "two.png", outside / "deep" / "three.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def left(tree, fate):
    return {entry.place: entry.reason for entry in tree.others if entry.fate is fate}


def test_linked_folders_are_read_once_and_loops_end(root):
    (root / "away").symlink_to("../outside")
    (root / "again").symlink_to("../outside")
    (root / "0 inside").symlink_to("a")
    (root / "a" / "up").symlink_to("..")
    (root.parent / "outside" / "back").symlink_to("../root")
    (root.parent / "outside" / "deep" / "self").symlink_to(".")
    (root / "all").symlink_to("../..")
    tree = walk(root, follow_links=True)
    assert sorted(tree.files) == ["a/one.png", "again/deep/three.png", "again/two.png"]
    assert left(tree, Fate.REFUSED) == {
        "0 inside": "it was read already as a",
        "away": "it was read already as again",
        "a/up": "it is a link to a folder that holds this one",
        "all": "it is a link to a folder that holds this one",
        "again/back": "it is a link to a folder that holds this one",
        "again/deep/self": "it was read already as again/deep",
    }


def test_links_are_refused_where_the_setting_says_so(root):
    (root / "away").symlink_to("../outside")
    (root / "two.png").symlink_to("../outside/two.png")
    tree = walk(root, follow_links=False)
    assert sorted(tree.files) == ["a/one.png"]
    assert left(tree, Fate.REFUSED).keys() == {"away", "two.png"}
    assert sorted(walk(root, follow_links=True).files) == [
        "a/one.png",
        "away/deep/three.png",
        "away/two.png",
        "two.png",
    ]


@pytest.mark.parametrize("follow_links", [True, False])
def test_links_in_a_loop_of_links_are_named(root, follow_links):
    (root / "self.png").symlink_to("self.png")
    (root / "one").symlink_to("two")
    (root / "two").symlink_to("one")
    tree = walk(root, follow_links)
    assert sorted(tree.files) == ["a/one.png"]
    assert left(tree, Fate.REFUSED) == dict.fromkeys(
        ["self.png", "one", "two"], "it cannot be read: Too many levels of symbolic links"
    )


def test_what_is_no_file_is_named(root):
    (root / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    (root / ".DS_Store").write_bytes(b"")
    (root / ".cache").mkdir()
    tree = walk(root, follow_links=True)
    assert sorted(tree.files) == ["a/one.png"]
    assert left(tree, Fate.REFUSED) == {
        "gone.png": "it is a link to nowhere.png, which is not there",
        "pipe.png": "it is no regular file",
    }
    assert left(tree, Fate.NOT_LOOKED_AT).keys() == {".DS_Store", ".cache"}
