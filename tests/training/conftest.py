"""A small pipeline up to training, and what training makes of it."""

from __future__ import annotations

import pytest

from hdm.store import Output
from tests.training.workshop import Workshop, make_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="session")
def trained(workshop: Workshop) -> Output:
    """What an undisturbed run in a process of its own makes."""
    return workshop.train()
