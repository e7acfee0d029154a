from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hdm.errors import DamagedError, InputError
from hdm.models.components import (
    components_folder,
    locate,
    portable_names,
    resolve,
    weights_digest,
)
from hdm.models.settings import Components


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "config.json").write_text("{}")
    (tmp_path / "components.json").write_text(
        json.dumps({"components": {"autoencoder": "autoencoder", "contrastive": "coca"}})
    )
    return tmp_path


def test_the_folder_gives_what_is_not_named(folder: Path) -> None:
    resolved = resolve(
        Components(folder=str(folder), contrastive="ViT-L-14", contrastive_pretrained="openai")
    )
    assert resolved.autoencoder == str(folder / "autoencoder")
    assert resolved.contrastive == "ViT-L-14@openai"
    assert resolved.text_encoder is None


def test_a_component_that_no_one_names(folder: Path) -> None:
    with pytest.raises(InputError, match=r"names no text_encoder.*\n.*components.text_encoder"):
        resolve(Components(folder=str(folder))).need("text_encoder")


def test_a_folder_that_bootstrap_did_not_write(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no components.json(.|\n)*hdm bootstrap"):
        resolve(Components(folder=str(tmp_path)))


def test_the_digest_follows_contents_and_names_alone(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    shutil.copytree(folder, moved)
    before = weights_digest(str(folder))
    assert weights_digest(str(moved)) == before
    (moved / "README.md").write_text("not read by any loader")
    assert weights_digest(str(moved)) == before
    (moved / "autoencoder" / "config.json").write_text("[]")
    assert weights_digest(str(moved)) != before
    shutil.copytree(folder / "autoencoder", folder / "renamed")
    assert weights_digest(str(folder)) != before


def test_a_hub_model_that_is_not_here_names_model_revision_and_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for download in (False, True):
        with pytest.raises(InputError) as caught:
            locate("someone/some-model@v1.2", download=download)
        for part in (
            "someone/some-model",
            "v1.2",
            "hf download someone/some-model --revision v1.2",
        ):
            assert part in str(caught.value)


def test_open_clip_weights_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InputError, match=r"ViT-L-14, revision openai(.|\n)*create_model\('ViT-L-14', 'openai'\)"
    ):
        weights_digest("ViT-L-14@openai")
    with pytest.raises(InputError, match=r"no weights 'nosuch' of ViT-L-14(.|\n)*openai"):
        weights_digest("ViT-L-14@nosuch")


def test_names_that_hold_on_other_machines_are_no_paths(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Components(
        autoencoder="someone/a-vae", text_encoder="someone/a-model@v2", contrastive="someone/else"
    )
    assert portable_names(hub) == {
        "autoencoder": "someone/a-vae",
        "text_encoder": "someone/a-model@v2",
    }
    assert (
        portable_names(Components(folder="demo", autoencoder="someone/a-vae"))["text_encoder"]
        == "demo"
    )
    assert (
        portable_names(Components(folder=str(folder), text_encoder=str(folder / "autoencoder")))
        == {}
    )
    monkeypatch.chdir(folder.parent)
    assert portable_names(Components(autoencoder=f"{folder.name}/autoencoder")) == {}


@pytest.mark.parametrize("name", ["models/head.pth", "./nowhere", "/no/such/folder", "a b"])
def test_a_path_that_is_not_there(name: str) -> None:
    with pytest.raises(InputError, match="there is no model"):
        locate(name)


@pytest.mark.parametrize("component", ["text_encoder", "autoencoder", "contrastive"])
def test_a_flipped_bit_in_a_component_is_damage_and_no_other_model(
    tmp_path: Path, component: str
) -> None:
    folder = tmp_path / "components"
    shutil.copytree(components_folder("demo"), folder)
    (weights,) = (folder / component).glob("*.safetensors")
    reference = resolve(Components(folder=str(folder))).need(component)
    assert weights_digest(reference) == weights_digest(
        resolve(Components(folder="demo")).need(component)
    )
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    for use in (weights_digest, locate):
        with pytest.raises(DamagedError, match=weights.name):
            use(reference)
    weights.unlink()
    with pytest.raises(DamagedError, match=weights.name):
        locate(reference)


def test_a_component_that_was_changed_on_purpose_can_be_declared(tmp_path: Path) -> None:
    """As the error's advice says."""
    folder = tmp_path / "components"
    shutil.copytree(components_folder("demo"), folder)
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(DamagedError, match="remove its entry"):
        locate(str(folder / "text_encoder"))
    record = json.loads((folder / "components.json").read_text())
    del record["files"]["text_encoder/config.json"]
    (folder / "components.json").write_text(json.dumps(record))
    assert locate(str(folder / "text_encoder")) == folder / "text_encoder"
