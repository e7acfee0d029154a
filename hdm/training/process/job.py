"""The files through which the flow's process and its training processes communicate.

<scratch>/job.json            from the flow: what to train
<scratch>/rank-0.pid          from each rank: whom to end
<scratch>/outcome-0.json      from each rank: how it ended
<scratch>/result/             from rank 0: the files of the output
<scratch>/checkpoint-00000100 after so many steps (see `checkpoint`)
<scratch>/training.log        what they printed
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hdm import errors
from hdm.errors import HdmError
from hdm.files import read_record, write_json
from hdm.model_files.file_names import ADAPTER, ADAPTER_CONFIG, CARD, EMA, WEIGHTS
from hdm.store import Output, Outputs, read_output
from hdm.training.settings import JobSettings, Phase, Pipeline

METRICS = "metrics.jsonl"
GENERATED = "generated.png"
SUMMARY = "summary.json"  # goes into the manifest
DONE = "done"
SAVED = "saved"
STOPPED = "stopped"
ERROR = "error"
PEER_LOST = "peer lost"
"""How a rank ended; `write_outcome`."""
TIMING = "timing.jsonl"  # speed and memory: beside the output, in no manifest


@dataclass(frozen=True)
class Job:
    """One phase to train.

    Args:
        pipeline: the resolved configuration, as plain JSON values.
        number: index of the phase.
        identity: what the output depends on, as plain JSON values; checkpoints carry it.
        digest: of that identity.
        inputs: output name → its folder.
        folder: the folder of the output, where `metrics.jsonl` and `timing.jsonl` grow.
        scratch: where checkpoints, logs and results go.
        text_encoder, autoencoder: local folders or hub names.
        milestones: None: train. Otherwise the phase is finished and `folder` holds its weights;
            only the files that accompany them are made again, and these are the milestones' files
            that still exist.
    """

    pipeline: Mapping[str, Any]
    number: int
    identity: Mapping[str, Any]
    digest: str
    inputs: Mapping[str, str]
    folder: str
    scratch: str
    text_encoder: str
    autoencoder: str
    milestones: list[str] | None = None

    @property
    def path(self) -> Path:
        return Path(self.scratch) / "job.json"

    @property
    def log(self) -> Path:
        return Path(self.scratch) / "training.log"

    @property
    def lock(self) -> Path:
        return Path(self.scratch) / "training.lock"

    @property
    def result(self) -> Path:
        return Path(self.scratch) / "result"

    @cached_property
    def settings(self) -> JobSettings:
        return JobSettings.of(self.pipeline)

    @property
    def phase(self) -> Phase:
        return self.settings.train.phases[self.number]

    @property
    def weights_files(self) -> tuple[str, ...]:
        """Names of the output's files that only training can make again."""
        return (WEIGHTS, EMA) if self.phase.adapter is None else (ADAPTER, ADAPTER_CONFIG)

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the output's files, but for milestones."""
        return (*self.weights_files, CARD, METRICS, GENERATED)

    def output(self, name: str) -> Output:
        """An input, checked against its manifest."""
        return read_output(Path(self.inputs[name]))

    def before(self) -> Output | None:
        """The phase before; for the first one that of another pipeline, where `train.start` names
        it; else None.
        """
        # At most one of a phase's inputs is a training.
        names = [name for name in self.inputs if name.startswith("train.") or name == START]
        return self.output(names[0]) if names else None

    @classmethod
    def apart(
        cls,
        pipeline: Pipeline,
        number: int,
        inputs: Outputs,
        folder: Path,
        text_encoder: str = "",
        autoencoder: str = "",
    ) -> Job:
        """A training in a folder of its own, of which only the steps are wanted: it has no
        identity, and nothing comes of it.
        """
        scratch = folder / "scratch"
        scratch.mkdir(parents=True)
        paths = {name: str(output.path) for name, output in inputs.items()}
        plain = pipeline.model_dump(mode="json")
        return cls(
            plain, number, {}, "", paths, str(folder), str(scratch), text_encoder, autoencoder
        )

    def write(self) -> None:
        write_json(self.path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Job:
        return read_record(path, cls, "run the same command again: it is written anew")


START = "start/train"
"""What another pipeline's phase is called among the inputs of the one that starts from it, whatever
both are called.
"""


def mixed_name(number: int, name: str) -> str:
    """Name of a mixed-in pipeline's output among a phase's inputs. It omits that pipeline's name,
    so renaming it changes no digest.
    """
    return f"mix.{number}/{name}"


def mixed_part(name: str) -> tuple[int, str] | None:
    """The number and the output's own name that `mixed_name` joined; None for any other name."""
    origin, _, output = name.partition("/")
    kind, _, number = origin.partition(".")
    return (int(number), output) if kind == "mix" else None


def num_steps(phase: Phase) -> int:
    """Optimizer steps of a phase: the last one may go a little beyond `num_images`."""
    return -(-phase.num_images // phase.batch_size)


def living_ranks(job: Job) -> list[int]:
    """The pids of the processes that train it now."""
    ranks = []
    for path in sorted(Path(job.scratch).glob("rank-*.pid")):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            # A pid may have been given to another process since.
            if os.fsencode(job.path) in Path(f"/proc/{pid}/cmdline").read_bytes():
                ranks.append(pid)
    return ranks


def checkpoint_folder(scratch: Path, step: int) -> Path:
    """Of the checkpoint after so many steps."""
    return scratch / f"checkpoint-{step:08d}"


def checkpoint_step(folder: Path) -> int:
    """How many steps a checkpoint's training had done, from its folder's name."""
    return int(folder.name.rpartition("-")[2])


def newest_checkpoint(scratch: Path) -> Path | None:
    """By its name, which ends in the number of steps; None where there is none."""
    # Steps have eight digits, so names sort by step. Names of damaged checkpoints do not end in a
    # digit.
    return max(scratch.glob("checkpoint-*[0-9]"), default=None)


def clear_outcomes(scratch: Path) -> None:
    """Forget how earlier processes ended."""
    for leftover in (*scratch.glob("outcome-*.json"), *scratch.glob("rank-*.pid")):
        leftover.unlink()


def write_outcome(scratch: Path, rank: int, state: str, error: HdmError | None = None) -> None:
    """How a rank ended.

    Args:
        scratch: of the job.
        rank: whose.
        state: `DONE`; `SAVED`: a signal came, and every step is in a checkpoint; `STOPPED`: a
            signal came before the first step; `ERROR`; `PEER_LOST`: another rank was gone.
        error: what it met.
    """
    outcome = {"state": state}
    if error is not None:
        outcome |= {
            "kind": type(error).__name__,
            "what": error.what,
            "where": str(error.where or ""),
            "do": error.do or "",
        }
    write_json(scratch / f"outcome-{rank}.json", outcome)


def read_outcome(scratch: Path) -> dict[str, str]:
    """How the ranks ended together: the first error that one of them named, else what rank 0 said;
    {} if nothing was said.
    """
    outcomes = read_outcomes(scratch)
    # An error comes before a lost peer, which is only its consequence in the other ranks.
    return next(
        (outcome for outcome in outcomes if outcome["state"] == ERROR),
        outcomes[0] if outcomes else {},
    )


def read_outcomes(scratch: Path) -> list[dict[str, str]]:
    """How each rank ended that said so."""
    outcomes = []
    for path in sorted(scratch.glob("outcome-*.json")):
        with contextlib.suppress(HdmError):  # killed before it could say so
            outcomes.append(read_record(path, dict[str, str], ""))
    return [outcome for outcome in outcomes if "state" in outcome]


def outcome_error(outcome: Mapping[str, str]) -> HdmError:
    """The error that a rank raised, to be raised here."""
    # Looking up the class keeps the exit code of the rank's error.
    kind = getattr(errors, outcome["kind"], HdmError)
    return kind(outcome["what"], where=outcome["where"] or None, do=outcome["do"] or None)
