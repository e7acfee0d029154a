"""Write the HEIC files beside this program, with pillow-heif and its x265, neither of which the
product has.

python -m venv /tmp/heic && /tmp/heic/bin/pip install pillow-heif numpy && /tmp/heic/bin/python
make.py
"""

from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

HERE = Path(__file__).resolve().parent
QUALITY: dict[str, Any] = {"format": "HEIF", "quality": 95, "chroma": 444}


def main() -> None:
    """The photograph of tests/pictures/test_images.py at 96 × 64, in several ways."""
    pillow_heif.register_heif_opener()
    y, x = np.mgrid[:64, :96]
    image = Image.fromarray(
        np.stack([x * 255 // 96, y * 255 // 64, (x + y) * 3 % 256], -1).astype(np.uint8)
    )
    image.save(HERE / "plain.heic", **QUALITY)
    turned = image.transpose(Image.Transpose.ROTATE_90)  # stored lying, as a camera held upright
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.info["exif"] = exif.tobytes()  # from here pillow-heif writes HEIF's own rotation too
    turned.save(HERE / "turned.heic", **QUALITY)
    see_through = image.convert("RGBA")
    see_through.paste((255, 0, 0, 0), (0, 0, 48, 64))
    see_through.save(HERE / "transparent.heic", **QUALITY)
    image.save(
        HERE / "pq.heic",
        color_primaries=9,
        transfer_characteristics=16,
        matrix_coefficients=9,
        **QUALITY,
    )
    image.save(
        HERE / "display_p3.heic",
        color_primaries=12,
        transfer_characteristics=13,
        matrix_coefficients=1,
        **QUALITY,
    )
    image.save(HERE / "two.heic", save_all=True, append_images=[image.rotate(180)], **QUALITY)


if __name__ == "__main__":
    main()
