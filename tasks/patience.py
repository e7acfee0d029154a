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
_hurried_at: float | None = None
_away = False


def hurry() -> None:
    """The run was told to stop: it waits a few seconds more for a server that is away, and then
    ends without it.
    """
    global _hurried_at
    _hurried_at = _hurried_at or time.monotonic()


@contextlib.contextmanager
def hurried_at_last() -> Iterator[None]:
    """After the block all is told but the last lines of the log; the end of the process does not
    wait long for a server to take them.
    """
    try:
        yield
    finally:
        hurry()


@functools.cache
def install() -> None:
    """Have every request of this process to a Prefect server wait while that does not answer."""
    PrefectHttpxSyncClient.send = _patient(PrefectHttpxSyncClient.send)  # type: ignore[method-assign]
    PrefectHttpxAsyncClient.send = _patient_async(PrefectHttpxAsyncClient.send)  # type: ignore[method-assign]
    reconnect = _patient_async(PrefectEventsClient._reconnect)
    PrefectEventsClient._reconnect = reconnect  # type: ignore[method-assign]


class _Outage:
    """One request's wait for the server."""

    def __init__(self) -> None:
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
            _say(away=True)
        if _hurried_at is not None:
            return now < _hurried_at + LAST_WORDS_SEC
        return now < self.begun + PATIENCE_SEC

    def over(self) -> None:
        """The server has answered."""
        if self.begun is not None:
            _say(away=False)


def _say(away: bool) -> None:
    """Tell of an outage once, however many requests wait."""
    global _away
    if away != _away:
        _away = away
        text = "answers again" if not away else "does not answer; what needs it waits"
        logger.info("Prefect's server %s", text)


def _patient(request: Any) -> Any:
    @functools.wraps(request)
    def send(*args: Any, **kwargs: Any) -> Any:
        outage = _Outage()
        while True:
            try:
                answer = request(*args, **kwargs)
            except Exception as error:
                if not outage.lasts(error):
                    raise
            except BaseException:  # a signal
                hurry()
                raise
            else:
                outage.over()
                return answer
            _pause()

    return send


def _pause() -> None:
    try:
        time.sleep(AGAIN_SEC)
    except BaseException:  # a signal
        hurry()
        raise


def _patient_async(request: Any) -> Any:
    @functools.wraps(request)
    async def send(*args: Any, **kwargs: Any) -> Any:
        outage = _Outage()
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
