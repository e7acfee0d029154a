"""How the scenes' judge rates true shapes, others, and generated pictures labelled by eye.

Every kind, and every other shape, is drawn at several places, sizes, colours and grounds, and
judged as drawn and through the demo's autoencoder. Overlaps and leads (`hdm.demo.fitting.Fits`)
tell where the limits belong (`hdm.demo.detector.LIMITS`). They are printed for true shapes, and for
the shapes that the judge knows, each while it does not know it. Shapes that it never knew measure
it.

Examples:
  python bench/judge.py
  python bench/judge.py --write      the agreement with the labels, into hdm/demo/agreement.json,
                                     which reports show
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.demo import detector, fitting
from hdm.demo.bootstrap import round_trip
from hdm.demo.judge import AGREEMENT
from hdm.demo.others import OTHERS, shape
from hdm.demo.scenes import draw_shape
from hdm.demo.shapes import KINDS
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.components import resolve
from hdm.models.settings import Components
from tests.demo.agreement import agreement, compare
from tests.demo.foreign_shapes import UNKNOWN, square_scenes

SEED = 4_000_037
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def judged(
    name: str, seed: int, count: int, autoencoder: Autoencoder
) -> Iterator[tuple[bool, detector.Found | None]]:
    """Whether a picture of the shape went through the autoencoder, and what is found in it."""
    corners, hole = UNKNOWN[name] if name in UNKNOWN else shape(name)
    for scene in square_scenes(seed, count):
        drawn = draw_shape(scene, corners, hole)
        for through, picture in ((False, drawn), (True, round_trip(autoencoder, drawn))):
            yield through, next(iter(detector.detect(picture)), None)


def without(name: str) -> tuple[str, ...]:
    """The other shapes but this one, whichever way up."""
    base = name.removesuffix(" upside down")
    return tuple(other for other in OTHERS if other.removesuffix(" upside down") != base)


def tell(name: str, found: list[tuple[bool, detector.Found | None]]) -> None:
    things = [thing for _, thing in found if thing]
    shares = [
        np.mean([bool(thing and thing.kind) for through, thing in found if through == wanted])
        for wanted in (False, True)
    ]
    values = [
        np.quantile([getattr(thing.fits, what) for thing in things], QUANTILES).round(3).tolist()
        for what in ("overlap", "lead")
    ]
    nearest = {thing.fits.kind for thing in things}
    shown = f"{shares[0]:.2f} {shares[1]:.2f}  {values[0]} {values[1]}"
    print(f"{name:<24} {shown}  {', '.join(nearest)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=24, help="pictures of each kind")
    parser.add_argument("--others", type=int, default=3, help="pictures of each other shape")
    parser.add_argument("--write", action="store_true", help="only the agreement, into its file")
    options = parser.parse_args()
    shares = agreement(list(compare()))
    for question, share in shares.items():
        print(f"agrees with the labels: {question} {share.right} of {share.total}")
    if options.write:
        told = {name: {"right": one.right, "total": one.total} for name, one in shares.items()}
        AGREEMENT.write_text(json.dumps(told, indent=1) + "\n")
        return
    autoencoder = load_autoencoder(resolve(Components(folder="demo")).need("autoencoder"))
    print("accepted as drawn, through the autoencoder; overlap, lead; nearest kinds")
    for number, kind in enumerate(KINDS):
        tell(kind, list(judged(kind, SEED + number, options.count, autoencoder)))
    for number, name in enumerate(OTHERS):
        known = without(name)
        with mock.patch.object(
            detector,
            "best_fits",
            lambda cover, kinds, known=known: fitting.best_fits(cover, known, kinds),
        ):
            tell(name, list(judged(name, SEED + 100 + number, options.others, autoencoder)))
    for number, name in enumerate(UNKNOWN):
        tell(name, list(judged(name, SEED + 200 + number, options.others, autoencoder)))


if __name__ == "__main__":
    main()
