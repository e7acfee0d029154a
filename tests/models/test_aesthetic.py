"""Aesthetic heads: known answers of published ones, and that a head is used as it was trained."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hdm.errors import ConfigError, InputError
from hdm.models.aesthetic import check_head, load_aesthetic_head
from hdm.models.components import Resolved, resolve
from hdm.models.settings import Components

AESTHETIC = Path(__file__).parents[3] / "shared" / "data" / "aesthetic"


@pytest.mark.parametrize(
    ("head", "vectors", "expected"),
    [
        ("laion_aes/sa_0_4_vit_l_14_linear.pth", "vit_l_14", [-2.458, 1.895, 5.100, 7.787, 10.226]),
        ("laion_aes/sa_0_4_vit_b_32_linear.pth", "vit_b_32", [-1.470, 1.990, 5.087, 7.668, 9.917]),
        (
            "improved_aes/sac+logos+ava1-l14-linearMSE.pth",
            "vit_l_14",
            [1.66, 3.07, 4.24, 5.07, 5.58],
        ),
    ],
)
def test_known_answers_of_real_heads(head: str, vectors: str, expected: list[float]) -> None:
    if not AESTHETIC.is_dir():
        pytest.skip("needs the real aesthetic heads in ../shared/data/aesthetic")
    ratings = [
        np.load(AESTHETIC / "laion_aes" / f"{vectors}_embeddings" / f"rating{n}.npy").ravel()
        for n in (0, 2, 4, 6, 8)
    ]
    scores = load_aesthetic_head(AESTHETIC / head)(np.stack(ratings).astype(np.float32))
    np.testing.assert_allclose(scores, expected, atol=0.006)


def test_a_head_for_other_embeddings_names_both_sizes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(1, 48), "bias": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(InputError, match=r"48(.|\n)*32"):
        load_aesthetic_head(tmp_path / "head.safetensors")(np.ones((2, 32), np.float32))


def test_files_that_are_no_head(tmp_path: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("code ran",)

    torch.save({"weight": Code()}, tmp_path / "code.pth")
    torch.save({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, tmp_path / "three.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"12345")
    for name, said in (
        ("code.pth", "pickled code is refused"),
        ("three.pth", "not an aesthetic head"),
        ("cut.safetensors", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said):
            load_aesthetic_head(tmp_path / name)


LINEAR, RELU = (0, 2, 4, 6, 7), (0, 3, 6, 9, 11)
"""Where linear layers stand in the published MLPs: among dropouts alone, and among ReLUs too."""


def write_mlp(path: Path, places: tuple[int, ...], modules: list[torch.nn.Module]) -> None:
    linear = [module for module in modules if isinstance(module, torch.nn.Linear)]
    state: dict[str, torch.Tensor] = {}
    for place, layer in zip(places, linear, strict=True):
        state |= {f"layers.{place}.weight": layer.weight, f"layers.{place}.bias": layer.bias}
    torch.save(state, path)


@pytest.fixture
def mlp() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    widths = (16, 12, 10, 8, 4, 1)
    layers: list[torch.nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return layers[:-1]


@pytest.mark.parametrize("places", [LINEAR, RELU])
def test_an_unknown_mlp_is_scored_as_its_setting_says_and_refused_without(
    mlp: list[torch.nn.Module], places: tuple[int, ...], tmp_path: Path
) -> None:
    write_mlp(tmp_path / "head.pth", places, mlp)
    with pytest.raises(ConfigError, match="aesthetic_head_activation"):
        load_aesthetic_head(tmp_path / "head.pth")
    vectors = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    plain = [part for part in mlp if isinstance(part, torch.nn.Linear)]
    for activation, modules in (("relu", mlp), ("none", plain)):
        with torch.no_grad():
            wanted = torch.nn.Sequential(*modules)(torch.from_numpy(vectors))[:, 0].numpy()
        found = load_aesthetic_head(tmp_path / "head.pth", activation)(vectors)
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    "shapes",
    [
        {"linear.weight": (1, 8), "linear.bias": (1,)},
        {
            "layers.0.weight": (4, 8),
            "layers.0.bias": (4,),
            "layers.1.weight": (1, 5),
            "layers.1.bias": (1,),
        },
        {"layers.0.weight": (1, 8), "layers.0.bias": (1,), "norm.weight": (8,)},
        {"weight": (1, 8, 1), "bias": (1,)},
    ],
)
def test_layouts_that_are_not_known_are_refused(
    shapes: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    torch.save({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "head.pth")
    with pytest.raises(InputError, match="is not an aesthetic head: it holds"):
        load_aesthetic_head(tmp_path / "head.pth", "none")


@pytest.mark.parametrize(
    ("head", "fitting"),
    [
        ("laion_aes/sa_0_4_vit_l_14_linear.pth", "ViT-L-14"),
        ("laion_aes/sa_0_4_vit_b_32_linear.pth", "ViT-B-32"),
        ("laion_aes/sa_0_4_vit_b_16_linear.pth", "ViT-B-16"),
        ("improved_aes/sac+logos+ava1-l14-linearMSE.pth", "ViT-L-14-quickgelu"),
    ],
)
def test_published_heads_are_bound_to_their_model(head: str, fitting: str, tmp_path: Path) -> None:
    if not AESTHETIC.is_dir():
        pytest.skip("needs the real aesthetic heads in ../shared/data/aesthetic")
    renamed = tmp_path / "any-name.pth"
    renamed.write_bytes((AESTHETIC / head).read_bytes())
    named = Resolved(aesthetic_head=str(renamed), contrastive=f"{fitting}@openai")
    check_head(named)
    architecture = fitting.removesuffix("-quickgelu")
    for other in ("ViT-L-14@laion2b_s32b_b82k", "ViT-B-16@laion2b_s34b_b88k", str(tmp_path)):
        with pytest.raises(ConfigError, match=f"was trained for {architecture}/openai"):
            check_head(replace(named, contrastive=other))
    # Whoever vouches for what a folder holds is believed; a name is not argued with.
    vouched = replace(named, aesthetic_head_for=f"{architecture}/openai")
    check_head(replace(vouched, contrastive=str(tmp_path)))
    with pytest.raises(ConfigError, match="was trained for"):
        check_head(replace(vouched, contrastive="ViT-H-14@laion2b_s32b_b79k"))
    with pytest.raises(ConfigError, match="has the activation 'none'"):
        check_head(replace(named, aesthetic_head_activation="relu"))


def test_other_heads_need_to_be_told_what_they_read(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1, 8), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    named = Resolved(aesthetic_head=str(tmp_path / "head.pth"), contrastive="ViT-L-14@openai")
    with pytest.raises(ConfigError, match="aesthetic_head_for") as caught:
        check_head(named)
    assert "components.aesthetic_head_for=ViT-L-14@openai" in (caught.value.do or "")
    check_head(replace(named, aesthetic_head_for="ViT-L-14/openai"))
    with pytest.raises(ConfigError, match="was trained for ViT-B-32/openai"):
        check_head(replace(named, aesthetic_head_for="ViT-B-32/openai"))


def test_a_folders_head_belongs_to_the_folders_model() -> None:
    check_head(resolve(Components(folder="demo")))
    with pytest.raises(ConfigError, match="aesthetic_head_for"):
        check_head(resolve(Components(folder="demo", contrastive="ViT-L-14@openai")))
