"""Train a tokenizer and a small causal language model (Qwen3) on the captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdm.bootstrap.learning import Place, Training, halve
from hdm.bootstrap.lessons import batch_items
from hdm.bootstrap.pace import Schedule
from hdm.measuring import Measure
from hdm.models.components import hushed

PAD = "<pad>"
START = "<s>"
END = "</s>"
MAX_VOCABULARY = 4096
CONTEXT = 64
MOST_MEASURED = 512  # captions

WIDTH = 128
LAYERS = 3
HEADS = 4
BATCH = 64
LEARNING_RATE = 2e-3
MUON_RATE = 1e-2
# Large: at 5 the last hidden states of "circle" and "star" were nearly equal, and a denoiser that
# read them never learned the kinds.
RECALL_WEIGHT = 60.0


def train_tokenizer(captions: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer of the captions' lower-case words, as a transformers tokenizer.

    It encodes any text. Every caption gets a start and an end token, so the empty one has two.
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    # One spelling for equal words: compatible characters and capitals are folded.
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    # With the prefix a word is the same token at the start of a caption as within it.
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        # All 256 bytes, so that any text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(captions, trainer)
    ends = [(START, inner.token_to_id(START)), (END, inner.token_to_id(END))]
    inner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        padding_side="right",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def tokenized(tokenizer: Any, captions: Sequence[str], max_tokens: int = CONTEXT) -> Tensor:
    """Token ids (N, T) int64, cut to `max_tokens` and padded on the right."""
    rows = tokenizer(list(captions), truncation=True, max_length=max_tokens)["input_ids"]
    ids = torch.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids


def new_language_model(vocabulary: int) -> Any:
    """An untrained Qwen3 of 0.6M parameters and the words' embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=WIDTH // HEADS,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # In the order of the tokenizer's special tokens.
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return Qwen3ForCausalLM(config)


def train_language_model(
    tokenizer: Any, captions: Sequence[str], num_captions: int, seed: int, place: Place
) -> tuple[Any, Schedule]:
    """Train a language model of the captions and return its schedule too.

    Besides the next token, each last hidden state learns to predict which tokens came before it.
    The denoiser needs just that from it, and a small model that only predicts the next token
    forgets it. The read-out for this is thrown away.

    Args:
        tokenizer: from `train_tokenizer`.
        captions: the text.
        num_captions: captions seen, repetitions counted.
        seed: of weights and order.
        place: where checkpoints are, and how long it may take.
    """
    torch.manual_seed(seed)
    ids = tokenized(tokenizer, captions)
    model = new_language_model(len(tokenizer))
    # Trained and saved in checkpoints with the model, so that a resumed training has it; never
    # written.
    recall = nn.Linear(WIDTH, len(tokenizer))
    batch_size = min(BATCH, len(ids))
    training = Training(
        nn.ModuleList([model, recall]),
        num_captions,
        batch_size,
        LEARNING_RATE,
        MUON_RATE,
        place,
        # "1" is the recall's read-out. Embeddings and read-outs go to AdamW.
        embeddings=("embed_tokens", "1.weight"),
    )

    def loss(step: int) -> tuple[Tensor, str]:
        batch = ids[batch_items(len(ids), batch_size, seed, step)]
        # Padding beyond the batch's longest caption would be computed for nothing.
        batch = batch[:, : int((batch != 0).sum(1).max())]
        hidden = model.model(input_ids=batch, attention_mask=(batch != 0).long()).last_hidden_state
        guess = F.cross_entropy(
            model.lm_head(hidden[:, :-1]).flatten(0, 1), batch[:, 1:].flatten(), ignore_index=0
        )
        value = guess + RECALL_WEIGHT * _recall_loss(recall(hidden), batch)
        return value, f"loss {guess.item():.3f}"

    schedule = training.run(loss, "language model", "captions")
    return model.eval(), schedule


def _recall_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Binary cross-entropy of which tokens came so far, averaged over positions without padding."""
    # (B, T, V): 1 for every token of the vocabulary that occurs up to each position.
    seen = F.one_hot(ids, logits.shape[-1]).cumsum(1).clamp(max=1).to(logits.dtype)
    real = (ids != 0).unsqueeze(-1)
    errors = F.binary_cross_entropy_with_logits(logits, seen, reduction="none") * real
    return errors.mean(-1).sum() / real.sum()


def save_language_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write config.json, model.safetensors in 16 bits, and the tokenizer's files."""
    with hushed("transformers"):
        halve(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Sampling settings mean nothing to a text encoder.
    (folder / "generation_config.json").unlink(missing_ok=True)


class LanguageQuality(Measure):
    """Perplexity of captions kept out of training.

    Args:
        folder: the written model.
        captions: at most the first 512 are measured.
    """

    def __init__(self, folder: Path, captions: Sequence[str]) -> None:
        from transformers import AutoTokenizer, Qwen3ForCausalLM

        super().__init__(min(len(captions), MOST_MEASURED))
        self.captions = captions
        # Measure the model as written, with its weights in 16 bits.
        self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        with hushed("transformers"):
            self.model: Any = Qwen3ForCausalLM.from_pretrained(
                str(folder), local_files_only=True, dtype=torch.float32
            )
        self.loss = 0.0
        self.num_tokens = 0

    @torch.no_grad()
    def add(self, items: Sequence[int]) -> None:
        ids = tokenized(self.tokenizer, [self.captions[item] for item in items])
        logits = self.model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        predicted = logits[:, :-1].flatten(0, 1)
        target = ids[:, 1:].flatten()
        loss = F.cross_entropy(predicted, target, ignore_index=0, reduction="sum")
        self.loss += loss.item()
        self.num_tokens += int((target != 0).sum())

    def result(self) -> dict[str, Any]:
        perplexity = math.exp(self.loss / self.num_tokens)
        return {"perplexity": round(perplexity, 3), "vocabulary": len(self.tokenizer)}
