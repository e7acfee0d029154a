"""`hdm sample`, from the command line to the files, with the output of a real training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hdm.commands.cli import app
from hdm.last_runs import LastRun, remember
from hdm.models.components import resolve, weights_digest
from hdm.models.xut import XUT
from hdm.store import Identity, Store
from hdm.training.process.guard import StopRequest
from hdm.training.trainer import train
from tests.small_models import SMALL
from tests.training.workshop import lively, make_workshop


def hdm(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sample", *map(str, words)])
    return result.exit_code, result.output


def refused(*words: object) -> str:
    code, said = hdm(*words)
    assert code == 2, said
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model as trained/, bare.safetensors and diffusers/, and its components/.

    trained/ is a phase's output with livelier weights.
    """
    folder = tmp_path_factory.mktemp("sample")
    workshop = make_workshop(folder)
    threads = torch.get_num_threads()
    job = workshop.cached().changed(checkpoint_sec=1e7, validate_every=None).job(folder / "job")
    assert train(job, StopRequest())
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)
    shutil.copytree(job.result, folder / "trained")
    tensors, config = (
        lively(XUT(job.settings.train.model)).state_dict(),
        job.settings.train.model.to_dict(),
    )
    save_file(tensors, folder / "trained" / "ema.safetensors")
    save_file(
        {f"unet.model.{name}": value for name, value in tensors.items()},
        folder / "bare.safetensors",
        metadata={"config": json.dumps(config)},
    )
    write_diffusers(folder / "diffusers", folder / "components", tensors, config)
    return folder


def write_diffusers(
    folder: Path, components: Path, tensors: dict[str, torch.Tensor], config: dict[str, object]
) -> None:
    shutil.copytree(components / "autoencoder", folder / "vae")
    for name in ("transformer", "text_encoder", "tokenizer"):
        (folder / name).mkdir()
    for file in (components / "text_encoder").iterdir():
        shutil.copy(
            file, folder / ("tokenizer" if file.name.startswith("token") else "text_encoder")
        )
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text(
        json.dumps({"_class_name": "XUT", **config})
    )
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "HDMPipeline", "max_tokens": 8, "resolution": 16})
    )


def parts(folder: Path) -> list[object]:
    return [
        "--autoencoder",
        folder / "components" / "autoencoder",
        "--text-encoder",
        folder / "components" / "text_encoder",
    ]


def pictures(out: Path) -> dict[str, Image.Image]:
    return {path.name: Image.open(path) for path in sorted(out.glob("*.png"))}


def pixels(out: Path) -> list[np.ndarray]:
    return [np.asarray(image) for name, image in pictures(out).items() if "grid" not in name]


def only_picture(out: Path) -> np.ndarray:
    (picture,) = pixels(out)
    return picture


def test_pictures_and_a_grid_with_their_settings_inside(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("blue square\n")
    words = [
        "--weights", folder / "trained", *parts(folder), "--device", "cpu",
        "--prompt", "red circle", "--prompts", tmp_path / "prompts.txt", "--negative", "blue",
        "--count", 3, "--seed", 5, "--size", "24x16", "--camera", "-0.1,0.2,1.5",
        "--steps", 2, "--solver", "heun", "--tread-rate", 0.5,
        "--guidance", 2.5, "--guidance-interval", "0.2,0.9", "--out", tmp_path / "out",
    ]  # fmt: skip
    code, said = hdm(*words)
    assert code == 0, said
    made = pictures(tmp_path / "out")
    assert [*made] == [
        *(f"0001-01-red-circle-seed{seed}.png" for seed in (5, 6, 7)),
        *(f"0001-02-blue-square-seed{seed}.png" for seed in (5, 6, 7)),
        "0001-grid.png",
    ]
    assert all(f"{tmp_path / 'out' / name}" in said for name in made)
    assert "6 pictures" in said
    image = made["0001-02-blue-square-seed6.png"]
    assert image.size == (24, 16)
    assert isinstance(image, PngImageFile)
    assert image.text["prompt"] == "blue square"
    assert json.loads(image.text["parameters"]) == {
        "seed": 6,
        "negative_prompt": "blue",
        "size": "24x16",
        "steps": 2,
        "solver": "heun",
        "guidance_scale": 2.5,
        "guidance_interval": [0.2, 0.9],
        "tread_rates": [0.0, 0.5],
        "shift": 1.0,
        "camera": {"x": -0.1, "y": 0.2, "zoom": 1.5},
        "model": f"{folder.name}/trained",
    }
    grid = np.asarray(made["0001-grid.png"])
    assert grid.shape == (2 * 18 - 2, 3 * 26 - 2, 3)
    assert np.array_equal(grid[18:34, 26:50], np.asarray(image))
    # Again: the same pictures beside the first.
    assert hdm(*words)[0] == 0
    again = pictures(tmp_path / "out")
    assert np.array_equal(np.asarray(again["0002-02-blue-square-seed6.png"]), np.asarray(image))
    assert len(again) == 14


@pytest.mark.parametrize(
    "change",
    [
        ["--guidance", 1],
        ["--negative", "circle"],
        ["--camera", "0.5,0,1"],
        ["--seed", 1],
        ["--solver", "heun"],
    ],
)
def test_every_setting_reaches_the_picture(
    folder: Path, tmp_path: Path, change: list[object]
) -> None:
    plain = [
        "--weights",
        folder / "trained",
        *parts(folder),
        "--prompt",
        "red circle",
        "--steps",
        2,
    ]
    assert hdm(*plain, "--out", tmp_path / "a")[0] == 0
    assert hdm(*plain, *change, "--out", tmp_path / "b")[0] == 0
    assert not np.array_equal(only_picture(tmp_path / "a"), only_picture(tmp_path / "b"))


@pytest.mark.parametrize("text_mask", ["masked", "padded"])
def test_a_picture_does_not_depend_on_what_is_made_beside_it(
    folder: Path, tmp_path: Path, text_mask: str
) -> None:
    shutil.copytree(folder / "trained", tmp_path / "model")
    told = json.loads((tmp_path / "model" / "model.json").read_text())
    told["xut"]["text_mask"] = text_mask  # padded: padding is attended to
    (tmp_path / "model" / "model.json").write_text(json.dumps(told))
    plain = ["--weights", tmp_path / "model", *parts(folder), "--steps", 2]
    assert (
        hdm(
            *plain,
            "--prompt",
            "red red circle",
            "--prompt",
            "blue",
            "--count",
            2,
            "--out",
            tmp_path / "a",
        )[0]
        == 0
    )
    code, told = hdm(*plain, "--prompt", "blue", "--seed", 1, "--out", tmp_path / "b")
    assert code == 0
    assert "\n1 picture of " in told
    np.testing.assert_allclose(
        pixels(tmp_path / "b")[0].astype(float), pixels(tmp_path / "a")[3].astype(float), atol=1
    )


def test_the_same_weights_in_any_form_make_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    forms = {
        "trained": ["--weights", folder / "trained", *parts(folder)],
        "bare": ["--weights", folder / "bare.safetensors", *parts(folder), "--size", "16x16"],
        "diffusers": ["--weights", folder / "diffusers"],
    }
    for name, words in forms.items():
        code, said = hdm(*words, "--prompt", "red square", "--steps", 2, "--out", tmp_path / name)
        assert code == 0, said
    assert np.array_equal(only_picture(tmp_path / "trained"), only_picture(tmp_path / "bare"))
    assert np.array_equal(only_picture(tmp_path / "trained"), only_picture(tmp_path / "diffusers"))


def test_a_model_of_the_package_s_components_names_them_itself(tmp_path: Path) -> None:
    from hdm.models.components import portable_names
    from hdm.models.settings import Components

    demo = Components(folder="demo")
    sizes: dict[str, Any] = {"width": 16, "head_size": 8, "text_width": 128, "channels": 8}
    config = replace(SMALL, **sizes, text_mask="masked")
    save_file(XUT(config).state_dict(), tmp_path / "ema.safetensors")
    digests = {
        name: weights_digest(resolve(demo).need(name)) for name in ("autoencoder", "text_encoder")
    }
    told = {
        "xut": config.to_dict(),
        "resolution": 32,
        "max_tokens": 16,
        "components": digests,
        "component_names": portable_names(demo),
    }
    (tmp_path / "model.json").write_text(json.dumps(told))
    code, said = hdm(
        "--weights", tmp_path, "--prompt", "a red circle", "--steps", 1, "--out", tmp_path / "out"
    )
    assert code == 0, said
    assert pixels(tmp_path / "out")[0].shape == (32, 32, 3)
    told["components"] = {**digests, "text_encoder": "0" * 64}
    (tmp_path / "model.json").write_text(json.dumps(told))
    assert "model's text encoder is not known here" in refused(
        "--weights", tmp_path, "--prompt", "a red circle"
    )


def test_what_cannot_be_is_said_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    one = ["--prompt", "red", "--out", tmp_path / "out"]
    trained = ["--weights", folder / "trained", *parts(folder)]
    assert "a bare weights file has no text encoder and no autoencoder" in (
        said := refused("--weights", folder / "bare.safetensors", *one)
    )
    assert "--components DIR" in said
    assert "do not say at what resolution" in refused(
        "--weights", folder / "bare.safetensors", *parts(folder), *one
    )
    assert "text encoder is not known here" in refused("--weights", folder / "trained", *one)
    assert "not the text encoder that the model was trained with" in refused(
        "--weights", folder / "trained", "--components", "demo", *one
    )
    assert "brings its own components" in refused(
        "--weights", folder / "diffusers", "--components", "demo", *one
    )
    assert "no such weights file" in refused("--weights", folder / "nowhere", *one)
    assert "neither model.json" in refused("--weights", tmp_path, *one)
    assert "there is no prompt" in refused(*trained, "--out", tmp_path / "out")
    assert "'euler' or 'heun'" in refused(*trained, *one, "--solver", "midpoint")
    assert "not two times in order" in refused(*trained, *one, "--guidance-interval", "0.8,0.2")
    assert "is not FROM,TO" in refused(*trained, *one, "--guidance-interval", "0.8")
    assert "less than 1" in refused(*trained, *one, "--tread-rate", "0.5,1")
    assert "is not X,Y,ZOOM" in refused(*trained, *one, "--camera", "0,0")
    assert "zoom 0.0 is not above 0" in refused(*trained, *one, "--camera", "0,0,0")
    assert "must be WIDTHxHEIGHT" in refused(*trained, *one, "--size", "16")
    assert "take 16x8" in refused(*trained, *one, "--size", "17x8")
    (tmp_path / "file").write_text("")
    assert "cannot write pictures" in refused(
        *trained, "--prompt", "red", "--steps", 1, "--out", tmp_path / "file"
    )
    assert not (tmp_path / "out").exists() or not pictures(tmp_path / "out")


def test_a_model_finds_the_autoencoder_that_its_pipeline_fine_tuned(
    folder: Path, tmp_path: Path
) -> None:
    """Beside it in the store, by the digest in its manifest."""
    store = Store(tmp_path / "store")
    with store.draft(Identity("vae", 1, {})) as draft:
        for path in (folder / "components" / "autoencoder").iterdir():
            with draft.write(f"autoencoder/{path.name}") as file:
                shutil.copyfile(path, file.path)
        vae = draft.commit()
    with store.draft(Identity("train.16px", 1, {}, {"vae": vae.digest})) as draft:
        for path in (folder / "trained").iterdir():
            with draft.write(path.name) as file:
                shutil.copyfile(path, file.path)
        trained = draft.commit()
    words = ["--weights", trained.path, *parts(folder)[2:], "--prompt", "red circle", "--steps", 2]
    code, said = hdm(*words, "--out", tmp_path / "out")
    assert code == 0, said
    assert (
        hdm(
            "--weights", folder / "trained", *parts(folder), *words[4:], "--out", tmp_path / "named"
        )[0]
        == 0
    )
    assert np.array_equal(only_picture(tmp_path / "out"), only_picture(tmp_path / "named"))
    shutil.rmtree(vae.path)
    assert "autoencoder is not known here" in refused(*words, "--out", tmp_path / "out")


def test_without_weights_the_last_run_s_model_is_taken_with_its_own_parts(
    folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    with store.draft(Identity("train.16px", 1, {})) as draft:
        for path in (folder / "trained").iterdir():
            if path.is_file() and not path.name.startswith("."):
                with draft.write(path.name) as file:
                    shutil.copy(path, file.path)
        output = draft.commit()
    own = {name: str(folder / "components" / name) for name in ("autoencoder", "text_encoder")}
    remember(store.root, LastRun("mine", 1.0, {"train.16px": output.digest}, own))
    words = ["--store", store.root, "--prompt", "red", "--steps", 1, "--out", tmp_path / "out"]
    for chosen in ([], ["--pipeline", "mine"]):
        code, said = hdm(*words, *chosen)
        assert code == 0, said
        assert f"of train.16px/{output.digest}" in said
    assert "did you mean mine" in refused(*words, "--pipeline", "mines")
    assert "two models" in refused(*words, "--pipeline", "mine", "--weights", output.path)


LAYER = "prev_tread_trns.blocks.0.mlp.w12"


def write_lora(folder: Path, weight: torch.Tensor) -> torch.Tensor:
    """An adapter of one layer, as peft writes it; alpha / rank · B A."""
    torch.manual_seed(4)
    down, up = torch.randn(2, weight.shape[1]), torch.randn(len(weight), 2)
    folder.mkdir()
    name = f"base_model.model.{LAYER}.lora"
    tensors = {f"{name}_A.weight": down, f"{name}_B.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 3.0, "target_modules": [LAYER]}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return 3.0 / 2 * up @ down


@pytest.mark.parametrize(
    ("given", "scale"), [(["lora"], 1.0), (["lora:0.5"], 0.5), (["lora:0.5", "lora:-0.25"], 0.25)]
)
def test_pictures_with_adapters_are_those_of_weights_merged_by_hand(
    folder: Path, tmp_path: Path, given: list[str], scale: float
) -> None:
    bare = folder / "bare.safetensors"
    base = load_file(bare)
    name = f"unet.model.{LAYER}.weight"
    added = write_lora(tmp_path / "lora", base[name])
    with safe_open(bare, "pt") as file:
        metadata = file.metadata()
    by_hand = tmp_path / "merged.safetensors"
    save_file({**base, name: base[name] + scale * added}, by_hand, metadata=metadata)

    def picture(out: str, *words: object) -> np.ndarray:
        how = ["--size", "16x16", *parts(folder), "--steps", 2, "--device", "cpu"]
        code, said = hdm(*words, *how, "--prompt", "red circle", "--out", tmp_path / out)
        assert code == 0, said
        return only_picture(tmp_path / out).astype(int)

    adapters = [str(tmp_path / one) for one in given]
    options = [word for one in adapters for word in ("--lora", one)]
    ours = picture("ours", "--weights", bare, *options)
    assert abs(ours - picture("wanted", "--weights", by_hand)).max() <= 1
    assert abs(ours - picture("plain", "--weights", bare)).max() > 5
    image = next(iter(pictures(tmp_path / "ours").values()))
    assert isinstance(image, PngImageFile)
    assert json.loads(image.text["parameters"])["adapters"] == adapters


def test_what_is_no_adapter_of_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    write_lora(tmp_path / "lora", torch.zeros(6, 3))
    words = ["--weights", folder / "bare.safetensors", *parts(folder), "--size", "16x16"]
    words += ["--prompt", "red circle", "--lora"]
    assert "the adapter is for another base" in refused(*words, tmp_path / "lora")
    assert "no such weights file" in refused(*words, tmp_path / "nothing")
