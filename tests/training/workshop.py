"""A small pipeline up to training: latents, captions and splits made here, with models of the real
classes, all in a second.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from hdm.config import Pipeline
from hdm.data.latent_files import LatentFormat, LatentWriter, latent_file_name
from hdm.data.tables import CAPTIONS, SCORES, write_table
from hdm.encoding import text, tokens
from hdm.keys import Key
from hdm.store import Identity, Output, Store
from hdm.training import phase
from hdm.training.process.job import Job
from tests.small_models import TRAINED

Model = TypeVar("Model", bound=torch.nn.Module)
CHANNELS, SIDE, TEXT_WIDTH = 4, 8, 16
NUM_PICTURES = 40
FILES = (
    "weights.safetensors",
    "ema.safetensors",
    "model.json",
    "metrics.jsonl",
    "generated.png",
)
"""What the output of a phase holds."""
KEYS = [
    Key(hashlib.sha256(str(number).encode()).hexdigest()[:16]) for number in range(NUM_PICTURES)
]
WORDS = ["red", "blue", "circle", "square"]


def write_components(folder: Path) -> Path:
    """A text encoder, its tokenizer and an autoencoder, saved as hub models are."""
    from diffusers import AutoencoderKL
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    inner = Tokenizer(
        models.WordLevel(
            {word: number for number, word in enumerate(["<pad>", "<s>", "<unk>", *WORDS])},
            unk_token="<unk>",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        padding_side="right",
    ).save_pretrained(folder / "text_encoder")
    language = LlamaConfig(
        vocab_size=8,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    LlamaModel(language).save_pretrained(folder / "text_encoder")
    autoencoder: Any = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=CHANNELS,
        layers_per_block=1,
    )
    autoencoder.save_pretrained(folder / "autoencoder")
    return folder


def lively(model: Model) -> Model:
    """The model with weights by which text, time and place all show in what it says; as made, and
    for long in training, they hardly do.
    """
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
        torch.nn.init.normal_(
            parameter, 1.0 if parameter.ndim == 1 and "norm" in name else 0.0, spread
        )
    return model


def make_pipeline(components: Path, **train: Any) -> Pipeline:
    """A pipeline of one phase of 12 steps, with everything switched on."""
    model = {**TRAINED, "text_width": TEXT_WIDTH, "channels": CHANNELS}
    first = {
        "resolution": 2 * SIDE, "num_images": 96, "batch_size": 8, "micro_batch": 3,
        "optimizer": {"kind": "muon", "learning_rate": 1e-3, "warmup_images": 16},
    }  # fmt: skip
    settings = {
        "model": model,
        "phases": [first],
        "ema_decay": 0.9,
        "checkpoint_sec": 0.001,
        "validate_every": 5,
        "device": "cpu",
        "ema_lengths": [0.1, 0.2],
        "ema_snapshots": 3,
        "peak_tflops": 1.0,  # else every training begins by measuring it
        **train,
    }
    parts = {
        "text_encoder": str(components / "text_encoder"),
        "autoencoder": str(components / "autoencoder"),
    }
    return Pipeline.model_validate(
        {
            "name": "small",
            "components": parts,
            "encode": {"max_tokens": 8, "device": "cpu"},
            "train": settings,
            "threads": 1,
        }
    )


@dataclass
class Workshop:
    """A pipeline whose data stages are done in a store of its own."""

    pipeline: Pipeline
    store: Store
    inputs: dict[str, Output]

    @property
    def identity(self) -> Identity:
        return phase.identify(
            self.pipeline, {name: output.digest for name, output in self.inputs.items()}, 0
        )

    @property
    def folder(self) -> Path:
        return self.store.folder(self.identity)

    def train(self) -> Output:
        return phase.make(self.pipeline, self.identity, self.inputs, self.store, 0)

    def changed(self, **train: Any) -> Workshop:
        """The same data with other training settings."""
        settings = {**self.pipeline.model_dump(mode="json")["train"], **train}
        values = {**self.pipeline.model_dump(mode="json"), "train": settings}
        return replace(self, pipeline=Pipeline.model_validate(values))

    def cached(self) -> Workshop:
        """The same with text embeddings from the cache."""
        needed = {name: self.inputs[name] for name in ("caption", "encode.tokens")}
        identity = text.identify(
            self.pipeline, {name: output.digest for name, output in needed.items()}
        )
        made = self.store.find(identity) or text.make(self.pipeline, identity, needed, self.store)
        return replace(self, inputs={**self.inputs, made.name: made})

    def elsewhere(self, root: Path) -> Workshop:
        """The same data and settings with another store for what training makes."""
        return replace(self, store=Store(root))

    def job(self, folder: Path) -> Job:
        """The training of the phase in a folder of its own, for a trainer in this process."""
        components = self.pipeline.components
        scratch = folder / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        return Job(
            pipeline=self.pipeline.model_dump(mode="json"),
            number=0,
            identity=asdict(self.identity),
            digest=self.identity.digest,
            inputs={name: str(output.path) for name, output in self.inputs.items()},
            folder=str(folder),
            scratch=str(scratch),
            text_encoder=str(components.text_encoder),
            autoencoder=str(components.autoencoder),
        )

    def describe(self, path: Path) -> Path:
        """Write down what a process of its own needs to call `train`."""
        values = {
            "pipeline": self.pipeline.model_dump(mode="json"),
            "store": str(self.store.root),
            "inputs": {name: str(output.path) for name, output in self.inputs.items()},
        }
        path.write_text(json.dumps(values))
        return path


def write_latents(store: Store, filter: Output, spoilt: tuple[str, ...] = ()) -> Output:
    """Latents of two shapes that carry something to learn: their mean follows the caption's colour.
    Those of `spoilt` are infinite.
    """
    identity = Identity(
        f"encode.{2 * SIDE}px", 1, {"spoilt": list(spoilt)}, {"filter": filter.digest}
    )
    generator = torch.Generator().manual_seed(1)
    statistics = {
        "class": "AutoencoderKL",
        "weights": "0",
        "scale": [0.5] * CHANNELS,
        "shift": [0.1] * CHANNELS,
    }
    with store.draft(identity) as draft:
        for number, (height, width) in enumerate([(SIDE, SIDE), (SIDE, 2 * SIDE)]):
            keys = KEYS[number::2]
            form = LatentFormat(CHANNELS, height, width, "float16", 2 * SIDE, 2, statistics)
            colour = torch.tensor([KEYS.index(key) % 4 - 1.5 for key in keys]).view(-1, 1, 1, 1)
            latent = (
                torch.randn((len(keys), CHANNELS, height, width), generator=generator) * 0.3
                + colour
            )
            latent[[place for place, key in enumerate(keys) if key in spoilt]] = torch.inf
            with (
                draft.write(latent_file_name(height, width, 0)) as file,
                LatentWriter(file.path, form, len(keys)) as writer,
            ):
                writer.add(keys, latent, [(2 * width, 2 * height)] * len(keys))
        return draft.commit()


def write_filter(store: Store) -> Output:
    splits = [
        "validation" if number >= 34 else "held_out" if number >= 30 else "train"
        for number in range(NUM_PICTURES)
    ]
    rows: dict[str, Any] = {name: [None] * NUM_PICTURES for name in SCORES.names}
    rows |= {
        "key": KEYS,
        "decoded": ["ok"] * NUM_PICTURES,
        "kept": [True] * NUM_PICTURES,
        "split": splits,
    }
    with store.draft(Identity("filter", 1, {})) as draft:
        write_table(draft, "scores-00000.parquet", SCORES, rows, {})
        return draft.commit()


def write_captions(store: Store, form: str = "{0} {1}") -> Output:
    captions = [
        form.format(WORDS[number % 2], WORDS[2 + number // 2 % 2]) for number in range(NUM_PICTURES)
    ]
    rows: dict[str, list[Any]] = {
        "key": KEYS,
        "index": [0] * NUM_PICTURES,
        "maker": ["given"] * NUM_PICTURES,
        "caption": captions,
    }
    with store.draft(Identity("caption", 1, {"form": form})) as draft:
        write_table(draft, "captions-00000.parquet", CAPTIONS, rows, {})
        return draft.commit()


def make_workshop(root: Path) -> Workshop:
    """Everything before training, done."""
    pipeline = make_pipeline(write_components(root / "components"))
    store = Store(root / "store")
    filter, captions = write_filter(store), write_captions(store)
    identity = tokens.identify(pipeline, {"caption": captions.digest})
    made = tokens.make(pipeline, identity, {"caption": captions}, store)
    latents = write_latents(store, filter)
    return Workshop(
        pipeline, store, {output.name: output for output in (filter, captions, made, latents)}
    )
