"""The encode stage against the bare autoencoder, on real photographs.

Both run in one process, in turns, so that a slow moment slows both. Printed are medians over the
rounds, each against its neighbour.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from machine import add_number, add_only, machine, parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.data.shards import TarShard
from hdm.data.tables import SAMPLES, SCORES, shard_name, write_table
from hdm.encoding import latents
from hdm.encoding.frames import Framing
from hdm.encoding.pictures import FrameReader, Request, kept_pictures
from hdm.encoding.settings import EncodeSettings
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.models.settings import Components
from hdm.pictures.reading import decode
from hdm.pictures.settings import ImageSettings
from hdm.pixels import to_image
from hdm.store import Identity, Output, Store
from hdm.training.settings import TrainSettings

EXPLANATION = """\
Rows:
  stage        the whole stage: pictures read from the tar, checked against their hash, decoded,
               cut, resized, encoded, latents written, synced and hashed; against the autoencoder
               alone on the same pictures, decoded, resized and in memory as it wants them, in the
               same batches of one shape. Left out: loading the autoencoder, and the comparison of
               crops (once a resolution, whatever the number of pictures). CPU time, with that of
               the decoding processes, tells more on a machine that is shared.
  busy         share of the stage's time in which the autoencoder computes, as the stage logs it
  decode       what decoding, cutting and resizing alone take, a picture, in the stage's processes
  resolutions  time of the stage at several resolutions from one decoding, over that of one
               resolution after the other, with an autoencoder that takes next to no time (the
               average of 8 × 8 pixels): the most that it can gain
  layout       CPU time of the autoencoder, encoding and decoding, with weights channels last as it
               is loaded, over the same with weights channels first

Pictures are copies of the photographs under other keys, as many of each as fill whole batches.

Examples:
  python bench/encode.py --data shared/data
  python bench/encode.py --data shared/data --only resolutions --batches 16
"""
PX, PATCH = 256, 2
RESOLUTIONS = (256, 512, 768, 1024)
DATA = Path(__file__).resolve().parents[2] / "shared/data"
NAMES = ("stage", "busy", "decode", "resolutions", "layout")
DEMO = Path(__file__).resolve().parents[1] / "hdm/demo/components/autoencoder"


class World:
    """Photographs as a finished download and filter, and a pipeline that encodes them."""

    def __init__(self, root: Path, data: Path, batches: int, batch_size: int, device: str) -> None:
        self.root, self.batch_size, self.device = root, batch_size, device
        self.autoencoder_folder = data / "autoencoder" / "taesd"
        self.pipeline = Pipeline(
            components=Components(autoencoder=str(self.autoencoder_folder)),
            encode=EncodeSettings(batch_size=batch_size, device=device, crop_pictures=0),
            train=TrainSettings(model=XUTConfig(channels=32, patch_size=PATCH)),
        )
        photographs = sorted((data / "photos" / "coco51" / "images").glob("*.jpg"))
        # Spread over the folder, so that few batches are of different shapes too.
        chosen = [
            photographs[number * len(photographs) // batches]
            for number in range(min(batches, len(photographs)))
        ]
        self.files = [path.read_bytes() for path in chosen for _ in range(batch_size)] * max(
            1, batches // len(photographs)
        )
        self.inputs = self._write(Store(root / "inputs"))
        self.runs = 0

    def _write(self, store: Store) -> dict[str, Output]:
        found, keys = {}, [f"{number:016x}" for number in range(len(self.files))]
        shapes = [decode(data, ImageSettings()).pixels.shape for data in self.files]
        sizes = {"width": [shape[1] for shape in shapes], "height": [shape[0] for shape in shapes]}
        with store.draft(Identity("download", 1, {})) as draft:
            with draft.write(shard_name("images", 0, "tar")) as file, TarShard(file.path) as tar:
                offsets = [
                    tar.add(key, "JPEG", data) for key, data in zip(keys, self.files, strict=True)
                ]
            rows: dict[str, list[Any]] = {name: [None] * len(keys) for name in SAMPLES.names}
            rows |= {
                "key": keys,
                "source": keys,
                "status": ["ok"] * len(keys),
                "offset": offsets,
                **sizes,
            }
            rows |= {
                "bytes": [len(data) for data in self.files],
                "sha256": [hashlib.sha256(data).hexdigest() for data in self.files],
            }
            write_table(draft, shard_name("samples", 0), SAMPLES, rows, {})
            found["download"] = draft.commit()
        with store.draft(Identity("filter", 1, {})) as draft:
            rows = {name: [None] * len(keys) for name in SCORES.names}
            known: dict[str, list[Any]] = {
                "key": keys,
                "decoded": ["ok"] * len(keys),
                "kept": [True] * len(keys),
                "split": ["train"] * len(keys),
            }
            write_table(draft, shard_name("scores", 0), SCORES, {**rows, **known, **sizes}, {})
            found["filter"] = draft.commit()
        return found

    def make(self, resolution: int = PX, also: tuple[int, ...] = ()) -> tuple[float, Output]:
        """Seconds of a run of the stage in a store of its own, and what it made."""
        self.runs += 1
        store = Store(self.root / f"run-{self.runs}")
        digests = {name: output.digest for name, output in self.inputs.items()}
        identity = latents.identify(self.pipeline, digests, resolution)
        begun = time.perf_counter()
        output = latents.make(self.pipeline, identity, self.inputs, store, resolution, also)
        seconds = time.perf_counter() - begun
        assert output.counts["images"] == len(self.files)
        return seconds, output

    def frames(self) -> list[torch.Tensor]:
        """The pictures in memory, in batches of one shape: (n, 3, h, w) in [-1, 1].

        Channels come last in memory, with which the autoencoder is quicker.
        """
        shapes: dict[tuple[int, ...], list[np.ndarray]] = {}
        with FrameReader(self.inputs["download"], ImageSettings(), 16) as reader:
            for found in reader.read(self._requests()):
                assert found
                shapes.setdefault(found[0].pixels.shape, []).append(found[0].pixels)
        parts = [
            frames[at : at + self.batch_size]
            for frames in shapes.values()
            for at in range(0, len(frames), self.batch_size)
        ]
        return [to_image(torch.from_numpy(np.stack(part)).to(self.device)) for part in parts]

    def decoding(self) -> float:
        """Seconds a picture of the stage's processes alone, started before."""
        requests = self._requests()
        with FrameReader(self.inputs["download"], ImageSettings(), 16) as reader:
            list(reader.read(requests[: 2 * reader.decoders.count]))
            begun = time.perf_counter()
            list(reader.read(requests))
            return (time.perf_counter() - begun) / len(requests)

    def _requests(self) -> list[Request]:
        framing = Framing(PX, 8 * PATCH, 2.0)
        pictures = kept_pictures(**self.inputs).to_pylist()
        return [Request(picture, [(framing, framing.size(picture))]) for picture in pictures]


@contextmanager
def ready(autoencoder: Autoencoder) -> Iterator[None]:
    """The stage with an autoencoder that is loaded already."""
    with patch.object(latents, "load_autoencoder", lambda *_: autoencoder):
        yield


class Free(Autoencoder):
    """An autoencoder that takes next to no time."""

    def encode(self, image: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        averages = torch.nn.functional.avg_pool2d(image, self.downscale)
        return averages.repeat(1, 11, 1, 1)[:, : self.channels]


def cpu_sec() -> float:
    """Of this process and of the children that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def against_bare(world: World, rounds: int, names: list[str]) -> None:
    autoencoder = load_autoencoder(str(world.autoencoder_folder), world.device)
    batches, busy = world.frames(), []

    def bare() -> None:
        for batch in batches:
            autoencoder.encode(batch).cpu()

    def stage() -> None:
        busy.append(world.make()[1].run()["figures"]["busy_share"])

    found: dict[Callable[[], None], list[tuple[float, float]]] = {bare: [], stage: []}
    with ready(autoencoder):
        autoencoder.encode(batches[0])
        for number in range(rounds):
            for run in (bare, stage) if number % 2 else (stage, bare):
                clock, cpu = time.perf_counter(), cpu_sec()
                run()
                found[run].append((time.perf_counter() - clock, cpu_sec() - cpu))
    pairs = list(zip(found[bare], found[stage], strict=True))
    ratios, work = ([first[kind] / second[kind] for first, second in pairs] for kind in (0, 1))
    alone, whole = (
        statistics.median(seconds for seconds, _ in found[run]) / len(world.files) * 1e3
        for run in (bare, stage)
    )
    if "stage" in names:
        note = (
            f"{whole:.0f} ms a picture, {alone:.0f} ms bare; {min(ratios):.2f} to {max(ratios):.2f}"
        )
        row = "whole stage against the bare autoencoder"
        print(f"| stage | {row} | **{statistics.median(ratios):.2f}** | ≥ 0.85 | ≥ 0.95 | {note} |")
        note = f"{min(work):.2f} to {max(work):.2f}"
        print(f"| | the same in CPU time | {statistics.median(work):.2f} | | | {note} |")
    if "busy" in names:
        row = "share of its time that the autoencoder computes"
        print(f"| busy | {row} | {statistics.median(busy):.3f} | | | |")


def resolutions(world: World, rounds: int) -> None:
    loaded = load_autoencoder(str(world.autoencoder_folder), world.device)
    shift, scale = loaded.identity["shift"], loaded.identity["scale"]
    assert isinstance(shift, list)
    assert isinstance(scale, list)
    free = Free(loaded.model, shift, scale, world.device)
    together, apart = [], []
    with ready(free):
        for _ in range(rounds):
            together.append(world.make(RESOLUTIONS[0], RESOLUTIONS[1:])[0])
            apart.append(sum(world.make(size)[0] for size in RESOLUTIONS))
            for folder in world.root.glob("run-*"):
                shutil.rmtree(folder)
    ratio = statistics.median(one / other for one, other in zip(together, apart, strict=True))
    each = [statistics.median(seconds) / len(world.files) * 1e3 for seconds in (together, apart)]
    sizes = ", ".join(map(str, RESOLUTIONS))
    note = f"{each[0]:.0f} against {each[1]:.0f} ms a picture"
    row = f"{sizes} px together, time over that apart"
    print(f"| resolutions | {row} | {ratio:.2f} | | | {note} |")


def layout(world: World, rounds: int) -> None:
    """The autoencoders as they are loaded, against weights channels first."""
    for folder, px in ((DEMO, 64), (world.autoencoder_folder, PX)):
        loaded = load_autoencoder(str(folder))
        other = load_autoencoder(str(folder))
        other.model.to(memory_format=torch.contiguous_format)
        picture = torch.rand(4, 3, px, px, generator=torch.Generator().manual_seed(0)) * 2 - 1
        latent = loaded.encode(picture)
        ratios = dict[str, list[float]](encode=[], decode=[])
        for _ in range(rounds + 1):
            for name, given in (("encode", picture), ("decode", latent)):
                spent = []
                for autoencoder in (loaded, other):
                    begun = time.process_time()
                    getattr(autoencoder, name)(given)
                    spent.append(time.process_time() - begun)
                ratios[name].append(spent[0] / spent[1])
        for name, found in ratios.items():
            # The first round also plans the convolutions.
            ratio = statistics.median(found[1:])
            print(f"| layout | {name}, {folder.name}, {px} px | {ratio:.2f} | | | |")


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    parser.add_argument(
        "--data",
        type=Path,
        default=DATA,
        help="folder that holds autoencoder/taesd and photos/coco51",
    )
    add_number(parser, "--batches", 4, "of pictures")
    add_number(parser, "--batch-size", 8)
    add_number(parser, "--rounds", 5)
    parser.add_argument("--device", default="cpu", help="default: %(default)s")
    add_only(parser, NAMES)
    given = parser.parse_args()
    names = given.only or list(NAMES)
    if not (given.data / "autoencoder/taesd").is_dir():
        parser.error(
            f"{given.data} holds no autoencoder/taesd: name the folder that does by --data"
        )
    logging.getLogger("hdm").setLevel(logging.ERROR)
    print(f"{machine()}\n\n| row | | measured | must | aim | |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), given.data, given.batches, given.batch_size, given.device)
        if {"stage", "busy"} & set(names):
            against_bare(world, given.rounds, names)
        if "decode" in names:
            each = statistics.median(world.decoding() for _ in range(given.rounds)) * 1e3
            print(f"| decode | decoding and resizing alone | {each:.1f} ms | | | a picture |")
        if "resolutions" in names:
            resolutions(world, given.rounds)
        if "layout" in names:
            layout(world, given.rounds)


if __name__ == "__main__":
    main()
