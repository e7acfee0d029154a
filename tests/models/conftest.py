"""Small models of the real classes, saved as hub models are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.word_tokenizer import SPECIAL, WORDS, word_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer([*SPECIAL, *WORDS], padding_side="right").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def coca_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    from open_clip import CoCa

    text = {
        "context_length": 12,
        "vocab_size": 13,
        "width": 32,
        "heads": 2,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    }
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "attentional_pool": True,
            "attn_pooler_queries": 4,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        "text_cfg": text,
        "multimodal_cfg": {
            "context_length": 12,
            "vocab_size": 13,
            "width": 32,
            "heads": 2,
            "layers": 1,
            "attn_pooler_heads": 2,
        },
    }
    torch.manual_seed(0)
    model = CoCa(**config)
    torch.nn.init.normal_(
        model.text_decoder.text_projection, std=0.5
    )  # CoCa's own initialisation leaves it unset
    folder = tmp_path_factory.mktemp("coca")
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config["text_cfg"] = {**text, "hf_tokenizer_name": "tokenizer"}
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.5, 0.25, 0.2],
        "resize_mode": "longest",
        "interpolation": "bicubic",
    }
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocess})
    )
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder
