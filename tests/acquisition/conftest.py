import threading
from collections.abc import Iterator

import pytest

from tests.acquisition.misbehaving import Site


@pytest.fixture
def server() -> Iterator[Site]:
    with Site() as site:
        threading.Thread(
            target=site.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        yield site
        site.shutdown()
