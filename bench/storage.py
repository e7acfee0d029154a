"""What latents and texts of millions of pictures take on disk, and how long they take to encode and to read: arithmetic alone.

The bytes are those of the files that `hdm.data.latent_files` writes, to a thousandth (tests/planning/test_sizes.py
compares them). The times follow from published operation counts and from the rates that are given; nothing is measured here.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.planning.counts import SDXL_ENCODER
from hdm.planning.sizes import latent_row_bytes, text_bytes

EXPLANATION = """\
Columns, for latents in 16 bits, 8 times smaller than the picture on each axis, full frames with the shorter side as given:
  a picture     bytes of its latent and of the columns beside it
  latents       of all pictures
  text          of all captions, one a picture: text embeddings in 16 bits, cut to their length
  encode        hours of one accelerator for the latents: the encoder's operations (convolutions and attention of an SD-type
                autoencoder) over what the accelerator does at the given utilisation
  read          minutes to read the latents once at the given rate: an epoch
A picture is `--aspect` times as long as it is short, on average; the square of the same shorter side is 1.

Examples:
  python bench/storage.py
  python bench/storage.py --channels 16 --aspect 1.5 --tflops 209.5 --read 7
"""
COUNTS = (7_600_000, 40_000_000, 100_000_000)
RESOLUTIONS = (256, 512, 768, 1024)


@dataclass(frozen=True)
class Case:
    """What is asked: shapes, texts, and rates."""

    channels: int
    aspect: float
    tokens: int
    text_width: int
    tflops: float
    utilisation: float
    read_gb_per_sec: float
    shard_images: int

    def per_image(self, resolution: int) -> float:
        """Bytes of a latent and its columns, its share of headers and footers with them."""
        height = resolution // SDXL_ENCODER.downscale
        return latent_row_bytes(
            self.channels, height, round(height * self.aspect), self.shard_images
        )

    def encode_sec(self, resolution: int) -> float:
        return (
            SDXL_ENCODER.flops(resolution, resolution)
            * self.aspect
            / (1e12 * self.tflops * self.utilisation)
        )

    def read_sec(self, resolution: int) -> float:
        return self.per_image(resolution) / (self.read_gb_per_sec * 1e9)


def table(case: Case) -> None:
    print(
        "| images | px | a picture | latents | text | encode | read |\n|---|---|---|---|---|---|---|"
    )
    for count in COUNTS:
        for px in RESOLUTIONS:
            each = case.per_image(px)
            text_tb = count * text_bytes(case.tokens, case.text_width) / 1e12
            sizes = f"{each / 1000:.1f} kB | {count * each / 1e12:.2f} TB | {text_tb:.2f} TB"
            times = f"{count * case.encode_sec(px) / 3600:,.1f} h | {count * case.read_sec(px) / 60:,.1f} min"
            print(f"| {count / 1e6:g}M | {px} | {sizes} | {times} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    shown = {"help": "default: %(default)s", "metavar": "N"}
    parser.add_argument("--channels", type=int, default=4, **shown)
    parser.add_argument("--aspect", type=float, default=1.33, **shown)
    parser.add_argument(
        "--tokens",
        type=int,
        default=128,
        help="of a caption, on average (default: %(default)s)",
        metavar="N",
    )
    parser.add_argument("--text-width", type=int, default=1024, **shown)
    parser.add_argument(
        "--tflops",
        type=float,
        default=790.0,
        help="of the accelerator (default: %(default)s, an H200)",
        metavar="N",
    )
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.5,
        help="share of it that becomes work (default: %(default)s)",
        metavar="N",
    )
    parser.add_argument(
        "--read", type=float, default=2.0, help="GB/s (default: %(default)s)", metavar="N"
    )
    parser.add_argument(
        "--shard-images",
        type=int,
        default=20_000,
        help="pictures of one shape in a file (default: %(default)s)",
        metavar="N",
    )
    given = parser.parse_args()
    case = Case(
        given.channels,
        given.aspect,
        given.tokens,
        given.text_width,
        given.tflops,
        given.utilisation,
        given.read,
        given.shard_images,
    )
    print(f"{case}\n")
    table(case)


if __name__ == "__main__":
    main()
