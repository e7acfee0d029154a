"""What is trained, averaged, checkpointed and written: a whole model, or a part like an adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from hdm.model_files.adapter import write_adapter
from hdm.model_files.card import BaseCard
from hdm.model_files.file_names import EMA, WEIGHTS
from hdm.model_files.tensors import save_tensors
from hdm.models.adapters import Target, adapter_tensors, peft_config
from hdm.models.denoiser import Denoiser
from hdm.models.settings import AdapterSettings
from hdm.sharding import gathered
from hdm.training.state.average import Average
from hdm.training.state.checkpoint import load_tensors, load_weights

Sets = Callable[[str], Mapping[str, Tensor]]
"""Sets of tensors by name, as a checkpoint reads them."""


class Trainable(Protocol):
    """The training kernel changes, keeps and writes weights through this alone.

    Gathers of sharded weights are collective: every rank that takes part calls them.
    """

    @property
    def model(self) -> Denoiser:
        """The denoiser in training. Optimizers update those of its parameters that require a
        gradient.
        """
        ...

    @property
    def averaged(self) -> Denoiser:
        """The same with averaged weights, in evaluation mode: what is measured and shown."""
        ...

    def parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: norms are of these, and power-function averages."""
        ...

    def update(self, step: int) -> None:
        """Take the weights after step number `step` (from 0) into the average."""
        ...

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of it, and what is kept of the best step, as named sets."""
        ...

    def load(self, tensors: Sets, where: Path) -> None:
        """Bring back these sets, which were read from `where`."""
        ...

    def write(self, folder: Path | None) -> None:
        """Write the files of the output; None: another process writes them."""
        ...


class WholeModel:
    """All weights of a denoiser, and their exponential moving average.

    Args:
        model: the denoiser; its weights are the start.
        decay: of the average.
    """

    def __init__(self, model: Denoiser, decay: float) -> None:
        self.model = model.train()
        self._average = Average(self.model, decay)

    @property
    def averaged(self) -> Denoiser:
        return self._average.model

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def update(self, step: int) -> None:
        self._average.update(step)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {
            "weights": gathered(self.model.state_dict()),
            "ema": gathered(self.averaged.state_dict()),
        }

    def load(self, tensors: Sets, where: Path) -> None:
        load_weights(self.model, tensors("weights"), where)
        load_weights(self.averaged, tensors("ema"), where)

    def write(self, folder: Path | None) -> None:
        # All ranks of a sharded model have to gather, whether they write or not.
        files = {WEIGHTS: self.model, EMA: self.averaged}
        for name, model in files.items():
            tensors = gathered(model.state_dict())
            if folder is not None:
                save_tensors(folder / name, tensors)


class AdapterAlone:
    """An adapter of a denoiser, and its exponential moving average; the rest of the denoiser stays
    as it is, to the bit, and is in memory once.

    Args:
        model: a denoiser with the adapter (`adapters.attach`).
        decay: of the average.
        settings: of the adapter.
        chosen: the layers that have it.
        base: what the model was before.
    """

    def __init__(
        self,
        model: Denoiser,
        decay: float,
        settings: AdapterSettings,
        chosen: Sequence[Target],
        base: BaseCard,
    ) -> None:
        self.model = model.train()
        self._average = Average(self.model, decay)
        self._config = peft_config(settings, chosen)
        self._base = base

    @property
    def averaged(self) -> Denoiser:
        return self._average.model

    def parameters(self) -> dict[str, nn.Parameter]:
        named = self.model.named_parameters()
        return {name: value for name, value in named if value.requires_grad}

    def update(self, step: int) -> None:
        self._average.update(step)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        averages = dict(self.averaged.named_parameters())
        own = self.parameters()
        return {
            "weights": {name: value.detach() for name, value in own.items()},
            "ema": {name: averages[name].detach() for name in own},
        }

    def load(self, tensors: Sets, where: Path) -> None:
        for name, own in self.tensors().items():
            load_tensors(own, tensors(name), where)

    def write(self, folder: Path | None) -> None:
        if folder is not None:
            tensors = adapter_tensors(self.averaged)
            write_adapter(folder, self._config, tensors, self._base.digest)
