"""`--retry-failed` changes one number in the user's own file and nothing else, or says how to."""

from __future__ import annotations

from pathlib import Path

import pytest

from hdm.acquisition import download
from hdm.definitions import packaged_file
from hdm.errors import ConfigError
from hdm.pipelines import load_pipeline
from hdm.retrying import retry_failed
from hdm.store import Store

# Refused without a request, so that every download of the list fails once.
REFUSED = "http://127.0.0.1:9/picture.png"
HEAD = """\
# What we made in spring.
pipelines:
  other:
    download: {source: LIST, max_items: 3}
"""
SHARED = """\
pipelines:
  base:
    download: &web
      source: LIST
      max_failed: 1
  own:
    download: *web
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def written(tmp_path: Path, text: str) -> Path:
    """A pipelines.yaml, in which LIST stands for a list of one URL."""
    (tmp_path / "list.txt").write_text(REFUSED)
    file = tmp_path / "pipelines.yaml"
    file.write_bytes(text.replace("LIST", str(tmp_path / "list.txt")).encode())
    return file


def downloaded(file: Path, store: Store, name: str = "own", *overrides: str) -> None:
    settings = [*overrides, "download.max_failed=1"]
    pipeline = load_pipeline(name, settings, file)
    download.make(pipeline, download.identify(pipeline, {}), {}, store)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "  own:  # mine\n    download:\n      # all of it\n      source: LIST  # in May\n",
            "  own:  # mine\n    download:\n      # all of it\n      generation: 1\n"
            "      source: LIST  # in May\n",
        ),
        (
            "  own:\n    download: {source: LIST}  # all of it\n",
            "  own:\n    download: {generation: 1, source: LIST}  # all of it\n",
        ),
        (
            "  own:\n    download:\n      source: LIST\n      generation: 9  # the ninth\n",
            "  own:\n    download:\n      source: LIST\n      generation: 10  # the ninth\n",
        ),
        (
            "  own: {download: {generation: 3, source: LIST}}\n",
            "  own: {download: {generation: 4, source: LIST}}\n",
        ),
        (
            "  base: {download: {source: LIST}}\n  own:\n    extends: base\n",
            "  base: {download: {source: LIST}}\n"
            "  own:\n    download: {generation: 1}\n    extends: base\n",
        ),
        (
            "  base: {download: {source: LIST}}\n  own: {extends: base}\n",
            "  base: {download: {source: LIST}}\n"
            "  own: {download: {generation: 1}, extends: base}\n",
        ),
        (
            "  own:\r\n    download:\r\n      source: 'LIST'\r\n",
            "  own:\r\n    download:\r\n      generation: 1\r\n      source: 'LIST'\r\n",
        ),
    ],
)
def test_the_generation_is_written_beside_what_is_there(
    tmp_path: Path, store: Store, before: str, after: str
) -> None:
    file = written(tmp_path, HEAD + before)
    file.chmod(0o600)
    downloaded(file, store)
    number = load_pipeline("own", (), file).download.generation + 1
    said = retry_failed("own", [], file, store)
    assert said.startswith("1 URL is tried again (1 refused_address): ")
    assert file.read_bytes().decode().replace(str(tmp_path / "list.txt"), "LIST") == HEAD + after
    assert load_pipeline("own", (), file).download.generation == number
    assert file.stat().st_mode & 0o777 == 0o600

    # Until the new download is finished, asking again changes nothing.
    text = file.read_bytes()
    assert "not finished" in retry_failed("own", [], file, store)
    assert file.read_bytes() == text


def test_a_link_to_the_file_stays_a_link(tmp_path: Path, store: Store) -> None:
    file = written(tmp_path, HEAD + "  own:\n    download: {source: LIST}\n")
    link = tmp_path / "linked.yaml"
    link.symlink_to(file)
    downloaded(link, store)
    retry_failed("own", [], link, store)
    assert link.is_symlink()
    assert "{generation: 1, source" in file.read_text()


def test_before_the_download_nothing_changes(tmp_path: Path, store: Store) -> None:
    file = written(tmp_path, HEAD + "  own:\n    download: {source: LIST}\n")
    text = file.read_bytes()
    assert "not finished" in retry_failed("own", [], file, store)
    assert file.read_bytes() == text


@pytest.mark.parametrize(
    ("text", "overrides", "variables"),
    [
        (SHARED, [], {}),
        (HEAD + "  own:\n    download: {source: LIST}\n", ["download.generation=7"], {}),
        (
            HEAD + "  own:\n    download: {source: LIST}\n",
            [],
            {"HDM__download__generation": "7"},
        ),
        (HEAD + "  own:\n    download:\n", ["download.source=LIST"], {}),
        (HEAD + "  own:\n    download:\n      ? source\n      : LIST\n", [], {}),
        (HEAD + "  own:\n    download: {source: LIST, generation: 1000000}\n", [], {}),
    ],
)
def test_what_it_cannot_write_is_told_and_left_alone(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    overrides: list[str],
    variables: dict[str, str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = written(tmp_path, text)
    overrides = [one.replace("LIST", str(tmp_path / "list.txt")) for one in overrides]
    downloaded(file, store, "own", *overrides)
    before = file.read_bytes()
    number = load_pipeline("own", overrides, file).download.generation + 1
    with pytest.raises(ConfigError, match=rf"pipelines.yaml:\d+\)\n.*set it to {number} by hand"):
        retry_failed("own", overrides, file, store)
    assert file.read_bytes() == before


def test_the_packages_own_entry_stays_as_it_is(tmp_path: Path, store: Store) -> None:
    (tmp_path / "list.txt").write_text(REFUSED)
    settings = ["download.kind=urls", f"download.source={tmp_path / 'list.txt'}"]
    settings += ["download.allow_loopback=false"]
    file = written(tmp_path, HEAD)
    downloaded(file, store, "demo", *settings)
    packaged = packaged_file().read_bytes()
    line = r"`demo: \{extends: demo, download: \{generation: 1\}\}`"
    with pytest.raises(ConfigError, match=line):
        retry_failed("demo", settings, file, store)
    assert packaged_file().read_bytes() == packaged


def test_a_folder_is_no_list_of_urls(tmp_path: Path, store: Store) -> None:
    (tmp_path / "pictures").mkdir()
    file = written(tmp_path, f"pipelines:\n  own:\n    download: {{source: {tmp_path}/pictures}}\n")
    with pytest.raises(ConfigError, match="is for lists of URLs"):
        retry_failed("own", [], file, store)
