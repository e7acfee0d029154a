"""Whether captions would be true of a mirror image."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_SIDED = (
    r"\b(left|right)(s|most|wards?)?\b",
    r"\b((anti|counter)[- ]?)?clockwise\b",
    r"\b(north|south)?[- ]?(east|west)(ern|wards?)?\b",
    # Writing and things that bear it look wrong in a mirror, whatever the caption says about sides.
    (
        r"\b(hand)?(text|words?|letter(s|ing)?|writ(e|es|ing|ten)|says|saying|reads|sign(s|age)?"
        r"|label(s|led|ed)?|logos?|captions?|titled?)\b"
    ),
    (
        r"\b(numbers?|numerals?|digits?|alphabets?|typograph(y|ic)|calligraph(y|ic)|graffiti"
        r"|inscri(bed|ptions?)|quot(e|es|ed|ation))\b"
    ),
    (
        r"\b(clocks?|maps?|posters?|banners?|billboards?|newspapers?|magazines?|screenshots?"
        r"|keyboards?|flags?|licen[cs]e plates?)\b"
    ),
    r"[\"\x{201c}\x{201d}\x{ab}\x{bb}]",
)


def speak_of_sides(captions: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which captions would be false, or their pictures wrong, in a mirror: those that mention left
    or right, a direction of turning, or writing.

    Only English words are known; no caption in another language counts.

    Args:
        captions: strings.

    Returns:
        Booleans.
    """
    return pc.match_substring_regex(captions, "|".join(_SIDED), ignore_case=True)
