"""A transformers tokenizer that knows some words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
WORDS = ("a", "red", "blue", "circle", "square", "left", "right", "on", "the")


def word_tokenizer(words: Sequence[str], *, marks_ends: bool = True, **options: Any) -> Any:
    """The id of a word is its place; those of `SPECIAL` come first.

    Args:
        marks_ends: whether a text begins with <s> and ends with </s>.
        options: what `PreTrainedTokenizerFast` takes besides.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if marks_ends:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special, **options)
