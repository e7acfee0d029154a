"""How fast a device is: its own ceilings first, then the work of this package beside them."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from hdm.architecture import XUTConfig
from hdm.bench import encoders
from hdm.bench.asked import Asked
from hdm.bench.correctness import COMPILES_LONG
from hdm.bench.device_state import fresh, seconds_of, wait
from hdm.bench.specimens import SMALL, Case, Training, batch_of, model_of
from hdm.diffusion.guidance import Text
from hdm.diffusion.sampler import Sampling, generate
from hdm.models.autoencoder import of_model
from hdm.planning import work
from hdm.planning.measured_file import PRODUCT, STEP, Row
from hdm.training.out_of_memory import is_out_of_memory
from hdm.training.process.memory_use import peak_memory_bytes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COPY_BYTES = 2**30
COPY_BYTES_TINY = 2**22
REPEATS = 5
REPEATS_TINY = 2
TINY_PX = 64


def repeats(asked: Asked) -> int:
    """How often something is timed."""
    return REPEATS_TINY if asked.tiny else REPEATS


def fast(item: str, what: str, value: float, unit: str, **rest: float) -> Row:
    """A row of speed, of which nothing is asked."""
    return Row(item, "fast", what, value, unit, details=rest)


def ceilings(asked: Asked) -> Iterator[Row]:
    """What the card's own matrix products and copies reach."""
    # A large cube, and the largest product of a step of xut-base.
    sizes = [(256, 256, 256)] if asked.tiny else [(8192, 8192, 8192), (32768, 1024, 6144)]
    if asked.device == "cpu" and not asked.tiny:
        sizes = [(2048, 2048, 2048)]
    for precision, dtype in DTYPES.items():
        rates = []
        for rows, inner, columns in sizes:
            left = torch.randn(rows, inner, device=asked.device).to(dtype)
            right = torch.randn(inner, columns, device=asked.device).to(dtype)
            out = torch.empty(rows, columns, device=asked.device, dtype=dtype)

            def multiply(
                a: torch.Tensor = left, b: torch.Tensor = right, c: torch.Tensor = out
            ) -> None:
                torch.mm(a, b, out=c)

            seconds = seconds_of(multiply, asked.device, 4 * repeats(asked), warm_up=3)
            rates.append(2 * rows * inner * columns / seconds / 1e12)
        yield fast("ceilings", PRODUCT.format(precision=precision), max(rates), "TFLOP/s")
    count = COPY_BYTES_TINY if asked.tiny else COPY_BYTES
    source = torch.ones(count, dtype=torch.uint8, device=asked.device)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), asked.device, repeats(asked), warm_up=2)
    yield fast(
        "ceilings", "copy on the device, read and written", 2 * count / seconds / 1e9, "GB/s"
    )
    if asked.device == "cpu":
        return
    pinned = torch.ones(count, dtype=torch.uint8).pin_memory()
    seconds = seconds_of(
        lambda: target.copy_(pinned, non_blocking=True), asked.device, repeats(asked), warm_up=2
    )
    yield fast("ceilings", "copy from pinned memory", count / seconds / 1e9, "GB/s")


@dataclass(frozen=True)
class Resolution:
    """A phase of the published recipe: image tokens on each axis, text tokens, TREAD's rate,
    micro-batch, share of recomputed blocks.
    """

    side: int
    num_text: int
    tread_rate: float
    batch: int
    checkpoint_blocks: float

    def case(self, config: XUTConfig, *, tiny: bool) -> Case:
        """As a step; in small the tokens are an eighth on each axis."""
        return Case(
            config,
            batch=2 if tiny else self.batch,
            side=self.side // 8 if tiny else self.side,
            num_text=self.num_text // 32 if tiny else self.num_text,
            tread_rate=self.tread_rate,
            masked=config.text_mask == "masked",
            checkpoint_blocks=self.checkpoint_blocks,
        )


RESOLUTIONS = {
    256: Resolution(16, 256, 0.5, 128, 0.0),
    512: Resolution(32, 256, 0.5, 64, 1.0),
    768: Resolution(48, 256, 0.5, 64, 1.0),
    1024: Resolution(64, 512, 0.0, 16, 1.0),
}


def base(asked: Asked) -> XUTConfig:
    """xut-base as published, or a small model."""
    return SMALL if asked.tiny else XUTConfig.preset("base")


def eager_steps(asked: Asked) -> Iterator[Row]:
    """xut-base's steps at the published resolutions and micro-batches."""
    yield from _steps(asked, "step", None)


def compiled_steps(asked: Asked) -> Iterator[Row]:
    """The same with compiled blocks, and how long they take to compile."""
    if asked.tiny:
        yield Row("compiled", "fast", "compiled steps", note=COMPILES_LONG)
        return
    yield from _steps(asked, "compiled", "inductor")


def _steps(asked: Asked, item: str, backend: str | None) -> Iterator[Row]:
    for px, resolution in RESOLUTIONS.items():
        case = resolution.case(base(asked), tiny=asked.tiny)
        yield from _one_size(asked, item, px, replace(case, compiled=backend))


def _one_size(asked: Asked, item: str, px: int, case: Case) -> Iterator[Row]:
    what = STEP.format(resolution=px) + (f", compiled ({case.compiled})" if case.compiled else "")
    batch = case.batch
    while True:
        fresh(asked.device)
        try:
            yield _timed_step(asked, item, what, replace(case, batch=batch))
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handler, which holds the frames and with them the tensors.
        if batch == 1:
            yield Row(item, "fast", what, ok=False, note="not even one image fits in memory")
            return
        batch //= 2


def _timed_step(asked: Asked, item: str, what: str, case: Case) -> Row:
    training = Training(
        model_of(case.config).to(asked.device), case, autocast=asked.precision == "bfloat16"
    )
    given = batch_of(case).to(asked.device, torch.float32)
    begun = time.perf_counter()
    training.step(given)
    wait(asked.device)
    first = time.perf_counter() - begun
    seconds = seconds_of(lambda: training.backward(given), asked.device, repeats(asked))
    peak = peak_memory_bytes()
    # As plans count it: recomputed blocks once more, text and TREAD as they are.
    done = work.training(case.config, case.phase(), case.tokens, None, None)
    # What a utilisation counts: the model's own work, whatever is recomputed.
    own = work.training(
        case.config, replace(case, checkpoint_blocks=0.0).phase(), case.tokens, None, None
    )
    images = case.batch / seconds
    return fast(
        item,
        what,
        images,
        "images/s",
        micro_batch=case.batch,
        tokens=done.tokens,
        tokens_per_sec=images * sum(case.tokens),
        tflops=images * done.flops / 1e12,
        model_tflops=images * own.flops / 1e12,
        peak_memory_gb=peak / 1e9,
        first_step_sec=first,
    )


def largest_micro_batch(asked: Asked) -> Iterator[Row]:
    """The most images of a forward pass that fit, by trying, without recomputation."""
    if asked.device == "cpu":
        yield Row(
            "largest", "fast", "largest micro-batch", note="skipped: on the CPU it would swap"
        )
        return
    for px, resolution in RESOLUTIONS.items():
        case = replace(resolution.case(base(asked), tiny=asked.tiny), checkpoint_blocks=0.0)
        fits, too_many = 0, 0
        batch = case.batch
        # Doubled until it does not fit, then halved in between, to within an eighth.
        while not too_many or too_many - fits > max(1, fits // 8):
            if _fits(asked, replace(case, batch=batch)):
                fits = batch
            else:
                too_many = batch
            if too_many == 1 or fits >= 4096:
                break
            batch = (fits + too_many) // 2 if too_many else 2 * batch
        yield fast("largest", f"largest micro-batch at {px} px", fits, "images")


def _fits(asked: Asked, case: Case) -> bool:
    fresh(asked.device)
    try:
        training = Training(model_of(case.config).to(asked.device), case, autocast=True)
        training.step(batch_of(case).to(asked.device, torch.float32))
        wait(asked.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def optimizer_step(asked: Asked) -> Iterator[Row]:
    """Clipping and AdamW's update of all weights."""
    case = Case(base(asked), batch=1, side=4, num_text=4)
    training = Training(model_of(case.config).to(asked.device), case)
    given = batch_of(case).to(asked.device, torch.float32)
    training.backward(given)
    parameters = list(training.model.parameters())
    gradients = [value.grad for value in parameters]

    def update() -> None:
        # An update forgets the gradients; they are the same every time.
        for value, gradient in zip(parameters, gradients, strict=True):
            value.grad = gradient
        training.update()

    seconds = seconds_of(update, asked.device, repeats(asked), warm_up=2)
    count = sum(value.numel() for value in parameters)
    yield fast("optimizer", "optimizer step", 1e3 * seconds, "ms", parameters=count)


def encoding(asked: Asked) -> Iterator[Row]:
    """Pictures to latents, by an autoencoder of SDXL's format and by a tiny one."""
    made = {
        "SDXL's format": lambda: encoders.kl_autoencoder(tiny=asked.tiny),
        "tiny": encoders.tiny_autoencoder,
    }
    pixels = {TINY_PX: 2} if asked.tiny else {256: 16, 1024: 2}
    for name, make in made.items():
        model = make().eval().requires_grad_(False).to(asked.device)
        autoencoder = of_model(model, asked.device)
        for px, batch in pixels.items():
            pictures = torch.rand(batch, 3, px, px, device=asked.device) * 2 - 1
            seconds = seconds_of(
                lambda of=autoencoder, given=pictures: of.encode(given),  # type: ignore[misc]
                asked.device,
                repeats(asked),
            )
            yield fast("encode", f"encode at {px} px, {name}", batch / seconds, "images/s")


@torch.no_grad()
def text(asked: Asked) -> Iterator[Row]:
    """Captions to embeddings, by a language model of Qwen3-0.6B's size."""
    sizes = encoders.text_sizes(tiny=asked.tiny)
    dtype = DTYPES[asked.precision]
    model = encoders.language_model(tiny=asked.tiny).eval().to(asked.device, dtype)
    batch, tokens = (2, 16) if asked.tiny else (64, 256)
    ids = torch.randint(0, encoders.VOCABULARY, (batch, tokens), device=asked.device)
    seconds = seconds_of(
        lambda: model(input_ids=ids, use_cache=False), asked.device, repeats(asked)
    )
    yield fast(
        "text",
        f"text encoder, {tokens} tokens",
        batch / seconds,
        "captions/s",
        tflops=batch * sizes.flops(tokens) / seconds / 1e12,
    )


def sampled(asked: Asked) -> Iterator[Row]:
    """Guided sampling of latents in 16 and 32 steps."""
    config = base(asked)
    model = model_of(config).eval().to(asked.device)
    pixels = {TINY_PX: 1} if asked.tiny else {256: 8, 1024: 1}
    for px, batch in pixels.items():
        case = Case(config, batch=batch, side=px // 16, num_text=64)
        given = batch_of(case).to(asked.device, torch.float32)
        prompt = Text(given.text, None)
        for steps in (16, 32):

            def once(
                number: int = steps, of: Text = prompt, count: int = batch, side: int = px // 8
            ) -> None:
                with torch.autocast(
                    asked.device, torch.bfloat16, enabled=asked.precision == "bfloat16"
                ):
                    generate(
                        model,
                        of,
                        of,
                        height=side,
                        width=side,
                        seeds=range(count),
                        sampling=Sampling(number),
                    )

            seconds = seconds_of(once, asked.device, 1 if asked.tiny else 3)
            yield fast(
                "sampling", f"{steps} steps at {px} px, batch {batch}", batch / seconds, "images/s"
            )


def loader(asked: Asked) -> Iterator[Row]:
    """The share of a training step that waits for its examples, by a training on placeholder
    latents.
    """
    from hdm.models.devices import deterministic
    from hdm.pipelines import load_pipeline
    from hdm.planning.timed_steps import rehearsed_job
    from hdm.training.process.guard import StopRequest
    from hdm.training.trainer import Trainer

    config = base(asked)
    sizes = {name: getattr(config, name) for name in ("width", "num_heads", "head_size")}
    sizes |= {name: getattr(config, name) for name in ("mlp_width", "text_width", "depth")}
    settings = [f"train.model.{name}={value}" for name, value in sizes.items()]
    batch = 4 if asked.tiny else 128
    settings += [
        f"train.phases.0.batch_size={batch}",
        f"train.phases.0.micro_batch={batch}",
        f"train.phases.0.num_images={100 * batch}",
        "train.phases.0.max_tokens=null",
        "train.tag_drop=0",
        "train.group_drop=0",
        "train.tag_shuffle=false",
        "encode.text_embeddings=true",
        f"encode.max_tokens={16 if asked.tiny else 256}",
        f"train.precision={asked.precision}",
        f"train.device={asked.device}",
    ]
    pipeline = load_pipeline("hdm-xut-base", settings, environment={})
    folder = tempfile.TemporaryDirectory(prefix="hdm-bench-")
    with folder as name, deterministic(asked.device == "cpu"):
        trainer = Trainer(rehearsed_job(pipeline, 0, Path(name)), StopRequest(), asked.device)
        with contextlib.closing(trainer):
            for _ in range(2):
                trainer.step()
            wait(asked.device)
            begun = time.perf_counter()
            waited = trainer.prefetcher.waited_sec
            count = 3 if asked.tiny else 8
            for _ in range(count):
                trainer.step()
            wait(asked.device)
            seconds = time.perf_counter() - begun
            share = (trainer.prefetcher.waited_sec - waited) / seconds
    yield fast(
        "loader",
        "share of a step that waits for its examples",
        100 * share,
        "%",
        images_per_sec=count * batch / seconds,
    )
