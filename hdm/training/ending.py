"""The check at the end of a phase: whether its weights are of any use."""

from __future__ import annotations

from collections.abc import Callable

from hdm.models.denoiser import Denoiser
from hdm.sharding import finite
from hdm.training import assembly
from hdm.training.measures.logbook import Logbook
from hdm.training.measures.validation import BATCH_SIZE, Measurement
from hdm.training.process.job import Job
from hdm.training.results import last_values
from hdm.training.state.checkpoints import Checkpoints
from hdm.training.state.current import State
from hdm.training.state.incidents import exploded, forgotten, is_useless, signs_of_explosion


def check_end(
    job: Job,
    state: State,
    checkpoints: Checkpoints,
    logbook: Logbook,
    measurement: Measurement,
    *,
    only_weights: bool,
    explained: Callable[[], float],
) -> None:
    """Refuse useless weights. Every rank has to call this.

    Args:
        job: what was trained.
        state: at its end.
        checkpoints: of which the error names the last good one.
        logbook: what was measured.
        measurement: how losses are measured.
        only_weights: the best weights are kept, of which the last steps and their held-out loss say
            nothing.
        explained: measures what the last weights explain of the last steps.

    Raises:
        HdmError: training exploded before its end.
    """
    # The best weights are older than the last steps, so only the weights themselves are looked at.
    signs = (
        []
        if only_weights
        else [
            *_signs_in_steps(state, logbook),
            *forgotten(state.position.most_explained, explained()),
        ]
    )
    if checkpoints.ranks.takes_part:
        signs += _signs_in_weights(job, state, measurement)
    # Ranks that took no part saw no weights, but have to raise with the others.
    if any(checkpoints.ranks.agreed(bool(signs))):
        raise exploded(signs, job, checkpoints.last_good(ended=True))


def _signs_in_steps(state: State, logbook: Logbook) -> list[str]:
    """What the last steps and their held-out loss say of an explosion."""
    last = last_values(logbook.content)
    signs = signs_of_explosion(state.position)
    if "validation_loss" in last and last["validation_loss"] is None:
        signs.append("its last held-out loss is not finite")
    return signs


def _signs_in_weights(job: Job, state: State, measurement: Measurement) -> list[str]:
    """Signs that weights or averages are useless: they are not finite, or their loss is useless.

    The loss is that of training pictures: from few pictures, weights learn these by heart, and are
    wrong about all others.
    """
    loader = assembly.measured_loader(job, "train", BATCH_SIZE)
    signs = list[str]()
    models: dict[str, Denoiser] = {
        "weights": state.trainable.model.eval(),
        "averages": state.trainable.averaged,
    }
    for name, model in models.items():
        # This comes before the look at the values: measuring is collective, while each rank sees
        # only its own shards' values.
        # A loss beyond that of predicting nothing shows in any batch, so one is enough.
        losses = measurement.losses(model, loader, BATCH_SIZE)
        if not finite(model.state_dict()):
            signs.append(f"its {name} are not finite")
        elif losses is not None and is_useless(losses.mean, losses.of_nothing):
            signs.append(
                f"its {name} have a loss of {losses.mean:.4g} at pictures that were trained on,"
                f" where predicting nothing has one of {losses.of_nothing:.4g}"
            )
    return signs
