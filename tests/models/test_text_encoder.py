from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hdm.errors import InputError
from hdm.models.text_encoder import Tokenizer, load_text_encoder, load_tokenizer, num_embeddings
from tests.small_models import text_config


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    from transformers import Qwen3ForCausalLM

    marks = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    config = text_config(hidden_size=32, tie_word_embeddings=True, **marks)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("language_model")
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_the_last_hidden_state_after_the_norm(language_model: Path) -> None:
    from transformers import Qwen3ForCausalLM

    encoder, tokenizer = load_text_encoder(str(language_model)), load_tokenizer(str(language_model))
    ids = tokenizer.token_ids(["a red circle"], 8)
    assert ids == [[1, 4, 5, 7, 2]]
    found = encoder.encode(torch.tensor(ids), torch.ones(1, 5, dtype=torch.bool))
    assert (encoder.width, found.shape) == (32, (1, 5, 32))
    whole = Qwen3ForCausalLM.from_pretrained(language_model)
    with torch.no_grad():
        torch.testing.assert_close(whole.lm_head(found), whole(torch.tensor(ids)).logits)


def test_padding_changes_nothing_and_is_zero(language_model: Path) -> None:
    encoder = load_text_encoder(str(language_model))
    alone = encoder.encode(torch.tensor([[1, 4, 2]]), torch.ones(1, 3, dtype=torch.bool))
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    padded = encoder.encode(torch.tensor([[1, 4, 2, 9, 9], [1, 5, 6, 7, 2]]), mask)
    torch.testing.assert_close(padded[0, :3], alone[0])
    assert padded[0, 3:].abs().max() == 0


def test_a_coca_tower_sees_no_padding_either(coca_folder: Path) -> None:
    encoder = load_text_encoder(str(coca_folder))
    alone = encoder.encode(torch.tensor([[1, 4, 2]]), torch.ones(1, 3, dtype=torch.bool))
    padded = encoder.encode(
        torch.tensor([[1, 4, 2, 0, 0]]), torch.tensor([[True, True, True, False, False]])
    )
    assert encoder.width == 32
    torch.testing.assert_close(padded[0, :3], alone[0])
    assert (
        num_embeddings(str(coca_folder))
        == encoder.model.get_parameter("token_embedding.weight").shape[0]
    )


def test_an_empty_caption_has_a_token(language_model: Path) -> None:
    tokenizer = load_tokenizer(str(language_model))
    assert tokenizer.token_ids(["", "a"], 8) == [[1, 2], [1, 4, 2]]
    assert tokenizer.token_ids([], 8) == []
    tokenizer.tokenizer.backend_tokenizer.post_processor = None
    assert Tokenizer(tokenizer.tokenizer).token_ids([""], 8) == [[1]]


def test_long_captions_are_cut(language_model: Path) -> None:
    ids = load_tokenizer(str(language_model)).token_ids(["a red circle on the left"], 4)
    assert ids == [[1, 4, 5, 2]]


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        load_text_encoder(str(tmp_path))
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(str(tmp_path))
