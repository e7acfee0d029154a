"""Whether a device computes what it should: against the same code on the CPU in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hdm.bench.asked import Asked
from hdm.bench.specimens import (
    SMALL,
    Case,
    Training,
    batch_of,
    double_copy,
    in_float64,
    model_of,
)
from hdm.diffusion.guidance import GuidedVelocity, Text
from hdm.diffusion.sampler import Sampling, sample
from hdm.kernels import install
from hdm.planning.measured_file import Row
from hdm.positions import full_map

STEPS = 10
# By precision: relative L2 error of the update, and relative error of the loss.
LIMITS = {"float32": (1e-3, 1e-5), "bfloat16": (0.1, 1e-3)}
SAMPLING_LIMIT = 1e-4
RESUMED_LIMIT = 1e-5
AUTOENCODER_LIMIT = 1e-4
ERROR = "relative L2"
COMPILES_LONG = "skipped with --tiny: compiling takes minutes on a CPU"


def cases(asked: Asked) -> dict[str, Case]:
    """The ways in which a training computes, by name."""
    plain = Case()
    found = {
        "plain": plain,
        "TREAD": replace(plain, tread_rate=0.5),
        "text masks": replace(plain, masked=True),
        "recomputed blocks": replace(plain, checkpoint_blocks=1.0, masked=True),
    }
    if not asked.tiny:
        found["compiled blocks"] = replace(plain, compiled="inductor", tread_rate=0.5, masked=True)
    return found


def relative_error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """L2 norm of the difference over that of what is wanted, of all tensors together; infinite
    where something is not finite.
    """
    difference = 0.0
    whole = 0.0
    for name, value in wanted.items():
        exact = value.detach().cpu().double()
        difference += float((found[name].detach().cpu().double() - exact).square().sum())
        whole += float(exact.square().sum())
    error = float((difference / whole) ** 0.5) if whole else float("inf")
    return error if error == error else float("inf")


def judged(item: str, what: str, value: float, limit: float, unit: str = ERROR) -> Row:
    """A row that is right up to a limit."""
    # JSON has no infinity; what is not finite is wrong.
    finite = value < float("inf")
    return Row(
        item,
        "right",
        what,
        value if finite else None,
        unit,
        limit,
        ok=finite and value <= limit,
        note="" if finite else "not finite",
    )


def _update(model: Any, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in model.named_parameters():
        found[name] = value.detach().cpu().double() - before[name]
    return found


def _reference(case: Case) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of the steps, and the update of the weights, on the CPU in float64."""
    model = double_copy(model_of(case.config))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    # What changes no result is left out: the reference is the plain model.
    plain = replace(case, compiled=None, checkpoint_blocks=0.0)
    with in_float64():
        training = Training(model, plain, kernels=False)
        losses = []
        for number in range(STEPS):
            given = batch_of(case, number).to("cpu", torch.float64)
            losses.append(float(training.step(given)))
    return losses, _update(model, before)


def training_steps(asked: Asked) -> Iterator[Row]:
    """Ten optimizer steps in each way, in each precision."""
    for name, case in cases(asked).items():
        wanted_losses, wanted = _reference(case)
        start = model_of(case.config)
        before = {key: value.detach().double() for key, value in start.named_parameters()}
        for precision, (update_limit, loss_limit) in LIMITS.items():
            model = model_of(case.config).to(asked.device)
            training = Training(model, case, autocast=precision == "bfloat16")
            losses = []
            for number in range(STEPS):
                given = batch_of(case, number).to(asked.device, torch.float32)
                losses.append(float(training.step(given)))
            worst = max(
                abs(found / exact - 1) for found, exact in zip(losses, wanted_losses, strict=True)
            )
            what = f"{STEPS} steps, {name}, {precision}"
            error = relative_error(_update(model, before), wanted)
            yield judged("steps", f"{what}: update", error, update_limit)
            yield judged("steps", f"{what}: loss", worst, loss_limit, "relative")
    if asked.tiny:
        yield Row("steps", "right", "compiled blocks", note=COMPILES_LONG)


def sampling(asked: Asked) -> Iterator[Row]:
    """Guided sampling from the same noise."""
    case = Case(batch=2, masked=True)
    model = model_of(case.config).eval()
    given = batch_of(case)
    wanted = _sampled(double_copy(model), case, "cpu", torch.float64)
    on_device = model.to(asked.device)
    install(on_device)
    found = _sampled(on_device, case, asked.device, torch.float32)
    assert found.shape == given.latent.shape
    error = relative_error({"latent": found}, {"latent": wanted})
    yield judged("sampling-right", "8 guided steps, float32", error, SAMPLING_LIMIT)


@torch.no_grad()
def _sampled(model: Any, case: Case, device: str, dtype: torch.dtype) -> Tensor:
    given = batch_of(case).to(device, dtype)
    guided = GuidedVelocity(
        model,
        Text(given.text, given.text_mask),
        Text(given.text.flip(0), given.text_mask),
        positions=full_map(case.side, case.side).to(device, dtype),
        log_aspect=0.0,
        scale=3.0,
        interval=(0.0, 1.0),
        tread_rates=(0.0, 0.0),
        generators=[],
    )
    if dtype != torch.float64:
        return sample(guided, given.noise, Sampling(8).times())
    with in_float64():
        return sample(guided, given.noise, Sampling(8).times().double())


def resumed(asked: Asked) -> Iterator[Row]:
    """A training that goes on from its state against one that was not interrupted."""
    case = Case(tread_rate=0.5, masked=True)
    before = {name: value.detach().double() for name, value in model_of(SMALL).named_parameters()}

    def steps(training: Training, numbers: range) -> None:
        for number in numbers:
            training.step(batch_of(case, number).to(asked.device, torch.float32))

    whole = Training(model_of(SMALL).to(asked.device), case)
    steps(whole, range(STEPS))
    first = Training(model_of(SMALL).to(asked.device), case)
    steps(first, range(STEPS // 2))
    # By way of main memory, as a checkpoint goes.
    weights = {name: value.cpu().clone() for name, value in first.model.state_dict().items()}
    state = {name: value.cpu().clone() for name, value in first.optimizers.tensors().items()}
    again = Training(model_of(SMALL).to(asked.device), case)
    again.model.load_state_dict(weights)
    again.optimizers.load(state)
    steps(again, range(STEPS // 2, STEPS))
    error = relative_error(_update(again.model, before), _update(whole.model, before))
    yield judged("resumed", "resumed against uninterrupted: update", error, RESUMED_LIMIT)


class _OnTheCpu(TorchDispatchMode):
    """Names the operations whose results lie in main memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        results = found if isinstance(found, list | tuple) else (found,)
        for value in results:
            # Numbers are made there and passed on: no work is done on them.
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim > 0:
                self.names.add(str(func))
        return found


def stays_on_the_device(asked: Asked) -> Iterator[Row]:
    """No operation of a step falls back to the CPU."""
    what = "operations of a step that fell back to the CPU"
    if asked.device == "cpu":
        yield Row("device", "right", what, note="skipped: the CPU is what is measured")
        return
    case = Case(tread_rate=0.5, masked=True)
    training = Training(model_of(SMALL).to(asked.device), case, autocast=True)
    given = batch_of(case).to(asked.device, torch.float32)
    with _OnTheCpu() as seen:
        training.step(given)
    elsewhere = [
        name for name, value in training.model.named_parameters() if value.device.type == "cpu"
    ]
    names = sorted(seen.names) + elsewhere
    yield Row("device", "right", what, len(names), "", 0, ok=not names, note=", ".join(names[:5]))


def autoencoder(asked: Asked) -> Iterator[Row]:
    """Latents and pictures of an autoencoder of SDXL's kind."""
    from hdm.bench.encoders import kl_autoencoder
    from hdm.models.autoencoder import of_model

    torch.manual_seed(0)
    model = kl_autoencoder(tiny=True).eval().requires_grad_(False)
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    exact = double_copy(model)
    wanted_latent = exact.encode(picture.double()).latent_dist.mode()
    found = of_model(model.to(asked.device), asked.device)
    latent = found.encode(picture)
    error = relative_error({"latent": latent}, {"latent": wanted_latent})
    yield judged("autoencoder", "autoencoder: latents", error, AUTOENCODER_LIMIT)
    wanted = exact.decode(wanted_latent).sample.clamp(-1, 1)
    decoded = found.decode(wanted_latent.float())
    error = relative_error({"picture": decoded}, {"picture": wanted})
    yield judged("autoencoder", "autoencoder: pictures", error, AUTOENCODER_LIMIT)
