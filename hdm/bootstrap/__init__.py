"""Small components from a person's own captioned pictures, so that a home without any hub has the
whole pipeline.
"""

from __future__ import annotations

from hdm.bootstrap.run import Plan, bootstrap
from hdm.data.examples import Example

__all__ = ["Example", "Plan", "bootstrap"]
