"""The list of outputs: order, identities known beforehand, and what a change of settings redoes."""

import os
from pathlib import Path

import pytest
from PIL import Image

from hdm.demo.scenes import draw, make_scene
from hdm.errors import ConfigError, DamagedError, InputError
from hdm.pipelines import load_pipeline
from hdm.stages import OutputGraph, chosen, run, run_step, steps
from hdm.store import Store
from hdm.training import phase
from hdm.training.process.job import START
from tests.training.here import train_here

SMALL = (
    "download.scenes.count=12",
    "download.scenes.faults=0",
    "download.shard_items=6",
    "download.allow_loopback=true",
)


OF_IMAGES = {
    "evaluate.images",
    "evaluate.embeddings",
    "evaluate.accuracy",
    "evaluate.likeness",
    "evaluate.precision_recall",
    "evaluate.density_coverage",
}


def changed(*overrides: str) -> set[str]:
    """Outputs of the demo whose digests differ from the plain ones."""
    before, after = (
        OutputGraph(load_pipeline("demo")).identities(),
        OutputGraph(load_pipeline("demo", overrides)).identities(),
    )
    return {
        name for name in after if name not in before or after[name].digest != before[name].digest
    }


def test_stages_in_this_process_ignore_variables_of_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    run_step(load_pipeline("demo", SMALL), Store(tmp_path), "download")
    assert not os.environ.keys() & {"WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"}
    assert os.environ["HF_HOME"] == str(tmp_path)


def test_every_output_comes_after_its_inputs():
    seen: set[str] = set()
    for step in steps(load_pipeline("demo")):
        assert set(step.inputs) <= seen
        seen.add(step.name)


def test_a_change_redoes_what_depends_on_it_and_nothing_else():
    after_filter = {
        "filter",
        "caption",
        "encode.tokens",
        "encode.text",
        "encode.48px",
        "encode.64px",
        "train.48px",
        "train.64px",
        *OF_IMAGES,
    }
    assert changed("filter.min_side_px=40") == after_filter | {"evaluate.faults"}
    assert changed("caption.max_chars=100") == {
        "caption",
        "encode.tokens",
        "encode.text",
        "train.48px",
        "train.64px",
        *OF_IMAGES,
    }
    assert changed("train.phases.1.tread_rate=0.25") == {"train.64px", *OF_IMAGES}
    assert changed("train.mirror=true") == {"train.48px", "train.64px", *OF_IMAGES}
    assert changed("evaluate.guidance=2.0") == OF_IMAGES
    assert changed("train.phases.1.resolution=80") == {"encode.80px", "train.80px", *OF_IMAGES}
    assert (
        changed(
            "download.concurrency=3",
            "filter.batch_size=7",
            "encode.batch_size=3",
            "train.checkpoint_sec=1",
            "threads=1",
        )
        == set()
    )


def test_an_autoencoder_of_its_own_changes_latents_and_what_comes_after() -> None:
    after = {"encode.48px", "encode.64px", "train.48px", "train.64px", *OF_IMAGES}
    assert changed("vae.num_images=64") == {"vae", *after}
    tuned = load_pipeline("demo", ["vae.num_images=64"])
    again = load_pipeline("demo", ["vae.num_images=64", "vae.equivariance_weight=0.5"])
    longer = load_pipeline("demo", ["vae.num_images=64", "vae.checkpoint_sec=1", "vae.device=cpu"])
    first, second, third = (OutputGraph(found).identities() for found in (tuned, again, longer))
    assert {name for name in first if first[name].digest != second[name].digest} == {"vae", *after}
    assert first["vae"].digest == third["vae"].digest
    assert [s.name for s in chosen(tuned, "vae", "vae")] == ["vae"]
    with pytest.raises(ConfigError, match="no stage vae"):
        chosen(load_pipeline("demo"), "vae")


def test_part_of_a_pipeline():
    demo = load_pipeline("demo")
    assert [s.name for s in chosen(demo, "caption", "encode")] == [
        "caption",
        "encode.tokens",
        "encode.text",
        "encode.48px",
        "encode.64px",
    ]
    assert [s.name for s in chosen(demo, "train.64px")] == [
        "train.64px",
        "evaluate.images",
        "evaluate.embeddings",
        "evaluate.faults",
        "evaluate.accuracy",
        "evaluate.density_coverage",
        "evaluate.likeness",
        "evaluate.precision_recall",
    ]
    with pytest.raises(ConfigError, match="encode comes after caption"):
        chosen(demo, "encode", "caption")
    with pytest.raises(ConfigError, match=r"no stage 'train\.32px'"):
        chosen(demo, "train.32px")


def test_a_stage_without_its_inputs_says_where_to_start(tmp_path):
    with pytest.raises(InputError, match="--from download"):
        run_step(load_pipeline("demo", SMALL), Store(tmp_path), "filter.measures")


def test_damage_found_late_is_set_aside_and_mended_by_the_same_command(tmp_path: Path):
    """Beyond the start-up check only the stage that reads a picture can notice; the next run must
    not trip again.
    """
    demo = load_pipeline("demo", SMALL)
    (download,) = run(demo, Store(tmp_path), stop_after="download")
    tar = download.output.paths(".tar")[0]
    whole = tar.read_bytes()
    data = bytearray(whole)
    data[600] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DamagedError):
        run_step(demo, Store(tmp_path, verify_bytes=0), "filter.measures")
    again = [
        (made.output.name, made.cached)
        for made in run(demo, Store(tmp_path, verify_bytes=0), stop_after="filter")
    ]
    assert [name for name, _ in again] == [
        "download",
        "filter.measures",
        "filter.contrastive",
        "filter.aesthetic",
        "filter",
    ]
    # Made with the measures, from one decoding.
    assert [name for name, cached in again if cached] == ["filter.contrastive"]
    assert tar.read_bytes() == whole


FOLDERS = """\
pipelines:
  cats:
    components: {{folder: demo}}
    download: {{kind: folder, source: {root}/cats}}
    filter: &keep {{min_side_px: 16, validation: 0.0, held_out: 0.0, duplicate_distance: null}}
    caption: {{makers: [{{kind: given}}]}}
    encode: {{max_tokens: 16}}
    train: &small
      model:
        {{width: 32, num_heads: 2, head_size: 16, mlp_width: 64, text_width: 128, channels: 8,
          depth: 1, enc_blocks: 1, dec_blocks: 1}}
      device: cpu
      prompts: [a red circle]
      phases: [{{resolution: 48, num_images: 16, batch_size: 4}}]
  dogs:
    extends: cats
    download: {{source: {root}/dogs}}
  both:
    extends: cats
    train: {{mix: [{{pipeline: dogs, weight: 0.5}}]}}
"""


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two folders of captioned pictures, and pipelines for each and for both."""
    for number, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for index in range(6 + number):
            scene = make_scene(number, index, 48)
            Image.fromarray(draw(scene)).save(tmp_path / name / f"{index}.png")
            (tmp_path / name / f"{index}.txt").write_text(f"a red circle {index}")
    (tmp_path / "pipelines.yaml").write_text(FOLDERS.format(root=tmp_path))
    return tmp_path


def train_digest(folders: Path, text: str = "", with_text: str = "", *overrides: str) -> str:
    file = folders / "changed.yaml"
    file.write_text((folders / "pipelines.yaml").read_text().replace(text, with_text))
    return OutputGraph(load_pipeline("both", overrides, file)).identities()["train.48px"].digest


def test_two_folders_prepared_apart_are_trained_on_together(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(phase, "run_training", train_here)
    store, file = Store(folders / "store"), folders / "pipelines.yaml"
    cats, dogs, both = (load_pipeline(name, (), file) for name in ("cats", "dogs", "both"))
    assert OutputGraph(both).identity("encode.48px") == OutputGraph(cats).identity("encode.48px"), (
        "its own pictures are the cats"
    )
    list(run(both, store, stop_after="encode"))
    with pytest.raises(InputError, match="filter of the pipeline dogs") as caught:
        run_step(both, store, "train.48px")
    assert caught.value.do == "hdm run dogs --until encode"
    list(run(dogs, store, stop_after="encode"))
    made = run_step(both, store, "train.48px").output
    assert made.inputs["mix.0/encode.48px"] == OutputGraph(dogs).identity("encode.48px").digest
    assert made.counts["images_seen"] == 16


def test_a_training_starts_from_another_pipelines_phase(
    folders: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(phase, "run_training", train_here)
    store, file = Store(folders / "store"), folders / "pipelines.yaml"
    cats = load_pipeline("cats", (), file)
    tuned = load_pipeline("dogs", ["train.start.pipeline=cats"], file)
    assert tuned.train.start is not None
    list(run(tuned, store, stop_after="encode"))
    with pytest.raises(InputError, match=r"needs train\.48px of the pipeline cats") as caught:
        run_step(tuned, store, "train.48px")
    assert caught.value.do == "hdm run cats --until train.48px"
    list(run(cats, store, stop_after="train"))
    made = run_step(tuned, store, "train.48px").output
    assert made.inputs[START] == OutputGraph(cats).identity("train.48px").digest
    named = load_pipeline("dogs", ["train.start={pipeline: cats, phase: 48px}"], file)
    assert OutputGraph(named).identity("train.48px").digest == made.digest
    with pytest.raises(ConfigError, match=r"train\.64px of cats, which has train\.48px"):
        OutputGraph(
            load_pipeline("dogs", ["train.start={pipeline: cats, phase: 64px}"], file)
        ).identities()


def test_a_mixed_training_is_named_by_what_it_is_trained_on(folders: Path):
    plain = train_digest(folders)
    assert train_digest(folders, " dogs", " hounds") == plain, (
        "of the pipeline's name nothing depends"
    )
    assert train_digest(folders, "weight: 0.5", "weight: 0.25") != plain
    assert train_digest(folders, "/dogs}", "/cats}") != plain
    assert train_digest(folders, "pipeline: dogs", "pipeline: cats") != plain
    cats = load_pipeline("cats", (), folders / "pipelines.yaml")
    assert OutputGraph(cats).identity("train.48px").digest != plain
    with pytest.raises(
        ConfigError, match=r"dogs is mixed into both and does not make encode\.64px"
    ):
        train_digest(folders, "", "", "train.phases.0.resolution=64")
    with pytest.raises(
        ConfigError, match=r"dogs is mixed into both and does not make encode\.text"
    ):
        train_digest(folders, "", "", "encode.text_embeddings=true")
