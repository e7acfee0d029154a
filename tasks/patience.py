"""Keep a run alive while its Prefect server is away: requests wait until the server answers again.

The work itself makes no request between the start and the end of a stage. Prefect retries a request
for at most a minute, with growing pauses, and not at all if the client has never had an answer.
Requests are therefore retried here, in the one method that sends all of them.
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

PATIENCE_SEC = 1800.0  # a server may be away for this long
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
        """From now on, wait only a few more seconds."""
        self.hurried_at = self.hurried_at or time.monotonic()

    def say(self, away: bool) -> None:
        """Report an outage once, however many requests wait."""
        if away != self.away:
            self.away = away
            text = "answers again" if not away else "does not answer; what needs it waits"
            logger.info("Prefect's server %s", text)


def install() -> None:
    """Let every request of this process wait while the Prefect server does not answer."""
    if _installed() is not None:
        return
    patience = Patience()
    # All of Prefect's requests pass through these: both HTTP clients, and the events' websocket.
    send = _patient(PrefectHttpxSyncClient.send, patience)
    PrefectHttpxSyncClient.send = send  # type: ignore[method-assign]
    send_async = _patient_async(PrefectHttpxAsyncClient.send, patience)
    PrefectHttpxAsyncClient.send = send_async  # type: ignore[method-assign]
    reconnect = _patient_async(PrefectEventsClient._reconnect, patience)
    PrefectEventsClient._reconnect = reconnect  # type: ignore[method-assign]


def _installed() -> Patience | None:
    """The clients' patience, if it is installed."""
    return getattr(PrefectHttpxSyncClient.send, "patience", None)


def hurry() -> None:
    """After a request to stop: wait only a few more seconds for a server that is away, then end
    without it.
    """
    patience = _installed()
    if patience is not None:
        patience.hurry()


@contextlib.contextmanager
def hurried_at_last() -> Iterator[None]:
    """After the block only the last lines of the log are left to send; the process does not wait
    long for a server to take them.
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
        # Any other error is an answer, which a retry would not change.
        passing = isinstance(error, OSError | httpx.TransportError | WebSocketException) or (
            isinstance(error, PrefectHTTPStatusError) and error.response.status_code in PASSING
        )
        if not passing:
            return False
        now = time.monotonic()
        if self.begun is None:
            self.begun = now
            self.patience.say(away=True)
        # Counted from the stop, so that all waiting requests together take no longer.
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

    # Marks the method as installed, and lets `hurry` find the patience.
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
