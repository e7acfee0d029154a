import base64
import io
import itertools
import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hdm.acquisition import download
from hdm.acquisition.settings import DownloadSettings
from hdm.config import Pipeline
from hdm.data.tables import read_tables
from hdm.evaluation.curves import PhaseCurve, loss_curve, ticks
from hdm.evaluation.report import write_report
from hdm.store import Identity, Output, Store
from tests.acquisition.misbehaving import png


@dataclass
class Made:
    output: Output
    cached: bool


class Page(HTMLParser):
    """What a browser would be asked to fetch, and the text that it would show."""

    VOID = ("meta", "img", "br")

    def __init__(self, html):
        super().__init__()
        self.images, self.fetched, self.text, self.open = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "img":
            self.images.append(values["src"])
        self.fetched += [
            values[name]
            for name in ("src", "href")
            if values.get(name) and not values[name].startswith("data:")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data.strip())


def page_of(gallery, outputs, folder):
    path = write_report(
        gallery.pipeline, [Made(output, cached=False) for output in outputs], folder
    )
    return Page(path.read_text())


def test_the_page_stands_alone_and_tells_everything(gallery, tmp_path):
    evaluated = gallery.evaluate()
    page = page_of(gallery, [*gallery.inputs.values(), *evaluated], tmp_path)
    text = " ".join(page.text)
    assert page.fetched == []
    assert page.open == []
    assert not re.search(r"url\(|@import", (tmp_path / "report.html").read_text())
    for output in (*gallery.inputs.values(), *evaluated):
        assert output.name in text
        assert output.digest in text
    scores = read_tables(gallery.inputs["filter"], "scores").to_pylist()
    for reason in {row["reason"] for row in scores if row["reason"]}:
        assert reason in text
    assert f"{sum(row['kept'] for row in scores)} kept" in text
    assert "Colour" in text
    assert "Two objects" in text
    # What the numbers say of a model that has learnt nothing.
    assert "lie farther away than the real pictures of the same captions" in text
    # 32 + 16 generated, 12 pairs, 24 kept; the rest are refused ones.
    assert len(page.images) > 32 + 16 + 24 + 24


def test_the_page_tells_what_became_of_a_source(tmp_path):
    """Pictures, captions and files that did not arrive, as the download counted them."""
    source = tmp_path / "pictures"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.png").write_bytes(png(number))
    (source / "0.txt").write_text("a red fox\nan animal")
    (source / "lost.txt").write_text("a dog")
    (source / "layers.psd").write_bytes(b"8BPS\0\1" + bytes(40))
    settings = DownloadSettings(source=str(source), max_lost_captions=1)
    pipeline = Pipeline(download=settings)
    output = download.make(pipeline, download.identify(pipeline, {}), {}, Store(tmp_path / "store"))
    (tmp_path / "report").mkdir()
    path = write_report(pipeline, [Made(output, cached=False)], tmp_path / "report")
    text = " ".join(Page(path.read_text()).text)
    assert "2 captions arrived" in text
    assert "2 pictures have none; 1 lost" in text
    assert "0.png: a red fox | an animal" in text
    assert "lost: 1 file" in text
    assert "refused: 1 file" in text


def test_the_page_of_a_part_of_a_pipeline(gallery, tmp_path):
    for count in range(len(gallery.inputs) + 1):
        page = page_of(gallery, list(gallery.inputs.values())[:count], tmp_path)
        assert page.open == []
        assert ("Refused, and why" in page.text) == (count > 0)
        assert "Generated images" not in page.text


def test_the_page_without_known_truth_or_contrastive_model(gallery, tmp_path):
    plain = gallery.changed(tmp_path / "store", prompts="held_out", num_images=6)
    values = plain.pipeline.model_dump(mode="json")
    values["download"]["kind"] = "folder"
    values["components"]["contrastive"] = None
    values["name"] = "<b>mine</b>"
    plain.pipeline = type(plain.pipeline).model_validate(values)
    assert plain.judge is None
    page = page_of(plain, [*plain.inputs.values(), *plain.evaluate()], tmp_path)
    assert page.fetched == []
    assert "<b>mine</b>" in page.text
    assert "Planted faults" not in page.text
    assert "Generated images" in page.text


def test_what_a_phase_generated_while_it_went_stands_in_order(gallery, tmp_path):
    colours = {
        "generated-0000000064.png": (255, 0, 0),
        "generated-0000000008.png": (0, 255, 0),
        "generated.png": (0, 0, 255),
    }
    with Store(tmp_path / "store").draft(Identity("train.16px", 1, {})) as draft:
        for name, colour in colours.items():
            with draft.write(name) as file:
                Image.new("RGB", (960, 240), colour).save(file.path, "PNG")
        with draft.write("metrics.jsonl") as file:
            file.path.write_text('{"step": 12, "num_images_seen": 96, "loss": 0.5}\n')
            file.counts["images_seen"] = 96
        output = draft.commit({"prompts": ["a <red> dot", "two dots"]})
    page = page_of(gallery, [output], tmp_path)
    shown = [
        Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))) for image in page.images
    ]
    assert [picture.size for picture in shown] == [(480, 120)] * 3
    strongest = [int(np.argmax(np.asarray(picture)[5, 5, :3])) for picture in shown]
    assert strongest == [1, 0, 2], "by images seen, the end's last"
    text = " ".join(page.text)
    assert re.findall(r"after ([\d,]+) images", text) == ["8", "64", "96"]
    assert "a <red> dot · two dots" in text
    assert page.open == []


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.118, 0.2031), (0, 80000), (-3, 2), (1e-5, 3e-5)]
)
def test_ticks_are_round_and_few(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low <= value <= high for value in found)
    steps = {
        round((after - before) / (found[1] - found[0]), 6)
        for before, after in itertools.pairwise(found)
    }
    assert steps == {1}


def test_the_curve_puts_one_phase_after_the_other():
    first = PhaseCurve("48px", 1000, [(100 * n, 1 / n) for n in range(1, 11)], [(1000, 0.15)])
    second = PhaseCurve("64px", 3000, [(100 * n, 0.1) for n in range(1, 31)], [])
    svg = loss_curve([first, second])
    lines = [
        [tuple(map(float, point.split(","))) for point in line.split()]
        for line in re.findall(r'points="([^"]+)"', svg)
    ]
    assert [len(line) for line in lines] == [10, 30]
    assert lines[0][-1][0] < lines[1][0][0]
    assert [y for _, y in lines[0]] == sorted(
        y for _, y in lines[0]
    )  # SVG counts downwards, the loss falls
    assert lines[1][-1][0] == pytest.approx(960 - 12, abs=0.1)
    assert "held-out loss 0.1500 after 1,000 images" in svg
    assert loss_curve([PhaseCurve("64px", 0, [], [])]) == ""
