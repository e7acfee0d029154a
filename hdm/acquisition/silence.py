"""Hosts that stopped answering, so that their URLs do not hold up all the others."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

ENOUGH = 8
"""Attempts without an answer, one after the other, before a host counts as silent: as many as run
at the same time.
"""
MAX_REST_SEC = 600.0


@dataclass
class _Silence:
    """Of a host.

    Attributes:
        since: when its first attempt without an answer began.
        attempts: how many there were.
        is_long: the host itself asked for a long rest.
        rest_sec: how long it is left alone the next time.
        asked_next: from when one attempt is made again; None: it is not given up yet.
    """

    since: float
    rest_sec: float
    attempts: int = 0
    is_long: bool = False
    asked_next: float | None = None


class Silences:
    """Which hosts are given up for now.

    A host is given up if it hangs, or refuses with 429, for as long as the attempts of one URL may
    take, or asks for a longer rest than anybody waits; but only if others have answered since.
    Otherwise the network may be down, or the list may have no other host, and nobody is held up.
    From time to time one URL of it is tried; its answer brings the host back.

    Args:
        patience_sec: how long a host may be silent.
        rest_sec: how long it is given up at first. Doubled each time that it stays silent.
    """

    def __init__(self, patience_sec: float, rest_sec: float) -> None:
        self.patience_sec = patience_sec
        self.rest_sec = rest_sec
        self._heard = -math.inf
        self._of: dict[str, _Silence] = {}

    def answered(self, host: str) -> None:
        """The host has answered, whatever it said."""
        self._heard = time.monotonic()
        self._of.pop(host, None)

    def silent(self, host: str, began: float, is_long: bool = False) -> None:
        """An attempt ended without an answer, or with the request to come again.

        Args:
            host: that was asked.
            began: when, by the monotonic clock.
            is_long: it asks to come again, but not soon.
        """
        one = self._of.setdefault(host, _Silence(began, self.rest_sec))
        one.attempts += 1
        one.is_long = one.is_long or is_long

    def is_given_up(self, host: str) -> bool:
        """Whether the host has been silent for too long."""
        one = self._of.get(host)
        if one is None or self._heard < one.since:
            return False
        is_over = time.monotonic() - one.since >= self.patience_sec
        return one.is_long or (is_over and one.attempts >= ENOUGH)

    def may_be_asked(self, host: str) -> bool:
        """Whether one URL of a host is to be tried. Of one that is given up, the caller has to try
        it if so: the others are told to wait for the next time.
        """
        if not self.is_given_up(host):
            return True
        one = self._of[host]
        now = time.monotonic()
        is_its_time = one.asked_next is not None and now >= one.asked_next
        if is_its_time or one.asked_next is None:
            one.asked_next = now + one.rest_sec
            one.rest_sec = min(2 * one.rest_sec, MAX_REST_SEC)
        return is_its_time
