"""Noto Emoji from its site and from a folder: the same pictures under the same keys, and a missing
file is counted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hdm.acquisition import download
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.sources import open_source
from hdm.config import Pipeline
from hdm.data.shards import ImageReader
from hdm.data.tables import read_tables
from hdm.emoji.catalogue import training_pictures
from hdm.errors import InputError
from hdm.pipelines import load_pipeline
from hdm.store import Output, Store
from tests.acquisition.misbehaving import Site, http

IMAGES = Path(__file__).resolve().parents[3] / "shared" / "data" / "emoji" / "noto128" / "images"
needs_data = pytest.mark.skipif(not IMAGES.is_dir(), reason="needs ../shared/data")
COUNT, SHARD = 40, 16


def fetch(store: Path, source: str, **settings: object) -> Output:
    shown = load_pipeline("emoji", environment={}).download
    changed = {**shown.model_dump(), "source": source, "max_items": COUNT, "shard_items": SHARD}
    chosen = Pipeline(name="emoji", download=DownloadSettings(**{**changed, **settings}))
    return download.make(chosen, download.identify(chosen, {}), {}, Store(store))


def pictures(output: Output) -> dict[str, tuple[list[str], str, bytes]]:
    """Captions, licence and bytes by key, in order."""
    found = {}
    rows = read_tables(output, "samples").to_pylist()
    with ImageReader(output) as reader:
        for number, row in enumerate(rows):
            data = reader.read(number // SHARD, row["offset"], row["bytes"], row["sha256"])
            found[row["key"]] = (row["captions"], row["licence"], data)
    return found


@needs_data
def test_the_site_and_a_folder_give_the_same(tmp_path: Path, server: Site) -> None:
    path = "/googlefonts/noto-emoji/v2.047/png/128"
    wanted = [picture.emoji.file for picture in training_pictures()[:COUNT]]
    server.pages |= {f"{path}/{name}": http((IMAGES / name).read_bytes()) for name in wanted}
    address = f"http://127.0.0.1:{server.port}{path}"
    fetched = pictures(fetch(tmp_path / "web", address, allow_loopback=True))
    assert len(fetched) == COUNT
    assert fetched == pictures(fetch(tmp_path / "folder", str(IMAGES)))
    assert list(fetched.values()) == [
        (list(picture.captions), "Apache-2.0", (IMAGES / picture.emoji.file).read_bytes())
        for picture in training_pictures()[:COUNT]
    ]


@needs_data
def test_more_missing_files_than_one_in_a_hundred_stop_the_download(
    tmp_path: Path, server: Site
) -> None:
    names = [picture.emoji.file for picture in training_pictures()[:COUNT]]
    server.pages |= {f"/{name}": http((IMAGES / name).read_bytes()) for name in names[1:]}
    with pytest.raises(InputError, match=r"1 of the first 40 items failed \(1 http_404\)"):
        fetch(tmp_path, f"http://127.0.0.1:{server.port}", allow_loopback=True)


@needs_data
def test_other_pictures_in_the_folder_give_another_digest(tmp_path: Path) -> None:
    name = training_pictures()[0].emoji.file
    shutil.copy(IMAGES / name, tmp_path)
    settings = DownloadSettings(kind="emoji")

    def digest() -> object:
        return open_source(str(tmp_path), "emoji", settings)[1].fingerprint()

    before = digest()
    shutil.copyfile(IMAGES / training_pictures()[1].emoji.file, tmp_path / name)
    assert digest() != before


def test_a_folder_without_emoji_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Noto Emoji"):
        open_source(str(tmp_path), "emoji", DownloadSettings())
