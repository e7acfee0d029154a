"""`hdm merge`: writes a model with adapters merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from hdm.errors import InputError, counted
from hdm.messages import Terminal
from hdm.options import scaled_path


def merge(
    base: Annotated[
        Path,
        typer.Argument(help="The model: an output of training, or a .safetensors file."),
    ],
    lora: Annotated[
        list[str],
        typer.Option(
            metavar="PATH[:SCALE]",
            help="An adapter, with 0.8 of its strength as PATH:0.8. May be given several times.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="A new folder, for hdm sample --weights DIR.")
    ],
) -> None:
    """Write a model with adapters merged into it, one after the other.

    Tensors are merged in float32 and written in the base's dtypes; those that no adapter changes
    keep their bits. One layer is in memory at a time. The file's metadata names the parts.

    Example: hdm merge store/train.64px/b6a7aeb5b470619c --lora store/train.64px/d9a3ca4448137d33
    --out models/arrows
    """
    # Imported here because some of these modules import torch, which takes seconds.
    from hdm.model_files.adapter import read_adapter
    from hdm.model_files.card import read_card
    from hdm.model_files.file_names import ADAPTER, CARD, MODEL_INDEX, WEIGHTS
    from hdm.model_files.merging import Part, merge_file
    from hdm.model_files.opening import model_digest
    from hdm.model_files.readers import reader_of
    from hdm.model_files.tensors import open_tensors

    if out.exists():
        raise InputError("is there already", where=out, do="name another, or remove it first")
    if (base / ADAPTER).is_file():
        raise InputError("is an adapter itself", where=base, do=f"name its base, and --lora {base}")
    file = reader_of(base).tensors_file(base)
    if file.suffix != ".safetensors" or (base / MODEL_INDEX).is_file():
        raise InputError(
            "is neither an output of training nor a safetensors file",
            where=base,
            do="make one of it with `hdm weights import`",
        )
    with open_tensors(file):
        pass  # says what is wrong with it, if anything is
    parts = []
    merged = [{"name": base.name, "digest": model_digest(base), "scale": 1.0}]
    for text in lora:
        path, scale = scaled_path(text)
        adapter = read_adapter(path)
        parts.append(Part(adapter, scale))
        merged.append({"name": path.name, "digest": model_digest(path), "scale": scale})
    is_trained = (base / CARD).is_file()
    count = merge_file(file, parts, out / (file.name if is_trained else WEIGHTS), merged)
    if is_trained:
        # The card last: a folder without one is no model.
        read_card(base).write(out)
    console = Terminal(soft_wrap=True, highlight=False)
    console.print(f"merged into {counted(count, 'tensor')}; wrote {escape(str(out))}")
