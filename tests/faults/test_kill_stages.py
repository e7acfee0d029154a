"""The whole pipeline killed at a seeded moment, on the stages themselves.

`make faults` kills at many more, through Prefect.
"""

from tests.faults.kill_anywhere import one_try

TINY = (
    "download.scenes.count=48",
    "download.shard_items=24",
    "download.timeout_sec=3",
    "filter.held_out=0.1",
    "filter.validation=0.1",
    "train.checkpoint_sec=0.5",
    "train.phases.0.num_images=128",
    "train.phases.0.batch_size=16",
    "train.phases.1.num_images=128",
    "train.phases.1.batch_size=16",
    "train.prompts=[a red circle]",
    "evaluate.num_images=4",
    "evaluate.steps=2",
)


def test_killed_and_run_again_every_byte_is_the_same(tmp_path):
    # Try 1 of seed 7 is killed after 58 % of the time: in a training.
    found = one_try(1, seed=7, through="stages", work=tmp_path, overrides=TINY)
    assert found["wrong"] is None, found
