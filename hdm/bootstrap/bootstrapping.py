"""Train all small components from one source of captioned pictures and write them to a folder, in
the formats of hub models.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict

from hdm.bootstrap.examples import Example
from hdm.bootstrap.learning import Place
from hdm.bootstrap.lessons import FEWEST_HELD_OUT, Lessons, gather
from hdm.bootstrap.pace import Budget, Schedule
from hdm.bootstrap.quality_head import HeadQuality, save_quality_head, train_quality_head
from hdm.bootstrap.settings import BootstrapSettings
from hdm.bootstrap.train_autoencoder import (
    STATISTICS,
    AutoencoderQuality,
    save_autoencoder,
    train_autoencoder,
)
from hdm.bootstrap.train_contrastive import (
    ContrastiveQuality,
    new_contrastive,
    save_contrastive,
    train_contrastive,
)
from hdm.bootstrap.train_text_encoder import (
    LanguageQuality,
    new_language_model,
    save_language_model,
    train_language_model,
    train_tokenizer,
)
from hdm.child import forget_launchers
from hdm.errors import InputError, SavedOnSignal, counted
from hdm.files import read_record, remove, write_json
from hdm.measuring import Measure, measure_in_time, seconds_of_all
from hdm.models.aesthetic import load_aesthetic_head
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import MANIFEST, Resolved
from hdm.models.contrastive import load_contrastive
from hdm.models.devices import cpu_threads, deterministic
from hdm.models.small_autoencoder import new_autoencoder
from hdm.store import Draft, Identity, draft_in
from hdm.training.process.guard import Stopped, signals_raised
from hdm.training.process.threads import keep_threads

COMPONENTS = {
    "autoencoder": "autoencoder",
    "text_encoder": "text_encoder",
    "contrastive": "contrastive",
    "aesthetic_head": "aesthetic_head.safetensors",
}
IDENTITY = Identity("bootstrap", 1, {})
"""The same for every such folder: its plan.json says what it is made from."""
USUAL = BootstrapSettings()
PLAN = "plan.json"
SPENT = "spent.json"
TRIAL_STEPS = 4  # of each training, to time them
TRIAL_PART = 6  # a trial prepares and measures one picture in this many, or more of them
SHORT = 0.2  # warn if less than this share of the minutes is left for training
READING = 0.25  # largest share of the minutes for reading; later pictures are left out
MEASURED = 0.25  # largest share of the minutes for measuring; fewer items are measured instead
LEAST_SHARE = 0.001  # of the plan, if measuring alone takes all the minutes
CHECKPOINT_SEC = 30.0
PREPARING = "preparing"
MEASURING = "measuring"
# In the order of time. Every training has something to prepare; the last of it precedes the CoCa's.
PARTS = (
    "language_captions",
    "autoencoder_images",
    STATISTICS,
    PREPARING,
    "contrastive_images",
    "quality_images",
    MEASURING,
)

Check = Callable[[Resolved], Measure]
Model = TypeVar("Model")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How long each component is trained, in items seen, repetitions counted."""

    autoencoder_images: int = 48_000
    contrastive_images: int = 64_000
    language_captions: int = 48_000
    quality_images: int = 3_000

    def scaled(self, factor: float) -> Plan:
        counts = asdict(self)
        return Plan(**{name: max(1, round(counts[name] * factor)) for name in counts})


def bootstrap(
    examples: Iterable[Example],
    out: Path,
    *,
    source: str,
    seed: int = USUAL.seed,
    minutes: float | None = USUAL.minutes,
    plan: Plan | None = None,
    size_px: int = USUAL.size_px,
    channels: int = USUAL.channels,
    max_pictures: int | None = USUAL.max_pictures,
    check: Check | None = None,
    checkpoint_sec: float = CHECKPOINT_SEC,
    begun: float | None = None,
) -> dict[str, Any]:
    """Train tokenizer, language model, autoencoder, CoCa and quality head, and write them to a
    folder.

    Args:
        examples: captioned pictures; a twentieth is kept out of training, for measuring.
        out: a new folder, or one where the same run was stopped or killed, which then resumes from
            its newest checkpoint.
        source: name of the examples in the record.
        seed: of all random numbers; on the CPU the same seed, examples and plan give the same
            weights, stopped or not.
        minutes: duration of the whole run, measuring included: a trial makes a plan, and trainings
            that turn out faster or slower get more or fewer steps. Time spent before a run was
            stopped counts. None: as long as the plan takes.
        plan: how long to train each; None: the default one.
        size_px: shorter side of the pictures that the autoencoder sees most.
        channels: of a latent.
        max_pictures: use only the first N examples; None: all.
        check: a further measurement of the written components, for pictures whose content is known
            (`measured.scenes`).
        checkpoint_sec: seconds between checkpoints of a training.
        begun: when the minutes began, on the clock of `time.monotonic`; None: now.

    Returns:
        The content of `components.json`: components, recipe, measured quality, on how many items of
        how many it was measured (`measured_on`), and every file's size and sha256; with `minutes`
        also the number of steps of each training (`schedules`).

    Raises:
        InputError: too few captioned pictures, or `out` holds something else.
        SavedOnSignal: SIGTERM or Ctrl-C arrived; the same call continues.
    """
    begun = time.monotonic() if begun is None else begun
    # Before anything reads them: a launcher's variables would scale gradients or wait for other
    # ranks.
    forget_launchers()
    try:
        with (
            draft_in(out, IDENTITY, MANIFEST) as draft,
            # Outside of trainings a signal ends the work at once; a training holds it back and
            # saves first.
            signals_raised(),
            deterministic(True),
            cpu_threads(None),
        ):
            lessons = _gathered(examples, draft, size_px, max_pictures, minutes)
            tokenizer = train_tokenizer(lessons.captions)
            recipe = _Recipe(lessons, seed, size_px, channels, check, tokenizer)
            asked = {
                "source": source,
                "seed": seed,
                "size_px": size_px,
                "channels": channels,
                "minutes": minutes,
                "plan": asdict(plan or Plan()),
                # The same command on pictures that changed meanwhile is another run.
                "pictures": lessons.digest(),
            }
            work = _Work(draft, asked, begun, checkpoint_sec, lessons.cut_at)
            return _run(recipe, work)
    except Stopped:
        saved = "after saving" if out.exists() else "before there was anything to save"
        raise SavedOnSignal(
            f"stopped on a signal {saved}",
            where=out,
            do="run the same command again to go on",
        ) from None


def _gathered(
    examples: Iterable[Example],
    draft: Draft,
    size_px: int,
    max_pictures: int | None,
    minutes: float | None,
) -> Lessons:
    """The pictures that can be read within their share of the minutes. A resumed run uses as many
    as it began with.
    """
    if (draft.scratch / PLAN).exists():
        return gather(examples, size_px, _read_plan(draft)["cut_at"] or max_pictures)
    seconds = math.inf if minutes is None else READING * 60 * minutes
    lessons = gather(examples, size_px, max_pictures, until=time.monotonic() + seconds)
    if lessons.cut_at is not None:
        log.warning(
            "took the first %s, as many as could be read in %.0f s of --minutes %g: give it more to"
            " take all",
            counted(lessons.cut_at, "picture"),
            seconds,
            minutes,
        )
    return lessons


@dataclass(frozen=True)
class _Recipe:
    """What the components are made from, and how."""

    lessons: Lessons
    seed: int
    size_px: int
    channels: int
    check: Check | None
    tokenizer: Any


class _Finished(TypedDict):
    files: list[str]
    part: str
    schedule: list[tuple[int, int]]


class _PlanRecord(TypedDict):
    """The content of plan.json."""

    asked: dict[str, Any]
    plan: Plan
    expected: dict[str, float]
    finished: dict[str, _Finished]
    cut_at: int | None


def _read_plan(draft: Draft) -> _PlanRecord:
    do = f"remove {draft.path} and run the command again: it starts anew"
    record = read_record(draft.scratch / PLAN, _PlanRecord, do)
    if record["asked"].get("minutes") is not None and set(record["expected"]) != set(PARTS):
        what = "it was begun by another release, which divided the time otherwise"
        raise InputError(what, where=draft.path, do=do)
    return record


@dataclass(eq=False)
class _Work:
    """A run in progress: its arguments, its plan, and the components that are finished.

    .scratch/plan.json               a `_PlanRecord`
    .scratch/spent.json              seconds spent so far
    .scratch/threads.json            number of CPU threads that the run began with
    .scratch/<component>/            checkpoints

    Args:
        draft: of the folder.
        asked: arguments that have to be the same for a resumed run.
        begun: when this process began to work on it.
        checkpoint_sec: seconds between checkpoints.
        cut_at: number of examples that were used, if there was no time for all.

    Raises:
        InputError: a run with other arguments was begun there.
    """

    draft: Draft
    asked: Mapping[str, Any]
    begun: float
    checkpoint_sec: float
    cut_at: int | None = None
    plan: Plan | None = field(default=None, init=False)
    expected: dict[str, float] = field(default_factory=dict, init=False)
    finished: dict[str, _Finished] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # The interrupted run's plan counts, and only the same arguments may resume it.
        if (self.scratch / PLAN).exists():
            before = _read_plan(self.draft)
            asked = before["asked"]
            other = [name for name, value in self.asked.items() if asked.get(name) != value]
            if other:
                raise InputError(
                    f"the folder holds an unfinished run of another recipe: {', '.join(other)}"
                    " changed",
                    where=self.draft.path,
                    do="undo that, or name a new one with --out",
                )
            self.plan = before["plan"]
            self.expected = before["expected"]
            self.finished = before["finished"]
            self.cut_at = before["cut_at"]

    def begin(self, plan: Plan, expected: Mapping[str, float]) -> None:
        """Fix the plan and the seconds that its parts are expected to take."""
        self.plan = plan
        self.expected = dict(expected)
        self._write()

    @property
    def scratch(self) -> Path:
        return self.draft.scratch

    @cached_property
    def budget(self) -> Budget:
        """The time that is left, once the plan is fixed."""
        minutes = self.asked["minutes"]
        seconds = None if minutes is None else 60 * minutes
        return Budget(seconds, self.begun, self.expected, self.scratch / SPENT)

    def path(self, component: str) -> Path:
        return self.draft.path / COMPONENTS[component]

    def place(self, component: str, part: str) -> Place:
        """The folder and the time of a component's training."""
        return Place(self.scratch / component, part, self.budget, self.checkpoint_sec)

    def has(self, component: str) -> bool:
        """Whether a component is finished and undamaged."""
        if component not in self.finished:
            return False
        return all(self.draft.has(name) for name in self.finished[component]["files"])

    def train(
        self,
        component: str,
        part: str,
        train: Callable[[Place], tuple[Model, Schedule]],
        save: Callable[[Model, Path], object],
    ) -> None:
        """Train a component and write it, unless it is there.

        Args:
            part: of the plan.
            train: trains it at the place given, to the model and how many steps it took.
        """
        if self.has(component):
            return
        model, schedule = train(self.place(component, part))
        self.keep(component, partial(save, model), part, schedule.bends)

    def keep(
        self,
        component: str,
        save: Callable[[Path], object],
        part: str,
        schedule: list[tuple[int, int]],
    ) -> None:
        """Write a component after its training.

        Args:
            component: its name.
            save: writes it to a path.
            part: of the plan.
            schedule: of the training.
        """
        # Libraries write several files without any of our guarantees: they write aside, and the
        # draft moves each finished file into its place.
        aside = self.scratch / "written" / COMPONENTS[component]
        remove(aside)
        aside.parent.mkdir(exist_ok=True)
        save(aside)
        names = []
        for path in (aside, *aside.rglob("*")):
            if path.is_file():
                names.append(path.relative_to(aside.parent).as_posix())
        names.sort()
        for name in names:
            with self.draft.write(name) as file:
                (aside.parent / name).replace(file.path)
        # Recorded after the files: after a kill in between, only the saving is repeated, not the
        # training.
        self.finished[component] = {"files": names, "part": part, "schedule": schedule}
        self._write()

    def files(self) -> dict[str, dict[str, Any]]:
        """Size and sha256 of all components' files."""
        files = {}
        for name in sorted(self.draft.records, key=Path):
            record = self.draft.records[name]
            files[name] = {"bytes": record.bytes, "sha256": record.sha256}
        return files

    def schedules(self) -> dict[str, Any]:
        """Bends of each training's `Schedule`, by its field of the plan."""
        return {one["part"]: one["schedule"] for one in self.finished.values()}

    def _write(self) -> None:
        assert self.plan is not None
        record = {
            "asked": self.asked,
            "plan": asdict(self.plan),
            "expected": self.expected,
            "finished": self.finished,
            "cut_at": self.cut_at,
        }
        write_json(self.scratch / PLAN, record)


def _run(recipe: _Recipe, work: _Work) -> dict[str, Any]:
    # The plan: as asked for, or fitted to the minutes by a trial. A resumed run has one already.
    if work.plan is None:
        plan = Plan(**work.asked["plan"])
        if work.asked["minutes"] is None:
            work.begin(plan, {})
        else:
            work.begin(*_timed(recipe, work, plan))
    assert work.plan is not None
    # A resumed run computes with the number of threads it began with: another number rounds sums
    # differently.
    keep_threads(work.scratch, None)
    _train(recipe, work)
    asked = {name: work.asked[name] for name in ("source", "seed", "size_px", "channels")}
    counts = {"pictures": len(recipe.lessons.train), "captions": len(recipe.lessons.captions)}
    # Measured as written, from the folder, not from the trained models in memory.
    record: dict[str, Any] = {
        "components": COMPONENTS,
        "recipe": {**asked, **counts, **asdict(work.plan)},
        **_measured(recipe, work.draft.path, work.budget.until(MEASURING)),
        "files": work.files(),
    }
    if work.asked["minutes"] is not None:
        record["schedules"] = work.schedules()
    work.draft.publish(MANIFEST, record)
    return record


def _train(recipe: _Recipe, work: _Work) -> dict[str, float]:
    """Train the components that are missing and write each as soon as it is trained.

    Returns:
        The seconds of each training, by its field of the plan.
    """
    assert work.plan is not None
    lessons = recipe.lessons
    seed = recipe.seed
    plan = work.plan
    budget = work.budget
    tokenizer = recipe.tokenizer
    # In the order of PARTS. Each component is written before the next one trains, so that a kill
    # costs only the steps since the last checkpoint.
    captions = (lessons.captions, plan.language_captions)
    pictures = (lessons.train, plan.contrastive_images)
    work.train(
        "text_encoder",
        "language_captions",
        lambda place: train_language_model(tokenizer, *captions, seed, place),
        lambda model, path: save_language_model(model, tokenizer, path),
    )
    work.train(
        "autoencoder",
        "autoencoder_images",
        lambda place: train_autoencoder(
            lessons.train, plan.autoencoder_images, recipe.size_px, seed, place, recipe.channels
        ),
        save_autoencoder,
    )
    work.train(
        "contrastive",
        "contrastive_images",
        lambda place: train_contrastive(tokenizer, *pictures, seed, place),
        lambda model, path: save_contrastive(model, tokenizer, path),
    )
    if not work.has("aesthetic_head"):
        # The head is fitted to the written model, whose weights have 16 bits.
        written = load_contrastive(Resolved(contrastive=str(work.path("contrastive"))))
        with budget.timed("quality_images"):
            head, count = train_quality_head(
                written, lessons.train, plan.quality_images, seed, budget.until("quality_images")
            )
        save = partial(save_quality_head, head)
        work.keep("aesthetic_head", save, "quality_images", [(0, count)])
    return budget.took


def _measures(recipe: _Recipe, out: Path) -> dict[str, Measure]:
    """Measurements of the written components on the pictures kept out of training."""
    held_out = recipe.lessons.held_out
    written = _written(out)
    contrastive = load_contrastive(written)
    head = load_aesthetic_head(written.need("aesthetic_head"))
    measures: dict[str, Measure] = {
        "autoencoder": AutoencoderQuality(
            load_autoencoder(written.need("autoencoder")), held_out, recipe.size_px
        ),
        "text_encoder": LanguageQuality(
            Path(written.need("text_encoder")), [example.captions[0] for example in held_out]
        ),
        "contrastive": ContrastiveQuality(contrastive, held_out),
        "aesthetic_head": HeadQuality(head, contrastive, held_out),
    }
    return measures if recipe.check is None else {**measures, "scenes": recipe.check(written)}


def _measured(recipe: _Recipe, out: Path, until: float | None) -> dict[str, Any]:
    """Results measured until then, and on how many items of how many."""
    measures = _measures(recipe, out)
    measure_in_time(measures, until)
    results = {}
    counts = {}
    cut_short = []
    for name, measure in measures.items():
        results[name] = measure.result()
        counts[name] = {"items": measure.items_done, "of": measure.count}
        if measure.items_done < measure.count:
            cut_short.append(f"{name} {measure.items_done} of {measure.count}")
    if cut_short:
        log.warning("measured as much as fitted into the minutes: %s", ", ".join(cut_short))
    return {"measured": results, "measured_on": counts}


def _written(out: Path) -> Resolved:
    """The components in a folder."""
    return Resolved(**{name: str(out / path) for name, path in COMPONENTS.items()})


def _timed(recipe: _Recipe, work: _Work, plan: Plan) -> tuple[Plan, dict[str, float]]:
    """The plan scaled to fit into the minutes, and the seconds that its parts are expected to take.

    A small trial of everything runs on some of the pictures, in a folder that is thrown away. The
    time for training grows with the plan, that for preparing with the pictures, and that for
    measuring with its items.
    """
    # Four steps of each training, at its batch size.
    few = Plan(
        autoencoder_images=TRIAL_STEPS * 8,
        contrastive_images=TRIAL_STEPS * 32,
        language_captions=TRIAL_STEPS * 64,
        quality_images=TRIAL_STEPS * 64,
    )
    lessons = recipe.lessons
    every = max(1, min(TRIAL_PART, len(lessons.held_out) // FEWEST_HELD_OUT))
    trial_recipe = replace(
        recipe, lessons=Lessons(lessons.train[::every], lessons.held_out[::every])
    )
    # The first import would otherwise count as time of the trial's trainings.
    _load_libraries(recipe)
    with (
        tempfile.TemporaryDirectory() as folder,
        draft_in(Path(folder), IDENTITY, MANIFEST) as draft,
    ):
        start = time.monotonic()
        # Without checkpoints, since the trial is thrown away.
        trial = _Work(draft, {"minutes": None}, start, math.inf)
        trial.begin(few, {})
        took = _train(trial_recipe, trial)
        preparing = time.monotonic() - start - sum(took.values())
        start = time.monotonic()
        measures = _measures(recipe, draft.path)
        measuring = time.monotonic() - start + seconds_of_all(measures)
    seconds = 60 * work.asked["minutes"]
    # Statistics take a fixed number of batches, preparing grows with the pictures, and measuring is
    # bounded: none of them depends on the plan.
    rest = {
        STATISTICS: took[STATISTICS],
        PREPARING: preparing * every,
        MEASURING: min(measuring, MEASURED * seconds),
    }
    counts = asdict(few)
    full = {name: took[name] * count / counts[name] for name, count in asdict(plan).items()}
    # What reading, preparing and measuring leave of the minutes is for training.
    left = work.begun + seconds - time.monotonic() - sum(rest.values())
    if left < SHORT * seconds:
        log.warning(
            "--minutes %g leaves about %.0f s to train in; the rest goes into reading and"
            " measuring: give it more",
            work.asked["minutes"],
            max(0.0, left),
        )
    factor = max(left / sum(full.values()), LEAST_SHARE)
    expected = {name: took * factor for name, took in full.items()} | rest
    # In the order of time: `Budget.until` counts what comes after a part.
    return plan.scaled(factor), {name: expected[name] for name in PARTS}


def _load_libraries(recipe: _Recipe) -> None:
    """Import the libraries of the trainings, which takes seconds the first time."""
    new_language_model(len(recipe.tokenizer))
    new_contrastive(recipe.tokenizer)
    new_autoencoder(recipe.channels)
