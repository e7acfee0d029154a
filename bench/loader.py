"""How fast latents reach a training batch, measured against a plain memory copy of the same bytes.

Everything is measured in one process and one thread, in turns, so that a slow moment slows all.
Printed are medians over the rounds.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from machine import add_number, add_only, machine, parser_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.caption_text.tag_form import TagDraws
from hdm.data.batch import Batch
from hdm.data.captions import RaggedRows
from hdm.data.gather import gather
from hdm.data.index import build_index
from hdm.data.latent_files import (
    LatentFile,
    LatentFormat,
    LatentWriter,
    latent_file_name,
    open_latents,
)
from hdm.data.loader import Loader
from hdm.data.tables import CAPTIONS, SCORES, TOKENS, shard_name, write_table
from hdm.data.tags import TagTable
from hdm.keys import key_text
from hdm.models.text_encoder import load_tokenizer
from hdm.models.word_tokens import WordTokens
from hdm.store import Identity, Output, Store

EXPLANATION = """\
Rows, in fp16 at 4×32×32 (256 px), the files in the page cache; a ratio of 0.5 is half the speed of
the copy:
  sequential   row groups, one after the other, into a torch buffer, after their first reading
  first        the same when each row group is read, and its checksum computed, for the first time
               in a process
  gather       the shuffled batches' latents alone, the rows' places known before: what numpy takes
               to copy rows that lie anywhere
  shuffled     the loader's batches in training order, as they are sent to an accelerator: raw
               latents, crops and their positions, aspect, token ids and mask
  on the CPU   the same, and the normalised float32 latents and the positions by sample, as training
               on the CPU reads them
  webdataset   shuffled tars of .npy (a buffer of 1000), decoded and stacked
  datasets     shuffled rows of Parquet through Hugging Face datasets in torch format
  mds          shuffled samples through MosaicML streaming, stacked; left out where it is not
               installed (see below)
  redrawn      CPU time a caption whose tags are dropped and shuffled anew: the loader's batches
               with them, less those with captions as encoded, over an epoch of made-up captions
               of 28 tags in 3 groups, 3 kept tags and 2 sentences
  memory       what a loader holds in memory at ten million pictures with a caption each (an index
               of random keys, no latents; token ids lie in a temporary file)
  order        rank correlation of the training order with the order in the shards, and share of
               neighbours from one shard, beside a permutation by numpy
The copy is of pieces as large as the contender's: row groups, or batches.
The other libraries read latents alone; the loader's batches have their captions and positions too.

MosaicML streaming asks for an older numpy than this project's. It runs with this one when installed
without the dependencies it asks for:
  pip install --no-deps --target FOLDER mosaicml-streaming Brotli python-snappy cramjam zstd \\
      xxhash catalogue oci paramiko azure-identity azure-storage-blob \\
      azure-storage-file-datalake azure-core boto3 botocore jmespath s3transfer circuitbreaker
  PYTHONPATH=FOLDER python bench/loader.py

Examples:
  python bench/loader.py
  python bench/loader.py --images 100000 --rounds 9 --batch-size 256
  python bench/loader.py --only shuffled --only memory
  python bench/loader.py --only redrawn --images 33000 --tokenizer SmolLM2-135M
"""
CHANNELS, SIDE, NUM_SHARDS = 4, 32, 16
ROW_BYTES = CHANNELS * SIDE * SIDE * 2
AUTOENCODER = {
    "class": "AutoencoderKL",
    "scale": [1.0] * CHANNELS,
    "shift": [0.0] * CHANNELS,
    "weights": "00" * 32,
}
DEMO = Path(__file__).resolve().parents[1] / "hdm/demo/components/text_encoder"
SLOW_SAMPLES = 2048  # a round, of the libraries that are slower by far
MEMORY_ROWS = 10**7


class World:
    """A data set of square latents of one shape with a caption each, as the stages write it."""

    def __init__(
        self, root: Path, num_images: int, batch_size: int, captions: list[str] | None = None
    ) -> None:
        self.captions = captions or ["x"] * num_images
        rng = np.random.default_rng(0)
        self.root, self.batch_size = root, batch_size
        self.keys = [key_text(number) for number in rng.integers(0, 2**64, num_images, np.uint64)]
        self.latents = torch.randn(
            num_images, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
        ).half()
        self.outputs = self._write(Store(root / "store"))

    def _write(self, store: Store) -> dict[str, Output]:
        found, count = {}, len(self.keys)
        with store.draft(Identity("filter", 1, {})) as draft:
            rows = {name: [None] * count for name in SCORES.names}
            known: dict[str, list[Any]] = {
                "key": self.keys,
                "decoded": ["ok"] * count,
                "kept": [True] * count,
                "split": ["train"] * count,
            }
            write_table(draft, shard_name("scores", 0), SCORES, {**rows, **known}, {})
            found["filter"] = draft.commit()
        captions = Identity("caption", 1, {})
        columns: dict[str, list[Any]] = {"key": self.keys, "index": [0] * count}
        with store.draft(captions) as draft:
            write_table(
                draft,
                shard_name("captions", 0),
                CAPTIONS,
                {**columns, "caption": self.captions, "maker": ["given"] * count},
                {},
            )
            found["caption"] = draft.commit()
        with store.draft(
            Identity("encode.tokens", 1, {"max_tokens": 64}, {"caption": captions.digest})
        ) as draft:
            ids = [list(range(8 + number % 40)) for number in range(count)]
            write_table(draft, shard_name("tokens", 0), TOKENS, {**columns, "token_ids": ids}, {})
            found["encode.tokens"] = draft.commit({"empty": [0], "pad_id": 0})
        form = LatentFormat(CHANNELS, SIDE, SIDE, "float16", SIDE * 8, 8, AUTOENCODER)
        with store.draft(
            Identity("encode.256px", 1, {}, {"filter": found["filter"].digest})
        ) as draft:
            for number, part in enumerate(self.parts()):
                keys = self.keys[part]
                with (
                    draft.write(latent_file_name(SIDE, SIDE, number)) as file,
                    LatentWriter(file.path, form, len(keys)) as writer,
                ):
                    writer.add(keys, self.latents[part], [(SIDE * 8, SIDE * 8)] * len(keys))
            found["encode.256px"] = draft.commit()
        return found

    def parts(self) -> list[slice]:
        """The rows of each shard."""
        edges = [len(self.keys) * number // NUM_SHARDS for number in range(NUM_SHARDS + 1)]
        return [slice(*edge) for edge in itertools.pairwise(edges)]

    def loader(self, **options: Any) -> Loader:
        names = ("encode.256px", "encode.tokens", "caption", "filter")
        return Loader(
            *(self.outputs[name] for name in names),
            batch_size=self.batch_size,
            patch_size=2,
            **options,
        )

    def batches(self) -> list[slice]:
        """The whole batches of the data set, in stored order."""
        size = self.batch_size
        return [slice(start, start + size) for start in range(0, len(self.keys) - size + 1, size)]


# Each contender is a pass over some samples that returns how many they were.
# The copy's buffer is the only one that is never new.


def copy(world: World, parts: list[slice]) -> Callable[[], int]:
    """Bytes from memory, in order, into a torch buffer that holds the largest part."""
    sizes = [part.stop - part.start for part in parts]
    buffer = torch.empty(max(sizes), CHANNELS, SIDE, SIDE, dtype=torch.half)

    def run() -> int:
        for part, size in zip(parts, sizes, strict=True):
            buffer[:size].copy_(world.latents[part])
        return sum(sizes)

    return run


def group_parts(world: World) -> list[slice]:
    """The rows of each row group."""
    sizes = [
        len(rows) for file in open_latents(world.outputs["encode.256px"]) for rows in file.groups()
    ]
    return [slice(*edge) for edge in itertools.pairwise([0, *itertools.accumulate(sizes)])]


def sequential(world: World, checked_before: bool) -> Callable[[], int]:
    """All row groups, in order."""
    paths = [file.path for file in open_latents(world.outputs["encode.256px"])]
    files = [LatentFile(path) for path in paths]
    buffer = torch.empty(
        max(len(rows) for file in files for rows in file.groups()),
        CHANNELS,
        SIDE,
        SIDE,
        dtype=torch.half,
    )
    into = buffer.view(torch.uint8).numpy()

    def run() -> int:
        for file in files if checked_before else map(LatentFile, paths):
            for rows in file.groups():
                np.copyto(into[: len(rows)], rows)
        return len(world.keys)

    return run


def shuffled(world: World, normalized: bool) -> Callable[[], int]:
    """An epoch through the loader; every run goes on with the next."""
    loader, steps, run_number = world.loader(), len(world.batches()), itertools.count()

    def use(batch: Batch) -> None:
        if normalized:
            assert batch.latent.dtype == batch.positions.dtype == torch.float32

    def run() -> int:
        first = next(run_number) * steps
        for step in range(first, first + steps):
            use(
                loader.batch(step * world.batch_size)
            )  # and let go: as the copy's buffer, its memory is used again
        return steps * world.batch_size

    return run


def gathered(world: World) -> Callable[[], int]:
    """Whole rows at random from the files' memory maps, without anything around it."""
    # The groups hold the memory maps.
    groups = [
        group for file in open_latents(world.outputs["encode.256px"]) for group in file.groups()
    ]
    addresses = np.concatenate(
        [group.ctypes.data + ROW_BYTES * np.arange(len(group)) for group in groups]
    )
    shuffled_addresses = np.random.default_rng(0).permutation(addresses)

    def run() -> int:
        for batch in world.batches():
            gather(shuffled_addresses[batch], ROW_BYTES)
        return len(world.batches()) * world.batch_size if groups else 0

    return run


def webdataset(world: World) -> Callable[[], int]:
    import webdataset as wds

    folder = world.root / "tars"
    folder.mkdir()
    for number, part in enumerate(world.parts()):
        with wds.TarWriter(str(folder / f"{number:05d}.tar")) as writer:
            for key, latent in zip(world.keys[part], world.latents[part].numpy(), strict=True):
                writer.write({"__key__": key, "npy": latent})
    urls = [str(path) for path in sorted(folder.iterdir())]
    data = (
        wds.WebDataset(urls, shardshuffle=NUM_SHARDS, seed=0).shuffle(1000).decode().to_tuple("npy")
    )
    return stacked((latent for _ in itertools.count() for (latent,) in data), world)


def datasets(world: World) -> Callable[[], int]:
    import datasets as hf

    hf.disable_progress_bars()
    path, cache = world.root / "datasets.parquet", world.root / "cache"
    features = hf.Features({"latent": hf.Array3D((CHANNELS, SIDE, SIDE), "float16")})
    hf.Dataset.from_dict({"latent": world.latents.numpy()}, features=features).to_parquet(str(path))
    data = (
        hf.Dataset.from_parquet(str(path), cache_dir=str(cache))
        .with_format("torch")
        .shuffle(seed=0)
    )
    return taken(
        (
            rows["latent"]
            for _ in itertools.count()
            for rows in data.iter(world.batch_size, drop_last_batch=True)
        ),
        world,
    )


def mds(world: World) -> Callable[[], int]:
    import streaming

    folder = world.root / "mds"
    with streaming.MDSWriter(
        out=str(folder), columns={"latent": f"ndarray:float16:{CHANNELS},{SIDE},{SIDE}"}
    ) as writer:
        for latent in world.latents.numpy():
            writer.write({"latent": latent})
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=world.batch_size)
    return stacked((sample["latent"] for _ in itertools.count() for sample in data), world)


def stacked(latents: Iterator[np.ndarray], world: World) -> Callable[[], int]:
    """Batches of samples that come one by one."""
    return taken(
        (
            torch.from_numpy(np.stack(list(itertools.islice(latents, world.batch_size))))
            for _ in itertools.count()
        ),
        world,
    )


def taken(batches: Iterator[torch.Tensor], world: World) -> Callable[[], int]:
    """Takes some batches a round and goes on from there in the next.

    The first, with all that is opened then, is not measured.
    """
    steps, shape = (
        max(1, SLOW_SAMPLES // world.batch_size),
        (world.batch_size, CHANNELS, SIDE, SIDE),
    )
    assert next(batches).shape == shape

    def run() -> int:
        for _ in range(steps):
            assert next(batches).shape == shape
        return steps * world.batch_size

    return run


@dataclass(frozen=True)
class Row:
    what: str
    make: Callable[[World], Callable[[], int]]
    must: float | None = None
    aim: float | None = None


# Against the copy, or the other way round, the loader against the libraries.
OURS = {
    "sequential": Row(
        "sequential row groups, read and checked before",
        lambda world: sequential(world, True),
        0.8,
        0.95,
    ),
    "first": Row(
        "sequential row groups, opened, checked and read for the first time",
        lambda world: sequential(world, False),
    ),
    "gather": Row("the rows of shuffled batches, copied and nothing else", gathered),
    "shuffled": Row(
        "shuffled training batches, as sent to an accelerator",
        lambda world: shuffled(world, False),
        0.3,
        0.5,
    ),
    "on the CPU": Row(
        "the same, normalised to float32 with positions by sample",
        lambda world: shuffled(world, True),
    ),
}
BY_GROUPS = ("sequential", "first")
OTHERS = {
    "webdataset": Row("shuffled batches against WebDataset tars of .npy", webdataset, 5, 10),
    "datasets": Row(
        "shuffled batches against Hugging Face datasets (Parquet, torch format)", datasets, 5, 10
    ),
    "mds": Row("shuffled batches against MosaicML streaming (MDS)", mds, 5, 10),
}


def rounds(contenders: Mapping[str, Callable[[], int]], count: int) -> dict[str, list[float]]:
    """Seconds a sample, by round; every contender once a round, after one that is not measured."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(count + 1):
        for name, run in contenders.items():
            begun = time.perf_counter()
            samples = run()
            if number:
                found[name].append((time.perf_counter() - begun) / samples)
    return found


def ratio(first: list[float], second: list[float]) -> float:
    """How many times as fast the first is: the median over rounds, each against its neighbour."""
    return statistics.median(slow / quick for quick, slow in zip(first, second, strict=True))


def speed_table(world: World, names: list[str], count: int) -> None:
    rows = {
        name: row for name, row in (OURS | OTHERS).items() if name in names or name == "shuffled"
    }
    if "mds" in rows and importlib.util.find_spec("streaming") is None:
        print("mds is left out: `streaming` is not installed (see --help)\n")
        del rows["mds"]
    copies = {
        "copy": copy(world, world.batches()),
        "copy of row groups": copy(world, group_parts(world)),
    }
    found = rounds(copies | {name: row.make(world) for name, row in rows.items()}, count)
    copied = statistics.median(found["copy"]) * 1e6
    rate = f"{copied:.2f} µs a sample, {ROW_BYTES / copied / 1000:.1f} GB/s"
    print(f"copy, batches of {world.batch_size}: {rate}; ratios are to the copy\n")
    print("| row | | ratio | must | aim | µs a sample |\n|---|---|---|---|---|---|")
    for name, row in rows.items():
        against = "copy of row groups" if name in BY_GROUPS else "copy"
        value = (
            ratio(found["shuffled"], found[name])
            if name in OTHERS
            else ratio(found[name], found[against])
        )
        bounds = " | ".join(
            "" if bound is None else f"≥ {bound:g}" for bound in (row.must, row.aim)
        )
        micros = statistics.median(found[name]) * 1e6
        print(
            f"| {name} | {row.what} | **{value:.3g}** | {bounds} | {micros:.2f} |",
            flush=True,
        )


def tagged_captions(count: int) -> list[str]:
    """Captions of the published form, of CLIP's words, the frequent ones more often."""
    rng = np.random.default_rng(0)
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    vocabulary = Path(str(package.origin)).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(vocabulary.read_bytes()).decode().split("\n")[1:40000]
    merged = ["".join(line.split()) for line in lines]
    # Its words are in the order in which they were merged, by how often they occur.
    words = [word.removesuffix("</w>") for word in merged if re.fullmatch("[a-z]{3,}</w>", word)]

    def draw(number: int) -> list[str]:
        return [words[int(place)] for place in len(words) * rng.random(number) ** 3]

    tags = [" ".join(draw(int(length))) for length in rng.integers(1, 4, 20_000)]
    found = []
    for _ in range(count):
        own = [tags[int(place)] for place in len(tags) * rng.random(28) ** 3]
        groups = [" $$ ".join(part) for part in (own[:2], own[2:12], own[12:])]
        for length in rng.integers(15, 25, 2):
            groups.append(" ".join(draw(int(length))) + ".")
        found.append("masterpiece $$ safe $$ newest ||| " + " %% ".join(groups))
    return found


def redrawn_table(folder: Path, num_images: int, batch_size: int, reference: str) -> None:
    world = World(folder, num_images, batch_size, tagged_captions(num_images))
    tokenizer = load_tokenizer(reference)
    tags = TagTable(
        world.outputs["caption"],
        TagDraws(tag_drop=0.25, group_drop=0.3, shuffle=True, seed=0),
        WordTokens(tokenizer, 256),
        tokenizer.pad_id,
    )
    drawn = seconds_by_batch(world.loader(tags=tags, max_tokens=256), num_images)
    encoded = seconds_by_batch(world.loader(), num_images)
    more = [long - short for long, short in zip(drawn, encoded, strict=True)]
    half = len(more) // 2
    micros = 1e6 / batch_size
    print("\n| redrawn: CPU time | first epoch | second | must | aim |\n|---|---|---|---|---|")
    medians = [statistics.median(part) * micros for part in (more[:half], more[half:])]
    print(f"| a caption, median, µs | {medians[0]:.1f} | **{medians[1]:.1f}** | ≤ 60 | ≤ 30 |")
    means = [statistics.mean(part) * micros for part in (more[:half], more[half:])]
    print(f"| mean, µs | {means[0]:.1f} | {means[1]:.1f} | | |")
    print(f"| the slowest batch, s | {max(more[:half]):.2f} | {max(more[half:]):.2f} | | |")


def seconds_by_batch(loader: Loader, num_images: int) -> list[float]:
    """CPU time of each batch of two epochs."""
    spent = []
    for step in range(2 * (num_images // loader.batch_size)):
        begun = time.process_time()
        loader.batch(step * loader.batch_size)
        spent.append(time.process_time() - begun)
    return spent


def memory_table() -> None:
    """Measured in a process of its own."""
    text = subprocess.run(
        [sys.executable, __file__, "--memory-of", str(MEMORY_ROWS)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    held, peak = json.loads(text)
    print("\n| row | | MB | must | aim |\n|---|---|---|---|---|")
    row = f"growth of the process for an index of {MEMORY_ROWS:.0e} pictures, a caption each"
    print(f"| memory | {row} | **{held:.0f}** | ≤ 500 | ≤ 200 |")
    print(f"| | at its highest, while it is built | {peak:.0f} | | |")


def measure_memory(num_rows: int) -> tuple[float, float]:
    """Megabytes that an index adds to the process: held, and at the highest."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, num_rows, np.uint64)
    captions = rng.permutation(keys)
    before = memory("VmRSS")
    held = build_index(keys, keys, captions), RaggedRows(rng.integers(1, 80, num_rows))
    assert len(held[0]) == num_rows
    return memory("VmRSS") - before, memory("VmHWM") - before


def memory(kind: str) -> float:
    """Of this process, in megabytes: VmRSS is resident now, VmHWM at the highest."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)
    )
    return int(line.split()[1]) * 1024 / 1e6


def order_table(world: World) -> None:
    """The first epoch's order in the rows of the shards, beside numpy's permutation."""
    count, loader = len(world.keys), world.loader()
    stored: dict[str, int] = {key: row for row, key in enumerate(world.keys)}
    keys = [
        key
        for step in range(-(-count // loader.batch_size))
        for key in loader.batch(step * loader.batch_size).keys
    ]
    orders = {
        "loader": np.array([stored[key] for key in keys[:count]]),
        "numpy's": np.random.default_rng(0).permutation(count),
    }
    shard = np.repeat(np.arange(NUM_SHARDS), [part.stop - part.start for part in world.parts()])
    print("\n| order | rank correlation | neighbours from one shard |\n|---|---|---|")
    for name, order in orders.items():
        same = (shard[order[1:]] == shard[order[:-1]]).mean()
        print(f"| {name} | {np.corrcoef(np.arange(count), order)[0, 1]:+.4f} | {same:.2%} |")
    by_chance = 1 / NUM_SHARDS
    neighbours = f"{by_chance:.2%} ± {(by_chance / count) ** 0.5:.2%}"
    print(f"\nBy chance: 0 ± {count**-0.5:.4f}, and {neighbours}.")


def main() -> None:
    names = [*OURS, *OTHERS, "redrawn", "memory", "order"]
    parser = parser_of(__doc__, EXPLANATION)
    add_number(parser, "--images", 20_000, "size of the data set, 160 MB four times by default")
    add_number(parser, "--batch-size", 2048, "the recipe's by default")
    add_number(parser, "--rounds", 7)
    add_only(parser, names)
    parser.add_argument(
        "--tokenizer", default=str(DEMO), metavar="FOLDER", help="of redrawn (default: the demo's)"
    )
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.memory_of)))
        return
    torch.set_num_threads(1)
    wanted = arguments.only or names
    print(f"{machine()}, numpy {np.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), arguments.images, arguments.batch_size)
        if set(wanted) & set(OURS | OTHERS):
            speed_table(world, wanted, arguments.rounds)
        if "redrawn" in wanted:
            redrawn_table(
                Path(folder) / "tagged", arguments.images, arguments.batch_size, arguments.tokenizer
            )
        if "memory" in wanted:
            memory_table()
        if "order" in wanted:
            order_table(world)


if __name__ == "__main__":
    main()
