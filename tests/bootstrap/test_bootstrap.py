from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hdm.bootstrap.bootstrapping import Plan, bootstrap
from hdm.bootstrap.examples import Example
from hdm.bootstrap.learning import halve
from hdm.bootstrap.lessons import Crops, batch_items, gather
from hdm.bootstrap.quality_head import SPOILERS, spoiled
from hdm.bootstrap.train_autoencoder import save_autoencoder
from hdm.bootstrap.train_text_encoder import tokenized, train_tokenizer
from hdm.demo.bootstrap import scene_examples
from hdm.errors import HdmError, InputError
from hdm.files import sha256_file
from hdm.models.aesthetic import load_aesthetic_head
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import resolve
from hdm.models.contrastive import load_contrastive
from hdm.models.settings import Components
from hdm.models.text_encoder import load_text_encoder, load_tokenizer
from hdm.vae.squares import resized

BRIEF = Plan(autoencoder_images=24, contrastive_images=32, language_captions=32, quality_images=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("bootstrap") / "components"
    bootstrap(
        scene_examples(48, 32), out, source="scenes", seed=3, plan=BRIEF, size_px=32, channels=4
    )
    return out


def test_every_loader_reads_what_bootstrap_wrote(folder: Path) -> None:
    resolved = resolve(Components(folder=str(folder)))
    picture = next(scene_examples(1, 32)).pixels
    autoencoder = load_autoencoder(resolved.need("autoencoder"))
    image = torch.zeros(1, 3, 32, 64)
    assert autoencoder.encode(image).shape == (1, 4, 4, 8)
    assert autoencoder.decode(autoencoder.encode(image)).shape == image.shape
    contrastive = load_contrastive(resolved)
    assert contrastive.can_caption
    assert (
        contrastive.embed_images([picture]).shape
        == contrastive.embed_texts(["a ring"]).shape
        == (1, contrastive.embed_size)
    )
    assert load_aesthetic_head(resolved.need("aesthetic_head"))(
        contrastive.embed_images([picture])
    ).shape == (1,)
    tokenizer, encoder = (
        load_tokenizer(resolved.need("text_encoder")),
        load_text_encoder(resolved.need("text_encoder")),
    )
    ids = torch.tensor(tokenizer.token_ids(["a red circle at the top"], 32))
    assert encoder.encode(ids, torch.ones_like(ids, dtype=torch.bool)).shape == (
        *ids.shape,
        encoder.width,
    )
    for model in (encoder.model, autoencoder.model, contrastive.model):
        assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_latents_have_mean_0_and_deviation_1(folder: Path) -> None:
    autoencoder = load_autoencoder(str(folder / "autoencoder"))
    crops = Crops(list(scene_examples(48, 32)), [32], 48, seed=0)
    latent = autoencoder.normalize(autoencoder.encode(crops.batch(0)))
    assert latent.mean((0, 2, 3)).abs().max() < 0.3
    assert (latent.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_the_record_names_recipe_quality_and_every_file(folder: Path) -> None:
    record = json.loads((folder / "components.json").read_text())
    assert record["recipe"]["seed"] == 3
    assert record["recipe"]["pictures"] == 44
    assert set(record["measured"]) == {
        "autoencoder",
        "text_encoder",
        "contrastive",
        "aesthetic_head",
    }
    written = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"components.json"}
    assert set(record["files"]) == written
    for name, entry in record["files"].items():
        assert entry == {
            "bytes": (folder / name).stat().st_size,
            "sha256": sha256_file(folder / name),
        }


def test_the_same_seed_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    bootstrap(
        scene_examples(48, 32),
        tmp_path / "again",
        source="scenes",
        seed=3,
        plan=BRIEF,
        size_px=32,
        channels=4,
    )
    assert (tmp_path / "again" / "components.json").read_text() == (
        folder / "components.json"
    ).read_text()


def test_a_run_of_some_minutes_that_was_killed_goes_on_with_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a probe says of this machine's speed is another number each time."""

    def run() -> dict[str, Any]:
        return bootstrap(
            scene_examples(48, 32), tmp_path / "out", source="scenes", minutes=0.01, plan=BRIEF,
            size_px=32, channels=4,
        )  # fmt: skip

    class Killed(BaseException):
        pass

    def killed(model: object, folder: Path) -> None:
        if folder.is_relative_to(tmp_path):
            raise Killed
        save_autoencoder(model, folder)  # the probe's

    with monkeypatch.context() as patched:
        patched.setattr("hdm.bootstrap.bootstrapping.save_autoencoder", killed)
        with pytest.raises(Killed):
            run()
    weights = tmp_path / "out" / "text_encoder" / "model.safetensors"
    plan = tmp_path / "out" / ".scratch" / "plan.json"
    before, told = weights.stat(), json.loads(plan.read_text())
    monkeypatch.setattr("hdm.bootstrap.bootstrapping.TRIAL_STEPS", 3)
    record = run()
    assert told["plan"].items() <= record["recipe"].items()
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert set(record["files"]) >= {"text_encoder/model.safetensors", "autoencoder/config.json"}


def test_a_folder_in_use_and_too_few_pictures(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds something already"):
        bootstrap(scene_examples(48, 32), folder, source="scenes")
    bare = [Example(("",), np.zeros((32, 32, 3), np.uint8))] * 40
    with pytest.raises(InputError, match="found 0 captioned pictures"):
        bootstrap(bare, tmp_path / "none", source="a folder")


def test_gather_keeps_some_out_and_brings_pictures_to_size() -> None:
    examples = [
        Example((f"picture {n}",), np.full((100, 200 + n, 3), n, np.uint8)) for n in range(40)
    ]
    lessons = gather(iter(examples), 50, max_pictures=30)
    assert (len(lessons.train), len(lessons.held_out)) == (25, 5)
    assert {example.pixels.shape[0] for example in lessons.train} == {50}
    assert not {e.captions for e in lessons.train} & {e.captions for e in lessons.held_out}
    small = np.zeros((20, 30, 3), np.uint8)
    assert resized(small, 50, enlarge=False) is small
    assert resized(small, 50).shape == (50, 75, 3)


def test_every_place_comes_once_before_any_comes_again() -> None:
    seen = np.concatenate([batch_items(10, 4, seed=0, number=number) for number in range(10)])
    for epoch in seen.reshape(4, 10):
        assert sorted(epoch) == list(range(10))


def test_the_tokenizer_gives_back_any_text() -> None:
    tokenizer = train_tokenizer(["a red circle", "a red square"] * 5)
    for text in ("a red circle", "naïve 日本 🙂", "tab\tand {braces}"):
        assert (
            tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == text
        )
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert tokenized(tokenizer, ["a red circle", ""]).shape[0] == 2


@pytest.mark.parametrize("spoiler", SPOILERS)
def test_spoiling_changes_a_picture_more_the_stronger_it_is(spoiler: Any) -> None:
    from PIL import Image

    pixels = next(scene_examples(1)).pixels
    picture = Image.fromarray(pixels)
    changes = [
        np.abs(np.asarray(spoiler(picture, s, np.random.default_rng(0)), float) - pixels).mean()
        for s in (0.3, 1.0)
    ]
    assert 0 < changes[0] < changes[1]
    assert spoiled(pixels, 0.0, np.random.default_rng(0)) is pixels


def test_weights_too_large_for_sixteen_bits_are_not_written() -> None:
    model = torch.nn.Linear(2, 2)
    halve(model)
    model = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(model.weight, 1e5)
    with pytest.raises(HdmError, match="training exploded"):
        halve(model)


def test_the_fewest_pictures_are_enough_to_measure_on(tmp_path):
    plan = Plan(8, 32, 32, 32)
    record = bootstrap(
        scene_examples(16, 32), tmp_path / "out", source="few", plan=plan, size_px=32
    )
    assert record["measured"]["contrastive"]
