"""The output `encode.features` on real files, against the vision model called by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hdm.data.latent_files import LatentFile
from hdm.encoding import features
from hdm.encoding.features import EncodingFeatures
from hdm.errors import ConfigError, DamagedError, InputError
from hdm.models.vision import Vision
from hdm.stages import steps
from hdm.store import Output
from tests.encoding.test_latents import changed, rows_by_key
from tests.steps import contents, made_elsewhere

SIDE, PATCH, WIDTH = 16, 4, 8
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def vision_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
        layerscale_value=1.0,
    )
    folder = tmp_path_factory.mktemp("vision")
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": MEAN, "image_std": STD})
    )
    return folder


@pytest.fixture
def seeing(home, vision_folder: Path):
    pipeline = changed(home.pipeline, features=True, features_px=SIDE)
    components = pipeline.components.model_copy(update={"vision": str(vision_folder)})
    return replace(home, pipeline=pipeline.model_copy(update={"components": components}))


def encode(home) -> Output:
    inputs = {name: home.digests[name] for name in ("download", "filter")}
    return features.make(
        home.pipeline, features.identify(home.pipeline, inputs), home.inputs, home.store
    )


def by_hand(folder: Path, pixels: np.ndarray) -> torch.Tensor:
    """Square pictures alone: resized, normalised with the published figures, through transformers'
    own class.
    """
    from transformers import Dinov2Model

    image = (
        np.asarray(
            Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32
        )
        / 255
    )
    normal = torch.from_numpy(
        (image - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    ).permute(2, 0, 1)
    with torch.no_grad():
        tokens = Dinov2Model.from_pretrained(folder)(normal[None]).last_hidden_state[0, 1:]
    return torch.stack(
        [
            torch.stack([tokens[row * SIDE // PATCH + column] for column in range(SIDE // PATCH)])
            for row in range(4)
        ]
    )


def test_each_kept_picture_has_the_models_own_features(seeing, vision_folder: Path) -> None:
    output = encode(seeing)
    found = rows_by_key(output)
    assert set(found) == seeing.encoded
    assert output.counts["images"] == len(found)
    assert output.counts["bytes"] == sum(grid.nbytes for grid in found.values())
    squares = [key for key in found if seeing.pixels[key].shape[0] == seeing.pixels[key].shape[1]]
    for key in squares[:4]:
        truth = by_hand(vision_folder, seeing.pixels[key])
        torch.testing.assert_close(found[key].float().permute(1, 2, 0), truth, rtol=2e-3, atol=2e-3)
    assert {(WIDTH, 4, 8), (WIDTH, 8, 4), (WIDTH, 4, 4)} <= {
        tuple(grid.shape) for grid in found.values()
    }
    for path in output.paths(".parquet"):
        form = LatentFile(path).form
        assert path.name.startswith(f"features-{form.height}x{form.width}-")
        assert (form.resolution, form.downscale, form.autoencoder["class"]) == (
            SIDE,
            PATCH,
            "Dinov2Model",
        )


def test_a_copy_of_the_step_makes_the_same_bytes(seeing, tmp_path: Path) -> None:
    made = encode(seeing)
    inputs = {name: seeing.inputs[name] for name in ("download", "filter")}
    identity = features.identify(
        seeing.pipeline, {name: output.digest for name, output in inputs.items()}
    )
    [again] = made_elsewhere(EncodingFeatures(seeing.pipeline, inputs), tmp_path / "e", identity)
    assert contents(again) == contents(made)


def test_a_kill_costs_one_shard_and_a_damaged_one_is_named(
    seeing, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        path.name: path.read_bytes()
        for path in encode(replace(seeing, root=seeing.root / "other")).paths(".parquet")
    }
    calls, encode_images = [], Vision.encode

    def stopping(vision: Vision, images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode_images(vision, images)

    monkeypatch.setattr(Vision, "encode", stopping)
    with pytest.raises(KeyboardInterrupt):
        encode(seeing)
    before = sum(calls[:2])
    output = encode(seeing)
    assert {path.name: path.read_bytes() for path in output.paths(".parquet")} == whole
    assert sum(calls) - calls[2] < before + len(seeing.encoded), "what was done is not done again"

    path = output.paths(".parquet")[0]
    damaged = bytearray(path.read_bytes())
    place = damaged.find(
        bytes(LatentFile(path).latents([0]).view(torch.uint8).numpy().tobytes()[:64])
    )
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match=path.name):
        LatentFile(path).latents([0])


def test_what_does_not_fit_is_said(seeing) -> None:
    with pytest.raises(ConfigError, match="patches of 4"):
        encode(replace(seeing, pipeline=changed(seeing.pipeline, features_px=18)))
    nameless = seeing.pipeline.components.model_copy(update={"vision": None})
    with pytest.raises(InputError, match=r"no vision"):
        encode(
            replace(seeing, pipeline=seeing.pipeline.model_copy(update={"components": nameless}))
        )


def test_it_is_made_where_asked_for_and_trained_on_where_aligned(seeing) -> None:
    def planned(pipeline) -> dict[str, tuple[str, ...]]:
        phases = [{"resolution": 16, "num_images": 8, "batch_size": 4}]
        values = {
            **pipeline.model_dump(mode="json"),
            "train": {**pipeline.train.model_dump(mode="json"), "phases": phases},
        }
        return {step.name: step.inputs for step in steps(type(pipeline).model_validate(values))}

    off, on = planned(changed(seeing.pipeline, features=False)), planned(seeing.pipeline)
    weighed = planned(
        seeing.pipeline.model_copy(
            update={"train": seeing.pipeline.train.model_copy(update={"align_weight": 0.5})}
        )
    )
    assert set(on) - set(off) == {"encode.features"}
    assert {name: on[name] for name in off} == off, (
        "a phase that is not aligned depends on no features"
    )
    assert set(weighed["train.16px"]) - set(on["train.16px"]) == {"encode.features"}
