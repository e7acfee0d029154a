from __future__ import annotations


def test_first(trained):
    print(trained)
    print((trained.path / "metrics.jsonl").read_text(), (trained.path / "timing.jsonl").read_text())
