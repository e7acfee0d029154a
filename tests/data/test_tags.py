"""Captions of tags: what is written, what is left out how often, and the same at the same
position; and their table.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from hdm.caption_text.tag_form import TagDraws, drawn_captions, plain_caption
from hdm.data.tables import CAPTIONS, shard_name, write_table
from hdm.data.tags import TagTable
from hdm.keys import key_text
from hdm.store import Identity, Output, Store

CAPTION = (
    "masterpiece $$ safe ||| one girl $$ red hair $$ smile "
    "%% a girl sits on a wall, smiling. %% outdoors $$ sky"
)
GROUPS = [
    ["one girl", "red hair", "smile"],
    ["a girl sits on a wall, smiling."],
    ["outdoors", "sky"],
]
RECIPE = TagDraws(tag_drop=0.25, group_drop=0.3, shuffle=True, seed=3)


def drawn_caption(caption: str, draws: TagDraws, position: int) -> str:
    return drawn_captions([caption], draws, [position])[0]


def read_back(text: str) -> list[str]:
    """The tags after the kept ones."""
    assert text == "masterpiece, safe" or text.startswith("masterpiece, safe, ")
    rest = text.removeprefix("masterpiece, safe").removeprefix(", ")
    whole = GROUPS[1][0]
    found = rest.replace(whole, "*").split(", ") if rest else []
    return [whole if tag == "*" else tag for tag in found]


def test_all_tags_in_their_order() -> None:
    assert plain_caption(CAPTION) == (
        "masterpiece, safe, one girl, red hair, smile, "
        "a girl sits on a wall, smiling., outdoors, sky"
    )
    for caption in ("a %% b $$ c", "a | b || c", ""):  # no |||: none of ours
        assert plain_caption(caption) == drawn_caption(caption, RECIPE, 5) == caption
    assert plain_caption("||| a $$ $$ b %% %%") == "a, b"
    assert drawn_caption(CAPTION, TagDraws(0.0, 0.0, False, 3), 77) == plain_caption(CAPTION)


def test_shares_of_groups_and_tags_that_are_left_out() -> None:
    count = 20_000
    drawn = [read_back(drawn_caption(CAPTION, RECIPE, position)) for position in range(count)]
    seen = Counter(tag for tags in drawn for tag in tags)
    for tag in (tag for group in GROUPS for tag in group):
        assert abs(seen[tag] / count - 0.7 * 0.75) < 0.015
    # Tags of one group go together with it: both or none more often than independent tags would.
    both = sum({"outdoors", "sky"} <= set(tags) for tags in drawn) / count
    assert abs(both - 0.7 * 0.75**2) < 0.015
    neither = sum(not {"outdoors", "sky", "smile"} & set(tags) for tags in drawn) / count
    assert abs(neither - (0.3 + 0.7 * 0.25**2) * (0.3 + 0.7 * 0.25)) < 0.015
    assert all(len(set(tags)) == len(tags) for tags in drawn)


def test_every_order_of_tags_and_groups_is_as_likely() -> None:
    whole = TagDraws(0.0, 0.0, True, 3)
    orders: Counter[tuple[str, ...]] = Counter(
        tuple(read_back(drawn_caption(CAPTION, whole, position))) for position in range(14_400)
    )
    assert len(orders) == 6 * 6 * 2  # of groups, of the first's three tags, of the last's two
    assert max(abs(number / 14_400 - 1 / 72) for number in orders.values()) < 0.005
    for order in orders:  # groups stay together
        places = [order.index(tag) for tag in GROUPS[0]]
        assert max(places) - min(places) == 2
    still = TagDraws(0.5, 0.3, False, 3)
    all_tags = [tag for group in GROUPS for tag in group]
    for position in range(300):
        found = [all_tags.index(tag) for tag in read_back(drawn_caption(CAPTION, still, position))]
        assert found == sorted(found)


def test_a_pure_function_of_seed_and_position() -> None:
    positions = np.random.default_rng(0).permutation(200)
    drawn = {position: drawn_caption(CAPTION, RECIPE, position) for position in positions.tolist()}
    assert all(drawn_caption(CAPTION, RECIPE, position) == text for position, text in drawn.items())
    other = TagDraws(0.25, 0.3, True, 4)
    assert (
        sum(drawn_caption(CAPTION, other, position) == text for position, text in drawn.items())
        < 40
    )


def test_captions_drawn_together_are_those_drawn_alone() -> None:
    # As they were drawn one at a time, before they were drawn together.
    known = {
        0: "masterpiece, safe, a girl sits on a wall, smiling., sky",
        7: "masterpiece, safe, sky, outdoors",
        2**31 - 1: "masterpiece, safe, one girl, red hair, sky, outdoors",
    }
    captions = [CAPTION, "a plain one", "", "||| a $$ b", "|||", CAPTION]
    positions = [0, 1, 2, 3, 4, 2**31 - 1]
    together = drawn_captions(captions, RECIPE, positions)
    alone = []
    for caption, position in zip(captions, positions, strict=True):
        alone.append(drawn_caption(caption, RECIPE, position))
    assert together == alone
    assert together[1:3] == ["a plain one", ""]
    assert {position: drawn_caption(CAPTION, RECIPE, position) for position in known} == known
    assert drawn_captions([], RECIPE, []) == []


SHARDS = [["été ||| a $$ b", "日本 plain"], [], ["", "last ||| ü"]]


def write_captions(store: Store) -> Output:
    with store.draft(Identity("caption", 1, {})) as draft:
        for number, captions in enumerate(SHARDS):
            rows: dict[str, list[Any]] = {
                "key": [key_text(10 * number + place) for place in range(len(captions))],
                "index": [0] * len(captions),
                "maker": ["given"] * len(captions),
                "caption": captions,
            }
            write_table(draft, shard_name("captions", number), CAPTIONS, rows, {})
        return draft.commit()


def letters(caption: str) -> list[int]:
    return list(map(ord, caption)) or [0]


def test_a_table_of_captions_of_tags(tmp_path: Path) -> None:
    tokenized: list[str] = []

    def tokenize(captions: list[str]) -> list[np.ndarray]:
        tokenized.extend(captions)
        return [np.array(letters(caption), np.int32) for caption in captions]

    still = TagDraws(0.0, 0.0, False, 3)
    table = TagTable(write_captions(Store(tmp_path)), still, tokenize, 9)
    assert table.keys.tolist() == [0, 1, 20, 21]
    assert table.empty == 4
    wanted = ["été, a, b", "日本 plain", "", "last, ü", ""]
    rows = table.at_position(np.arange(5), np.arange(5) + 2**31 - 5)
    assert table.lengths(rows).tolist() == [9, 8, 1, 7, 1]
    ids, mask = table.read(rows[1:4], 8)
    for number, caption in enumerate(wanted[1:4]):
        assert ids[number][mask[number]].tolist() == letters(caption)
    assert ids[~mask].unique().tolist() == [9]
    assert tokenized == wanted, "a batch's captions are tokenized once"
    ids, mask = table.read(rows[:1], 4)
    assert ids.tolist() == [list(map(ord, "été,"))]
    assert mask.all()
