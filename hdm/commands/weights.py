"""`hdm weights`: imports and exports weights, and checks the model against published numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from hdm import values
from hdm.errors import HdmError, InputError
from hdm.messages import Terminal
from hdm.options import number

if TYPE_CHECKING:
    from hdm.model_files.weights import Weights

app = typer.Typer(
    no_args_is_help=True,
    help="Published weights: import, export, and check against golden numbers.",
)
Rate = Annotated[
    float | None,
    number(values.Rate, help="TREAD rate to record, in [0, 1); default: the file's."),
]


@app.command()
def check(
    files: Annotated[
        list[Path],
        typer.Argument(help="Golden files: weights beside inputs, outputs and gradients."),
    ],
) -> None:
    """Recompute a golden file's outputs and gradients, and print the errors.

    The error of a tensor is ‖ours - golden‖₂ / ‖golden‖₂, on the CPU in float32. Exit 0 if all are
    at most 1e-5, 1 if one is not.

    Example: hdm weights check tests/golden/xut_small.safetensors
    """
    from hdm.model_files.golden import LIMIT, compare

    console = Terminal(soft_wrap=True, highlight=False)
    wrong = []
    for file in files:
        console.print(escape(str(file)))
        table = Table(
            Column("tensor", overflow="fold"), "relative error", "", box=None, padding=(0, 2, 0, 0)
        )
        for found in compare(file):
            table.add_row(
                escape(found.name),
                f"{found.error:.2e}",
                "[green]✓[/]" if found.holds else "[red]✗[/]",
            )
            wrong += [] if found.holds else [f"{found.name} ({found.error:.1e})"]
        console.print(table)
    if wrong:
        raise HdmError(f"{len(wrong)} tensors differ by more than {LIMIT:g}: {', '.join(wrong)}")


@app.command("import")
def import_weights(
    file: Annotated[Path, typer.Argument(help="Official .safetensors, or a Lightning .ckpt.")],
    out: Annotated[
        Path, typer.Option(help="A new .safetensors file, or a folder for one of the same name.")
    ],
    tread_rate: Rate = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="The averaged weights of a checkpoint that has them.")
    ] = False,
) -> None:
    """Extract the denoiser from a published file into a safetensors file that contains its
    configuration.

    Every tensor keeps its name, dtype and bits. The configuration comes from the file's metadata,
    or else from the shapes. Opening a checkpoint runs no code in it; one that needs code is
    refused.

    Example: hdm weights import hdm-xut-base.ckpt --out models/
    """
    from hdm.model_files.lightning import EMA
    from hdm.model_files.opening import open_model
    from hdm.model_files.weights import save_weights

    weights = open_model(file, average=True if ema else None, infer=True).weights
    target = _new(out if out.suffix == ".safetensors" else out / f"{file.stem}.safetensors")
    save_weights(target, weights, tread_rate)
    _tell(weights, target)
    Terminal().print(
        f"its configuration is {'as the file says' if weights.said else 'inferred from the shapes'}"
    )
    if EMA in weights.passed_over:
        Terminal().print("the checkpoint has averaged weights too: --ema takes them")


@app.command("export")
def export_weights(
    source: Annotated[
        Path,
        typer.Argument(
            help=(
                "A .safetensors file, an output of training (STORE/train.64px/DIGEST), or a"
                " diffusers folder."
            )
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A new .safetensors file.")
    ] = None,
    diffusers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A new diffusers folder.")
    ] = None,
    components: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder that `hdm bootstrap` wrote; or demo.")
    ] = None,
    autoencoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder or hub name, instead of that folder's."),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder or hub name, instead of that folder's."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="From an output of training, the last weights, not their average."
        ),
    ] = False,
    tread_rate: Rate = None,
) -> None:
    """Write weights for other programs: a safetensors file with the published tensor names, or a
    diffusers pipeline folder.

    Every tensor keeps its dtype and bits. A diffusers folder also contains the text encoder and the
    autoencoder, so these must be named.

    Examples:

    hdm weights export store/train.64px/b70a507ff6303281 --out mine.safetensors

    hdm weights export mine.safetensors --diffusers mine --components demo
    """
    if out is None and diffusers is None:
        raise InputError("nothing to write", do="give --out FILE, --diffusers DIR, or both")
    from hdm.diffusers_pipeline.writing import write_folder
    from hdm.model_files.opening import open_model
    from hdm.model_files.weights import save_weights
    from hdm.models.components import resolve
    from hdm.models.settings import Components

    if (
        diffusers is not None
        and components is None
        and (autoencoder is None or text_encoder is None)
    ):
        raise InputError(
            "a diffusers folder holds a text encoder and an autoencoder too",
            do="name them: --components DIR, or demo",
        )
    # Read once for both forms.
    model = open_model(source, average=False if raw else None)
    if out is not None:
        save_weights(_new(out), model.weights, tread_rate)
        _tell(model.weights, out)
    if diffusers is not None:
        write_folder(
            diffusers,
            model,
            resolve(
                Components(folder=components, autoencoder=autoencoder, text_encoder=text_encoder)
            ),
        )
        _tell(model.weights, diffusers)


def _tell(weights: Weights, target: Path) -> None:
    console = Terminal(soft_wrap=True, highlight=False)
    console.print(escape(weights.describe()))
    if weights.passed_over:
        console.print(
            "passed over: "
            + ", ".join(f"{count} of {escape(name)}" for name, count in weights.passed_over.items())
        )
    console.print(f"wrote {escape(str(target))}")


def _new(path: Path) -> Path:
    if path.exists():
        raise InputError("is there already", where=path, do="name another, or remove it first")
    return path
