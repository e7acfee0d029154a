"""Verdicts and splits on tables written by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from hdm.curation import checks
from hdm.curation.checks import Verdicts
from hdm.curation.fingerprints import RECORD, fingerprint
from hdm.curation.settings import FilterSettings, TopFraction
from hdm.curation.splits import Shares, SplitMemory, assign_splits
from hdm.data.tables import MEASURES, RATINGS, SIMILARITIES
from hdm.errors import DamagedError

OFF = FilterSettings(min_side_px=None, max_aspect=None, duplicate_distance=None)


def picture(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 16, 0), 16, 1)


def table(*rows: dict[str, Any]) -> pa.Table:
    """Rows of MEASURES; `seed` gives the picture, what is not given passes."""
    filled = []
    for number, row in enumerate(rows):
        shown = fingerprint(picture(row.pop("seed", 1000 + number)))
        usual = {
            "key": f"{number:016x}",
            "decoded": "ok",
            "width": 100,
            "height": 100,
            "sharpness": 1.0,
            "noise": 0.0,
            "sha256": shown.sha256,
            "fingerprint": shown.record,
        }
        filled.append({**usual, **row})
    fields = [*MEASURES, RATINGS.field("aesthetic"), SIMILARITIES.field("clip_similarity")]
    return pa.table(
        {
            field.name: pa.array([row.get(field.name) for row in filled], field.type)
            for field in fields
        }
    )


def judge(
    measures: pa.Table, settings: FilterSettings, embeddings: np.ndarray | None = None
) -> Verdicts:
    rows = measures.column("fingerprint").drop_null().to_pylist()
    records = np.frombuffer(b"".join(rows), RECORD)
    return checks.judge(measures, records, settings, embeddings)


def reasons(measures: pa.Table, **settings: Any) -> list[str | None]:
    return judge(measures, OFF.model_copy(update=settings)).reasons


def test_every_threshold_refuses_what_lies_beyond_it_and_keeps_what_lies_on_it():
    sides = table({"width": 31, "height": 90}, {"width": 32, "height": 90})
    assert reasons(sides, min_side_px=32) == ["too_small", None]
    assert reasons(
        table({"width": 100, "height": 301}, {"width": 300, "height": 100}), max_aspect=3.0
    ) == ["aspect", None]
    assert reasons(table({"sharpness": 0.25}, {"sharpness": 0.5}), min_sharpness=0.5) == [
        "blurred",
        None,
    ]
    assert reasons(table({"noise": 8.5}, {"noise": 8.0}), max_noise=8.0) == ["noisy", None]
    assert reasons(table({"aesthetic": 4.0}, {"aesthetic": 5.0}), min_aesthetic=5.0) == [
        "aesthetic",
        None,
    ]
    captions = table(
        {"clip_similarity": 0.125}, {"clip_similarity": 0.25}, {"clip_similarity": None}
    )
    assert reasons(captions, min_clip_similarity=0.25) == ["clip_similarity", None, None]


def test_what_cannot_be_decoded_is_refused_with_its_status_and_stands_in_nobodys_way():
    nothing = dict.fromkeys(
        (
            "width",
            "height",
            "sharpness",
            "noise",
            "fingerprint",
            "sha256",
        )
    )
    verdicts = judge(
        table({"decoded": "corrupt", **nothing}, {"seed": 1}, {"seed": 1}),
        FilterSettings(min_sharpness=0.1),
    )
    assert verdicts.reasons == ["undecodable", None, "duplicate"]
    assert verdicts.details[0] == "corrupt"
    assert verdicts.counts() == {"undecodable": 1, "duplicate": 1}


def test_a_picture_that_fails_several_checks_is_refused_for_the_first_with_its_numbers():
    verdicts = judge(
        table({"width": 20, "height": 200, "sharpness": 0.1}), FilterSettings(min_sharpness=0.4)
    )
    assert verdicts.reasons == ["too_small"]
    assert verdicts.details[0] is not None
    assert "20 × 200" in verdicts.details[0]
    assert "32" in verdicts.details[0]


def test_the_best_of_several_copies_stays_of_those_that_pass_everything_else():
    rows = table(
        {"seed": 1, "sharpness": 0.1, "width": 140},
        {"seed": 1, "aesthetic": 1.0, "width": 120},
        {"seed": 1, "aesthetic": 9.0},
        {"seed": 1, "aesthetic": 9.5},
        {"seed": 1, "aesthetic": 9.0, "sharpness": 0.9},
    )
    verdicts = judge(rows, FilterSettings(min_sharpness=0.4, min_aesthetic=5.0))
    assert verdicts.reasons == ["blurred", "duplicate", "duplicate", None, "duplicate"]
    assert {verdicts.details[number] for number in (1, 2, 4)} == {f"{3:016x}"}


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"width": 101, "sharpness": 0.5}, {}),
        ({"sharpness": 1.1, "aesthetic": 3.0}, {"aesthetic": 9.0}),
        ({"aesthetic": 3.1}, {"aesthetic": 3.0}),
        ({"aesthetic": 3.0}, {"aesthetic": None}),
        ({"key": "0" * 16}, {"key": "f" * 16}),
    ],
)
def test_copies_are_ranked_by_size_then_sharpness_then_score_then_key(better, worse):
    for rows in ((better, worse), (worse, better)):
        found = reasons(table(*({"seed": 1, **row} for row in rows)), duplicate_distance=0.16)
        assert found[rows.index(better)] is None
        assert found[rows.index(worse)] == "duplicate"


def test_one_meaning_is_a_criterion_of_its_own_and_off_by_default():
    rows = table({"width": 90}, {}, {}, {"decoded": "corrupt", "fingerprint": None, "sha256": None})
    near = np.array([[1, 0], [0.995, 0.1], [0, 1]], np.float32)
    assert judge(rows, OFF, near).reasons == [None, None, None, "undecodable"]
    verdicts = judge(rows, OFF.model_copy(update={"duplicate_meaning": 0.99}), near)
    assert verdicts.reasons == ["duplicate_meaning", None, None, "undecodable"]
    assert verdicts.details[0] == f"{1:016x}"
    assert verdicts.families[0] == verdicts.families[1] != verdicts.families[2]


def test_the_top_fraction_ranks_what_is_left_and_lets_unscored_ones_pass():
    rows = table(
        *({"aesthetic": value} for value in (5.0, 7.0, 6.0, 6.0, 9.0, None)),
        {"aesthetic": 9.9, "sharpness": 0.0},
    )
    found = reasons(rows, min_sharpness=0.5, top_fraction=TopFraction(by="aesthetic", keep=0.6))
    assert found == ["top_fraction", None, None, "top_fraction", None, None, "blurred"]


def test_copies_do_not_count_in_the_top_fraction():
    rows = table(
        *(
            {"seed": seed, "aesthetic": value}
            for seed, value in ((1, 9.0), (1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0))
        )
    )
    found = reasons(rows, duplicate_distance=0.06, top_fraction=TopFraction(keep=0.5))
    assert found == [None, "duplicate", None, "top_fraction", "top_fraction"]


def hashes(count: int, seed: int = 0) -> list[str]:
    return [
        row.tobytes().hex()
        for row in np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)
    ]


def split_alone(pictures: list[str], validation: float, held_out: float) -> list[str]:
    """Splits of pictures that have no copies and were never seen."""
    families = list(range(len(pictures)))
    known = [None] * len(pictures)
    return assign_splits(pictures, families, known, Shares(validation, held_out)).splits


def test_splits_have_their_shares():
    splits = split_alone(hashes(20_000), validation=0.1, held_out=0.2)
    shares = {
        split: splits.count(split) / len(splits) for split in ("train", "validation", "held_out")
    }
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "held_out": 0.2}, abs=0.015)


def test_a_pictures_split_depends_on_nothing_but_its_content():
    pictures = hashes(1000)
    whole = split_alone(pictures, 0.2, 0.2)
    some = np.random.default_rng(1).permutation(1000)[:100].tolist()
    assert split_alone([pictures[number] for number in some], 0.2, 0.2) == [
        whole[number] for number in some
    ]


def test_held_out_pictures_stay_so_when_the_other_share_changes():
    before, after = (split_alone(hashes(1000), validation, 0.05) for validation in (0.0, 0.3))
    assert [split == "held_out" for split in before] == [split == "held_out" for split in after]


def test_a_small_set_has_one_of_each_split_that_is_asked_for():
    for seed in range(20):
        assert sorted(split_alone(hashes(3, seed), 0.01, 0.01)) == [
            "held_out",
            "train",
            "validation",
        ]
        assert split_alone(hashes(2, seed), 1e-9, 1e-9) == ["train", "train"]
        assert split_alone(hashes(3, seed), 0, 0) == ["train"] * 3


def test_a_family_shares_the_split_of_its_best_picture():
    pictures = hashes(4000)
    alone = split_alone(pictures, 0.1, 0.2)
    families = [number % 2000 for number in range(4000)]
    assigned = assign_splits(pictures, families, [None] * 4000, Shares(0.1, 0.2))
    assert assigned.splits == alone[:2000] * 2
    assert assigned.moved == []


def test_a_picture_that_joins_a_family_takes_its_split_and_one_that_joins_two_moves_to_training():
    pictures = hashes(6)
    known = ["held_out", None, "held_out", "validation", None, "train"]
    families = [0, 0, 1, 1, 1, 2]
    assigned = assign_splits(pictures, families, known, Shares(0.3, 0.3))
    assert assigned.splits == ["held_out", "held_out", "train", "train", "train", "train"]
    assert assigned.moved == [2, 3]


def test_a_memory_of_splits_keeps_what_is_not_said_again(tmp_path):
    first, second, third = hashes(3)
    memory = SplitMemory(tmp_path, Shares(0.1, 0.2))
    assert memory.recall(pa.array([first])) == [None]
    memory.remember(pa.array([first, second, first]), ["train", "held_out", "train"])
    memory.remember(pa.array([third, second]), ["validation", "train"])
    again = SplitMemory(tmp_path, Shares(0.1, 0.2))
    asked = pa.array([second, "0" * 64, first, third])
    assert again.recall(asked) == ["train", None, "train", "validation"]
    assert SplitMemory(tmp_path, Shares(0.1, 0.3)).recall(asked) == [None] * 4


def test_a_damaged_memory_of_splits_is_named(tmp_path):
    memory = SplitMemory(tmp_path, Shares(0.1, 0.2))
    memory.remember(pa.array(hashes(50)), ["train"] * 50)
    memory.path.write_bytes(memory.path.read_bytes()[:-40])
    with pytest.raises(DamagedError, match=r"validation-0\.1-held_out-0\.2"):
        memory.recall(pa.array(hashes(1)))
