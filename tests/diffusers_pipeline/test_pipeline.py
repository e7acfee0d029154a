"""The diffusers pipeline: from weights to a folder, from the folder to the same pictures that our
own sampler makes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from safetensors.torch import load_file
from torch import nn

from hdm.architecture import XUTConfig
from hdm.diffusers_pipeline import HDMPipeline
from hdm.diffusers_pipeline.writing import write_folder
from hdm.diffusion.sampler import Sampling
from hdm.errors import DamagedError, InputError
from hdm.files import write_json
from hdm.generation.conditioning import Conditioning
from hdm.generation.text_to_image import TextToImage
from hdm.kernels import remove
from hdm.model_files.card import ModelCard
from hdm.model_files.opening import open_model
from hdm.model_files.stored import StoredModel
from hdm.model_files.tensors import save_tensors
from hdm.model_files.weights import Weights
from hdm.models import autoencoder
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import Resolved, resolve, weights_digest
from hdm.models.devices import Batches
from hdm.models.settings import Components
from hdm.models.xut import XUT
from hdm.positions import Camera
from tests.kernels.test_replaced_modules import Shifted, shifted
from tests.model_files.golden_files import drawn, save_model
from tests.training.workshop import CHANNELS, TEXT_WIDTH, write_components

DEMO = resolve(Components(folder="demo"))
PUBLISHED = XUTConfig(
    width=32,
    num_heads=2,
    head_size=16,
    mlp_width=24,
    text_width=128,
    depth=1,
    dec_blocks=1,
    post_blocks=1,
    channels=8,
)
KERNELS = "hdm.kernels.modules"
PROMPTS = ["a red circle on the left", "a small blue star"]


def weights(config: XUTConfig = PUBLISHED) -> Weights:
    return Weights(
        config, {name: tensor.detach() for name, tensor in drawn(config).state_dict().items()}
    )


def own(source: Weights, components: Resolved = DEMO) -> TextToImage:
    conditioning = Conditioning(
        components.need("text_encoder"), torch.device("cpu"), torch.float32, 256
    )
    return TextToImage(
        source.model().eval(),
        conditioning,
        load_autoencoder(components.need("autoencoder")),
        decode_batch=1,
    )


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def same(pictures: Any, wanted: list[np.ndarray]) -> bool:
    assert len(pictures) == len(wanted)
    return all(
        np.array_equal(np.asarray(picture), one)
        for picture, one in zip(pictures, wanted, strict=True)
    )


def stored(weights: Weights, **said: Any) -> StoredModel:
    return StoredModel(weights, ModelCard(weights.config, **said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("diffusers") / "model"
    write_folder(out, stored(weights(), resolution=32, max_tokens=256), DEMO)
    return out


def images(made: ImagePipelineOutput | tuple[Any]) -> Any:
    """Of a call's answer; their type depends on `output_type`."""
    assert isinstance(made, ImagePipelineOutput)
    return made.images


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> HDMPipeline:
    found = HDMPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    return found


def test_a_fresh_process_draws_what_our_own_sampler_draws(folder: Path, tmp_path: Path) -> None:
    code = f"""
import numpy, torch
torch.set_num_threads({torch.get_num_threads()})
import hdm.diffusers_pipeline
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained({str(folder)!r})
generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
pictures = pipeline({PROMPTS!r}, generator=generators, num_inference_steps=4).images
arrays = [numpy.asarray(picture) for picture in pictures]
numpy.save({str(tmp_path / "a.npy")!r}, numpy.stack(arrays))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    wanted = own(weights())(
        PROMPTS, width=32, height=32, seeds=[3, 4], batches=Batches(2, "a"), sampling=Sampling(4)
    )
    assert same(np.load(tmp_path / "a.npy"), wanted)
    assert np.stack(wanted).std() > 5  # pictures, not a plain grey


def test_every_argument_means_what_it_means_to_the_sampler(pipeline: HDMPipeline) -> None:
    sampling, camera = Sampling(3, "heun", 2.0, (0.2, 0.9), (0.0, 0.5), 3.0), Camera(0.1, -0.2, 1.5)
    wanted = own(weights())(
        [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2,
        width=48,
        height=32,
        seeds=[1, 2, 3, 4],
        batches=Batches(4, "a"),
        negative_prompts=["black"] * 2 + ["a ring"] * 2,
        sampling=sampling,
        camera=camera,
    )
    found = pipeline(
        PROMPTS,
        ["black", "a ring"],
        width=48,
        height=32,
        generator=seeds(1, 2, 3, 4),
        num_images_per_prompt=2,
        num_inference_steps=3,
        solver="heun",
        guidance_scale=2.0,
        guidance_interval=(0.2, 0.9),
        tread_rates=(0.0, 0.5),
        shift=3.0,
        camera=camera,
    )
    assert same(images(found), wanted)


def test_outputs_come_in_every_kind(pipeline: HDMPipeline) -> None:
    def call(kind: Any, **given: Any) -> Any:
        return pipeline(
            PROMPTS[0], generator=seeds(5), num_inference_steps=2, output_type=kind, **given
        )

    pil, array, tensor, latent = (call(kind).images for kind in ("pil", "np", "pt", "latent"))
    assert pil[0].size == (32, 32)
    assert array.shape == (1, 32, 32, 3)
    assert np.array_equal(np.asarray(pil[0]), (array[0] * 255).round())
    assert np.array_equal(array[0], tensor[0].permute(1, 2, 0).numpy())
    assert latent.shape == (1, 8, 4, 4)
    (plain,) = call("latent", return_dict=False)
    assert torch.equal(plain, latent)
    with pytest.raises(InputError, match="no output type"):
        call("jpeg")


def test_no_negative_prompt_is_the_empty_caption(pipeline: HDMPipeline) -> None:
    none, empty = (
        images(pipeline(PROMPTS[0], negative, generator=seeds(3), num_inference_steps=2))
        for negative in (None, "")
    )
    assert same(none, [np.asarray(picture) for picture in empty])


def test_one_generator_serves_all_and_none_means_torchs_own(pipeline: HDMPipeline) -> None:
    def call(generator: Any) -> torch.Tensor:
        made = pipeline(PROMPTS, generator=generator, num_inference_steps=2, output_type="latent")
        latent: torch.Tensor = images(made)
        return latent

    first = call(torch.Generator().manual_seed(6))
    assert torch.equal(first, call(torch.Generator().manual_seed(6)))
    torch.manual_seed(6)
    assert torch.equal(first, call(None))
    assert not torch.equal(first, call(None))
    with pytest.raises(InputError, match="2 prompts and 3 seeds"):
        call(seeds(1, 2, 3))


def test_a_callback_sees_every_step_and_may_change_the_latent(pipeline: HDMPipeline) -> None:
    seen = []

    def on_step_end(
        pipe: HDMPipeline, step: int, time: float, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        assert pipe is pipeline
        seen.append((step, time))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 3 else {}

    found = pipeline(
        PROMPTS[0],
        generator=seeds(1),
        num_inference_steps=4,
        output_type="latent",
        callback_on_step_end=on_step_end,
        callback_on_step_end_tensor_inputs=["latents"],
    )
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]
    assert not images(found).any()
    with pytest.raises(InputError, match="callbacks get"):
        pipeline(
            PROMPTS[0],
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )


def test_requests_that_cannot_be_met_are_refused(pipeline: HDMPipeline) -> None:
    with pytest.raises(
        InputError, match="40x32 px cannot be cut into this model's patches of 16 px"
    ):
        pipeline(PROMPTS[0], width=40)
    with pytest.raises(InputError, match="2 prompts and 3 negative prompts"):
        pipeline(PROMPTS, ["a", "b", "c"])
    with pytest.raises(InputError, match="0 sampling steps"):
        pipeline(PROMPTS, num_inference_steps=0)


def test_it_is_saved_again_as_diffusers_saves(
    pipeline: HDMPipeline, folder: Path, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "again")
    again = DiffusionPipeline.from_pretrained(tmp_path / "again")
    assert type(again) is HDMPipeline
    assert (again.config.resolution, again.config.max_tokens) == (32, 256)
    saved = open_model(tmp_path / "again").weights
    assert saved.config == PUBLISHED
    for name, tensor in open_model(folder).weights.tensors.items():
        assert torch.equal(saved.tensors[name], tensor), name


def test_in_16_bits_angles_stay_in_32_and_pictures_near(
    folder: Path, pipeline: HDMPipeline
) -> None:
    half = HDMPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    dtypes = {
        (name.endswith("freqs"), tensor.dtype)
        for name, tensor in half.transformer.state_dict().items()
    }
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    near, exact = (
        images(
            each(PROMPTS, generator=seeds(1, 2), num_inference_steps=4, output_type="latent")
        ).float()
        for each in (half, pipeline)
    )
    assert 0 < (near - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_folder_keeps_every_bit_and_is_computed_in_32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    source = weights()
    source = replace(
        source, tensors={name: tensor.to(dtype) for name, tensor in source.tensors.items()}
    )
    write_folder(tmp_path / "model", stored(source), DEMO)
    found = open_model(tmp_path / "model").weights
    assert found.config == source.config
    assert {name: tensor.dtype for name, tensor in found.tensors.items()} == dict.fromkeys(
        source.tensors, dtype
    )
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in source.tensors.items())
    pipeline = HDMPipeline.from_pretrained(tmp_path / "model")
    picture = images(
        pipeline(PROMPTS[0], width=16, height=32, generator=seeds(1), num_inference_steps=2)
    )
    assert same(
        picture,
        own(source)(
            PROMPTS[:1],
            width=16,
            height=32,
            seeds=[1],
            batches=Batches(1, "a"),
            sampling=Sampling(2),
        ),
    )
    assert pipeline.config.resolution == 1024  # the recipe's last, where nothing is said


@pytest.mark.parametrize("statistics", ["in its file", "published", "none"])
def test_other_components_and_their_statistics(
    statistics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_components(tmp_path / "parts")
    told = json.loads((parts / "autoencoder/config.json").read_text())
    if statistics != "in its file":
        del told["scaling_factor"]
    (parts / "autoencoder/config.json").write_text(json.dumps(told))
    components = Resolved(
        text_encoder=str(parts / "text_encoder"), autoencoder=str(parts / "autoencoder")
    )
    if statistics == "published":
        known = ([0.5] * CHANNELS, [2.0 + channel for channel in range(CHANNELS)])
        monkeypatch.setitem(autoencoder.PUBLISHED_STATISTICS, str(parts / "autoencoder"), known)
    config = replace(PUBLISHED, text_width=TEXT_WIDTH, channels=CHANNELS).recommended()
    write_folder(tmp_path / "model", stored(weights(config)), components)
    found = HDMPipeline.from_pretrained(tmp_path / "model")
    found.set_progress_bar_config(disable=True)
    words = ["red circle", ""]
    wanted = own(weights(config), components)(
        words, width=16, height=8, seeds=[1, 2], batches=Batches(2, "a")
    )
    assert same(images(found(words, width=16, height=8, generator=seeds(1, 2))), wanted)
    monkeypatch.undo()  # the folder says its statistics itself
    assert same(images(found(words, width=16, height=8, generator=seeds(1, 2))), wanted)


def test_what_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    parts = write_components(tmp_path / "parts")
    other_text = replace(DEMO, text_encoder=str(parts / "text_encoder"))
    cases = [
        (
            stored(weights()),
            other_text,
            f"text encoder's embeddings are {TEXT_WIDTH} wide, the model reads 128",
        ),
        (
            stored(weights()),
            replace(DEMO, autoencoder=str(parts / "autoencoder")),
            f"autoencoder has {CHANNELS} channels, the model 8",
        ),
        (stored(weights()), replace(DEMO, text_encoder=DEMO.contrastive), "text tower of a CoCa"),
        (
            stored(weights(), components={"text_encoder": "0" * 64}),
            DEMO,
            "not the text_encoder that the model was trained with",
        ),
        (stored(weights()), replace(DEMO, autoencoder=None), "names no autoencoder"),
    ]
    for source, components, said in cases:
        with pytest.raises(InputError, match=said):
            write_folder(tmp_path / "out/model", source, components)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="is there already"):
        write_folder(tmp_path / "out", stored(weights()), DEMO)


def test_what_training_wrote_is_read_averaged_or_raw(tmp_path: Path) -> None:
    found = weights(PUBLISHED.recommended())
    raw = {name: tensor + 1 for name, tensor in found.tensors.items()}
    save_tensors(tmp_path / "ema.safetensors", found.tensors)
    save_tensors(tmp_path / "weights.safetensors", raw)
    digests = {"text_encoder": weights_digest(DEMO.need("text_encoder"))}
    write_json(
        tmp_path / "model.json",
        {"xut": found.config.to_dict(), "resolution": 64, "components": digests},
    )
    source = open_model(tmp_path)
    assert source.weights.config == found.config
    assert torch.equal(source.weights.tensors["ctx_proj.bias"], found.tensors["ctx_proj.bias"])
    assert torch.equal(
        open_model(tmp_path, average=False).weights.tensors["ctx_proj.bias"], raw["ctx_proj.bias"]
    )
    write_folder(tmp_path / "model", source, DEMO)
    assert json.loads((tmp_path / "model/model_index.json").read_text())["resolution"] == 64

    (tmp_path / "ema.safetensors").write_bytes(b"no")
    with pytest.raises(DamagedError, match=r"ema\.safetensors"):
        open_model(tmp_path)
    write_json(tmp_path / "model.json", {"xut": replace(found.config, mlp_width=25).to_dict()})
    with pytest.raises(InputError, match=r"mlp\.w12\.bias is \(48,\), the model's \(50,\)"):
        open_model(tmp_path, average=False)
    save_model(tmp_path / "a.safetensors", drawn(PUBLISHED))
    assert open_model(tmp_path / "a.safetensors").weights.config == PUBLISHED
    with pytest.raises(InputError, match="leave out --raw"):
        open_model(tmp_path / "a.safetensors", average=False)
    with pytest.raises(InputError, match="does not say its configuration"):
        open_model(tmp_path / "model/vae")
    with pytest.raises(InputError, match="neither"):
        open_model(tmp_path / "model/tokenizer")


def test_the_folders_files_are_the_components_own(folder: Path) -> None:
    for ours, theirs in (
        ("vae/diffusion_pytorch_model", "autoencoder"),
        ("text_encoder/model", "text_encoder"),
    ):
        path = Path(DEMO.need(theirs)) / f"{Path(ours).name}.safetensors"
        assert (folder / f"{ours}.safetensors").read_bytes() == path.read_bytes()
    names = {path.name for path in (folder / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json"}
    assert (
        load_file(folder / "transformer/diffusion_pytorch_model.safetensors").keys()
        == weights().tensors.keys()
    )


def test_every_module_of_the_transformer_takes_effect_when_replaced(folder: Path) -> None:
    """The registered transformer is the model that runs: there is no second copy behind it."""
    found = HDMPipeline.from_pretrained(folder)
    found.set_progress_bar_config(disable=True)
    transformer = found.transformer
    assert isinstance(transformer, XUT)
    assert any(type(module).__module__ == KERNELS for module in transformer.modules())

    def latent() -> torch.Tensor:
        given: dict[str, Any] = dict(height=16, width=16, num_inference_steps=1, guidance_scale=1.0)
        made = found(PROMPTS[0], generator=seeds(1), output_type="latent", **given)
        latent: torch.Tensor = images(made)
        return latent

    plain = latent()
    kinds = nn.Linear, nn.Conv2d, nn.RMSNorm, nn.LayerNorm
    leaves = [name for name, module in transformer.named_modules() if isinstance(module, kinds)]
    for name in leaves:
        base = transformer.get_submodule(name)
        transformer.set_submodule(name, Shifted(base, 0.5))
        assert not torch.equal(latent(), plain), name
        transformer.set_submodule(name, base)
        hook = base.register_forward_hook(lambda _, given, out: shifted(out))
        assert not torch.equal(latent(), plain), name
        hook.remove()
    assert torch.equal(latent(), plain)

    assert remove(transformer) > 0
    torch.testing.assert_close(latent(), plain, rtol=1e-4, atol=1e-5)
