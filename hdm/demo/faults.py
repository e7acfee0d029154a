"""The items of the embedded data set: good pictures and planted faults, with their truth."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
from PIL import Image, ImageFilter

from hdm.acquisition.settings import ScenesSettings
from hdm.demo.scenes import Scene, captions, draw, make_scene, subject_scene
from hdm.demo.wording import free_caption

HOST = "scenes.test"  # .test never resolves (RFC 2606): only the site on this machine answers to it

FAULTS: dict[str, float] = {
    "corrupt": 0.12,  # a JPEG or PNG that ends early
    "not_image": 0.10,  # a web page, text or nothing under a picture's name
    "exact_duplicate": 0.15,  # the same bytes at another URL
    "near_duplicate": 0.15,  # the same picture, re-encoded, a little smaller and brighter
    "too_small": 0.12,
    "blurred": 0.10,
    "noisy": 0.10,
    "mislabelled": 0.10,  # another picture's caption, with no kind or colour in common
    "missing": 0.04,  # 404
    "cut_off": 0.02,  # the connection closes within the body, every time
}
"""Kind of fault → its share of the planted faults."""

MANNERS: dict[str, float] = {"busy": 0.004, "slow": 0.003, "cut_once": 0.003}
"""A temporary misbehaviour of the site on a good picture → its share: first a 503, half a second
late, first truncated.
"""

_PLAN, _PIXELS, _WORDS = 1, 2, 3  # streams of random numbers
_Rng = np.random.Generator


@dataclass(frozen=True)
class Item:
    """One line of the site's list.

    Args:
        index: position in the list.
        scene: number of the scene in the picture; meaningless if there is no picture.
        fault: one of FAULTS, or None for a good picture.
        manner: one of MANNERS, or None; only for good pictures.
        original: index of the item that this one copies.
        captions: as listed, the second in freer words; none for a good picture without captions.
    """

    index: int
    scene: int
    fault: str | None = None
    manner: str | None = None
    original: int | None = None
    captions: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return f"/pictures/{self.index:06d}.{'png' if self.index % 4 == 3 else 'jpg'}"

    @property
    def url(self) -> str:
        return f"http://{HOST}{self.path}"


@lru_cache(maxsize=4)
def plan(settings: ScenesSettings) -> tuple[Item, ...]:
    """Every item, in the order of the list; an original comes before its copies."""
    rng = np.random.default_rng((settings.seed, _PLAN))
    faults = _shared_out(FAULTS, round(settings.count * settings.faults))
    manners = _manners(settings, rng)
    bare = set(
        rng.permutation(settings.count)[: round(settings.count * settings.uncaptioned)].tolist()
    )
    # Good pictures and faults are mixed by random places in the list.
    places = rng.random(settings.count)

    # (place in the list, number of the scene, fault, number of the scene it copies)
    entries: list[tuple[float, int, str | None, int | None]] = []
    for number in range(settings.count):
        entries.append((float(places[number]), number, None, None))
    for number, planted in enumerate(faults, start=settings.count):
        if planted.endswith("duplicate"):
            # Later in the list than its original.
            copied = int(rng.integers(settings.count))
            entries.append((float(rng.uniform(places[copied], 1)), copied, planted, copied))
        else:
            entries.append((float(rng.random()), number, planted, None))
    entries.sort(key=lambda entry: entry[0])

    position = {scene: index for index, (_, scene, fault, _) in enumerate(entries) if fault is None}
    items = []
    for index, (_, scene, fault, source) in enumerate(entries):
        texts = (
            ()
            if fault is None and scene in bare
            else _captions(settings, scene, index, mislabelled=fault == "mislabelled")
        )
        manner = manners.get(scene) if fault is None else None
        items.append(
            Item(index, scene, fault, manner, None if source is None else position[source], texts)
        )
    return tuple(items)


def scene_of(item: Item, settings: ScenesSettings) -> Scene:
    """The scene of the item's picture, at the picture's size."""
    size_px = settings.size_px
    if item.fault == "too_small":
        size_px = max(8, round(size_px * (0.35 + 0.02 * (item.index % 8))))
    return _scene(settings, item.scene, size_px)


def _scene(settings: ScenesSettings, number: int, size_px: int = 64) -> Scene:
    if settings.subject is not None:
        return subject_scene(settings.seed, number, settings.subject, size_px)
    return make_scene(settings.seed, number, size_px)


def file_bytes(item: Item, settings: ScenesSettings, items: tuple[Item, ...]) -> bytes:
    """The bytes that the site serves for an item.

    Args:
        item: one of `items`.
        settings: of the data set.
        items: the whole plan, for originals.
    """
    if item.fault == "exact_duplicate" and item.original is not None:
        return file_bytes(items[item.original], settings, items)
    # A function of the item alone: pictures are drawn when asked for, in any order and repeatedly.
    rng = np.random.default_rng((settings.seed, _PIXELS, item.index))
    if item.fault == "not_image":
        return _NOT_IMAGES[rng.integers(len(_NOT_IMAGES))]
    picture = Image.fromarray(draw(scene_of(item, settings)))
    spoil = _SPOILERS.get(item.fault or "")
    if spoil:
        picture = spoil(picture, rng)
    if item.fault == "near_duplicate":
        return _encode(picture, "JPEG", quality=80)
    data = (
        _encode(picture, "PNG")
        if item.path.endswith("png")
        else _encode(picture, "JPEG", quality=93)
    )
    return data[: int(len(data) * rng.uniform(0.25, 0.85))] if item.fault == "corrupt" else data


def _shared_out(shares: dict[str, float], total: int) -> list[str]:
    """`total` names in proportion to their shares, evenly mixed, so that even a few cover many
    kinds.
    """
    names = list(shares)
    limits = list(accumulate(shares.values()))
    # The golden ratio's sequence fills [0, 1) evenly.
    spread = (np.arange(total) * 0.6180339887498949 + 0.05) % 1.0
    found = []
    for value in spread:
        number = int(np.searchsorted(limits, value, side="right"))
        # The shares' sum may fall short of 1 by rounding.
        found.append(names[min(number, len(names) - 1)])
    return found


def _manners(settings: ScenesSettings, rng: _Rng) -> dict[int, str]:
    """Number of a good scene → the site's misbehaviour on it."""
    numbers = rng.permutation(settings.count).tolist()
    manners: dict[int, str] = {}
    start = 0
    for manner, share in MANNERS.items():
        end = start + max(1, round(settings.count * share))
        manners |= dict.fromkeys(numbers[start:end], manner)
        # One number is left out after each manner: data sets were made like this.
        start = end + 1
    return manners


def _captions(
    settings: ScenesSettings, scene: int, index: int, mislabelled: bool
) -> tuple[str, ...]:
    rng = np.random.default_rng((settings.seed, _WORDS, index))
    shown = _scene(settings, scene)
    described = shown
    # With nothing in common, the caption is wrong beyond doubt.
    while mislabelled and _something_in_common(shown, described):
        described = _scene(settings, int(rng.integers(settings.count)))
    return (*captions(described, rng), free_caption(described, rng))


def _something_in_common(first: Scene, second: Scene) -> bool:
    kinds = {thing.kind for thing in first.things} & {thing.kind for thing in second.things}
    colours = {thing.colour for thing in first.things} & {thing.colour for thing in second.things}
    return bool(kinds or colours)


def _encode(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    # Full colour resolution: at 64 px a halved one would blur every edge.
    picture.save(
        buffer, kind, **({"subsampling": 0} if kind == "JPEG" else {"compress_level": 1}), **options
    )
    return buffer.getvalue()


def _blur(picture: Image.Image, rng: _Rng) -> Image.Image:
    return picture.filter(
        ImageFilter.GaussianBlur(min(picture.size) * float(rng.uniform(0.055, 0.08)))
    )


def _add_noise(picture: Image.Image, rng: _Rng) -> Image.Image:
    pixels = np.asarray(picture, np.float32)
    # Levels are cut off, not rounded by `hdm.pixels`: tests compare these bytes (decision 11).
    noisy = pixels + rng.normal(0, rng.uniform(40, 60), pixels.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _remake(picture: Image.Image, rng: _Rng) -> Image.Image:
    smaller = picture.resize(
        [round(side * float(rng.uniform(0.93, 0.97))) for side in picture.size],
        Image.Resampling.BICUBIC,
    )
    brighter = np.asarray(smaller, np.float32) * rng.uniform(0.96, 1.04) + rng.uniform(-4, 4)
    return Image.fromarray(np.clip(brighter, 0, 255).astype(np.uint8))


_SPOILERS: dict[str, Callable[[Image.Image, _Rng], Image.Image]] = {
    "blurred": _blur,
    "noisy": _add_noise,
    "near_duplicate": _remake,
}
_NOT_IMAGES = (
    (
        b"<!DOCTYPE html>\n<html><head><title>Not here</title></head><body><h1>This picture has"
        b" moved.</h1></body></html>\n"
    ),
    b"Sorry, this picture is only for members.\n",
    (
        b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><circle cx="32" cy="32"'
        b' r="20" fill="red"/></svg>\n'
    ),
    (
        b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\ntrailer\n<< /Root 1 0"
        b" R >>\n%%EOF\n"
    ),
    b"",
)
