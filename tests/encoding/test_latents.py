"""The encode stage on real files: each kept picture once, as the autoencoder gives it, whatever
happens on the way.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from hdm.config import Pipeline
from hdm.data.latent_files import LatentFile
from hdm.data.tables import SAMPLES, SCORES, read_table, shard_name, write_table
from hdm.encoding import latents
from hdm.encoding.encoder import Encoder
from hdm.encoding.frames import plan_files
from hdm.errors import ConfigError, DamagedError, DoesNotFitError, InputError
from hdm.keys import key_text
from hdm.models.autoencoder import Autoencoder, load_autoencoder
from hdm.pictures.decoding import Decoders
from hdm.store import Identity, Output
from tests.encoding.conftest import Home

RESOLUTION, MULTIPLE = 16, 8


def identify(home, pipeline: Pipeline | None = None, resolution: int = RESOLUTION) -> Identity:
    inputs = {name: home.digests[name] for name in ("download", "filter")}
    return latents.identify(pipeline or home.pipeline, inputs, resolution)


def encode(home, pipeline: Pipeline | None = None, resolution: int = RESOLUTION) -> Output:
    used = pipeline or home.pipeline
    return latents.make(used, identify(home, used, resolution), home.inputs, home.store, resolution)


def changed(pipeline: Pipeline, **fields: object) -> Pipeline:
    return pipeline.model_copy(update={"encode": pipeline.encode.model_copy(update=fields)})


def rows_by_key(output: Output) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in output.paths(".parquet"):
        file = LatentFile(path)
        rows = dict(zip(map(key_text, file.keys), file.latents(range(len(file))), strict=True))
        assert not set(rows) & set(found)
        found |= rows
    return found


def framed_by_hand(
    pixels: np.ndarray, max_aspect: float = 2.0, resolution: int = RESOLUTION
) -> torch.Tensor:
    """(1, 3, h, w) in [-1, 1]: cut with integers where the cut is whole, brought to the nearest
    multiple.
    """
    height, width = pixels.shape[:2]
    longer = min(max(width, height), min(width, height) * max_aspect)
    box = (
        (width - min(width, longer)) / 2,
        (height - min(height, longer)) / 2,
        (width + min(width, longer)) / 2,
        (height + min(height, longer)) / 2,
    )
    exact = resolution * longer / min(width, height)
    side = min(round(exact / MULTIPLE + 1e-9), int(resolution * max_aspect) // MULTIPLE) * MULTIPLE
    size = (side, resolution) if width >= height else (resolution, side)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_each_kept_picture_is_encoded_whole(home, autoencoder_folder: Path) -> None:
    output = encode(home)
    found = rows_by_key(output)
    assert set(found) == home.encoded
    autoencoder = load_autoencoder(str(autoencoder_folder))
    for key, latent in found.items():
        expected = autoencoder.encode(framed_by_hand(home.pixels[key]))[0]
        assert latent.shape == expected.shape
        torch.testing.assert_close(latent.float(), expected, rtol=2e-3, atol=2e-3)

    small = {key for key in home.encoded if min(home.pixels[key].shape[:2]) < RESOLUTION}
    assert output.counts["images"] == len(home.encoded)
    assert output.counts["failed"] == len(home.broken) == 1
    assert output.counts["upscaled"] == len(small) > 0
    assert output.counts["not_finite"] == 0
    assert output.counts["bytes"] == sum(latent.nbytes for latent in found.values())
    assert sum(output.summary["shapes"].values()) == len(home.encoded)


def test_the_footer_says_what_made_the_latents(home, autoencoder_folder: Path) -> None:
    output = encode(home)
    autoencoder = load_autoencoder(str(autoencoder_folder))
    for path in output.paths(".parquet"):
        file = LatentFile(path)
        assert path.name.startswith(f"latents-{file.form.height}x{file.form.width}-")
        assert (file.form.resolution, file.form.downscale, file.form.dtype) == (
            RESOLUTION,
            4,
            "float16",
        )
        shift, scale = (
            torch.tensor(file.form.autoencoder[name]).view(-1, 1, 1) for name in ("shift", "scale")
        )
        raw = file.latents(range(len(file))).float()
        torch.testing.assert_close((raw - shift) * scale, autoencoder.normalize(raw))
        for row in file.table().to_pylist():
            assert home.pixels[row["key"]].shape[:2] == (row["image_height"], row["image_width"])


def test_bfloat16(home) -> None:
    output = encode(home, changed(home.pipeline, dtype="bfloat16"))
    found, half = rows_by_key(output), rows_by_key(encode(home))
    for key, latent in found.items():
        assert latent.dtype == torch.bfloat16
        torch.testing.assert_close(latent.float(), half[key].float(), rtol=1e-2, atol=1e-2)


def test_a_batch_that_does_not_fit_is_halved_and_nothing_dropped(
    home, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, sizes, whole = rows_by_key(encode(home)), [], Autoencoder.encode

    def small_device(self: Autoencoder, image: torch.Tensor, **how: Any) -> torch.Tensor:
        sizes.append(len(image))
        if len(image) > limit:
            raise torch.OutOfMemoryError("the device is full")
        return whole(self, image, **how)

    monkeypatch.setattr(Autoencoder, "encode", small_device)
    home.root = home.root.with_name("another")
    limit = 3
    found = rows_by_key(encode(home, changed(home.pipeline, batch_size=16)))
    assert max(sizes) > limit
    assert set(found) == set(expected)
    for key, latent in found.items():
        torch.testing.assert_close(latent.float(), expected[key].float(), rtol=2e-3, atol=2e-3)
    home.root, limit = home.root.with_name("a third"), 0
    with pytest.raises(DoesNotFitError, match="one item"):
        encode(home)


def test_what_does_not_fit_is_refused_before_work_starts(
    home: Home, autoencoder_folder: Path
) -> None:
    def with_model(**changes: int) -> Pipeline:
        train = home.pipeline.train
        model = type(train.model)(**{**train.model.to_dict(), **changes})
        return home.pipeline.model_copy(update={"train": train.model_copy(update={"model": model})})

    with pytest.raises(
        ConfigError, match=rf"{autoencoder_folder} has 5 latent channels, the model takes 4"
    ):
        encode(home, with_model(channels=4))
    with pytest.raises(ConfigError, match="resolution 20 is not a multiple of 8"):
        encode(home, resolution=20)
    with pytest.raises(InputError, match="no accelerator 'cuda:99'"):
        encode(home, changed(home.pipeline, device="cuda:99"))
    assert not list(home.root.glob("encode.*"))


def test_the_identity_holds_what_changes_the_result(
    home, tmp_path: Path, autoencoder_folder: Path
) -> None:
    base = identify(home).digest
    for same in (dict(batch_size=7), dict(device="auto"), dict(text_embeddings=False)):
        assert identify(home, changed(home.pipeline, **same)).digest == base
    for other in (dict(dtype="bfloat16"), dict(shard_mb=1), dict(max_aspect=1.5)):
        assert identify(home, changed(home.pipeline, **other)).digest != base
    assert identify(home, resolution=32).digest != base
    matte = home.pipeline.model_copy(
        update={"images": home.pipeline.images.model_copy(update={"matte": "#000000"})}
    )
    assert identify(home, matte).digest != base


def test_nothing_kept_is_an_error_that_says_so(home) -> None:
    for name, schema in (("filter", SCORES), ("download", SAMPLES)):
        with home.store.draft(Identity(name, 2, {})) as draft:
            kind = "scores" if name == "filter" else "samples"
            write_table(
                draft, shard_name(kind, 0), schema, {column: [] for column in schema.names}, {}
            )
            home.inputs[name] = draft.commit()
    with pytest.raises(InputError, match="kept no picture"):
        encode(home)


def test_pictures_gone_when_their_shard_is_downloaded_again_are_counted(home) -> None:
    """Nor does one that the filter did not see, because it was gone then, stand in the way."""
    gone, *_, fresh = sorted(home.encoded)
    home.lose(gone)
    home.rewrite("filter", "scores", {fresh: None})
    output = encode(home)
    assert set(rows_by_key(output)) == home.encoded - {gone, fresh}
    assert output.counts["failed"] == len(home.broken | {gone})


def test_a_picture_that_is_not_what_was_downloaded_is_damage_not_a_picture(home) -> None:
    path = home.inputs["download"].file("images-00001.tar")
    damaged = bytearray(path.read_bytes())
    damaged[600] ^= 1  # the first picture starts at 512
    path.write_bytes(damaged)
    with pytest.raises(DamagedError, match=r"images-00001\.tar"):
        encode(home)


def test_devices_share_the_shards_and_make_the_same_bytes(
    home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Shards of a few pictures, so that there are several for each.
    small = changed(home.pipeline, shard_mb=1)
    monkeypatch.setattr(
        "hdm.encoding.encoder.plan_files",
        lambda widths, heights, each, *_: plan_files(widths, heights, each, 2000.0),
    )
    alone = contents(encode(home, small).path)
    shards = [name for name in alone if name.endswith(".parquet")]
    assert len(shards) >= 4
    workers: dict[str, str] = {}
    encoding = Encoder.run

    def seen(self: Encoder, frames: Any) -> object:
        workers[threading.current_thread().name] = "worked"
        return encoding(self, frames)

    monkeypatch.setattr(Encoder, "run", seen)
    there = replace(home, root=tmp_path / "there")
    assert contents(encode(there, changed(small, device="cpu,cpu")).path) == alone
    assert len(workers) == 2, "each of them made some"


def test_an_error_at_one_device_ends_the_others_and_keeps_what_is_finished(
    home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hdm.encoding.encoder.plan_files",
        lambda widths, heights, each, *_: plan_files(widths, heights, each, 2000.0),
    )
    path = home.inputs["download"].file("images-00001.tar")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[600] ^= 1
    path.write_bytes(damaged)
    pipeline = changed(home.pipeline, device="cpu,cpu")
    with pytest.raises(DamagedError, match=r"images-00001\.tar"):
        encode(home, pipeline)
    path.write_bytes(whole)
    assert encode(home, pipeline).counts["images"] == len(home.encoded)


def test_several_resolutions_from_one_decoding_are_what_each_is_alone(
    home, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, decoded, asked = (16, 24, 32), [], Decoders.ask

    def counted(self: Decoders, name: str, data: bytes, **options: object) -> object:
        decoded.append(name)
        return asked(self, name, data, **options)

    quick = changed(home.pipeline, crop_pictures=0)
    alone = {size: contents(encode(home, quick, size).path) for size in sizes}
    home.root = home.root.with_name("together")
    monkeypatch.setattr(Decoders, "ask", counted)
    latents.make(quick, identify(home), home.inputs, home.store, sizes[0], also=sizes[1:])
    for size in sizes:
        made = home.store.find(identify(home, resolution=size))
        assert made is not None
        assert contents(made.path) == alone[size]
    kept = len(home.encoded) + len(home.broken)
    assert kept <= len(decoded) < 2 * kept  # alone they take three times as many

    # Only what is missing is made: one resolution, and of another one file.
    shutil.rmtree(home.root / "encode.24px")
    lost = home.store.find(identify(home, resolution=32)).paths(".parquet")[0]
    lost.unlink()
    decoded.clear()
    assert home.store.find(identify(home, resolution=32)) is None
    latents.make(quick, identify(home, resolution=24), home.inputs, home.store, 24, also=(32,))
    assert all(
        contents(home.store.find(identify(home, resolution=size)).path) == alone[size]
        for size in sizes
    )
    assert len(decoded) < 1.2 * kept


def test_another_run_that_makes_a_larger_resolution_is_left_to_it(home) -> None:
    with home.store.draft(identify(home, resolution=32)):
        assert (
            latents.make(
                home.pipeline, identify(home), home.inputs, home.store, 16, also=(32,)
            ).name
            == "encode.16px"
        )
    assert home.store.find(identify(home, resolution=32)) is None


def test_the_making_is_measured_outside_the_manifest(home) -> None:
    output = encode(home, changed(home.pipeline, crop_pictures=3), 64)
    figures = output.run()["figures"]
    assert 0 < figures["busy_share"] < 1
    assert figures["images_per_sec"] > 0
    assert 0 < figures["crop_error"] < figures["crop_error_border"]
    assert b"busy" not in (output.path / "manifest.json").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_cached_latents_are_those_of_live_encoding_at_any_batch_size(
    home, batch_size: int, autoencoder_folder: Path
) -> None:
    """Up to 16 bits: what training would compute itself, in batches of another size and order."""
    found = rows_by_key(encode(home))
    autoencoder = load_autoencoder(str(autoencoder_folder))
    shapes: dict[torch.Size, list[str]] = {}
    for key in sorted(found, reverse=True):
        shapes.setdefault(found[key].shape, []).append(key)
    for keys in shapes.values():
        for start in range(0, len(keys), batch_size):
            part = keys[start : start + batch_size]
            live = autoencoder.encode(torch.cat([framed_by_hand(home.pixels[key]) for key in part]))
            cached = torch.stack([found[key] for key in part]).float()
            assert (cached - live).abs().max() <= 2**-10 * live.abs().max()


def test_pictures_larger_than_a_tile_are_encoded_in_tiles(home, autoencoder_folder: Path) -> None:
    settings = changed(home.pipeline, tile_px=64)
    assert identify(home, settings).digest != identify(home).digest
    autoencoder, found = (
        load_autoencoder(str(autoencoder_folder)),
        rows_by_key(encode(home, settings, 48)),
    )
    longer = [key for key, latent in found.items() if max(latent.shape[1:]) * 4 > 64]
    assert 0 < len(longer) < len(found)
    for key, latent in found.items():
        image = framed_by_hand(home.pixels[key], resolution=48)
        tiled, whole = autoencoder.encode(image, tile_px=64)[0], autoencoder.encode(image)[0]
        torch.testing.assert_close(latent.float(), tiled, rtol=2e-3, atol=2e-3)
        assert torch.equal(tiled, whole) == (key not in longer)


def contents(output_folder: Path) -> dict[str, bytes]:
    """Every file that the digest vouches for."""
    return {
        path.name: path.read_bytes()
        for path in output_folder.iterdir()
        if path.suffix == ".parquet" or path.name == "manifest.json"
    }


def test_a_flipped_byte_in_a_finished_shard_is_found_and_mended(home) -> None:
    output = encode(home)
    before = contents(output.path)
    path = output.paths(".parquet")[1]
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 3] ^= 4
    path.write_bytes(damaged)
    assert home.store.find(identify(home)) is None
    assert contents(encode(home).path) == before


# One process that has loaded everything forks the runs that are killed, so that their start costs
# nothing.
KILLED_RUNS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import diffusers
from diffusers import AutoencoderKL
from hdm.config import Pipeline
from hdm.encoding import latents
from hdm.encoding.encoder import Encoder
from hdm.encoding.frames import plan_files
from hdm.store import Store, read_output

root, resolution = Path(sys.argv[1]), int(sys.argv[5])
pipeline = Pipeline.model_validate_json(sys.argv[2])
inputs = {"download": read_output(Path(sys.argv[3])), "filter": read_output(Path(sys.argv[4]))}
digests = {name: output.digest for name, output in inputs.items()}
identity = latents.identify(pipeline, digests, resolution)

def start(store):
    child = os.fork()
    if child == 0:
        try:
            also = (resolution + 8,)
            latents.make(pipeline, identity, inputs, Store(store), resolution, also=also)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return child

assert os.waitpid(start(root / "undisturbed"), 0)[1] == 0
rng, killed = random.Random(4), 0
for enough in (1, 2, 4, 6):
    child = start(root / "killed")
    ended = (0, 0)
    while not ended[0] and len(list(root.glob("killed/*/*/latents-*"))) < enough:
        time.sleep(0.001)
        ended = os.waitpid(child, os.WNOHANG)
    if not ended[0]:
        time.sleep(rng.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    killed += ended[1] == signal.SIGKILL
assert os.waitpid(start(root / "killed"), 0)[1] == 0
print("killed", killed)
"""


def test_runs_killed_at_any_moment_end_in_the_same_bytes(home, tmp_path: Path) -> None:
    pipeline, paths = (
        home.pipeline.model_dump_json(),
        (str(home.inputs[name].path) for name in ("download", "filter")),
    )
    finished = subprocess.run(
        [sys.executable, "-c", KILLED_RUNS, str(tmp_path), pipeline, *paths, str(RESOLUTION)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert int(finished.stdout.split()[-1]) >= 2, finished.stdout
    for identity in (identify(home), identify(home, resolution=RESOLUTION + 8)):
        folders = [
            tmp_path / run / identity.name / identity.digest for run in ("undisturbed", "killed")
        ]
        assert contents(folders[0])
        assert contents(folders[0]) == contents(folders[1])


def share(home, of: float) -> Pipeline:
    return changed(home.pipeline, shares={RESOLUTION: of})


def test_a_share_is_of_the_training_pictures_and_lies_within_every_larger_one(home) -> None:
    others = set(sorted(home.encoded)[::5])
    table = pa.concat_tables(
        read_table(home.inputs["filter"].file(shard_name("scores", number))) for number in (0, 1)
    )
    rows = {row["key"]: {**row, "split": "held_out"} for row in table.to_pylist()}
    home.rewrite("filter", "scores", {key: rows[key] for key in others})
    whole = rows_by_key(encode(home))
    before = others
    for of in (0.25, 0.5, 1.0):
        found = rows_by_key(encode(home, share(home, of)))
        assert before <= set(found) <= home.encoded
        before = set(found)
        for key, latent in found.items():
            # Other batches, so other rounding.
            torch.testing.assert_close(latent.float(), whole[key].float(), rtol=2e-3, atol=2e-3)
    assert before == home.encoded


def test_a_larger_share_encodes_only_the_rest_and_ends_in_the_same_bytes(
    home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = encode(home, share(home, 0.25))
    encoded = list[str]()
    run = Encoder.run

    def counted(self: Encoder, frames: Sequence[Any]) -> Any:
        encoded.extend(frame.key for frame in frames)
        return run(self, frames)

    monkeypatch.setattr(Encoder, "run", counted)
    large = encode(home, share(home, 0.75))
    assert set(encoded) == set(rows_by_key(large)) - set(rows_by_key(small))
    for record in small.files:
        twin = large.file(record.name)
        assert twin.stat().st_ino == small.file(record.name).stat().st_ino, "it takes no room"
    # From nothing, in another store.
    shutil.copytree(home.root, tmp_path / "other")
    for output in (small, large):
        shutil.rmtree(tmp_path / "other" / output.path.relative_to(home.root))
    home.root = tmp_path / "other"
    anew = encode(home, share(home, 0.75))
    assert {record.name: record.sha256 for record in anew.files} == {
        record.name: record.sha256 for record in large.files
    }


def test_all_pictures_are_not_taken_over_from_a_share(home) -> None:
    encode(home, share(home, 1.0))
    assert set(rows_by_key(encode(home))) == home.encoded


def test_resolutions_of_a_share_are_made_apart(home) -> None:
    both = changed(home.pipeline, shares={32: 0.5})
    output = latents.make(both, identify(home, both), home.inputs, home.store, RESOLUTION, (32,))
    assert set(rows_by_key(output)) == home.encoded
    assert home.store.find(identify(home, both, 32)) is None
    assert set(rows_by_key(encode(home, both, 32))) < home.encoded


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        ({"shares": {256: 0.3}}, "use 0.25 or 0.3125"),
        ({"shares": {256: 0.01}}, "at least 0.0625"),
        ({"shares": {512: 0.5}}, "no phase's pictures are encoded at 512 px"),
        ({"shares": {128: 0.5}, "from_larger": [128]}, "no phase's pictures are encoded at 128"),
        ({"shares": {256: 0.5}, "from_larger": [128]}, "leave 128 out of from_larger"),
    ],
)
def test_shares_that_cannot_be_made_are_refused(encode: dict[str, Any], said: str) -> None:
    phases = [{"resolution": size, "num_images": 32, "batch_size": 8} for size in (128, 256)]
    with pytest.raises((ConfigError, ValidationError), match=said):
        Pipeline.model_validate({"encode": encode, "train": {"phases": phases}})
