"""Time three steps of a training phase on this machine, with the training's own process and code,
on placeholder data of the same shapes.

`python -m hdm.planning.timed_steps JOB.json` is that process; it prints the result.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hdm.child import child_environment
from hdm.config import Pipeline
from hdm.errors import ConfigError, DoesNotFitError, HdmError
from hdm.models.components import resolve
from hdm.models.cpu import training_environment
from hdm.planning.counts import image_encoder
from hdm.planning.plan import Measured
from hdm.planning.rehearsal import Rehearsal
from hdm.redaction import shown
from hdm.store import Store
from hdm.training.process.job import Job

# The median of these counts.
STEPS = 3
# Not timed: the first step also allocates the optimizer's state.
WARM_UP = 1


def measure(pipeline: Pipeline, number: int, num_processes: int = 1) -> Measured:
    """Run a phase's steps in a separate process.

    Args:
        pipeline: resolved; its text encoder has to be on this machine, unless text embeddings are
            cached.
        number: of the phase.
        num_processes: number of processes that share the global batch; one share is measured.

    Raises:
        InputError: a model is not on this machine.
        DoesNotFitError: a step does not fit in the device's memory.
        HdmError: the process failed otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="hdm-plan-") as folder:
        job = rehearsed_job(_share(pipeline, number, num_processes), number, Path(folder))
        job.write()
        quicker = training_environment() if job.settings.train.device == "cpu" else {}
        command = [sys.executable, "-m", "hdm.planning.timed_steps", str(job.path)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=child_environment(quicker), check=False
        )
    if done.returncode == DoesNotFitError.exit_code:
        raise DoesNotFitError(
            f"a step of {job.phase.name} does not fit in memory",
            do="set micro_batch lower, or checkpoint_blocks: 1.0",
        )
    if done.returncode:
        raise HdmError(
            f"the steps of {job.phase.name} failed:"
            f" {(done.stderr.strip().splitlines() or ['nothing was said'])[-1]}"
        )
    # The last line, since libraries may print before it.
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _share(pipeline: Pipeline, number: int, num_processes: int) -> Pipeline:
    """The pipeline with one process's share as the phase's batch."""
    phases = list(pipeline.train.phases)
    batch = -(-phases[number].batch_size // num_processes)
    phases[number] = phases[number].model_copy(update={"batch_size": batch})
    train = pipeline.train.model_copy(update={"phases": tuple(phases), "num_processes": 1})
    return pipeline.model_copy(update={"train": train})


def rehearsed_job(pipeline: Pipeline, number: int, folder: Path) -> Job:
    """A phase's job on placeholder data, all of it in a folder.

    Args:
        pipeline: resolved.
        number: of the phase.
        folder: for the job's own files and its inputs; it has to exist.

    Raises:
        InputError: a model is not on this machine.
        ConfigError: its autoencoder's sizes are not known.
    """
    components = resolve(pipeline.components)
    encoder = image_encoder(components.need("autoencoder"))
    if encoder is None:
        raise ConfigError(
            "how far this autoencoder scales down is not known here", where="components.autoencoder"
        )
    rehearsal = Rehearsal(
        Store(folder / "store"), pipeline, pipeline.train.phases[number], encoder.downscale
    )
    inputs = rehearsal.inputs()
    return Job.apart(
        pipeline,
        number,
        inputs,
        folder,
        components.need("text_encoder"),
        components.need("autoencoder"),
    )


def main(path: Path) -> int:
    """Print the time and memory of the job's steps, as the fields of `Measured`."""
    import torch

    from hdm.models.devices import choose_device, deterministic
    from hdm.training.out_of_memory import is_out_of_memory
    from hdm.training.process.guard import StopRequest
    from hdm.training.process.memory_use import peak_memory_bytes
    from hdm.training.trainer import Trainer

    job = Job.read(path)
    device = choose_device(job.settings.train.device, "measuring")
    seconds = []
    try:
        with deterministic(device == "cpu"):  # as in training
            trainer = Trainer(job, StopRequest(), device)
            for _ in range(WARM_UP + STEPS):
                begun = time.perf_counter()
                trainer.step()  # ends by reading the loss from the device
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
                # As in training, so that the memory for the copy of a checkpoint counts.
                trainer.checkpoints.make_ready()
            trainer.prefetcher.close()
    except HdmError as error:
        print(shown(" ".join(str(error).split())), file=sys.stderr)
        return error.exit_code
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return DoesNotFitError.exit_code
        raise
    print(
        json.dumps(
            {"step_sec": statistics.median(seconds[WARM_UP:]), "memory_bytes": peak_memory_bytes()}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
