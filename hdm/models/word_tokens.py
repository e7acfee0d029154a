"""Token ids of captions, put together from those of their words, for captions that change each time
they are read and are made of the same words.

Most tokenizers cut a text into pieces before they look anything up, never let a piece go on beyond
a space, and look up each piece by itself. For these, the ids of a text are those of its words, one
after the other, each with the space before it. `_cuts_at_spaces` says which they are.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np

from hdm.models.text_encoder import Tokenizer

MOST_WORDS = 1 << 17
"""Words whose ids are kept, some 20 MB."""
_LONGEST_WORD = 64  # characters: without spaces, as in Chinese, a sentence is a word

# They change each character, or characters that belong together, and a space belongs to none.
_LOCAL_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase")
_ONE_SPACE = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
# They cut before every space, or take spaces out.
_CUTTING = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")
_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_CLIP = _CONTRACTIONS + r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CL100K = (
    f"(?i:{_CONTRACTIONS})"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# In each, every other character is in some match, and no match has a space behind another
# character: nothing that is matched goes on beyond a single space.
_CUTTING_PATTERNS = (
    _CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
    _CL100K.replace("NUMBER", r"\p{N}"),  # Qwen
    _CL100K.replace("NUMBER", r"\p{N}{1,3}"),  # Llama 3
    _CLIP,
    r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP,
)


class WordTokens:
    """Token ids of captions, equal to `tokenizer.token_ids(captions, max_tokens)`.

    Each word is tokenized once and its ids are kept, up to `MOST_WORDS`. A caption is tokenized
    whole where that could make a difference: all of them if the tokenizer does not cut at spaces.

    Args:
        tokenizer: of the text encoder.
        max_tokens: captions are truncated to this many.

    Attributes:
        by_words: whether the tokenizer cuts at spaces.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        # Ids as int32 in bytes: joined without touching each, and nothing to the garbage collector.
        self._first: dict[str, bytes] = {}  # words without a space before them
        self._later: dict[str, bytes] = {}
        frame = _frame(tokenizer) if _cuts_at_spaces(tokenizer) else None
        before, after = frame or ([], [])
        room = max_tokens - len(before) - len(after)
        self.by_words = frame is not None and room > 0
        self._before = _packed(before)
        self._after = _packed(after)
        self._room = len(_packed([0])) * room

    def __call__(self, captions: list[str]) -> list[np.ndarray]:
        """The token ids of each caption, including special tokens, at least one each, int32."""
        if not self.by_words:
            return self._whole(captions)
        found = list(map(self._joined, captions))
        unknown = [number for number, ids in enumerate(found) if ids is None]
        self._learn([captions[number] for number in unknown])
        for number in unknown:
            found[number] = self._joined(captions[number])
        left = [caption for caption, ids in zip(captions, found, strict=True) if ids is None]
        whole = iter(self._whole(left))
        return [next(whole) if ids is None else np.frombuffer(ids, np.int32) for ids in found]

    @property
    def num_words(self) -> int:
        """How many words' ids are kept."""
        return len(self._first) + len(self._later)

    def _whole(self, captions: list[str]) -> list[np.ndarray]:
        found = self._tokenizer.token_ids(captions, self._max_tokens)
        return [np.array(ids, np.int32) for ids in found]

    def _joined(self, caption: str) -> bytes | None:
        """The ids of a caption, in bytes; None if not all of its words are known."""
        words = iter(caption.split(" "))
        try:
            first = self._first[next(words)]
            ids = first + b"".join(map(self._later.__getitem__, words))
        except KeyError:
            return None
        return self._before + ids[: self._room] + self._after

    def _learn(self, captions: Iterable[str]) -> None:
        if self.num_words > MOST_WORDS:
            self._first.clear()
            self._later.clear()
        first: set[str] = set()
        later: set[str] = set()
        for caption in captions:
            words = caption.split(" ")
            first.add(words[0])
            later.update(words[1:])
        self._first.update(self._ids_of(first - self._first.keys(), ""))
        self._later.update(self._ids_of(later - self._later.keys(), " "))

    def _ids_of(self, words: Iterable[str], before: str) -> Iterator[tuple[str, bytes]]:
        # Two spaces leave an empty word between them. Other white space joins with the space beside
        # it, and is left to the tokenizer.
        alone = [word for word in words if word.split() == [word] and len(word) <= _LONGEST_WORD]
        inner = self._tokenizer.tokenizer.backend_tokenizer
        # A call of `tokenizer` itself sets both again.
        inner.no_truncation()
        inner.no_padding()
        encodings = inner.encode_batch_fast(
            [before + word for word in alone], add_special_tokens=False
        )
        for word, encoding in zip(alone, encodings, strict=True):
            yield word, _packed(encoding.ids)


def _packed(ids: list[int]) -> bytes:
    return array("i", ids).tobytes()


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """The special tokens before and after every text; None if they are not only there."""
    encoded = tokenizer.tokenizer("a", return_special_tokens_mask=True)
    ids = encoded["input_ids"]
    places = [place for place, mark in enumerate(encoded["special_tokens_mask"]) if not mark]
    if not places:
        return None
    first = places[0]
    end = places[-1] + 1
    plain = tokenizer.tokenizer("a", add_special_tokens=False)["input_ids"]
    return (ids[:first], ids[end:]) if ids[first:end] == plain else None


def _cuts_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether the ids of a text are those of its words, one after the other, where a single space
    lies between two words and neither has white space of its own.

    Post-processors only put special tokens around a text, and models see one piece at a time.
    """
    outer = tokenizer.tokenizer
    if not outer.is_fast or outer.truncation_side != "right":
        return False
    inner = outer.backend_tokenizer
    # Dropout merges at random.
    if getattr(inner.model, "dropout", None):
        return False
    steps = list(_steps(inner.pre_tokenizer, "pretokenizers"))
    return (
        all(map(_is_local, _steps(inner.normalizer, "normalizers")))
        and any(map(_cuts, steps))
        and all(_cuts(step) or _refines(step) for step in steps)
        # It writes spaces as another character, which the steps after it would not know.
        and all(step["type"] != "ByteLevel" for step in steps[:-1])
        and all(_is_word(token, inner.normalizer) for token in _added_tokens(inner))
    )


def _added_tokens(inner: Any) -> Iterable[Any]:
    tokens: Mapping[int, Any] = inner.get_added_tokens_decoder()
    return tokens.values()


def _is_word(token: Any, normalizer: Any) -> bool:
    """Whether an added token has no space in it, as it is and normalized, and takes none behind
    it.
    """
    forms = [token.content]
    if normalizer is not None:
        forms.append(normalizer.normalize_str(token.content))
    return not token.rstrip and all(form.split() == [form] for form in forms)


def _steps(component: Any, parts: str) -> list[dict[str, Any]]:
    """A normalizer's or pre-tokenizer's steps in order, as tokenizer.json has them."""
    return [] if component is None else _flat(json.loads(component.__getstate__()), parts)


def _flat(step: dict[str, Any], parts: str) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return list(chain.from_iterable(_flat(part, parts) for part in step[parts]))


def _is_local(step: dict[str, Any]) -> bool:
    return step["type"] in _LOCAL_NORMALIZERS or step == _ONE_SPACE


def _cuts(step: dict[str, Any]) -> bool:
    match step["type"]:
        case "ByteLevel":
            return bool(step["use_regex"])
        case "Split":
            pattern = step["pattern"].get("Regex")
            how = (step["behavior"], step["invert"])
            return pattern in _CUTTING_PATTERNS and how in (("Isolated", False), ("Removed", True))
        case kind:
            return kind in _CUTTING


def _refines(step: dict[str, Any]) -> bool:
    # By the kind of characters, of which spaces are another; or not at all.
    return step["type"] in ("Digits", "ByteLevel")
