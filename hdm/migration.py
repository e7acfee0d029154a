"""Outputs of earlier versions: which this one finds as they are, which it can adopt under another
digest, and which it makes again.

A digest holds the version of an output's format, its settings and its inputs' digests. Settings
keep their part of it (`hdm.settings`), so a digest changes where a format's version does, and with
it those of all outputs that were made from it. Where such a change left the result as it was,
`UNCHANGED` says so, and the output is adopted: its files are linked into the folder of the new
digest, with a new manifest.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hdm.acquisition import download
from hdm.captioning import caption
from hdm.curation import decide, embed, measure, rate, score
from hdm.encoding import downscaled, features, latents, text, tokens
from hdm.errors import DamagedError
from hdm.evaluation import embeddings, images
from hdm.scoring import metrics
from hdm.store import COPIES, RUN, Identity, Output, Store, in_use
from hdm.training import phase
from hdm.vae import stage as vae

SCHEMAS = {
    "download": download.SCHEMA,
    measure.NAME: measure.SCHEMA,
    embed.NAME: embed.SCHEMA,
    rate.NAME: rate.SCHEMA,
    "filter.*": score.SCHEMA,
    "filter": decide.SCHEMA,
    "caption": caption.SCHEMA,
    "vae": vae.SCHEMA,
    "encode.tokens": tokens.SCHEMA,
    "encode.text": text.SCHEMA,
    "encode.features": features.SCHEMA,
    "encode.*px": latents.SCHEMA,
    "encode.*px downscaled": downscaled.SCHEMA,
    "train.*px": phase.SCHEMA,
    metrics.IMAGES: images.SCHEMA,
    metrics.EMBEDDINGS: embeddings.SCHEMA,
    "evaluate.*": metrics.SCHEMA,
}
"""Kind of output → the version of its format that is made now."""

UNCHANGED: Mapping[str, Mapping[int, int]] = {}
"""Kind of output → earlier version of its format → later one with the same result. Whoever raises a
schema without changing results adds it here. Empty: every change since 0.1.0 changed results.
"""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a finished output.

    Args:
        now: its identity in this version; None: the output is made again.
        why: for one that is made again.
    """

    output: Output
    now: Identity | None
    why: str = ""

    @property
    def is_found(self) -> bool:
        """This version finds it as it is."""
        return self.now is not None and self.now.digest == self.output.digest


def verdicts(
    outputs: Iterable[Output], unchanged: Mapping[str, Mapping[int, int]] = UNCHANGED
) -> list[Verdict]:
    """What becomes of each output of a store, inputs before what was made from them.

    An input that is not in the store any more is taken to be current.
    """
    by_digest = {output.digest: output for output in outputs}
    found: dict[str, Verdict] = {}

    def judge(output: Output) -> Verdict:
        if output.digest not in found:
            inputs = {}
            for digest in output.inputs.values():
                if digest in by_digest:
                    inputs[digest] = judge(by_digest[digest])
            found[output.digest] = _judged(output, inputs, unchanged)
        return found[output.digest]

    for output in by_digest.values():
        judge(output)
    return list(found.values())


def adopt(store: Store, verdict: Verdict) -> Output:
    """Link an output's files into the output of this version's digest; the earlier one stays.

    Raises:
        DamagedError: a file is not what was written; nothing is adopted.
        LockedError: somebody works on either.
    """
    output = verdict.output
    identity = verdict.now
    assert identity is not None
    there = store.find(identity)
    if there is not None:
        return there
    # `hdm gc` must not remove the files while they are linked.
    with in_use([output.path]), store.draft(identity) as draft:
        for record in output.files:
            copied = (output.path / COPIES / record.name).exists()
            with draft.write(record.name, copied=copied) as file:
                _link(output.path / record.name, file.path)
                file.counts.update(record.counts)
            # The draft has hashed the linked file: a damaged one must not get a new manifest.
            if draft.records[record.name].sha256 != record.sha256:
                draft.start_over()
                raise DamagedError(
                    "a file is not what was written",
                    where=output.path / record.name,
                    do="run its pipeline: it is made anew",
                )
        if (output.path / RUN).is_file():  # how long the making took, and where
            shutil.copyfile(output.path / RUN, draft.path / RUN)
        return draft.commit(output.summary)


def kind_of(output: Output) -> str:
    """Its name in `SCHEMAS`, or its own name where this version makes no such output."""
    name = re.sub(r"\.\d+px$", ".*px", output.name)
    # Latents downscaled from larger ones have a format of their own.
    if name == "encode.*px" and any(source.endswith("px") for source in output.inputs):
        return f"{name} downscaled"
    if name not in SCHEMAS and name.split(".")[0] in ("filter", "evaluate") and "." in name:
        return f"{name.split('.')[0]}.*"
    return name


def _judged(
    output: Output, inputs: Mapping[str, Verdict], unchanged: Mapping[str, Mapping[int, int]]
) -> Verdict:
    kind = kind_of(output)
    current = SCHEMAS.get(kind)
    if current is None:
        return Verdict(output, None, "this version makes no such output")
    if current not in (output.schema, unchanged.get(kind, {}).get(output.schema)):
        return Verdict(output, None, f"its format was version {output.schema} and is {current}")
    digests = {}
    for name, digest in output.inputs.items():
        verdict = inputs.get(digest)
        if verdict is not None and verdict.now is None:
            return Verdict(output, None, f"made from {verdict.output.name}, which is made again")
        digests[name] = digest if verdict is None or verdict.now is None else verdict.now.digest
    return Verdict(output, replace(output.identity, schema=current, inputs=digests))


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; copy it if the file system has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
