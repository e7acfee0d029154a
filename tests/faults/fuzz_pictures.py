"""Decode picture files that are broken in every way one can think of: each is a picture or a
refusal, within seconds and memory.

    python -m tests.faults.fuzz_pictures [--seconds 180] [--seed 0] [--work DIR]

Whatever else happens (another exception, too much time or memory) is a failure, and its file is
kept in DIR/failures. A picture that crashes a codec ends a child process and is refused, as it
should be: such files are counted and kept in DIR/crashes, to be reported to the codec's makers.
A broken file that gives an outcome not seen before is broken further. Resumable: the same command
goes on with the next files, and runs for as many seconds again.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from hdm.errors import HdmError
from hdm.pictures.decoding import Asked, Decoders
from hdm.pictures.formats import HEAD_BYTES, foreign_format, sniff
from hdm.pictures.reading import BadImage, decode, inspect
from hdm.pictures.settings import ImageSettings

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared" / "data"
LIMITS = ImageSettings(max_megapixels=4.0, max_seconds=10.0, max_memory_mb=1024, matte="#8040c0")
"""Tight: nothing that is let through may need more."""
FAILURES = frozenset({"too_slow", "too_much_memory"})
LARGEST_SEED = 60_000
NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    32768,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
)


def examined(data: bytes, settings: ImageSettings) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What a file is to every caller: the format by its head, the header, the pixels; they have to
    agree.
    """
    if sniff(data) != sniff(data[:HEAD_BYTES]) or foreign_format(data) != foreign_format(
        data[:HEAD_BYTES]
    ):
        raise AssertionError("the head of the file says another format than the whole")
    picture = decode(data, settings)
    header = inspect(data, settings)
    if picture.pixels.shape != (header.height, header.width, 3) or picture.pixels.dtype != np.uint8:
        raise AssertionError(f"{picture.pixels.shape} {picture.pixels.dtype} for {header}")
    return {"outcome": [picture.format, *picture.flags]}, []


# Whole files to begin with


def made_up() -> list[bytes]:
    """Small files of every format, kind of sample and annotation."""
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8))
    frames = {"save_all": True, "append_images": [colour.rotate(180), colour.rotate(90)]}
    exif, profile = Image.Exif(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif[0x0112], exif[0x010F] = 6, "maker"
    said = {"exif": exif, "icc_profile": profile}
    images = [colour, *(colour.convert(mode) for mode in ("L", "LA", "RGBA", "P", "1"))]
    files = [_saved(image, "PNG") for image in images]
    files += [_saved(colour, "PNG", **said), _saved(colour, "PNG", **frames)]
    files += [_saved(Image.fromarray(np.arange(240, dtype=np.uint16).reshape(12, 20) * 273), "PNG")]
    files += [_with_chunk(files[0], kind, data) for kind, data in _COLOUR_CHUNKS]
    files += [_saved(colour, "JPEG", quality=50, **said), _saved(colour, "JPEG", progressive=True)]
    files += [_saved(colour.convert(mode), "JPEG") for mode in ("L", "CMYK")]
    files += [_saved(image, "GIF", **options) for image in images[:2] for options in ({}, frames)]
    files += [_saved(colour, "WEBP", lossless=lossless, **said) for lossless in (True, False)]
    files += [_saved(images[3], "WEBP"), _saved(colour, "WEBP", **frames)]
    files += [_saved(colour, "TIFF", compression=name, **said) for name in _TIFF_COMPRESSIONS]
    files += [_saved(colour, "TIFF", **frames)]
    files += [_saved(image, "BMP") for image in (images[0], images[1], images[3], images[4])]
    files += [
        _saved(colour, "AVIF", **said),
        _saved(images[3], "AVIF"),
        _saved(colour, "AVIF", **frames),
    ]
    files += [_saved(image, "JPEG2000") for image in images[:4]]
    files += [_saved(colour, "JPEG2000", no_jp2=True, irreversible=True)]
    return files + [
        path.read_bytes() for path in sorted((PROJECT / "tests/pictures/heif").glob("*.heic"))
    ]


_COLOUR_CHUNKS = (
    (b"gAMA", struct.pack(">I", 100_000)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
    (b"cICP", bytes((9, 8, 0, 0))),
    (b"tRNS", struct.pack(">3H", 1, 2, 3)),
)
_TIFF_COMPRESSIONS = (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")


def _saved(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def _with_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return png[:33] + struct.pack(">I", len(data)) + kind + data + crc + png[33:]


def found() -> list[bytes]:
    """Files of real makers, where they are on this machine."""
    folders = (SHARED / "robustness", SHARED / "photos", SHARED.parent / "cases")
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [path.read_bytes() for path in paths if path.stat().st_size <= LARGEST_SEED]


# Ways to break them


def flipped_bits(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def cut_off(data: bytearray, _: bytes, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def spliced(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """The beginning of one and the end of another."""
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def edited_number(data: bytearray, _: bytes, rng: random.Random) -> bytearray:
    """A number that counts or measures, most often in the header."""
    place = rng.randrange(min(len(data), rng.choice((40, 200, len(data)))))
    size = rng.choice((1, 2, 4))
    value = rng.choice(NUMBERS) % (1 << 8 * size)
    data[place : place + size] = value.to_bytes(size, rng.choice(("big", "little")))
    return data


def repeated_part(data: bytearray, _: bytes, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    part = data[start : start + rng.choice((1, 4, 12, 64, 1000))]
    return data[:start] + part * rng.choice((2, 3, 20, 300)) + data[start + len(part) :]


def lost_part(data: bytearray, _: bytes, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice((1, 2, 4, 12, 100)) :]


def moved_chunk(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """A chunk of a PNG doubled, or one of another PNG put in; elsewhere as `repeated_part`."""
    own, foreign = _chunks(bytes(data)), _chunks(other)
    if len(own) < 2:
        return repeated_part(data, other, rng)
    chunk = rng.choice(rng.choice((own, foreign or own)))
    own.insert(rng.randrange(len(own)), chunk)
    return data[:8] + b"".join(own)


WAYS: tuple[Callable[[bytearray, bytes, random.Random], bytearray], ...] = (
    flipped_bits,
    flipped_bits,
    cut_off,
    spliced,
    edited_number,
    edited_number,
    repeated_part,
    lost_part,
    moved_chunk,
)


def broken(whole: list[bytes], grown: list[bytes], rng: random.Random) -> bytes:
    """One of the files, broken in one to three ways; a PNG most often with right checksums, or no
    reader looks further.
    """
    seeds = grown if grown and rng.random() < 0.3 else whole
    data, other = bytearray(rng.choice(seeds)), rng.choice(whole)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if data:
            data = rng.choice(WAYS)(data, other, rng)
    return _mended(bytes(data)) if rng.random() < 0.8 else bytes(data)


def _chunks(png: bytes) -> list[bytes]:
    if not png.startswith(b"\x89PNG"):
        return []
    parts, place = [], 8
    while place + 8 <= len(png):
        past = place + 12 + int.from_bytes(png[place : place + 4], "big")
        parts.append(png[place:past])
        place = past
    return parts


def _mended(data: bytes) -> bytes:
    """A PNG's chunks with right checksums; other files as they are."""
    parts = [
        part[:-4] + struct.pack(">I", zlib.crc32(part[4:-4])) if len(part) >= 12 else part
        for part in _chunks(data)
    ]
    return data[:8] + b"".join(parts) if parts else data


# Running


class Fuzzing:
    """Broken files through the processes that decode, one number after the other.

    Args:
        seed: decides everything that is drawn.
        whole: files to begin with.
        grown: broken ones that gave outcomes not seen before; more are added.
    """

    def __init__(self, seed: int, whole: list[bytes], grown: list[bytes] | None = None) -> None:
        self.seed, self.whole = seed, [data for data in whole if data]
        self.grown = grown or []
        self.outcomes: Counter[str] = Counter()

    def run(
        self, numbers: Iterator[int], decoders: Decoders
    ) -> Iterator[tuple[int, bytes, str, bool]]:
        """Number, file and outcome of each, and whether that outcome is a failure."""
        waiting: list[tuple[int, bytes]] = []

        def asked() -> Iterator[Asked]:
            for number in numbers:
                data = broken(self.whole, self.grown, random.Random(f"{self.seed}:{number}"))
                waiting.append((number, data))
                yield Asked(str(number), partial(bytes, data))

        for answer in decoders.map(asked(), ahead=16):
            number, data = waiting.pop(0)
            try:
                outcome, failed = " ".join(answer.result().facts["outcome"]), False
            except BadImage as refusal:
                outcome = f"{refusal.status}: {re.sub('[^a-z ]+', '', refusal.message)}"
                failed = refusal.status in FAILURES
            except HdmError as error:
                outcome, failed = str(error), True
            if outcome not in self.outcomes and not failed and 0 < len(data) <= LARGEST_SEED:
                self.grown.append(data)
            self.outcomes[outcome] += 1
            yield number, data, outcome, failed


def main() -> None:
    """Fuzz for some seconds, and say what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=180, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument(
        "--work", type=Path, default=Path("store/.fuzz"), help="default: %(default)s"
    )
    given = parser.parse_args()
    work = given.work / str(given.seed)
    for name in ("failures", "corpus", "crashes"):
        (work / name).mkdir(parents=True, exist_ok=True)
    state = work / "state.json"
    first = json.loads(state.read_text())["next"] if state.exists() else 0
    grown = [path.read_bytes() for path in sorted((work / "corpus").iterdir())]
    fuzzing = Fuzzing(given.seed, [*made_up(), *found()], list(grown))
    number, failures, crashes = first, 0, 0
    end = time.monotonic() + given.seconds

    def numbers() -> Iterator[int]:
        number = first
        while time.monotonic() < end:
            yield number
            number += 1

    with Decoders(LIMITS, examined) as decoders:
        for number, data, outcome, failed in fuzzing.run(numbers(), decoders):
            crashed = outcome.startswith("crashes:")
            if failed or crashed:
                folder = work / ("failures" if failed else "crashes")
                (folder / f"{number:09d}").write_bytes(data)
                print(f"{number}: {outcome}", flush=True)
            failures += failed
            crashes += crashed
    for place, data in enumerate(fuzzing.grown[len(grown) :]):
        (work / "corpus" / f"{first:09d}-{place:05d}").write_bytes(data)
    state.write_text(json.dumps({"next": number + 1}))
    decoded = sum(count for outcome, count in fuzzing.outcomes.items() if ":" not in outcome)
    total = fuzzing.outcomes.total()
    print(
        f"{total} broken files from {len(fuzzing.whole)} whole ones: {decoded} decoded, "
        f"{total - decoded - failures} refused for {len(fuzzing.outcomes)} reasons, "
        f"{crashes} of them because a codec crashed, "
        f"{failures} failures in {work / 'failures'}"
    )
    sys.exit(bool(failures))


if __name__ == "__main__":
    # By its own name, by which the processes that decode import it too.
    from tests.faults import fuzz_pictures

    fuzz_pictures.main()
