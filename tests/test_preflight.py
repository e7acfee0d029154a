"""What cannot work is told before anything runs, all of it at once, and only of the stages that
will run.
"""

import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image

from hdm.demo.scenes import draw, make_scene
from hdm.errors import ConfigError, InputError
from hdm.files import write_json
from hdm.model_files.weights import Weights, save_weights
from hdm.models.components import components_folder
from hdm.models.xut import XUT
from hdm.pipelines import load_pipeline
from hdm.stages import OutputGraph, chosen, preflight, problems, run
from hdm.store import SCRATCH, Store
from hdm.training.process.job import checkpoint_folder

SMALL = (
    "download.scenes.count=12",
    "download.scenes.faults=0",
    "download.shard_items=6",
)


def told(tmp_path: Path, *overrides: str, until: str | None = None) -> str:
    """What the preflight says of the demo with other settings; empty: nothing."""
    pipeline = load_pipeline("demo", overrides, None, {})
    return "\n".join(map(str, problems(pipeline, Store(tmp_path), None, until)))


def test_every_shipped_pipeline_with_its_models_here_is_fine(tmp_path: Path) -> None:
    assert told(tmp_path) == ""


def test_all_stages_are_told_of_at_once_each_with_where_and_what_to_do(tmp_path: Path) -> None:
    overrides = ["evaluate.prompts=nowhere.txt", "components.aesthetic_head=nowhere.pth"]
    with pytest.raises(ConfigError, match="2 settings cannot work") as caught:
        preflight(load_pipeline("demo", overrides, None, {}), Store(tmp_path))
    assert str(caught.value).count("nowhere.txt") >= 1
    assert str(caught.value).count("nowhere.pth") >= 1
    assert str(caught.value).count("→") == 2
    assert not list(tmp_path.iterdir()), "nothing was made"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
@pytest.mark.parametrize("stage", ["filter", "caption", "encode", "train", "evaluate"])
def test_a_device_that_is_not_there(stage: str, tmp_path: Path) -> None:
    assert f"({stage}.device)" in told(tmp_path, f"{stage}.device=cuda")


def test_own_pictures_get_no_models_that_were_not_named(tmp_path: Path) -> None:
    source = f"download.source={tmp_path}"
    folder = load_pipeline("folder", [source], None, {})
    assert folder.components == type(folder.components)()
    assert {maker.kind for maker in folder.caption.makers} == {"given"}
    store = Store(tmp_path / "store")
    assert problems(folder, store, None, "caption") == []
    said = "\n".join(map(str, problems(folder, store, None, None)))
    assert "names no text_encoder" in said
    assert "names no autoencoder" in said
    assert "hdm bootstrap --source PICTURES --out DIR" in said
    scored = load_pipeline("folder", [source, "filter.min_clip_similarity=0.2"], None, {})
    (problem,) = problems(scored, store, None, "caption")
    assert "filter.min_clip_similarity needs components.contrastive" in str(problem)


def test_a_component_that_several_stages_lack_is_told_once(tmp_path: Path) -> None:
    assert told(tmp_path, "components.text_encoder=org/nothing").count("model org/nothing") == 1


def test_only_the_stages_that_will_run_are_checked(tmp_path: Path) -> None:
    wrong = "evaluate.prompts=nowhere.txt"
    assert "nowhere.txt" in told(tmp_path, wrong)
    assert told(tmp_path, wrong, until="train") == ""


def test_what_is_finished_is_not_checked(tmp_path: Path) -> None:
    store, demo = Store(tmp_path), load_pipeline("demo", SMALL, None, {})
    wrong = load_pipeline("demo", [*SMALL, "filter.device=cuda:99"], None, {})
    assert len(problems(wrong, store, None, "filter")) == 1
    list(run(demo, store, stop_after="filter"))
    assert problems(wrong, store, None, "filter") == []
    assert {step.stage for step in chosen(wrong, None, "filter")} == {"download", "filter"}


def test_an_error_alone_keeps_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cannot read the prompts"):
        preflight(
            load_pipeline("demo", ["evaluate.prompts=nowhere.txt"], None, {}), Store(tmp_path)
        )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.phases.0.resolution=50", "use 48 or 64"),
        ("evaluate.size=50x50", r"\(evaluate.size\)\n  → take 48x48 or 64x64"),
        ("evaluate.size=64x50", "take 64x48 or 64x64"),
        ("train.model.text_width=64", r"set train\.model\.text_width=128"),
        ("train.model.channels=4", r"set train\.model\.channels=8"),
        ("components.folder=nowhere", r"nowhere/components\.json"),
        ("components.text_encoder=org/nothing", "org/nothing, revision main, is not on this"),
        ("components.contrastive=nowhere", "nowhere"),
        ("components.folder=null", r"set components\.autoencoder"),
        (
            "components.aesthetic_head=org/head --set components.contrastive=org/clip",
            "(?s)org/clip.*org/head|org/head.*org/clip",
        ),
        ("encode.features=true", r"components\.vision"),
        ("download.kind=folder", r"download\.source is not set"),
        (
            "evaluate.prompts=held_out --set filter.validation=0 --set filter.held_out=0",
            "there are none",
        ),
        ("filter.validation=0.5 --set filter.held_out=0.5", "nothing for training"),
        ("vae.size_px=20", "multiple of 8, at least 32"),
        ("train.keep=best --set train.validate_every=4 --set filter.validation=0", "validation"),
    ],
)
def test_what_settings_alone_show(setting: str, said: str, tmp_path: Path) -> None:
    assert re.search(said, told(tmp_path, *setting.split(" --set ")))


@pytest.mark.parametrize(
    ("package", "setting"),
    [
        ("bitsandbytes", "train.phases.1.optimizer.state_bits=8"),
        ("bitsandbytes", "vae.optimizer.state_bits=8"),
        ("torchmetrics", "vae.perceptual_weight=0.5"),
    ],
)
def test_a_package_that_is_asked_for_and_not_installed(
    package: str, setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    assert re.search(
        rf"{package}, which is not installed \({setting.split('=')[0]}\)", told(tmp_path, setting)
    )


def test_a_threshold_whose_model_is_absent_is_told_for_each(tmp_path: Path) -> None:
    found = told(
        tmp_path,
        "components={autoencoder: x, text_encoder: y, folder: null}",
        "filter.min_aesthetic=3",
        "filter.top_fraction={by: clip_similarity, keep: 0.5}",
    )
    assert "filter.min_aesthetic needs components.aesthetic_head" in found
    assert "filter.min_clip_similarity needs components.contrastive" in found
    assert "filter.top_fraction.by: clip_similarity needs components.contrastive" in found


def test_an_autoencoder_trained_from_scratch_has_the_channels_that_it_will_have(
    tmp_path: Path,
) -> None:
    assert "train.model.channels=4" in told(tmp_path, "vae={scratch: true, channels: 4}")
    assert told(tmp_path, "vae={scratch: true, channels: 4}", "train.model.channels=4") == ""


def test_the_filter_knows_that_nothing_is_held_out(tmp_path: Path) -> None:
    """One picture leaves none to ask for: told when the filter is done, not after training."""
    overrides = [
        *SMALL,
        "download.max_items=1",
        "evaluate.prompts=held_out",
        "filter.max_noise=null",
    ]
    loose = [
        f"filter.{name}=null" for name in ("min_sharpness", "min_clip_similarity", "max_aspect")
    ]
    pipeline, store = load_pipeline("demo", [*overrides, *loose], None, {}), Store(tmp_path)
    assert problems(pipeline, store) == []
    (*_, made) = run(pipeline, store, stop_after="filter")
    assert made.output.counts["kept"] == 1
    found = "\n".join(map(str, problems(pipeline, store, "caption")))
    assert "there are none among the 1 that the filter keeps" in found
    assert problems(pipeline, store, "caption", "encode") == []


def test_what_a_run_begins_with_has_to_be_there(tmp_path: Path) -> None:
    (found,) = problems(load_pipeline("demo", (), None, {}), Store(tmp_path), "train")
    assert "train.48px needs filter, which is not in the store" in str(found)
    assert "--from filter" in str(found)


def test_captions_are_asked_of_a_contrastive_model_that_makes_none(tmp_path: Path) -> None:
    """The demo's without its text decoder, as its configuration says before it is loaded."""
    demo, folder = components_folder("demo") / "contrastive", tmp_path / "clip"
    shutil.copytree(demo, folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    del config["model_cfg"]["multimodal_cfg"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    asked = "caption.makers=[{kind: coca}]"
    clip, said = f"components.contrastive={folder}", "components.contrastive is not one"
    assert told(tmp_path / "store", asked) == ""
    assert said in told(tmp_path / "store", asked, clip)
    assert said not in told(tmp_path / "store", clip, "caption.makers=[{kind: given}]")


def test_more_processes_than_accelerators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("train.num_processes=3", "train.device=cpu", "evaluate.device=cpu")
    assert told(tmp_path, *asked) == "", "on the CPU any number goes"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert told(tmp_path, *asked) == ""
    for device in ("auto", "cuda"):
        found = told(tmp_path, *asked, f"train.device={device}")
        assert "3 processes need an accelerator each, and torch finds 2" in found
        assert "(train.num_processes)" in found
    assert told(tmp_path, "train.num_processes=2", "train.device=cuda", "evaluate.device=cpu") == ""


def test_a_checkpoint_that_cannot_be_gone_on_from(tmp_path: Path) -> None:
    """Of no training there, and of one of another model."""
    origin = "train.phases.0.resume_from"
    assert f"no checkpoint abc@5; unfinished trainings of this phase: none ({origin})" in (
        told(tmp_path, f"{origin}=abc@5")
    )
    demo = load_pipeline("demo", (), None, {})
    identity = OutputGraph(demo).identity("train.48px")
    checkpoint = checkpoint_folder(Store(tmp_path).folder(identity) / SCRATCH, 5)
    state = {"identity": asdict(identity), "position": {"step": 5, "num_images_seen": 160}}
    write_json(checkpoint / "state.json", state)
    named = f"{origin}={identity.digest}@5"
    assert told(tmp_path, named) == ""
    found = told(tmp_path, named, "train.model.mlp_width=64")
    assert "do not fit other settings of train.model.mlp_width" in found
    assert f"unfinished trainings of this phase: {identity.digest}@5 " in (
        told(tmp_path, f"{origin}={identity.digest}@6")
    )


MIXED = """\
pipelines:
  own: &own
    components: {{folder: demo}}
    download: {{kind: scenes, scenes: {{count: 12}}}}
    train:
      model:
        {{width: 32, num_heads: 2, head_size: 16, mlp_width: 64, text_width: 128, channels: 8,
          depth: 1, enc_blocks: 1, dec_blocks: 1}}
      phases: [{{resolution: 48, num_images: 16, batch_size: 4}}]
      mix: {mix}
    evaluate: {{prompts: scenes}}
  other:
    extends: own
    download: {{scenes: {{seed: 7}}}}
    train: {{mix: []}}
"""


@pytest.mark.parametrize(
    ("of_other", "said"),
    [
        ("encode: {dtype: bfloat16}", "its encode.48px is made with another encode.dtype"),
        ("components: {autoencoder: COPY}", "its encode.48px is made with another autoencoder"),
        ("components: {text_encoder: COPY}", "its encode.tokens is made with another tokenizer"),
        ("components: {autoencoder: org/nothing}", "model org/nothing"),
        ("vae: {num_images: 64}", "its encode.48px is made with another autoencoder"),
        ("encode: {text_embeddings: true}", ""),
        ("filter: {min_side_px: 20}", ""),
    ],
)
def test_pictures_of_another_pipeline_that_cannot_stand_in_a_batch(
    tmp_path: Path, of_other: str, said: str
) -> None:
    """Before either pipeline's pictures are encoded."""
    name = of_other.partition("{")[2].partition(":")[0]
    if "COPY" in of_other:
        copy = shutil.copytree(components_folder("demo") / name, tmp_path / name)
        weights = next(copy.glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        of_other = of_other.replace("COPY", str(copy))
    file = tmp_path / "pipelines.yaml"
    file.write_text(MIXED.format(mix="[{pipeline: other}]") + f"    {of_other}\n")
    pipeline = load_pipeline("own", (), file, {})
    found = "\n".join(map(str, problems(pipeline, Store(tmp_path / "store"))))
    assert "of the pipeline other, which is not in the store" in found or "org/" in said
    assert said in found
    assert ("cannot be mixed into own" in found) == said.startswith("its")


def test_a_resolution_that_another_pipeline_does_not_make(tmp_path: Path) -> None:
    file = tmp_path / "pipelines.yaml"
    file.write_text(MIXED.format(mix="[{pipeline: other}]"))
    pipeline = load_pipeline("own", ["train.phases.0.resolution=64"], file, {})
    found = "\n".join(map(str, problems(pipeline, Store(tmp_path / "store"))))
    assert "other is mixed into own and does not make encode.64px" in found


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("", ""),
        ("train.model.mlp_width=96", "mlp_width is 64 there and 96 in train.model"),
        ("train.model.final_norm=true", "final_norm is False there and True in train.model"),
        ("train.model.text_mask=masked", "text_mask is padded there and masked in train.model"),
    ],
)
def test_weights_of_another_model_are_refused_before_anything_runs(
    tmp_path: Path, model: str, said: str
) -> None:
    """Variants that have the same tensors too, whether the weights are on disk or another
    pipeline's.
    """
    file = tmp_path / "pipelines.yaml"
    file.write_text(MIXED.format(mix="[]"))
    config = load_pipeline("own", (), file, {}).train.model
    tensors = {name: value.half() for name, value in XUT(config).state_dict().items()}
    weights = tmp_path / "imported" / "weights.safetensors"
    save_weights(weights, Weights(config, tensors))
    changes = ["filter.validation=0.1", *([model] if model else [])]
    for start in (f"weights={weights.parent}", "pipeline=other"):
        overrides = [*changes, f"train.start.{start}"]
        found = problems(load_pipeline("own", overrides, file, {}), Store(tmp_path / "store"))
        told = [problem for problem in found if "start from" in str(problem)]
        assert [said in str(problem) for problem in told] == ([True] if said else [])


def test_weights_to_start_from_that_are_not_there(tmp_path: Path) -> None:
    gone, empty = tmp_path / "gone.safetensors", tmp_path / "empty"
    empty.mkdir()
    assert "no such weights file" in told(tmp_path / "store", f"train.start.weights={gone}")
    assert "0 .safetensors files" in told(tmp_path / "store", f"train.start.weights={empty}")


@pytest.mark.parametrize("stopped_after", ["download", "caption"])
def test_pictures_without_a_caption_are_known_before_they_are_encoded(
    tmp_path: Path, stopped_after: str
) -> None:
    source, store = tmp_path / "source", Store(tmp_path / "store")
    source.mkdir()
    for number in range(3):
        scene = make_scene(number, 0, 64)
        Image.fromarray(draw(scene)).save(source / f"{number}.png")
    asked = [f"download.source={source}", "components.folder=demo", "evaluate.prompts=PROMPTS"]
    asked = [*asked, "train.device=cpu", "train.model.text_width=128", "train.model.channels=8"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    asked[2] = f"evaluate.prompts={prompts}"
    pipeline = load_pipeline("folder", asked, None, {})
    none = "training needs captions, and none of the pictures has one"
    assert none not in "\n".join(map(str, problems(pipeline, store)))
    list(run(pipeline, store, stop_after=stopped_after))
    assert none in "\n".join(map(str, problems(pipeline, store)))
    assert none not in "\n".join(map(str, problems(pipeline, store, None, "encode")))
    made_up = load_pipeline(
        "folder", [*asked, "caption.makers=[{kind: template, template: a picture}]"], None, {}
    )
    assert none not in "\n".join(map(str, problems(made_up, store)))
