"""Every number of the data stages at the edges of its bounds, run for real: an end or an error in
words, never a traceback.

    python -m tests.faults.edge_values [PART_OF_A_NAME …]

Runs share a store, so that a run makes only the stage that its number belongs to, and what comes
after.
"""

from __future__ import annotations

import contextlib
import faulthandler
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from hdm.config import Pipeline
from hdm.errors import HdmError
from hdm.pipelines import load_pipeline
from hdm.stages import preflight, run
from hdm.store import Store
from tests.settings_numbers import Leaf, edges, leaves

UNTIL = {
    "images": "filter",
    "download": "filter",
    "filter": "caption",
    "caption": "encode",
    "encode": "encode",
    "threads": "encode",
}
"""Where a number stands → the last stage that is run with it: the next one that reads what it
changed.
"""
LIMIT_SEC = 300
TEXT = """\
pipelines:
  edges:
    components: {folder: demo}
    download:
      kind: scenes
      scenes: {count: 6, faults: 0.2, uncaptioned: 0.3}
      shard_items: 4
      allow_loopback: true
      timeout_sec: 3
    filter: {min_side_px: 16, max_aspect: 4, top_fraction: {}}
    caption: {makers: [{kind: coca, count: 2, max_tokens: 8}]}
    encode: {text_embeddings: true, max_tokens: 16, batch_size: 4}
    train:
      model: {text_width: 128, channels: 8}
      phases:
        - {resolution: 48, num_images: 8, batch_size: 4}
        - {resolution: 64, num_images: 8, batch_size: 4}
"""
WORK = {"download.scenes.count", "download.scenes.size_px", "caption.makers.0.count"}
"""An amount of work, or a time to wait: its greatest value takes as long as it says."""


def cases(wanted: list[str]) -> Iterator[tuple[Leaf, str]]:
    """Numbers of the data stages, each with its least and its greatest value."""
    for leaf in leaves(Pipeline):
        assert leaf.bounds is not None
        if leaf.path[0] not in UNTIL or (wanted and not any(part in leaf.name for part in wanted)):
            continue
        low, high = edges(leaf.kind, leaf.bounds)
        yield leaf, repr(low)
        if leaf.name not in WORK:
            yield leaf, repr(high)


def outcome(leaf: Leaf, value: str, file: Path, store: Store) -> str:
    """How a run with that value ends; a traceback is let through."""
    stage, until = str(leaf.path[0]), UNTIL[str(leaf.path[0])]
    for folder in store.root.glob(f"{'encode' if stage == 'threads' else stage}*"):
        shutil.rmtree(folder)  # some numbers change no result, and would find it made
    try:
        pipeline = load_pipeline("edges", [leaf.override(value)], file, {})
        preflight(pipeline, store, None, until)
    except HdmError as error:
        return f"refused: {error.what}"
    try:
        made = [one.output.name for one in run(pipeline, store, stop_after=until) if not one.cached]
    except HdmError as error:
        return f"{type(error).__name__}: {error.what}"
    return f"made {', '.join(made) or 'nothing new'}"


def main(wanted: list[str]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        file, store = Path(folder, "pipelines.yaml"), Store(Path(folder, "store"))
        file.write_text(TEXT)
        for leaf, value in cases(wanted):
            faulthandler.dump_traceback_later(LIMIT_SEC, exit=True)  # a hang is a fault too
            began = time.monotonic()
            try:
                told = outcome(leaf, value, file, store).replace("\n", "; ")[:150]
            except Exception:  # noqa: BLE001  (what this looks for)
                failed += 1
                told = f"TRACEBACK\n{traceback.format_exc()}"
            print(f"{leaf.name}={value}  {time.monotonic() - began:.1f} s  {told}", flush=True)
            faulthandler.cancel_dump_traceback_later()
    print(f"{failed} of these ended in a traceback" if failed else "no traceback")
    return int(failed > 0)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
