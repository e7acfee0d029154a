"""Captions put together from their words have the ids that the tokenizer gives to the whole."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hdm.models import word_tokens
from hdm.models.text_encoder import Tokenizer, load_tokenizer
from hdm.models.word_tokens import WordTokens
from tests.word_tokenizer import WORDS, word_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "hdm/demo/components"
CLIP_WORDS = ROOT.parent / "shared/data/tokenizer/clip/bpe_simple_vocab_16e6.txt.gz"
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "long hair, blue eyes, a girl sits on a wall. It's 12 o'clock; don't look (at_me)!"
PIECES = [
    *TEXT.split(" "),
    *(" ", "  ", ", ", ",", "\t", "\n", "\r\n", "\x1c", "\x85", "\u00a0", "\u1680", "\u3000"),
    # What normalizers join, part, or turn into white space and something else.
    *("\u0301", "e\u0301", "\u0327\u0300", "\u00a8", "\u1fbd", "\ufdfa", "ﬁ", "½", "\u1100\u1161"),
    *("É", "İ", "Σ", "ς", "日本語", "🙂", "👩\u200d👩", "'S", "''ll", "...", "?!", "1234", "\x00"),
    *("<s>", "</s>", "<pad>", "<unk>", "<|endoftext|>", "<mark>"),
]


def captions(count: int, seed: int) -> list[str]:
    """Words made of pieces, most with one space between them."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        words = []
        for _ in range(rng.randrange(10)):
            word = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 4)))
            words.append(word if rng.random() < 0.1 else word.strip())
        found.append(" ".join(words))
    return found


def as_lists(found: list[np.ndarray]) -> list[list[int]]:
    assert all(ids.dtype == np.int32 for ids in found)
    return [ids.tolist() for ids in found]


def clip() -> Any:
    """CLIP's tokenizer, of its vocabulary."""
    if not CLIP_WORDS.is_file():
        pytest.skip("needs ../shared/data")
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    lines = gzip.decompress(CLIP_WORDS.read_bytes()).decode().split("\n")
    letters = list(bytes_to_unicode().values())
    merges: Any = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=merges)


def byte_level(*steps: Any, normalizer: Any = None, **options: Any) -> Any:
    """A tokenizer of these steps, trained on a line."""
    from tokenizers import Tokenizer as Inner
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    if normalizer is not None:
        inner.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>"], show_progress=False
    )
    inner.train_from_iterator([TEXT, TEXT.replace(" ", ", ")], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", **options)


def qwen() -> Any:
    from tokenizers import Regex, normalizers, pre_tokenizers

    return byte_level(
        pre_tokenizers.Split(Regex(QWEN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        normalizer=normalizers.NFC(),
    )


def smollm() -> Any:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    return byte_level(digits, pre_tokenizers.ByteLevel(add_prefix_space=False))


def words_first_in_bytes() -> Any:
    """Spaces are another character when the second step looks for them."""
    from tokenizers import pre_tokenizers

    coded = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(coded, pre_tokenizers.Whitespace())


def sentence_pieces() -> Any:
    """Merges go on beyond spaces, as Gemma's do."""
    from tokenizers import normalizers, pre_tokenizers

    return byte_level(
        pre_tokenizers.Split(" ", "merged_with_previous"),
        normalizer=normalizers.Replace(" ", "\u2581"),
        unk_token="<unk>",
    )


def with_mark(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        from tokenizers import AddedToken

        found = smollm()
        found.add_tokens([AddedToken(**options)])
        return found

    return make


def words() -> Any:
    return word_tokenizer([*("<pad>", "<s>", "</s>", "<unk>"), *WORDS, "long", "hair"])


def left() -> Any:
    found = smollm()
    found.truncation_side = "left"
    return found


def demo(part: str) -> Callable[[], Any]:
    return lambda: load_tokenizer(str(DEMO / part)).tokenizer


BY_WORDS = {
    "demo": demo("text_encoder"),
    "demo's judge": demo("contrastive"),
    "clip": clip,
    "qwen": qwen,
    "smollm": smollm,
    "words": words,
    "a mark": with_mark(content="<mark>", lstrip=True),
}
WHOLE = {
    "bytes before words": words_first_in_bytes,
    "sentence pieces": sentence_pieces,
    "cut at the left": left,
    "a mark that takes a space": with_mark(content="<mark>", rstrip=True),
    "a mark with a space": with_mark(content="hair, blue"),
}


@pytest.mark.parametrize("name", [*BY_WORDS, *WHOLE])
def test_the_ids_are_those_of_the_whole_caption(name: str) -> None:
    made = (BY_WORDS | WHOLE)[name]()
    tokenizer = Tokenizer(made)
    for max_tokens in (6, 200):
        by_words = WordTokens(tokenizer, max_tokens)
        assert by_words.by_words == (name in BY_WORDS)
        for seed in range(3):
            batch = captions(150, seed)
            assert as_lists(by_words(batch)) == tokenizer.token_ids(batch, max_tokens)
        assert by_words([]) == []


def test_no_room_beside_the_special_tokens() -> None:
    assert not WordTokens(Tokenizer(words()), 2).by_words


def test_words_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_tokens, "MOST_WORDS", 100)
    tokenizer = Tokenizer(smollm())
    by_words = WordTokens(tokenizer, 200)
    for number in range(40):
        batch = [f"a{number} b{number * 7 + place} c" for place in range(7)]
        assert as_lists(by_words(batch)) == tokenizer.token_ids(batch, 200)
        assert by_words.num_words <= 100 + 2 * 7 + 2
