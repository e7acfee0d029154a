"""Real photographs through the stage with a real trained autoencoder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hdm.architecture import XUTConfig
from hdm.config import Pipeline
from hdm.data.latent_files import open_latents
from hdm.data.shards import TarShard
from hdm.data.tables import SAMPLES, SCORES, shard_name, write_table
from hdm.encoding import latents
from hdm.encoding.settings import EncodeSettings
from hdm.keys import key_text
from hdm.models.autoencoder import load_autoencoder
from hdm.models.settings import Components
from hdm.store import Draft, Identity, Output, Store
from hdm.training.settings import TrainSettings

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TAESD, PX = DATA / "autoencoder" / "taesd", 96
pytestmark = pytest.mark.skipif(not TAESD.is_dir(), reason="needs ../shared/data")


def photographs(count: int) -> dict[str, bytes]:
    paths = sorted((DATA / "photos" / "coco51" / "images").glob("*.jpg"))[:count]
    return {
        hashlib.sha256(path.name.encode()).hexdigest()[:16]: path.read_bytes() for path in paths
    }


def write_columns(
    draft: Draft, kind: str, schema: pa.Schema, columns: Mapping[str, list[Any]]
) -> None:
    """One table of the stage; the columns that are not given hold nothing."""
    count = len(columns["key"])
    empty = {name: [None] * count for name in schema.names}
    write_table(draft, shard_name(kind, 0), schema, {**empty, **columns}, {})


def inputs(store: Store, files: dict[str, bytes]) -> dict[str, Output]:
    made, keys = {}, list(files)
    sizes = [Image.open(io.BytesIO(data)).size for data in files.values()]
    known: dict[str, list[Any]] = {
        "key": keys,
        "width": [width for width, _ in sizes],
        "height": [height for _, height in sizes],
    }
    with store.draft(Identity("download", 1, {})) as draft:
        with draft.write(shard_name("images", 0, "tar")) as file, TarShard(file.path) as tar:
            offsets = [tar.add(key, "JPEG", data) for key, data in files.items()]
        found: dict[str, list[Any]] = {
            "source": keys,
            "status": ["ok"] * len(keys),
            "offset": offsets,
            "bytes": [len(data) for data in files.values()],
        }
        found["sha256"] = [hashlib.sha256(data).hexdigest() for data in files.values()]
        write_columns(draft, "samples", SAMPLES, known | found)
        made["download"] = draft.commit()
    with store.draft(Identity("filter", 1, {})) as draft:
        found = {
            "decoded": ["ok"] * len(keys),
            "kept": [True] * len(keys),
            "split": ["train"] * len(keys),
        }
        write_columns(draft, "scores", SCORES, known | found)
        made["filter"] = draft.commit()
    return made


def test_photographs_come_back_from_their_shards_and_crops_are_near(tmp_path: Path) -> None:
    store, files = Store(tmp_path), photographs(4)
    pipeline = Pipeline(
        threads=1,
        components=Components(autoencoder=str(TAESD)),
        encode=EncodeSettings(batch_size=4, device="cpu", crop_pictures=2),
        train=TrainSettings(model=XUTConfig(channels=32, patch_size=2)),
    )
    given = inputs(store, files)
    identity = latents.identify(
        pipeline, {name: output.digest for name, output in given.items()}, PX
    )
    output = latents.make(pipeline, identity, given, store, PX)
    autoencoder, seen, noise = load_autoencoder(str(TAESD)), [], []
    for file in open_latents(output):
        for key, latent in zip(
            map(key_text, file.keys), file.latents(range(len(file))), strict=True
        ):
            image = Image.open(io.BytesIO(files[key])).convert("RGB")
            size = (file.form.width * 8, file.form.height * 8)
            assert abs(size[0] / size[1] - image.width / image.height) < 0.1  # the whole picture
            truth = (
                torch.from_numpy(
                    np.asarray(image.resize(size, Image.Resampling.LANCZOS)).copy()
                ).permute(2, 0, 1)[None]
                / 127.5
                - 1
            )
            # Cached in a batch, up to 16 bits what encoding it alone gives.
            live = autoencoder.encode(truth)[0]
            assert (latent.float() - live).abs().max() <= 2**-10 * live.abs().max()
            noise.append((autoencoder.decode(latent[None]) - truth).square().mean().item() / 4)
            seen.append(key)
    assert sorted(seen) == sorted(files)
    assert -10 * np.log10(np.mean(noise)) > 24  # at so few pixels; 29 at full size

    # Measured on nine photographs: 8 to 9 % of the standard deviation inside, 35 to 38 % within two
    # positions of the cut.
    figures = output.run()["figures"]
    assert 0 < figures["crop_error"] < 0.2
    assert figures["crop_error"] < figures["crop_error_border"] < 0.6
