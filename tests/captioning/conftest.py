"""Small models of the real classes, saved as hub models are; downloads as the curation tests make
them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.curation.conftest import make_download, store  # noqa: F401
from tests.models.conftest import coca_folder, tokenizer_folder  # noqa: F401
from tests.word_tokenizer import SPECIAL, WORDS, word_tokenizer

CHAT = (
    "{% for message in messages %}<s>{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
VOCABULARY = [*SPECIAL, "<image>", *WORDS, "name", "it"]
LAYERS = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2)
VISION: dict[str, Any] = dict(**LAYERS, image_size=32, patch_size=8)
TEXT: dict[str, Any] = dict(
    **LAYERS, vocab_size=len(VOCABULARY), bos_token_id=1, eos_token_id=2, pad_token_id=0
)


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder-only model with a chat template: CLIP tower, Llama, 2 + 2 layers of width 32."""
    import transformers

    torch.manual_seed(3)
    vision = transformers.CLIPVisionConfig(**VISION, num_hidden_layers=2)
    text = transformers.LlamaConfig(**TEXT, num_hidden_layers=2, num_key_value_heads=2)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(  # type: ignore[call-arg]
            vision_config=vision,
            text_config=text,
            image_token_index=4,
            image_seq_length=16,
            pad_token_id=0,
        )
    )
    _loud(model)
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    transformers.LlavaProcessor(
        _image_processor(),
        _tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder-decoder that captions without being asked."""
    import transformers

    torch.manual_seed(4)
    vision = transformers.BlipVisionConfig(**VISION, num_hidden_layers=1)
    text = transformers.BlipTextConfig(
        **TEXT,
        num_hidden_layers=1,
        encoder_hidden_size=32,
        max_position_embeddings=64,
        sep_token_id=2,
    )
    model = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(vision_config=vision.to_dict(), text_config=text.to_dict())
    )
    _loud(model)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    transformers.BlipProcessor(
        transformers.BlipImageProcessor(size={"height": 32, "width": 32}), _tokenizer()
    ).save_pretrained(folder)
    return folder


def _loud(model: torch.nn.Module) -> None:
    """Weights so large that what the model says depends on the picture."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)


def _image_processor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _tokenizer():
    return word_tokenizer(
        VOCABULARY, marks_ends=False, extra_special_tokens={"image_token": "<image>"}
    )
