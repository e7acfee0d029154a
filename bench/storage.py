"""What latents and texts of millions of pictures take on disk, and to encode and read.

This is arithmetic alone; nothing is measured. The bytes are those of the files that
`hdm.data.latent_files` writes, to a thousandth (tests/planning/test_sizes.py compares them). The
times follow from published operation counts and from the rates that are given.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from machine import add_number, parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.planning.counts import SDXL_ENCODER
from hdm.planning.sizes import latent_row_bytes, text_bytes

EXPLANATION = """\
Columns, for latents in 16 bits, 8 times smaller than the picture on each axis, full frames with the
shorter side as given:
  a picture     bytes of its latent and of the columns beside it
  latents       of all pictures
  text          of all captions, one a picture: text embeddings in 16 bits, cut to their length
  encode        hours of one accelerator for the latents: the encoder's operations (convolutions and
                attention of an SD-type autoencoder) over what the accelerator does at the given
                utilisation
  read          minutes to read the latents once at the given rate: an epoch
A picture is `--aspect` times as long as it is short, on average; the square of the same shorter
side is 1.

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
    print("| images | px | a picture | latents | text | encode | read |\n" + "|---" * 7 + "|")
    for count in COUNTS:
        for px in RESOLUTIONS:
            each = case.per_image(px)
            text_tb = count * text_bytes(case.tokens, case.text_width) / 1e12
            sizes = f"{each / 1000:.1f} kB | {count * each / 1e12:.2f} TB | {text_tb:.2f} TB"
            encode_hours = count * case.encode_sec(px) / 3600
            read_minutes = count * case.read_sec(px) / 60
            times = f"{encode_hours:,.1f} h | {read_minutes:,.1f} min"
            print(f"| {count / 1e6:g}M | {px} | {sizes} | {times} |")


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_number(parser, "--channels", 4)
    add_number(parser, "--aspect", 1.33)
    add_number(parser, "--tokens", 128, "of a caption, on average")
    add_number(parser, "--text-width", 1024)
    add_number(parser, "--tflops", 790.0, "of the accelerator, an H200 by default")
    add_number(parser, "--utilisation", 0.5, "share of it that becomes work")
    add_number(parser, "--read", 2.0, "GB/s")
    add_number(parser, "--shard-images", 20_000, "pictures of one shape in a file")
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
