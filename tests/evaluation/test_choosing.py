"""The page on which a person chooses names: as a browser runs it, with clicks; and copies of
training pictures.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hdm.config import Pipeline
from hdm.data.captions import captions_by_key
from hdm.data.tables import (
    SAMPLES,
    num_shards,
    read_table,
    read_tables,
    shard_name,
    write_table,
)
from hdm.evaluation import choosing
from hdm.evaluation.exhibits import Exhibition
from hdm.evaluation.nearest import Nearest, nearest_training
from hdm.evaluation.report import render
from hdm.keys import Key
from hdm.scoring.judges import PromptSet
from hdm.statistics import Share
from hdm.store import Identity, Output, Store
from tests.evaluation.conftest import Gallery

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
NAMES = ("a fox", 'a "quoted" <owl>', "a cat & a dog", "</script>")
CLICKS = """
<script>
const clicks = %s;
for (const [name, choices] of Object.entries(clicks))
  document.querySelectorAll(`#${name} .question`).forEach((card, i) => {
    if (choices[i] !== null) card.querySelectorAll("button")[choices[i]].click();
  });
</script>
"""


def page(tmp_path: Path, clicks: dict[str, list[int | None]]) -> str:
    """The page's source after some clicks."""
    rng = np.random.default_rng(0)
    sets = {}
    for name, answers in clicks.items():
        count = len(answers)
        texts = tuple(NAMES[number % 4] for number in range(count))
        prompts = PromptSet(name, texts, choices=(NAMES,) * count)
        told = choosing.entries(prompts, [Nearest(Key("0" * 16), "a wolf", 12.34)] * count)
        pictures = list(rng.integers(0, 256, (count, 16, 16, 3), np.uint8))
        sets[name] = choosing.questions(told, pictures, [None] * count)
    context = {"pipeline": Pipeline(name="test"), "sets": sets, "evaluation": "abc"}
    written = render(choosing.TEMPLATE, context).decode()
    file = tmp_path / choosing.PAGE
    file.write_text(written.replace("</body>", CLICKS % json.dumps(clicks) + "</body>"))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--dump-dom",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=2000",
        file.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_answers_are_scored_when_a_set_is_complete_and_hidden_before(tmp_path: Path) -> None:
    # Number i is right with choice i % 4: of the first set six of eight, the second is not
    # complete.
    clicks: dict[str, list[int | None]] = {
        "combinations": [0, 1, 2, 3, 0, 1, 3, 2],
        "names": [0, None, 2],
    }
    source = page(tmp_path, clicks)
    # The text area's value is a property; the page shows the score as text as well.
    complete, open_set = (
        re.search(rf'<section id="{name}">.*?</section>', source, re.DOTALL)[0]  # type: ignore[index]
        for name in clicks
    )
    share = Share(6, 8)
    low, high = share.interval
    told = f"6 of 8 right: 75.0 %, 95 % interval {100 * low:.1f} % to {100 * high:.1f} %"
    assert told in complete
    assert complete.count('class="right"') == 8
    assert complete.count('class="wrong"') == 2
    assert complete.count("question done") == 8
    assert "1 left" in open_set
    assert 'class="right"' not in open_set
    assert "question done" not in open_set
    assert (
        html.escape(NAMES[1], quote=False) in open_set
    )  # names with signs of HTML are shown as they are


def test_a_copy_is_found_and_another_picture_is_none(gallery: Gallery) -> None:
    scores = read_tables(gallery.inputs["filter"], "scores").to_pylist()
    keys = [row["key"] for row in scores if row["split"] == "train"][:3]
    with Exhibition(gallery.pipeline, gallery.inputs["download"], None) as exhibition:
        images = exhibition.images(keys)
    first, second, third = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(str(image).partition(",")[2]))))
        for image in images
    )
    noisy = second + np.random.default_rng(0).normal(0, 8, second.shape)
    pictures = [first, noisy.clip(0, 255).astype(np.uint8), 255 - third]
    found = nearest_training(gallery.pipeline, gallery.inputs, pictures)
    assert [one.key for one in found[:2]] == keys[:2]
    assert found[0].distance == 0
    assert [one.copied for one in found] == [True, True, False]
    captions = captions_by_key(gallery.inputs["caption"], keys)
    assert found[0].caption in captions[keys[0]]


def test_pictures_gone_when_their_shard_is_downloaded_again_are_not_shown(
    gallery: Gallery, tmp_path: Path
) -> None:
    scores = read_tables(gallery.inputs["filter"], "scores").to_pylist()
    gone, other, *_ = (row["key"] for row in scores if row["split"] == "train")
    download = without(gallery.inputs["download"], gone, Store(tmp_path))
    with Exhibition(gallery.pipeline, download, gallery.inputs["filter"]) as exhibition:
        nothing, image = exhibition.images([gone, other])
    assert nothing is None
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(image).partition(",")[2]))))
    inputs = {**gallery.inputs, "download": download}
    [found] = nearest_training(gallery.pipeline, inputs, [picture])
    assert (found.key, found.distance) == (other, 0)


def without(download: Output, gone: Key, store: Store) -> Output:
    """The download, made again when a picture was gone."""
    with store.draft(Identity("download", 1, {})) as draft:
        for path in download.paths(".tar"):
            with draft.write(path.name) as file:
                shutil.copyfile(path, file.path)
        for number in range(num_shards(download, "samples")):
            rows = read_table(download.file(shard_name("samples", number))).to_pylist()
            for row in rows:
                if row["key"] == gone:
                    found = ("sha256", "format", "width", "height", "offset", "bytes")
                    row.update(dict.fromkeys(found), status="http_404")
            columns = {name: [row[name] for row in rows] for name in SAMPLES.names}
            write_table(draft, shard_name("samples", number), SAMPLES, columns, {})
        return draft.commit()
