"""Whether captions would be true of a mirror image."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_SIDED = (
    r"\b(left|right)(s|most|wards?)?\b",
    r"\b((anti|counter)[- ]?)?clockwise\b",
    r"\b(north|south)?[- ]?(east|west)(ern|wards?)?\b",
    # Writing, and what bears it: mirrored, it is wrong whatever the caption says of sides.
    r"\b(hand)?(text|words?|letter(s|ing)?|writ(e|es|ing|ten)|says|saying|reads|sign(s|age)?|label(s|led|ed)?|logos?|captions?|titled?)\b",
    r"\b(numbers?|numerals?|digits?|alphabets?|typograph(y|ic)|calligraph(y|ic)|graffiti|inscri(bed|ptions?)|quot(e|es|ed|ation))\b",
    (
        r"\b(clocks?|maps?|posters?|banners?|billboards?|newspapers?|magazines?|screenshots?|keyboards?|flags?|licen[cs]e"
        r" plates?)\b"
    ),
    r"[\"\x{201c}\x{201d}\x{ab}\x{bb}]",
)


def speak_of_sides(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which captions would be false, or their pictures wrong, in a mirror: those that speak of left
    and right, of turning, or of writing.

    English words alone are known; a caption in another language counts as speaking of none.

    Args:
        captions: strings.

    Returns:
        Booleans.
    """
    return pc.match_substring_regex(captions, "|".join(_SIDED), ignore_case=True)
