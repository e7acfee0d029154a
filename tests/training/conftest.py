"""A small pipeline up to training, and what training makes of it."""

from __future__ import annotations

import pytest

from tests.training.workshop import Workshop, make_workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("training"))
