"""Copies of photographs that the filter finds, and unrelated pictures that it takes for copies."""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.curation import candidates
from hdm.curation.duplicates import Criterion, find_families, find_pairs
from hdm.curation.fingerprints import (
    COLOUR_SIDE,
    EVERYTHING,
    GREY_SIDE,
    RECORD,
    VIEWS,
    fingerprint,
    perceptual_hashes,
)
from hdm.curation.settings import FilterSettings

EXPLANATION = """\
Recall: each photograph and its four quarters, which are photographs of something else, stand beside
one changed version of each; a version is found if the filter's default pairs it with its original.

False merges: crops at random places, sizes and orientations of different photographs. Two crops of
one photograph may overlap and are not counted; two of different photographs show nothing in common,
so every confirmed pair of these is false. Crops are harder than whole photographs: more of them are
smooth. They are not independent, since a few photographs lend all of them their style.

Growth: the time and memory of the search among made pictures, of which a quarter are copies, and
the pairs that it has in common with brute force.

Examples:
  python bench/duplicates.py ../shared/data/photos/coco51/images --growth 10000 100000
  python bench/duplicates.py ../shared/data/photos/coco51/images
  python bench/duplicates.py FOLDER --unrelated 100000 --keep /tmp/records.npy
"""
EVERY_PAIR = 8_500_000  # pictures that the rate is extrapolated to
EXTRAPOLATED = (8_500_000, 100_000_000)  # pictures, for the growth
QUARTERS = [(x, y) for x in (0, 0.5) for y in (0, 0.5)]
LONGER_SIDE_PX = 640
Change = Callable[[Image.Image], Image.Image]


def crop(left: float, top: float, right: float, bottom: float) -> Change:
    """Shares of width and height cut off each side."""

    def cut(picture: Image.Image) -> Image.Image:
        width, height = picture.size
        start = round(left * width), round(top * height)
        end = round((1 - right) * width), round((1 - bottom) * height)
        return picture.crop((*start, *end))

    return cut


def border(share: float, colour: str) -> Change:
    def add(picture: Image.Image) -> Image.Image:
        return ImageOps.expand(picture, round(share * max(picture.size)), colour)

    return add


def rotate(degrees: float, fill: str) -> Change:
    def turn(picture: Image.Image) -> Image.Image:
        return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=fill)

    return turn


def watermark(picture: Image.Image) -> Image.Image:
    """Words at half opacity across a band of a tenth of the height."""
    mark = Image.new("RGBA", picture.size)
    size = picture.height // 10
    place = (picture.width * 0.1, picture.height * 0.45)
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(mark).text(place, "© EXAMPLE.ORG", (255, 255, 255, 128), font)
    return Image.alpha_composite(picture.convert("RGBA"), mark).convert("RGB")


def watermark_all_over(picture: Image.Image) -> Image.Image:
    """Words at a tenth of opacity all over."""
    mark = Image.new("RGB", picture.size)
    size = picture.height // 8
    for line in range(8):
        place = (-size * (line % 3), line * size)
        ImageDraw.Draw(mark).text(place, "stock " * 9, "white", ImageFont.load_default(size=size))
    return Image.blend(picture, mark, 0.1)


def jpeg(quality: int) -> Change:
    def pack(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return pack


CHANGES: dict[str, Change] = {
    "crop, 5 % off each side": crop(0.05, 0.05, 0.05, 0.05),
    "crop, 5 % in all": crop(0.025, 0.025, 0.025, 0.025),
    "crop, 10 % off each side": crop(0.1, 0.1, 0.1, 0.1),
    "crop at a corner, 10 %, left and top off": crop(0.1, 0.1, 0, 0),
    "crop at a corner, 10 %, right and bottom off": crop(0, 0, 0.1, 0.1),
    "crop at a corner, 5 %": crop(0.05, 0.05, 0, 0),
    "crop, 10 % off one side": crop(0.1, 0, 0, 0),
    "border 2 %, white": border(0.02, "white"),
    "border 2 %, black": border(0.02, "black"),
    "border 2 %, red, JPEG": lambda picture: jpeg(75)(border(0.02, "red")(picture)),
    "rotation 2°, black corners": rotate(2, "black"),
    "rotation -2°, white corners": rotate(-2, "white"),
    "rotation 2°, corners cut": lambda picture: crop(*[0.03] * 4)(rotate(2, "black")(picture)),
    "brightness 0.7": lambda picture: ImageEnhance.Brightness(picture).enhance(0.7),
    "contrast 1.3": lambda picture: ImageEnhance.Contrast(picture).enhance(1.3),
    "saturation 0.5": lambda picture: ImageEnhance.Color(picture).enhance(0.5),
    "saturation 1.6": lambda picture: ImageEnhance.Color(picture).enhance(1.6),
    "greyscale": lambda picture: picture.convert("L").convert("RGB"),
    "watermark, a tenth of the height": watermark,
    "watermark, 10 % opaque": watermark_all_over,
    "JPEG, quality 30": jpeg(30),
    "half as large": lambda picture: ImageOps.scale(picture, 0.5),
}


def read(folder: Path) -> list[Image.Image]:
    """The photographs of a folder, at most 640 px long."""
    pictures = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            picture = Image.open(path).convert("RGB")
            picture.thumbnail((LONGER_SIDE_PX, LONGER_SIDE_PX))
            pictures.append(picture)
    return pictures


def quarters(picture: Image.Image) -> Iterator[Image.Image]:
    yield picture
    for x, y in QUARTERS:
        yield crop(x, y, 0.5 - x, 0.5 - y)(picture)


def records_of(pictures: list[Image.Image]) -> np.ndarray:
    rows = [fingerprint(np.asarray(picture)).record for picture in pictures]
    return np.frombuffer(b"".join(rows), RECORD)


def recall(photographs: list[Image.Image], criterion: Criterion) -> None:
    originals = [part for photograph in photographs for part in quarters(photograph)]
    count = len(originals)
    before = records_of(originals)
    print(f"| change | found, of {count} |\n|---|---|")
    crossing = []
    for name, change in CHANGES.items():
        after = records_of([change(original) for original in originals])
        pairs = find_pairs(np.concatenate([before, after]), np.arange(2 * count), criterion)
        found = int((pairs[:, 1] - pairs[:, 0] == count).sum())
        crossing.append(count - found)
        print(f"| {name} | {found / count:.3f} |", flush=True)
    # A version that is not found has its own split, in training with nearly all others.
    share = sum(crossing) / (count * len(CHANGES))
    print(f"\n{share:.1%} of all versions are not joined to their original.\n")


def make_unrelated(photographs: list[Image.Image], count: int, seed: int) -> np.ndarray:
    """Fingerprints of crops, of one photograph after the other."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        picture = photographs[number % len(photographs)]
        width = int(rng.uniform(96, 224))
        height = int(min(width * rng.uniform(0.6, 1.5), picture.height))
        left = int(rng.integers(picture.width - width + 1))
        top = int(rng.integers(picture.height - height + 1))
        part = picture.crop((left, top, left + width, top + height))
        turned = int(rng.integers(8))
        if turned:
            part = part.transpose(Image.Transpose(turned - 1))
        rows.append(fingerprint(np.asarray(part)).record)
    return np.frombuffer(b"".join(rows), RECORD)


def false_merges(records: np.ndarray, num_photographs: int, criterion: Criterion) -> None:
    count = len(records)
    start = time.process_time()
    pairs = find_pairs(records, np.arange(count), criterion)
    seconds = time.process_time() - start
    false = pairs[(pairs[:, 0] - pairs[:, 1]) % num_photographs != 0]
    compared = count * (count - 1) / 2 * (1 - 1 / num_photographs)
    families = find_families(np.arange(count), false)
    merged = count - len(np.unique(families))
    touched = len(np.unique(false))
    most = 3.0 if not len(false) else len(false) + 2 * np.sqrt(len(false))
    rate, most_rate = len(false) / compared, most / compared
    print(
        f"{count:,} unrelated pictures, {compared:.3g} pairs of different photographs: "
        f"{len(false)} confirmed, {touched} pictures in them, "
        f"{merged} merged away, {merged / count:.4%} of pictures.\n"
        f"A pairwise rate of {rate:.2g} (at most {most_rate:.2g} at 95 %) is "
        f"{rate * EVERY_PAIR:.2%} (at most {most_rate * EVERY_PAIR:.2%}) "
        "of pictures among 8.5 million.\n"
        f"{seconds:.0f} s of CPU for the search."
    )


SIDE = 64  # pixels a side of the pictures that are made for the growth
POOL = 2000  # crops of photographs that these are blended from
AT_ONCE = 2048
MOST_COPIES = 100


def make_clustered(photographs: list[Image.Image], count: int, seed: int) -> np.ndarray:
    """Fingerprints of blends of two crops, and of their copies.

    The size of a cluster is drawn from a power law with exponent 3, up to MOST_COPIES: a quarter of
    the pictures are copies, and most pairs come from the few large clusters. A copy is cropped by
    up to 5 % a side, and differs in brightness, contrast and noise. None has a border.
    """
    rng = np.random.default_rng(seed)
    pool = _pool(photographs, rng)
    sizes = np.minimum(rng.zipf(3, count), MOST_COPIES)
    of_base = np.repeat(np.arange(count), sizes)[:count]
    is_copy = np.append(False, of_base[1:] == of_base[:-1])
    picked = rng.integers(POOL, size=(count, 2))
    windows = _windows(rng, (count, 2), 0.5)
    weights = rng.uniform(0.4, 0.6, count).astype(np.float32)
    orientation = rng.integers(8, size=count)
    records = np.zeros(count, RECORD)
    records["frame"] = EVERYTHING
    shuffled = rng.permutation(count)  # the members of a cluster lie far apart
    for start in range(0, count, AT_ONCE):
        some = slice(start, start + AT_ONCE)
        base = of_base[some]
        share = weights[base, None, None, None]
        one, other = (_cut(pool[picked[base, side]], windows[base, side]) for side in range(2))
        pixels = share * one + (1 - share) * other
        pixels = _turned(pixels, orientation[base])
        pixels[is_copy[some]] = _changed(pixels[is_copy[some]], rng)
        _describe(records, shuffled[some], pixels.clip(0, 255))
    return records


def _pool(photographs: list[Image.Image], rng: np.random.Generator) -> np.ndarray:
    """(POOL, SIDE, SIDE, 3) float32: Y, Cb, Cr."""
    crops = []
    for number in range(POOL):
        picture = photographs[number % len(photographs)]
        width = int(rng.uniform(96, 224))
        height = int(width * rng.uniform(0.8, 1.25))
        left = int(rng.integers(picture.width - width + 1))
        top = int(rng.integers(max(picture.height - height, 0) + 1))
        part = picture.crop((left, top, left + width, min(top + height, picture.height)))
        crops.append(np.asarray(part.convert("YCbCr").resize((SIDE, SIDE)), np.float32))
    return np.array(crops)


def _turned(pixels: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    turned = np.empty(pixels.shape, np.float32)
    for number in range(8):
        some = orientation == number
        of_these = np.rot90(pixels[some], number % 4, axes=(1, 2))
        turned[some] = of_these[:, :, ::-1] if number >= 4 else of_these
    return turned


def _changed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    count = len(pixels)
    changed = _cut(pixels, _windows(rng, (count,), 0.9))
    noise = rng.uniform(0, 8, (count, 1, 1))
    contrast = rng.uniform(0.8, 1.2, (count, 1, 1))
    grey = changed[..., 0] * contrast + rng.uniform(-20, 20, (count, 1, 1))
    changed[..., 0] = grey + rng.standard_normal(grey.shape, np.float32) * noise
    return changed


def _windows(rng: np.random.Generator, shape: tuple[int, ...], least: float) -> np.ndarray:
    """(…, 4) left, top, right, bottom as shares; at least so much of each side remains."""
    windows = rng.uniform(0, (1 - least) / 2, (*shape, 4)).astype(np.float32)
    windows[..., 2:] = 1 - windows[..., 2:]
    return windows


def _cut(pixels: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Windows (P, 4) of pictures (P, SIDE, SIDE, 3), as large as the whole."""
    across = _enlarging(windows[:, 0], windows[:, 2])
    down = _enlarging(windows[:, 1], windows[:, 3])
    rows = down @ pixels.reshape(len(pixels), SIDE, -1)
    turned = rows.reshape(pixels.shape).transpose(0, 2, 1, 3).reshape(len(pixels), SIDE, -1)
    columns = (across @ turned).reshape(pixels.shape)
    cut: np.ndarray = columns.transpose(0, 2, 1, 3)
    return np.ascontiguousarray(cut)


def _enlarging(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(P, SIDE, SIDE): matrices that bring the share from low to high to SIDE samples."""
    places = low[:, None] + (np.arange(SIDE) + 0.5) / SIDE * (high - low)[:, None]
    distance = np.abs(places[:, :, None] * SIDE - 0.5 - np.arange(SIDE))
    weights = np.maximum(1 - distance, 0)
    matrices: np.ndarray = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    return matrices


def _describe(records: np.ndarray, places: np.ndarray, pixels: np.ndarray) -> None:
    grey = pixels[..., 0]
    views = []
    for left, top, right, bottom in VIEWS:
        across = _shrinking(left, right)
        views.append((_shrinking(top, bottom) @ grey @ across.T).astype(np.uint8))
    hashes = [perceptual_hashes(view) for view in views]
    records["views"][places] = np.stack(hashes, axis=1)
    records["whole"][places] = hashes[0]
    records["mirrored"][places] = perceptual_hashes(views[0][:, :, ::-1])[:, None]
    records["grey"][places] = views[0]
    side = SIDE // COLOUR_SIDE
    blocks = pixels[..., 1:].reshape(-1, COLOUR_SIDE, side, COLOUR_SIDE, side, 2)
    records["colour"][places] = blocks.mean(axis=(2, 4))


def _shrinking(low: float, high: float) -> np.ndarray:
    """(GREY_SIDE, SIDE): the matrix that averages the share from low to high."""
    edges = (low + np.arange(GREY_SIDE + 1) / GREY_SIDE * (high - low)) * SIDE
    pixels = np.arange(SIDE)
    begin = np.maximum(edges[:-1, None], pixels)
    end = np.minimum(edges[1:, None], pixels + 1)
    weights = np.maximum(end - begin, 0)
    matrix: np.ndarray = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


@dataclass(frozen=True)
class Search:
    """What finding the pairs of `count` pictures took, in CPU time and peak memory."""

    count: int
    pairs: np.ndarray
    wall_sec: float
    cpu_sec: float
    gib: float


def search(path: Path, criterion: Criterion, threads: int, exhaustive: bool) -> Search:
    """Find the pairs of the fingerprints in a file, in a process of its own: its memory counts."""
    records = np.load(path)
    start = time.perf_counter()
    cpu = time.process_time()
    # Without bands all hashes are compared with all.
    none = mock.patch.object(candidates, "choose_bands", return_value=())
    with none if exhaustive else nullcontext():
        pairs = find_pairs(records, np.arange(len(records)), criterion, threads)
    return Search(
        len(records),
        pairs,
        time.perf_counter() - start,
        time.process_time() - cpu,
        _peak_gib(),
    )


@dataclass(frozen=True)
class Growing:
    """What all rows of the growth have in common."""

    criterion: Criterion
    threads: int
    seed: int


def _peak_gib() -> float:
    # Not getrusage: a new process begins with the peak of the one that started it.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return float("nan")


def growth(photographs: list[Image.Image], sizes: list[int], most: int, given: Growing) -> None:
    """Print a row for each number of pictures, and the law that the last two follow."""
    print("| pictures | pairs | of those by brute force | CPU s | wall s | peak GiB |")
    print("|---|---|---|---|---|---|")
    done: list[Search] = []
    for count in sorted(sizes):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "records.npy"
            np.save(path, make_clustered(photographs, count, given.seed))
            found = _alone(search, path, given.criterion, given.threads, False)
            share = "–"
            if count <= most:
                every = _alone(search, path, given.criterion, given.threads, True)
                both = np.concatenate([found.pairs, every.pairs])
                num_both = len(both) - len(np.unique(both, axis=0))
                share = f"{num_both / len(every.pairs):.6f} (CPU {every.cpu_sec:.0f} s)"
        done.append(found)
        print(
            f"| {count:,} | {len(found.pairs):,} | {share} | {found.cpu_sec:.1f} "
            f"| {found.wall_sec:.1f} | {found.gib:.2f} |",
            flush=True,
        )
    if len(done) > 1:
        last, before = done[-1], done[-2]
        times = last.cpu_sec / before.cpu_sec
        exponent = np.log(times) / np.log(last.count / before.count)
        print(f"\n{times:.1f} times the CPU time of the row before: exponent {exponent:.2f}.")
        for count in EXTRAPOLATED:
            hours = last.cpu_sec * (count / last.count) ** exponent / 3600
            print(f"{count:,} pictures at that rate: {hours:,.1f} CPU-hours.")


def _alone(work: Callable[..., Search], *given: object) -> Search:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *given).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXPLANATION, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="photographs, JPEG, of different things")
    parser.add_argument("--unrelated", type=int, default=20_000, help="crops for false merges")
    parser.add_argument("--keep", type=Path, help="file for their fingerprints, read where it is")
    parser.add_argument(
        "--growth", type=int, nargs="+", metavar="N", help="only time these numbers of pictures"
    )
    parser.add_argument(
        "--exhaustive", type=int, default=0, help="compare with brute force up to so many pictures"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    settings = FilterSettings()
    assert settings.duplicate_distance is not None
    criterion = Criterion(settings.duplicate_distance, settings.duplicate_difference)
    photographs = read(given.folder)
    if given.growth:
        growing = Growing(criterion, given.threads, given.seed)
        growth(photographs, given.growth, given.exhaustive, growing)
        return
    recall(photographs, criterion)
    if given.keep and given.keep.exists():
        records = np.load(given.keep)
    else:
        records = make_unrelated(photographs, given.unrelated, given.seed)
        if given.keep:
            np.save(given.keep, records)
    false_merges(records, len(photographs), criterion)


if __name__ == "__main__":
    main()
