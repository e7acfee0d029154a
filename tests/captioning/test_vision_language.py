"""The transformers maker, on small models of real classes saved as the hub has them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from hdm.captioning.makers import Item
from hdm.captioning.settings import ITEM_FIELDS, CaptionMaker
from hdm.captioning.vision_language import VisionLanguage
from hdm.demo.scenes import draw, make_scene
from hdm.errors import InputError
from hdm.keys import Key, key_text

NOTHING = dict.fromkeys(ITEM_FIELDS)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return [Item(key_text(index), NOTHING, draw(make_scene(5, index))) for index in range(6)]


def maker(folder: Path, **settings: object) -> VisionLanguage:
    return VisionLanguage(CaptionMaker(kind="transformers", max_tokens=6, **settings), str(folder))


@pytest.mark.parametrize("model", ["llava_folder", "blip_folder"])
def test_captions_are_what_the_model_itself_generates_for_one_picture(request, model, items):
    made = maker(request.getfixturevalue(model)).captions(items)
    alone = [maker(request.getfixturevalue(model)).captions([item])[0] for item in items]
    assert made == alone
    assert len({caption for captions in made for caption in captions}) > 1, (
        "the pictures should matter"
    )
    assert all(len(caption.split()) <= 6 for captions in made for caption in captions)


def test_the_instruction_matters_and_is_not_repeated_in_the_caption(llava_folder, items):
    plain, asked = (
        maker(llava_folder).captions(items),
        maker(llava_folder, prompt="name it").captions(items),
    )
    assert plain != asked
    assert all(not caption.startswith("name it") for captions in asked for caption in captions)
    processor, model = (
        AutoProcessor.from_pretrained(llava_folder),
        AutoModelForImageTextToText.from_pretrained(llava_folder),
    )
    inputs = processor(images=[items[0].pixels], text=["<s><image> name it"], return_tensors="pt")
    answer = model.generate(  # type: ignore[misc]
        **inputs, max_new_tokens=6, do_sample=False
    )[0, inputs["input_ids"].shape[1] :]
    assert asked[0] == [processor.decode(answer, skip_special_tokens=True)]


def test_drawn_captions_depend_on_the_key_alone(llava_folder, items):
    several = maker(llava_folder, count=4)
    made, again = several.captions(items), several.captions(items[3:])
    assert made[3:] == again
    assert [captions[0] for captions in made] == [
        captions[0] for captions in maker(llava_folder).captions(items)
    ]
    assert all(len(captions) == 4 and len(set(captions)) > 1 for captions in made)
    other = several.captions([Item(Key("f" * 16), NOTHING, items[0].pixels)])
    assert other[0][0] == made[0][0]
    assert other[0][1:] != made[0][1:]


def test_drawing_leaves_the_global_generator_alone(llava_folder, items):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    maker(llava_folder, count=3).captions(items[:1])
    assert torch.equal(torch.rand(3), expected)


def test_a_folder_that_holds_no_such_model_is_named(tmp_path, tokenizer_folder):
    with pytest.raises(InputError, match="cannot be loaded"):
        VisionLanguage(CaptionMaker(kind="transformers"), str(tokenizer_folder))
    with pytest.raises(InputError, match="no model"):
        VisionLanguage(CaptionMaker(kind="transformers"), str(tmp_path / "nowhere"))
