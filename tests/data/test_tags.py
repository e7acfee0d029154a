"""Captions of tags: what is written, what is left out how often, and the same at the same
position.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from hdm.caption_text.tag_form import TagDraws, drawn_caption, plain_caption

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
