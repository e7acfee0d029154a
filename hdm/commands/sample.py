"""`hdm sample`: generates pictures of prompts."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from hdm import values
from hdm.diffusion.settings import SamplerSettings
from hdm.errors import ConfigError, InputError, counted
from hdm.last_runs import newest_model
from hdm.messages import Terminal
from hdm.options import (
    Options,
    Shown,
    StoreFolder,
    number,
    numbers,
    scaled_path,
    with_settings,
)
from hdm.store import store_root

if TYPE_CHECKING:
    import numpy as np

    from hdm.diffusion.sampler import Sampling
    from hdm.loading import Loaded
    from hdm.models.settings import Components
    from hdm.positions import Camera

AT_ONCE = 16  # pictures per batch; fewer if memory does not hold them
GRID_IMAGES = 64
GRID_COLUMNS = 8
GRID_GAP_PX = 2
SHOWN = "Content"
HOW = "Sampling"
PARTS = "Components"

WEIGHTS = typer.Option(
    help=(
        "An output of training (STORE/train.64px/DIGEST), a diffusers folder, a .safetensors file,"
        " or a .ckpt; default: the newest finished training."
    )
)
LORA = typer.Option(
    metavar="PATH[:SCALE]",
    help=(
        "An adapter to merge into the weights: what training wrote (train.phases.N.adapter), or"
        " peft; with 0.8 of its strength as PATH:0.8. May be given several times."
    ),
)
PIPELINE = typer.Option(metavar="NAME", help="Use the newest finished training of this pipeline.")
PROMPT = typer.Option(help="The prompt; may be given several times.", rich_help_panel=SHOWN)
PROMPTS = typer.Option(
    metavar="FILE",
    help="File of prompts, one per line; or .jsonl with a field prompt.",
    rich_help_panel=SHOWN,
)
NEGATIVE = typer.Option(
    help="Text that guidance moves away from; default: the empty caption.", rich_help_panel=SHOWN
)
COUNT = number(
    values.Few, help="Pictures per prompt, with consecutive seeds.", rich_help_panel=SHOWN
)
SEED = number(values.Seed, help="Seed of each prompt's first picture.", rich_help_panel=SHOWN)
SIZE = typer.Option(
    metavar="WxH",
    help="Size in pixels, as 1024x768; default: the square trained at.",
    rich_help_panel=SHOWN,
)
CAMERA = typer.Option(
    metavar="X,Y,ZOOM",
    help="Move the frame: positions plus X and Y, through ZOOM (2 is closer).",
    rich_help_panel=SHOWN,
)
HOW_MADE = Options(
    SamplerSettings,
    Shown("steps", panel=HOW),
    Shown("solver", panel=HOW),
    Shown("guidance", panel=HOW),
    Shown(
        "guidance_interval",
        panel=HOW,
        metavar="FROM,TO",
        read=lambda text: numbers(text, "FROM,TO", 2),
    ),
    Shown(
        "tread_rates",
        "--tread-rate",
        HOW,
        help="Share of tokens dropped in the branch without the prompt; or PROMPT,NEGATIVE.",
        metavar="RATE",
        # A single rate is that of the branch without the prompt; the other one keeps all tokens.
        read=lambda text: [0, *numbers(text, "RATE or PROMPT,NEGATIVE", 1, 2)][-2:],
    ),
    Shown("shift", panel=HOW),
)
COMPONENTS = typer.Option(
    metavar="DIR", help="Folder that `hdm bootstrap` wrote; or demo.", rich_help_panel=PARTS
)
COMPONENT = typer.Option(
    metavar="NAME", help="Folder or hub name, instead of that folder's.", rich_help_panel=PARTS
)
OUT = typer.Option(metavar="DIR", help="Folder for the pictures; existing ones are kept.")


@dataclass(frozen=True)
class Picture:
    """A generated picture: prompt, seed, pixels (H, W, 3)."""

    prompt: str
    seed: int
    pixels: np.ndarray


@with_settings(how=HOW_MADE)
def sample(
    *,
    weights: Annotated[Path | None, WEIGHTS] = None,
    lora: Annotated[list[str], LORA] = [],  # noqa: B006  (typer copies it)
    pipeline: Annotated[str | None, PIPELINE] = None,
    store: StoreFolder = None,
    prompt: Annotated[list[str], PROMPT] = [],  # noqa: B006  (typer copies it)
    prompts: Annotated[Path | None, PROMPTS] = None,
    negative: Annotated[str, NEGATIVE] = "",
    count: Annotated[int, COUNT] = 1,
    seed: Annotated[int, SEED] = 0,
    size: Annotated[str | None, SIZE] = None,
    camera: Annotated[str, CAMERA] = "0,0,1",
    how: SamplerSettings,
    components: Annotated[str | None, COMPONENTS] = None,
    autoencoder: Annotated[str | None, COMPONENT] = None,
    text_encoder: Annotated[str | None, COMPONENT] = None,
    out: Annotated[Path, OUT] = Path("pictures"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Generate pictures of prompts: PNG files that contain their settings, and a grid of them.

    An output of training records its resolution, and its text encoder and autoencoder if these have
    names. A diffusers folder contains them. For a bare weights file, name them with options.

    The picture of a prompt and a seed does not depend on the other pictures.

    Example: hdm sample --pipeline demo --prompt "a red circle" --prompt "a blue star" --count 4
    """
    from hdm.diffusion.sampler import Sampling
    from hdm.generation.picture_files import read_size
    from hdm.models.settings import Components
    from hdm.positions import Camera

    texts = _prompts(prompt, prompts)
    x, y, zoom = _camera(camera)
    view = Camera(y, x, zoom)
    sampling = Sampling.of(how)
    # Every option is checked before the weights are loaded.
    wanted = read_size(size, "--size") if size else None

    named = Components(folder=components, autoencoder=autoencoder, text_encoder=text_encoder)
    folder, own_parts = _model(weights, pipeline, store)
    parts = named.model_copy(update=_unless_named(own_parts, named))
    model = _loaded(folder, parts, device, [scaled_path(text) for text in lora])
    width, height = wanted or _own_size(model, folder)
    settings = {
        "negative_prompt": negative,
        "size": f"{width}x{height}",
        **asdict(sampling),
        "camera": asdict(view),
        "model": model.name,
        **({"adapters": lora} if lora else {}),
    }
    start = time.monotonic()
    # A generator: each picture is written before the next one is made.
    made = _make(model, texts, negative, range(seed, seed + count), (width, height), sampling, view)
    _tell(_written(out, made, count, settings), time.monotonic() - start, model.name)


def _model(
    weights: Path | None, pipeline: str | None, store: Path | None
) -> tuple[Path, Mapping[str, str]]:
    """The path of the weights, and the component folders that their run recorded."""
    if weights is not None and pipeline is not None:
        raise ConfigError(
            "--weights and --pipeline name two models", do="give one of them, or neither"
        )
    if weights is not None:
        return weights, {}
    return newest_model(store_root(store), pipeline)


def _unless_named(parts: Mapping[str, str], named: Components) -> dict[str, str]:
    # A folder of components replaces all that the run recorded; a single name replaces only its
    # own.
    if named.folder is not None:
        return {}
    return {name: place for name, place in parts.items() if getattr(named, name) is None}


def _prompts(named: Sequence[str], file: Path | None) -> list[str]:
    from hdm.generation.prompt_files import read_prompts

    found = [*named, *(read_prompts(file) if file else [])]
    if not found:
        raise InputError("there is no prompt", do='give --prompt "a red circle", or --prompts FILE')
    return found


def _camera(text: str) -> list[float]:
    try:
        found = numbers(text, "X,Y,ZOOM", 3)
    except ValueError as error:
        raise ConfigError(f"--camera {text!r} {error}") from error
    if not all(map(math.isfinite, found)):
        raise ConfigError(f"--camera {text!r} is not X,Y,ZOOM", do="give finite numbers")
    return found


def _loaded(
    weights: Path, components: Any, device: str, adapters: Sequence[tuple[Path, float]]
) -> Loaded:
    import torch

    from hdm.loading import load
    from hdm.model_files.opening import Addition
    from hdm.models.devices import choose_device

    where = torch.device(choose_device(device, "making pictures"))
    return load(weights, components, where, [Addition(*one) for one in adapters])


def _own_size(model: Loaded, weights: Path) -> tuple[int, int]:
    if model.resolution is None:
        raise InputError(
            "these weights do not say at what resolution they were trained",
            where=weights,
            do="give --size, as 1024x1024",
        )
    return model.resolution, model.resolution


def _make(
    model: Loaded,
    prompts: Sequence[str],
    negative: str,
    seeds: range,
    size: tuple[int, int],
    sampling: Sampling,
    camera: Camera,
) -> Iterator[Picture]:
    """Generate the pictures of one prompt at a time: in a batch of several prompts, padding could
    make pictures depend on each other.
    """
    from hdm.models.devices import Batches
    from hdm.progress import track

    batches = Batches(AT_ONCE, "--device")
    with track("sample", len(prompts) * len(seeds) * sampling.steps, "steps") as bar:
        for prompt in prompts:
            pictures = model.text_to_image(
                [prompt] * len(seeds),
                width=size[0],
                height=size[1],
                seeds=seeds,
                batches=batches,
                negative_prompts=[negative],
                sampling=sampling,
                camera=camera,
                on_step=lambda _, latent: bar.advance(len(latent)),
            )
            for picture_seed, pixels in zip(seeds, pictures, strict=True):
                yield Picture(prompt, picture_seed, pixels)


def _written(
    out: Path, made: Iterable[Picture], count: int, settings: Mapping[str, Any]
) -> dict[Path, str]:
    """Write each picture as soon as it is made, and then the grid, numbered after existing files.

    Returns:
        Each file's path and a line that describes it.

    Raises:
        InputError: the folder cannot be written.
    """
    from hdm.generation.picture_files import png, sheet

    paths, shown = {}, []
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Counted on from what is there, so that no earlier picture is overwritten.
        number = 1 + max(
            (int(path.name[:4]) for path in out.glob("[0-9][0-9][0-9][0-9]-*.png")), default=0
        )
        for place, picture in enumerate(made):
            prompt_number = f"{place // count + 1:02d}"
            slug = _slug(picture.prompt)
            path = out / f"{number:04d}-{prompt_number}-{slug}-seed{picture.seed}.png"
            path.write_bytes(
                png(
                    picture.pixels,
                    {"prompt": picture.prompt, "parameters": {"seed": picture.seed, **settings}},
                )
            )
            paths[path] = f"seed {picture.seed}  {picture.prompt}"
            # Only the grid's pictures stay in memory.
            shown += [picture] if place < GRID_IMAGES else []
        description = {
            "prompts": [picture.prompt for picture in shown],
            "seeds": [picture.seed for picture in shown],
            "parameters": settings,
        }
        # A row for each prompt, if it fits.
        columns = count if 1 < count <= GRID_COLUMNS else GRID_COLUMNS
        grid = out / f"{number:04d}-grid.png"
        grid.write_bytes(
            png(sheet([picture.pixels for picture in shown], columns, GRID_GAP_PX), description)
        )
    except OSError as error:
        raise InputError(
            f"cannot write pictures: {error.strerror}",
            where=out,
            do="name another folder with --out",
        ) from error
    return {**paths, grid: f"the grid of {len(shown)}"}


def _slug(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "empty"


def _tell(made: Mapping[Path, str], seconds: float, model: str) -> None:
    console = Terminal(highlight=False, soft_wrap=True)
    for path, description in made.items():
        console.print(f"{escape(str(path))}  {escape(description)}")
    console.print(f"{counted(len(made) - 1, 'picture')} of {escape(model)} in {seconds:.1f} s")
