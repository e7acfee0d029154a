"""What of an output is tracked."""

from __future__ import annotations

import json
from pathlib import Path

from hdm.store import Identity, Store
from tasks.figures import Series, counts, flattened, input_folder, numeric, origin, shown


def test_settings_become_flat_parameters() -> None:
    nested = {
        "train": {"seed": 3, "phases": [{"resolution": 48}, {"resolution": 64}]},
        "betas": [0.9, 0.99],
    }
    assert dict(flattened(nested)) == {
        "train.seed": 3,
        "train.phases.0.resolution": 48,
        "train.phases.1.resolution": 64,
        "betas": [0.9, 0.99],
    }
    assert dict(numeric({"a": {"b": 1}, "yes": True, "name": "x", "c": 0.5})) == {
        "a.b": 1,
        "c": 0.5,
    }


def test_a_series_grows_without_saying_anything_twice(tmp_path: Path) -> None:
    path, series = tmp_path / "metrics.jsonl", Series(tmp_path, "metrics.jsonl")

    def write(lines: list[tuple[int, float]], torn: str = "") -> None:
        path.write_text(
            "".join(
                json.dumps({"step": n, "num_images_seen": 8 * n, "loss": loss}) + "\n"
                for n, loss in lines
            )
            + torn
        )

    def read() -> list[tuple[str, float, int]]:
        return [(key, value, seen) for key, value, _, seen in series.added()]

    assert read() == []
    write([(1, 2.0), (2, 1.5)], torn='{"step": 3, "num_im')
    assert read() == [("loss", 2.0, 8), ("loss", 1.5, 16)]
    write([(1, 2.0), (2, 1.5), (3, 1.2)])
    assert read() == [("loss", 1.2, 24)]
    write([(1, 2.0), (2, 1.5)])  # killed, and resumed from a checkpoint before
    assert read() == []
    write([(1, 2.0), (2, 1.5), (3, 1.2), (4, 1.1)])
    assert read() == [("loss", 1.1, 32)]


def test_inputs_that_other_pipelines_made_are_found_behind_their_prefix(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = {}
    for name in ("download", "train.48px"):
        with store.draft(Identity(name, 1, {})) as draft:
            draft.write_json("figures.json", {})
            made[name] = draft.commit({})
    download, train = made.values()
    names = {"download": download, "mix.0/download": download, "start/train": train}
    for name, output in names.items():
        assert input_folder(tmp_path, name, output.digest) == output.path
    tuned = Identity("train.64px", 1, {}, {"start/train": train.digest})
    with store.draft(tuned) as draft:
        draft.write_json("figures.json", {})
        output = draft.commit({})
    manifest = json.loads((output.path / "manifest.json").read_bytes())
    assert origin(tmp_path, manifest) == train.digest


def test_an_output_names_the_download_that_it_comes_from(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before: dict[str, str] = {}
    for name in ("download", "filter", "train.64px"):
        with store.draft(Identity(name, 1, {}, before)) as draft:
            draft.write_json("figures.json", {}, {"items": 2})
            draft.write_json("weights.bin", [])
            output = draft.commit()
        before = {name: output.digest}
        manifest = json.loads((output.path / "manifest.json").read_bytes())
        assert origin(tmp_path, manifest) == next(store.outputs()).digest
        assert counts(manifest) == {"items": 2}
        assert [path.name for path in shown(output.path, manifest)] == [
            "manifest.json",
            "figures.json",
        ]
