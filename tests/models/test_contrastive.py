from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hdm.errors import InputError
from hdm.models.components import Resolved
from hdm.models.contrastive import Contrastive, are_cut, load_contrastive


@pytest.fixture(scope="module")
def coca(coca_folder: Path) -> Contrastive:
    return load_contrastive(Resolved(contrastive=str(coca_folder)))


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for height, width in ((32, 32), (40, 20), (17, 64))
    ]


def test_embeddings_are_those_of_open_clip(
    coca: Contrastive, coca_folder: Path, pictures: list[np.ndarray]
) -> None:
    import open_clip
    from PIL import Image

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{coca_folder}")
    model.eval()
    with torch.no_grad():
        expected = model.encode_image(
            torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures])
        )
        texts = model.encode_text(
            open_clip.get_tokenizer(f"local-dir:{coca_folder}")(["a red circle", ""])
        )
    np.testing.assert_allclose(coca.embed_images(pictures), expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(coca.embed_texts(["a red circle", ""]), texts.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(coca.embed_images(pictures), axis=1), 1, atol=1e-6)
    assert coca.embed_images([]).shape == (0, coca.embed_size)


def test_a_text_is_cut_where_its_last_word_changes_nothing(coca: Contrastive) -> None:
    texts = [" ".join(["red"] * count) for count in range(1, 20)]
    longer = [f"{text} circle" for text in texts]
    differences = np.abs(coca.embed_texts(longer) - coca.embed_texts([f"{t} blue" for t in texts]))
    ignored = (differences.max(axis=1) < 1e-6).tolist()
    assert 0 < sum(ignored) < len(texts)
    assert coca.are_cut(longer) == ignored
    assert coca.are_cut([]) == []


def test_the_context_of_open_clips_own_tokenizer_holds_75_words_and_two_ends() -> None:
    import open_clip

    texts = [" ".join(["fox"] * count) for count in (1, 74, 75, 76, 200)]
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=77)
    assert are_cut(tokenizer, texts) == [False, False, False, True, True]


def test_pictures_get_the_models_own_mean_std_and_size(coca: Contrastive) -> None:
    pixels = coca.pixels([np.full((50, 50, 3), 255, np.uint8)])
    assert pixels.shape == (1, 3, 32, 32)
    torch.testing.assert_close(pixels[0, :, 5, 5], torch.tensor([1.0, 2.4, 3.5]))


def test_greedy_captions_are_those_of_the_whole_model_word_by_word(
    coca: Contrastive, pictures: list[np.ndarray]
) -> None:
    captions = coca.caption(pictures, max_tokens=8)
    for picture, caption in zip(pictures, captions, strict=True):
        tokens = [1]
        while len(tokens) < 9 and tokens[-1] != 2:
            with torch.no_grad():
                logits = coca.model(
                    coca.pixels([picture]), torch.tensor([tokens]), output_labels=False
                )["logits"]
            tokens.append(int(logits[0, -1].argmax()))
        words = coca.tokenizer.tokenizer.decode(
            [token for token in tokens if token not in (1, 2)], skip_special_tokens=True
        )
        assert caption == words.strip()
    assert len(set(captions)) > 1


def test_drawn_captions_follow_the_generator(coca: Contrastive, pictures: list[np.ndarray]) -> None:
    def drawn(seed: int) -> list[str]:
        return coca.caption(
            pictures, 8, temperature=2.0, generator=torch.Generator().manual_seed(seed)
        )

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_clip_cannot_caption(
    coca: Contrastive, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coca, "can_caption", False)
    with pytest.raises(InputError, match=r"components\.captioner"):
        coca.caption(pictures)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights"):
        load_contrastive(Resolved(contrastive=str(tmp_path)))
