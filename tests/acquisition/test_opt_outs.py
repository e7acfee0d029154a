"""Which answers of a site are an opt-out."""

import pytest

from hdm.acquisition.opt_outs import is_opted_out


@pytest.mark.parametrize(
    "tags",
    [
        ["noai"],
        ["nofollow, NoImageAI"],
        ["all", "noindex"],
        ["none"],
        ["hdm-pipeline: noml"],
        ["*: noimageindex"],
        ["otherbot: nofollow, noai", "HDM-Pipeline: nofollow, noai"],
        ["max-image-preview: large, noai"],
        ["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"],
        ["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai"],
        ["unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noai"],
        ["unavailable_after: 2010-06-25T15:00:00+00:00, noai"],
    ],
)
def test_opt_outs(tags):
    assert is_opted_out(tags)


@pytest.mark.parametrize(
    "tags",
    [
        [],
        [""],
        ["all"],
        ["nofollow, nosnippet, noarchive"],
        ["otherbot: noai"],
        ["otherbot: nofollow, noindex"],
        ["otherbot: unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noai"],
        ["max-snippet: -1"],
        ["noairport"],
    ],
)
def test_no_opt_outs(tags):
    assert not is_opted_out(tags)
