"""A run does not end because its Prefect server does: its requests wait until the server answers
again.

The work itself makes no request between the start and the end of a stage. Prefect repeats a request
for a minute at most, longer and longer apart, and not at all where a client has never been
answered; so requests are repeated here, where all of them pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.events.clients import PrefectEventsClient
from prefect.exceptions import PrefectHTTPStatusError
from websockets.exceptions import WebSocketException

PATIENCE_SEC = 1800.0  # a server may be away for so long
LAST_WORDS_SEC = 8.0  # after a stop; `hdm stop` waits for 35 s, and training saves within 20
AGAIN_SEC = 1.0
PASSING = (408, 429, 502, 503)
logger = logging.getLogger("hdm.run")


class Patience:
    """How long this process's requests wait for a server that does not answer."""

    def __init__(self) -> None:
        self.hurried_at: float | None = None
        self.away = False

    def hurry(self) -> None:
        """From now on they wait a few seconds more."""
        self.hurried_at = self.hurried_at or time.monotonic()

    def say(self, away: bool) -> None:
        """Tell of an outage once, however many requests wait."""
        if away != self.away:
            self.away = away
            text = "answers again" if not away else "does not answer; what needs it waits"
            logger.info("Prefect's server %s", text)


def install() -> None:
    """Have every request of this process to a Prefect server wait while that does not answer."""
    if _installed() is not None:
        return
    patience = Patience()
    PrefectHttpxSyncClient.send = _patient(PrefectHttpxSyncClient.send, patience)  # type: ignore[method-assign]
    PrefectHttpxAsyncClient.send = _patient_async(PrefectHttpxAsyncClient.send, patience)  # type: ignore[method-assign]
    reconnect = _patient_async(PrefectEventsClient._reconnect, patience)
    PrefectEventsClient._reconnect = reconnect  # type: ignore[method-assign]


def _installed() -> Patience | None:
    """That of the clients, if they are patient."""
    return getattr(PrefectHttpxSyncClient.send, "patience", None)


def hurry() -> None:
    """The run was told to stop: it waits a few seconds more for a server that is away, and then
    ends without it.
    """
    patience = _installed()
    if patience is not None:
        patience.hurry()


@contextlib.contextmanager
def hurried_at_last() -> Iterator[None]:
    """After the block all is told but the last lines of the log; the end of the process does not
    wait long for a server to take them.
    """
    try:
        yield
    finally:
        hurry()


class _Outage:
    """One request's wait for the server."""

    def __init__(self, patience: Patience) -> None:
        self.patience = patience
        self.begun: float | None = None

    def lasts(self, error: Exception) -> bool:
        """Whether to try again after this error."""
        passing = isinstance(error, OSError | httpx.TransportError | WebSocketException) or (
            isinstance(error, PrefectHTTPStatusError) and error.response.status_code in PASSING
        )
        if not passing:
            return False
        now = time.monotonic()
        if self.begun is None:
            self.begun = now
            self.patience.say(away=True)
        if self.patience.hurried_at is not None:
            return now < self.patience.hurried_at + LAST_WORDS_SEC
        return now < self.begun + PATIENCE_SEC

    def over(self) -> None:
        """The server has answered."""
        if self.begun is not None:
            self.patience.say(away=False)


def _patient(request: Any, patience: Patience) -> Any:
    @functools.wraps(request)
    def send(*args: Any, **kwargs: Any) -> Any:
        outage = _Outage(patience)
        while True:
            try:
                answer = request(*args, **kwargs)
            except Exception as error:
                if not outage.lasts(error):
                    raise
            except BaseException:  # a signal
                patience.hurry()
                raise
            else:
                outage.over()
                return answer
            _pause(patience)

    send.patience = patience  # type: ignore[attr-defined]
    return send


def _pause(patience: Patience) -> None:
    try:
        time.sleep(AGAIN_SEC)
    except BaseException:  # a signal
        patience.hurry()
        raise


def _patient_async(request: Any, patience: Patience) -> Any:
    @functools.wraps(request)
    async def send(*args: Any, **kwargs: Any) -> Any:
        outage = _Outage(patience)
        while True:
            try:
                answer = await request(*args, **kwargs)
            except Exception as error:
                if not outage.lasts(error):
                    raise
            else:
                outage.over()
                return answer
            await asyncio.sleep(AGAIN_SEC)

    return send
