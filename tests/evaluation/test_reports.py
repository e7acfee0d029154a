"""One report for each run, and the page that lists them."""

from __future__ import annotations

import json
from urllib.parse import unquote

from hdm.evaluation.report import write_report
from hdm.evaluation.report_index import new_folder, write_index
from tests.evaluation.test_report import Made, Page


def test_a_later_run_leaves_a_finished_report_as_it_was(gallery, tmp_path):
    outputs = [*gallery.inputs.values(), *gallery.evaluate()]
    made = [Made(output, cached=False) for output in outputs]
    names = [output.name for output in outputs]
    whole = write_report(gallery.pipeline, made, new_folder(tmp_path, "mine", "abcdef012345"))
    before = whole.read_bytes()
    part = write_report(
        gallery.pipeline,
        made[:2],
        new_folder(tmp_path, "mine", "abcdef012345"),
        ["filter.min_side_px=8", "download.source=https://host/?planted"],
        names[2:],
    )
    assert part != whole
    assert whole.read_bytes() == before
    assert all(path.parent.parent == tmp_path / "reports" / "mine" for path in (whole, part))
    assert sorted([part.parent.name, whole.parent.name]) == [whole.parent.name, part.parent.name]

    text = " ".join(Page(part.read_text()).text)
    assert "A part of the pipeline." in text
    assert names[-1] in text
    assert "filter.min_side_px=8" in text
    assert "A part of the pipeline." not in whole.read_text()
    assert "planted" not in part.read_text() + (part.parent / "report.json").read_text()


def test_the_list_names_every_report_and_leads_to_it(gallery, tmp_path):
    evaluated = gallery.evaluate()
    made = [Made(output, cached=False) for output in (*gallery.inputs.values(), *evaluated)]
    pages = [
        write_report(gallery.pipeline, made, new_folder(tmp_path, "mine", "a" * 16)),
        write_report(
            gallery.pipeline,
            made[:2],
            new_folder(tmp_path, "ünsere", "b" * 16),
            ["filter.min_side_px=8"],
            [one.output.name for one in made[2:]],
        ),
    ]
    torn = new_folder(tmp_path, "torn", "c" * 16) / "report.json"
    torn.write_text('{"pipeline": "torn"')
    index = write_index(tmp_path)
    assert "1 more cannot be read" in index.read_text()
    assert index == tmp_path / "reports" / "index.html"
    found = Page(index.read_text())
    assert sorted(unquote(link) for link in found.fetched) == sorted(
        page.relative_to(index.parent).as_posix() for page in pages
    )
    assert found.open == []
    text = " ".join(found.text)
    assert f"all {len(made)}" in text
    assert f"2 of {len(made)} up to {made[1].output.name}" in text
    assert "filter.min_side_px=8" in text
    colour = gallery.measure("accuracy").summary["colour"]["value"]
    assert f"{100 * colour:.0f}" in text


def test_a_report_says_what_code_libraries_and_machine_made_each_output(gallery, tmp_path):
    output = gallery.measure("accuracy")
    page = write_report(
        gallery.pipeline, [Made(output, cached=False)], new_folder(tmp_path, "a", "b")
    )
    text = " ".join(Page(page.read_text()).text)
    run = output.run()["runs"][-1]
    for known in (run["code"]["version"], run["machine"]["cpu"], run["libraries"]["torch"]):
        assert known in text
    facts = json.loads((page.parent / "report.json").read_bytes())
    assert facts["code"] == run["code"]
    assert "code" not in json.loads((output.path / "manifest.json").read_bytes())
