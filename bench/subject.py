"""What an adapter of `demo-lora` learnt and what the demo's model forgot: the same prompts and
seeds with the model before and after.

Needs the trainings of both in the store: `hdm run demo`, `hdm run demo-lora`.

Examples:
  python bench/subject.py --count 800
  python bench/subject.py --set train.phases.0.adapter.method=loha
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hdm.demo.judge import QUESTIONS, SceneJudge, ScenePrompt
from hdm.evaluation.painting import Painter
from hdm.models.components import resolve
from hdm.pipelines import load_pipeline
from hdm.stages import OutputGraph
from hdm.statistics import Share
from hdm.store import Store, store_root

SEED = 0


def shares(painter: Painter, judge: SceneJudge, prompts: Sequence[ScenePrompt]) -> dict[str, Share]:
    """How many of the pictures are right, by question, and in all of them."""
    pictures = []
    # Texts of a call are padded alike: a picture depends on its hundred alone.
    for start in range(0, len(prompts), 100):
        part = prompts[start : start + 100]
        seeds = range(SEED + start, SEED + start + len(part))
        pictures += painter.paint([prompt.text for prompt in part], list(seeds))
    answers = [judge.score(*one) for one in zip(prompts, pictures, strict=True)]
    found = {}
    for question in QUESTIONS:
        found[question] = Share(sum(answer[question] for answer in answers), len(answers))
    found["all"] = Share(sum(all(answer.values()) for answer in answers), len(answers))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=800, help="pictures of each set")
    parser.add_argument("--set", action="append", default=[], help="of demo-lora, as in hdm run")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    store = Store(store_root(options.store))
    pipelines = {
        "demo": load_pipeline("demo", []),
        "demo-lora": load_pipeline("demo-lora", options.set),
    }
    judge = SceneJudge(pipelines["demo-lora"].download.scenes)
    for name, pipeline in pipelines.items():
        trained = store.find(OutputGraph(pipeline).identity("train.64px"))
        if trained is None:
            sys.exit(f"{name} is not trained in {store.root}: hdm run {name}")
        painter = Painter(pipeline, trained, resolve(pipeline.components).need("autoencoder"))
        for asked in ("subject", "one_object"):
            found = shares(painter, judge, judge.prompts(asked, options.count, SEED))
            told = []
            for question, share in found.items():
                low, high = share.interval
                told.append(f"{question} {share.value:.3f} [{low:.3f}, {high:.3f}]")
            print(f"{name:<10} {asked:<11} {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
