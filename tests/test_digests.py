"""Digests are names of outputs in people's stores: the same settings have the same ones in every
version, unless CHANGELOG.md says otherwise.
"""

import hashlib
import json
from pathlib import Path

import pytest

from hdm.files import canonical_json
from hdm.pipelines import load_pipeline
from hdm.store import Identity

HERE = Path(__file__).parent
FILE = HERE / "digests.yaml"
KNOWN = json.loads((HERE / "golden" / "digests.json").read_text())
"""Pipeline → part → digest of the part's settings.

It is the digest from before the settings moved, or from the version that brought the newest one.
"""
PARTS = ("images", "download", "filter", "caption", "vae", "encode", "train", "evaluate")


def digests(name: str) -> dict[str, str]:
    pipeline = load_pipeline(name, (), FILE, {})
    fields = {part: getattr(pipeline, part).result_fields() for part in PARTS}
    fields |= {f"train.{phase.name}": phase.result_fields() for phase in pipeline.train.phases}
    return {
        part: hashlib.sha256(canonical_json(found)).hexdigest()[:16]
        for part, found in fields.items()
    }


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_settings_have_the_digests_that_they_always_had(name: str) -> None:
    assert digests(name) == KNOWN[name]


def test_what_is_for_running_alone_is_in_no_digest() -> None:
    assert digests("runtime") == digests("usual")


def test_the_digest_of_an_output_is_the_hash_of_what_it_depends_on() -> None:
    identity = Identity("filter", 2, {"a": [1, "b"]}, {"download": "ab"}, {"contrastive": "cd"})
    text = (
        '{"config":{"a":[1,"b"]},"inputs":{"download":"ab"},"name":"filter","schema":2,'
        '"weights":{"contrastive":"cd"}}'
    )
    assert identity.digest == hashlib.sha256(text.encode()).hexdigest()[:16]
