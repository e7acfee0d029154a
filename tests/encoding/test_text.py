"""Token ids and text embeddings: the tokenizer's and the encoder's own, found again through the
loader.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hdm.data.captions import TextTable, TokenTable
from hdm.data.loader import Loader
from hdm.data.tables import read_tables
from hdm.encoding import latents, text, tokens
from hdm.errors import ConfigError, InputError
from hdm.models.text_encoder import TextEncoder, load_text_encoder, load_tokenizer, num_embeddings
from hdm.store import Output


def make_tokens(home) -> Output:
    identity = tokens.identify(home.pipeline, {"caption": home.digests["caption"]})
    return tokens.make(home.pipeline, identity, home.inputs, home.store)


def make_text(home) -> Output:
    home.inputs["encode.tokens"] = make_tokens(home)
    identity = text.identify(
        home.pipeline, {name: home.digests[name] for name in ("caption", "encode.tokens")}
    )
    return text.make(home.pipeline, identity, home.inputs, home.store)


def make_latents(home) -> Output:
    identity = latents.identify(
        home.pipeline, {name: home.digests[name] for name in ("download", "filter")}, 16
    )
    return latents.make(home.pipeline, identity, home.inputs, home.store, 16)


def test_token_ids_of_every_caption(home, text_encoder_folder: Path) -> None:
    output = make_tokens(home)
    tokenizer = load_tokenizer(str(text_encoder_folder))
    expected = [
        {"key": key, "index": index, "token_ids": tokenizer.token_ids([caption], 12)[0]}
        for key, captions in home.captions.items()
        for index, caption in enumerate(captions)
    ]
    assert read_tables(output, "tokens").to_pylist() == expected
    lengths = [len(row["token_ids"]) for row in expected]
    assert output.summary["empty"] == [1, 2]
    assert output.summary["pad_id"] == 0
    assert output.summary["longest"] == max(lengths) == 12
    assert output.counts == {
        "captions": len(expected),
        "full_length": lengths.count(12),
        "tokens": sum(lengths),
    }
    identity = tokens.identify(home.pipeline, {"caption": home.digests["caption"]})
    assert output.summary["tokenizer"] == identity.weights["tokenizer"]


def test_cached_text_is_what_the_encoder_gives_for_each_caption_alone(
    home, text_encoder_folder: Path
) -> None:
    output = make_text(home)
    token_table, table = TokenTable(home.inputs["encode.tokens"]), TextTable(output)
    encoder = load_text_encoder(str(text_encoder_folder))
    assert table.width == output.summary["width"] == 24
    lengths = table.lengths(np.arange(table.empty + 1)).tolist()
    assert lengths == token_table.lengths(np.arange(token_table.empty + 1)).tolist()
    for row, length in enumerate(lengths):
        token_ids, mask = token_table.read(torch.tensor([row]).numpy(), length)
        cached, cached_mask = table.read(torch.tensor([row]).numpy(), length)
        assert mask.all()
        assert cached_mask.all()
        # 11 bits of a float16's mantissa, and values of order 1.
        torch.testing.assert_close(
            cached.float(), encoder.encode(token_ids, mask), rtol=1e-3, atol=1e-3
        )
    assert output.counts["captions"] == table.empty


def in_8_bits(home) -> None:
    home.pipeline = home.pipeline.model_copy(
        update={"encode": home.pipeline.encode.model_copy(update={"text_dtype": "int8"})}
    )


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_every_caption_of_a_picture_has_its_own_embedding_in_the_file(
    home, dtype: str, text_encoder_folder: Path
) -> None:
    """Read by pyarrow and put together by hand."""
    if dtype == "int8":
        in_8_bits(home)
    encoder, tokenizer = (
        load_text_encoder(str(text_encoder_folder)),
        load_tokenizer(str(text_encoder_folder)),
    )
    output, seen, lengths = make_text(home), [], 0
    for path in output.paths(".parquet"):
        for row in pq.read_table(path).to_pylist() if path.name.startswith("text-") else []:
            token_ids = tokenizer.token_ids([home.captions[row["key"]][row["index"]]], 12)
            expected = encoder.encode(
                torch.tensor(token_ids), torch.ones(1, len(token_ids[0]), dtype=torch.bool)
            )[0].numpy()
            tokens = np.frombuffer(row["embedding"], np.uint8).reshape(row["length"], -1)
            if dtype == "int8":
                found = tokens[:, :24].copy().view(np.int8) * tokens[:, 24:].copy().view(np.float32)
                assert np.abs(found - expected).max() <= 0.51 * np.abs(expected).max() / 127
            else:
                np.testing.assert_allclose(
                    tokens.copy().view(np.float16), expected, rtol=1e-3, atol=1e-3
                )
            seen.append((row["key"], row["index"]))
            lengths += row["length"]
    assert seen == [
        (key, index) for key, captions in home.captions.items() for index in range(len(captions))
    ]
    assert max(index for _, index in seen) == 1
    assert output.counts["bytes"] == (lengths + 2) * (
        48 if dtype == "float16" else 28
    )  # with the empty caption's


def test_8_bits_through_the_loaders_table_and_what_they_cost(
    home, text_encoder_folder: Path
) -> None:
    exact = make_text(home)
    in_8_bits(home)
    rounded = make_text(home)
    assert rounded.digest != exact.digest
    rows = np.arange(TextTable(exact).empty + 1)
    (first, mask), (second, same) = (
        TextTable(exact).read(rows, 12),
        TextTable(rounded).read(rows, 12),
    )
    assert torch.equal(mask, same)
    assert second.dtype == torch.float16
    assert (second[~mask] == 0).all()
    # The stage's figure is of the first 64 captions without the empty one; here are fewer, and the
    # empty one.
    found, truth = second[:-1][mask[:-1]].float(), first[:-1][mask[:-1]].float()
    by_hand = ((found - truth).square().mean(0).sqrt() / truth.std(0)).median().item()
    assert rounded.summary["error"] == pytest.approx(by_hand, rel=0.05)
    assert 0 < exact.summary["error"] < 1e-3 < rounded.summary["error"] < 1e-2


def test_batches_with_cached_text_are_those_with_live_text(home, text_encoder_folder: Path) -> None:
    cached_text, latent = make_text(home), make_latents(home)
    inputs = home.inputs
    named = (latent, inputs["encode.tokens"], inputs["caption"], inputs["filter"])
    settings: dict[str, Any] = dict(batch_size=9, patch_size=2, seed=1, caption_dropout=0.2)
    live, cached = Loader(*named, **settings), Loader(*named, cached_text, **settings)
    encoder = load_text_encoder(str(text_encoder_folder))
    assert len(live) == len(home.encoded)
    for step in range(6):
        first, second = live.batch(9 * step), cached.batch(9 * step)
        assert first.keys == second.keys
        assert torch.equal(first.latent, second.latent)
        assert torch.equal(first.text_mask, second.text_mask)
        assert first.token_ids is not None
        torch.testing.assert_close(
            second.text, encoder.encode(first.token_ids, first.text_mask), rtol=1e-3, atol=1e-3
        )


def test_small_batches_and_a_full_device_change_nothing(
    home, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_text(home)
    encode = TextEncoder.encode

    def small_device(
        self: TextEncoder, token_ids: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        if len(token_ids) > 1:
            raise torch.OutOfMemoryError("the device is full")
        return encode(self, token_ids, text_mask)

    monkeypatch.setattr(TextEncoder, "encode", small_device)
    home.root = home.root.with_name("another")
    again = make_text(home)
    rows = np.arange(TextTable(whole).empty + 1)
    first, second = TextTable(whole).read(rows, 12), TextTable(again).read(rows, 12)
    torch.testing.assert_close(first[0], second[0], rtol=1e-3, atol=1e-3)
    assert torch.equal(first[1], second[1])


def test_a_text_encoder_of_another_width_is_refused(home, text_encoder_folder: Path) -> None:
    train = home.pipeline.train
    model = type(train.model)(**{**train.model.to_dict(), "text_width": 1024})
    home.pipeline = home.pipeline.model_copy(
        update={"train": train.model_copy(update={"model": model})}
    )
    with pytest.raises(
        ConfigError,
        match=rf"{text_encoder_folder} gives embeddings of width 24, the model takes 1024",
    ):
        make_text(home)


def test_made_twice_the_bytes_are_the_same(home) -> None:
    first = make_text(home)
    home.root = home.root.with_name("another")
    second = make_text(home)
    for path in first.paths():
        assert path.read_bytes() == (second.path / path.name).read_bytes()


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_made(
    home, text_encoder_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "text_encoder"
    shutil.copytree(text_encoder_folder, folder)
    tokenizer = load_tokenizer(str(folder)).tokenizer
    tokenizer.add_tokens([f"more{number}" for number in range(9)])
    tokenizer.save_pretrained(folder)
    components = home.pipeline.components.model_copy(update={"text_encoder": str(folder)})
    home.pipeline = home.pipeline.model_copy(update={"components": components})
    assert (
        num_embeddings(str(folder))
        == cast(Any, load_text_encoder(str(folder)).model).get_input_embeddings().num_embeddings
    )
    with pytest.raises(
        InputError,
        match=r"the tokenizer gives ids up to \d+, the text encoder has embeddings for \d+",
    ):
        make_tokens(home)
