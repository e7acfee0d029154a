from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hdm.architecture import XUTConfig
from hdm.diffusion.guidance import Text
from hdm.diffusion.sampler import Sampling, generate
from hdm.errors import InputError
from hdm.generation.conditioning import Conditioning
from hdm.generation.text_to_image import TextToImage
from hdm.models.autoencoder import load_autoencoder
from hdm.models.devices import Batches
from hdm.models.xut import XUT
from hdm.positions import Camera
from tests.small_models import TRAINED
from tests.training.workshop import CHANNELS, TEXT_WIDTH, lively, write_components

CONFIG = replace(XUTConfig(**TRAINED), text_width=TEXT_WIDTH, channels=CHANNELS)
SIZE = dict(width=16, height=8)  # 8 × 4 latent pixels
SAMPLING = Sampling(steps=2, guidance_scale=2.0)


@pytest.fixture(scope="module")
def components(tmp_path_factory):
    return write_components(tmp_path_factory.mktemp("components"))


def make(components, config=CONFIG, **options):
    conditioning = Conditioning(
        str(components / "text_encoder"), torch.device("cpu"), torch.float32, max_tokens=8
    )
    denoiser = lively(XUT(config))
    denoiser.eval()
    return TextToImage(
        denoiser,
        conditioning,
        load_autoencoder(str(components / "autoencoder")),
        **options,
    )


@pytest.fixture(scope="module")
def text_to_image(components):
    return make(components)


def call(text_to_image, prompts, seeds, at_once=8, **options):
    return text_to_image(
        prompts,
        **{**SIZE, "sampling": SAMPLING, **options},
        seeds=seeds,
        batches=Batches(at_once, "--device"),
    )


def by_hand(text_to_image, prompt, negative, seed, camera=None):
    """Tokenizer, language model, sampler and decoder, one after another, for one picture."""
    tokenizer = AutoTokenizer.from_pretrained(text_to_image.conditioning.reference)
    texts = []
    for words in (prompt, negative):
        ids = tokenizer(words)["input_ids"] or [tokenizer.bos_token_id]
        texts.append(
            Text(
                text_to_image.conditioning.encoder.model(
                    input_ids=torch.tensor([ids])
                ).last_hidden_state
            )
        )
    latent = generate(
        text_to_image.denoiser,
        *texts,
        height=4,
        width=8,
        seeds=[seed],
        sampling=SAMPLING,
        camera=camera,
    )
    autoencoder = text_to_image.autoencoder.model
    image = autoencoder.decode(latent / autoencoder.config.scaling_factor).sample[0].clamp(-1, 1)
    return ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()


def assert_same(pictures, others):
    """To rounding: batches of other sizes may differ by one grey level."""
    for picture, other in zip(pictures, others, strict=True):
        assert picture.dtype == np.uint8
        np.testing.assert_allclose(picture.astype(float), other.astype(float), atol=1)


@torch.no_grad()
def test_a_picture_is_what_its_parts_make_of_prompt_negative_prompt_seed_and_camera(text_to_image):
    prompts, negatives, camera = (
        ["red circle", "blue", "square"],
        ["blue square", "", "red red circle"],
        Camera(0.2, -0.1, 1.5),
    )
    found = call(
        text_to_image, prompts, [3, 4, 5], at_once=2, negative_prompts=negatives, camera=camera
    )
    assert [picture.shape for picture in found] == [(8, 16, 3)] * 3
    expected = [
        by_hand(text_to_image, *three, camera)
        for three in zip(prompts, negatives, [3, 4, 5], strict=True)
    ]
    assert_same(found, expected)
    same_seed = call(text_to_image, prompts, [3, 3, 3])
    assert_same(same_seed, [by_hand(text_to_image, prompt, "", 3) for prompt in prompts])
    assert np.std(np.stack(same_seed).astype(float), axis=0).mean() > 5, "the prompts show"


def test_batches_change_no_picture(components, text_to_image):
    prompts, seeds = ["red circle", "blue", "square", "red", "circle"], [9, 8, 7, 6, 5]
    whole = call(text_to_image, prompts, seeds)
    assert_same(call(text_to_image, prompts, seeds, at_once=2), whole)
    assert_same(call(make(components, decode_batch=1), prompts, seeds), whole)
    assert_same(call(text_to_image, [prompts[3]], [seeds[3]]), whole[3:4])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"width": 18}, "18x8 px cannot be cut into this model's patches of 4 px"),
        ({"height": 0}, "16x0 px cannot be cut"),
        ({"seeds": [1, 2, 3]}, "2 prompts, 3 seeds"),
        ({"negative_prompts": ["a", "b", "c"]}, "2 prompts, 2 seeds and 3 negative prompts"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(text_to_image, given, said):
    with pytest.raises(InputError, match=said):
        call(text_to_image, ["red", "blue"], given.pop("seeds", [1, 2]), **given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channels": 8}, "autoencoder has 4 channels, the model 8"),
        ({"text_width": 24}, "embeddings are 16 wide, the model reads 24"),
    ],
)
def test_parts_that_do_not_fit_are_refused(components, change, said):
    with pytest.raises(InputError, match=said):
        make(components, replace(CONFIG, **change))
