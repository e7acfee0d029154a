import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from hdm.errors import ConfigError, InputError
from hdm.generation.picture_files import png, read_size, sheet
from hdm.generation.prompt_files import read_prompts


@pytest.mark.parametrize(
    ("count", "columns", "gap", "shape"),
    [(5, 4, 0, (12, 20)), (5, 2, 3, (24, 13)), (2, 8, 1, (6, 11))],
)
def test_a_sheet_holds_every_picture_in_its_place_on_white(count, columns, gap, shape):
    pictures = [np.full((6, 5, 3), number, np.uint8) for number in range(count)]
    found = sheet(pictures, columns, gap)
    assert found.shape == (*shape, 3)
    for number in range(count):
        row, column = divmod(number, columns)
        top, left = row * (6 + gap), column * (5 + gap)
        assert (found[top : top + 6, left : left + 5] == number).all()
    assert (found == 255).all(2).sum() == shape[0] * shape[1] - count * 30


def test_a_png_keeps_pixels_and_what_is_told_of_them():
    pixels = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    found = Image.open(
        io.BytesIO(
            png(pixels, {"prompt": "ein „Kreis“, 圆", "parameters": {"seed": 7, "size": "3x4"}})
        )
    )
    assert np.array_equal(np.asarray(found), pixels)
    assert isinstance(found, PngImageFile)
    assert found.text["prompt"] == "ein „Kreis“, 圆"
    assert json.loads(found.text["parameters"]) == {"seed": 7, "size": "3x4"}


def test_sizes():
    assert read_size("1024x768", "--size") == (1024, 768)
    for wrong in ("1024", "1024X768", "x", "0x64", "-8x8", "8x8 "):
        with pytest.raises(ConfigError, match=r"--size = .* must be WIDTHxHEIGHT"):
            read_size(wrong, "--size")


def test_prompts_are_lines_or_fields(tmp_path):
    lines, objects = tmp_path / "a.txt", tmp_path / "a.jsonl"
    lines.write_text("a red circle\n\nein Kreis, größer\n", encoding="utf-8")
    assert read_prompts(lines) == ["a red circle", "ein Kreis, größer"]
    objects.write_text('{"prompt": "one", "text": "no"}\n{"caption": "two"}\n')
    assert read_prompts(objects) == ["one", "two"]
    objects.write_text('{"prompt": "one"}\n{"title": "two"}\n')
    with pytest.raises(InputError, match="line 2 has no field"):
        read_prompts(objects)
