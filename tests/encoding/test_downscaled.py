"""A resolution from a larger one's latents: the pictures and shapes of encoding, values as another
library scales, and the cost told.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from hdm.config import Pipeline
from hdm.data.latent_files import open_latents
from hdm.encoding import downscaled, latents
from hdm.encoding.settings import EncodeSettings
from hdm.errors import ConfigError
from hdm.keys import key_text
from hdm.stages import steps
from hdm.store import Output
from hdm.training.settings import Phase, TrainSettings

SMALL, LARGE = 16, 32


def rows_by_key(output: Output) -> dict[str, torch.Tensor]:
    return {
        key_text(key): latent
        for file in open_latents(output)
        for key, latent in zip(file.keys, file.latents(range(len(file))), strict=True)
    }  # fmt: skip


def encoded(home, size: int) -> Output:
    given = {name: home.digests[name] for name in ("download", "filter")}
    return latents.make(
        home.pipeline, latents.identify(home.pipeline, given, size), home.inputs, home.store, size
    )


def made(home) -> Output:
    inputs = {name: home.inputs[name] for name in ("download", "filter")} | {
        f"encode.{LARGE}px": encoded(home, LARGE)
    }
    identity = downscaled.identify(
        home.pipeline, {name: output.digest for name, output in inputs.items()}, SMALL, LARGE
    )
    return downscaled.make(home.pipeline, identity, inputs, home.store, SMALL, LARGE)


def test_pictures_shapes_and_values(home) -> None:
    output, truth = made(home), encoded(home, SMALL)
    assert output.name == truth.name
    assert output.digest != truth.digest
    found, larger, exact = (
        rows_by_key(output),
        rows_by_key(encoded(home, LARGE)),
        rows_by_key(truth),
    )
    assert {key: latent.shape for key, latent in found.items()} == {
        key: latent.shape for key, latent in exact.items()
    }
    assert output.summary["shapes"] == truth.summary["shapes"]
    for name in ("images", "bytes", "upscaled"):
        assert output.counts[name] == truth.counts[name]
    for key, latent in found.items():
        for channel, source in zip(latent, larger[key], strict=True):
            size = (channel.shape[1], channel.shape[0])
            by_pillow = np.asarray(
                Image.fromarray(source.float().numpy()).resize(size, Image.Resampling.BILINEAR)
            )
            np.testing.assert_allclose(channel.float(), by_pillow, rtol=2e-3, atol=2e-3)
    for file in open_latents(output):
        assert (file.form.resolution, file.form.downscale) == (SMALL, 4)
        for row in file.table().to_pylist():
            assert home.pixels[row["key"]].shape[:2] == (row["image_height"], row["image_width"])


def test_what_it_costs_is_told(home, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        output = made(home)
    assert "% of their standard deviation" in caplog.text
    keys = [key_text(key) for file in open_latents(output) for key in file.keys][
        : downscaled.MEASURED_PICTURES
    ]
    found, exact = rows_by_key(output), rows_by_key(encoded(home, SMALL))
    difference = torch.cat(
        [(found[key].float() - exact[key].float()).flatten(1) for key in keys], 1
    )
    values = torch.cat([exact[key].float().flatten(1) for key in keys], 1)
    assert output.summary["error"] == pytest.approx(
        float(difference.square().mean() / values.var(1).mean()) ** 0.5, rel=0.05
    )


def test_a_picture_gone_when_its_shard_is_downloaded_again_is_no_part_of_the_cost(home) -> None:
    first = key_text(next(iter(open_latents(encoded(home, LARGE)))).keys[0])
    home.lose(first)
    output = made(home)
    assert set(rows_by_key(output)) == home.encoded
    assert 0 < output.summary["error"] < 10


def pipeline(*resolutions: int, from_larger: tuple[int, ...]) -> Pipeline:
    phases = tuple(Phase(resolution=size, num_images=1, batch_size=1) for size in resolutions)
    return Pipeline(
        threads=1,
        train=TrainSettings(phases=phases),
        encode=EncodeSettings(from_larger=from_larger),
    )


def test_it_is_made_after_the_next_larger_one_that_is_encoded() -> None:
    every = steps(pipeline(64, 128, 256, 512, from_larger=(64, 128)))
    found = {
        step.name: step.inputs
        for step in every
        if step.stage == "encode" and step.name.endswith("px")
    }
    assert list(found) == ["encode.256px", "encode.512px", "encode.64px", "encode.128px"]
    assert found["encode.64px"] == found["encode.128px"] == ("download", "filter", "encode.256px")
    assert found["encode.512px"] == ("download", "filter")


def test_there_must_be_a_larger_one() -> None:
    with pytest.raises(ConfigError, match="no larger resolution than 128"):
        pipeline(128, 256, from_larger=(128, 256))
    with pytest.raises(ConfigError, match="no phase has resolution 100"):
        pipeline(128, 256, from_larger=(100,))
