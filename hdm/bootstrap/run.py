"""All small components from one source of captioned pictures, written as hub models lie in a folder."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hdm.bootstrap.autoencoder import measure_autoencoder, save_autoencoder, train_autoencoder
from hdm.bootstrap.contrastive import measure_contrastive, save_contrastive, train_contrastive
from hdm.bootstrap.pictures import Lessons, gather
from hdm.bootstrap.quality import measure_quality_head, save_quality_head, train_quality_head
from hdm.bootstrap.text import (
    measure_language_model,
    save_language_model,
    train_language_model,
    train_tokenizer,
)
from hdm.child import forget_launchers
from hdm.data.examples import Example
from hdm.errors import InputError
from hdm.files import sha256_file, write_json
from hdm.models.aesthetic import load_aesthetic_head
from hdm.models.autoencoder import load_autoencoder
from hdm.models.components import MANIFEST, Resolved
from hdm.models.contrastive import load_contrastive

COMPONENTS = {
    "autoencoder": "autoencoder",
    "text_encoder": "text_encoder",
    "contrastive": "contrastive",
    "aesthetic_head": "aesthetic_head.safetensors",
}
UNFINISHED = ".unfinished.json"
PROBE = 12  # steps a training is timed for
LEAST_SHARE = 0.001  # of the plan, where measuring alone takes the minutes that were asked for


@dataclass(frozen=True)
class Plan:
    """How long each component is trained, in items seen, repetitions counted."""

    autoencoder_images: int = 48_000
    contrastive_images: int = 64_000
    language_captions: int = 48_000
    quality_images: int = 3_000

    def scaled(self, factor: float) -> Plan:
        return Plan(*(max(1, round(count * factor)) for count in asdict(self).values()))


def bootstrap(
    examples: Iterable[Example],
    out: Path,
    *,
    source: str,
    seed: int = 0,
    minutes: float | None = None,
    plan: Plan | None = None,
    size_px: int = 64,
    channels: int = 8,
    max_pictures: int | None = None,
    check: Callable[[Resolved], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train tokenizer, language model, autoencoder, CoCa and quality head, and write them to a folder.

    Args:
        examples: captioned pictures; a twentieth is kept out of training, for measuring.
        out: a new folder, or one where a run of the same recipe was killed: finished components are kept.
        source: what to call the examples in the record.
        seed: of everything drawn; the same seed, examples and plan give the same weights on the CPU.
        minutes: about how long all of it takes, measuring included; a run that was killed goes on with the plan that it had. None:
            as the plan says.
        plan: how long to train each; None: the default one.
        size_px: shorter side of the pictures that the autoencoder sees most.
        channels: of a latent.
        max_pictures: take only the first so many examples.
        check: measures more on the written components.

    Returns:
        What `components.json` holds: components, recipe, measured quality, and every file's size and sha256.

    Raises:
        InputError: too few captioned pictures, or `out` holds something.
    """
    forget_launchers()
    if (out / MANIFEST).exists() or (
        out.exists() and not (out / UNFINISHED).exists() and any(out.iterdir())
    ):
        raise InputError(
            "the folder holds something already", where=out, do="name a new one with --out"
        )
    begun = time.monotonic()
    lessons = gather(examples, size_px, max_pictures)
    plan = plan or Plan()
    if minutes is not None:
        plan = _begun_plan(out, minutes) or _timed_plan(
            lessons, plan, begun + 60 * minutes, size_px, channels, check
        )
    recipe = {"source": source, "seed": seed, "size_px": size_px, "channels": channels, "pictures": len(lessons.train),
              "captions": len(lessons.captions), **asdict(plan)}  # fmt: skip
    _train(lessons, _Work(out, recipe, minutes), plan, seed, size_px, channels)
    measured = _measured(lessons, out, size_px, check)
    record = {
        "components": COMPONENTS,
        "recipe": recipe,
        "measured": measured,
        "files": _files(out),
    }
    write_json(out / MANIFEST, record)
    (out / UNFINISHED).unlink()
    return record


class _Work:
    """A folder under way: which components are finished, for which recipe; so that a killed run goes on where it was."""

    def __init__(self, out: Path, recipe: Mapping[str, Any], minutes: float | None = None) -> None:
        self.out, self.recipe, self.minutes = out, recipe, minutes
        self.done: list[str] = []
        if (out / UNFINISHED).exists():
            before = json.loads((out / UNFINISHED).read_text())
            if before["recipe"] != recipe:
                raise InputError(
                    "the folder holds an unfinished run of another recipe",
                    where=out,
                    do="name a new one with --out",
                )
            self.done = before["done"]
        self._write()

    def path(self, component: str) -> Path:
        return self.out / COMPONENTS[component]

    def finish(self, component: str) -> None:
        self.done.append(component)
        self._write()

    def _write(self) -> None:
        told = {"recipe": self.recipe, "done": self.done, "minutes": self.minutes}
        write_json(self.out / UNFINISHED, told)


def _train(
    lessons: Lessons, work: _Work, plan: Plan, seed: int, size_px: int, channels: int
) -> dict[str, float]:
    """One file or folder for each component, written as soon as it is trained; the seconds of each training by its field of the plan."""
    seconds: dict[str, float] = {}
    tokenizer = train_tokenizer(lessons.captions)
    if "text_encoder" not in work.done:
        with _timed(seconds, "language_captions"):
            language_model = train_language_model(
                tokenizer, lessons.captions, plan.language_captions, seed
            )
        save_language_model(language_model, tokenizer, work.path("text_encoder"))
        work.finish("text_encoder")
    if "autoencoder" not in work.done:
        with _timed(seconds, "autoencoder_images"):
            autoencoder = train_autoencoder(
                lessons.train, plan.autoencoder_images, size_px, seed, channels
            )
        save_autoencoder(autoencoder, work.path("autoencoder"))
        work.finish("autoencoder")
    if "contrastive" not in work.done:
        with _timed(seconds, "contrastive_images"):
            contrastive = train_contrastive(tokenizer, lessons.train, plan.contrastive_images, seed)
        save_contrastive(contrastive, tokenizer, work.path("contrastive"))
        work.finish("contrastive")
    # The head is fitted to the weights as they were written, in 16 bits.
    written = load_contrastive(Resolved(contrastive=str(work.path("contrastive"))))
    with _timed(seconds, "quality_images"):
        head = train_quality_head(written, lessons.train, plan.quality_images, seed)
    save_quality_head(head, work.path("aesthetic_head"))
    return seconds


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun


def _measure(lessons: Lessons, written: Resolved, size_px: int) -> dict[str, Any]:
    """Quality on the pictures kept out, of the components as they load."""
    contrastive, head = (
        load_contrastive(written),
        load_aesthetic_head(written.need("aesthetic_head")),
    )
    captions = [example.captions[0] for example in lessons.held_out]
    return {
        "autoencoder": measure_autoencoder(
            load_autoencoder(written.need("autoencoder")), lessons.held_out, size_px
        ),
        "text_encoder": measure_language_model(Path(written.need("text_encoder")), captions),
        "contrastive": measure_contrastive(contrastive, lessons.held_out),
        "aesthetic_head": measure_quality_head(head, contrastive, lessons.held_out),
    }


def _measured(
    lessons: Lessons,
    out: Path,
    size_px: int,
    check: Callable[[Resolved], Mapping[str, Any]] | None,
) -> dict[str, Any]:
    written = Resolved(**{name: str(out / path) for name, path in COMPONENTS.items()})
    return {**_measure(lessons, written, size_px), **(check(written) if check else {})}


def _begun_plan(out: Path, minutes: float) -> Plan | None:
    """The plan of a run of so many minutes that was killed there: another probe would give another plan, and so another recipe."""
    if not (out / UNFINISHED).exists():
        return None
    before = json.loads((out / UNFINISHED).read_text())
    if before.get("minutes") != minutes:
        return None
    return Plan(**{field.name: before["recipe"][field.name] for field in fields(Plan)})


def _timed_plan(
    lessons: Lessons,
    plan: Plan,
    deadline: float,
    size_px: int,
    channels: int,
    check: Callable[[Resolved], Mapping[str, Any]] | None,
) -> Plan:
    """The plan, shortened or lengthened to end by a time of `time.monotonic`.

    All of it is tried in small, in a folder that is thrown away: what trainings take grows with the plan, what measuring takes does not.
    """
    few = Plan(PROBE * 32, PROBE * 64, PROBE * 64, PROBE * 64)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "probe"
        seconds = _train(lessons, _Work(out, {}), few, 0, size_px, channels)
        trained = time.monotonic()
        _measured(lessons, out, size_px, check)
        measuring = time.monotonic() - trained
    training = sum(
        seconds[name] * planned / asdict(few)[name] for name, planned in asdict(plan).items()
    )
    left = deadline - time.monotonic() - measuring
    return plan.scaled(max(left / training, LEAST_SHARE))


def _files(out: Path) -> dict[str, dict[str, Any]]:
    files = sorted(
        path
        for path in out.rglob("*")
        if path.is_file() and path.name not in (MANIFEST, UNFINISHED)
    )
    return {
        path.relative_to(out).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in files
    }
