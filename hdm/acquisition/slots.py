"""How many requests run at once, without those that only wait."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

LEND_AFTER_SEC = 1.0


class Slot:
    """A request's turn among those that may run at once. Use it in an `async with` block.

    While a site lets the request wait, the turn is lent to another one: a waiting connection takes
    neither the network nor memory.

    Args:
        turns: of all requests.
    """

    def __init__(self, turns: asyncio.Semaphore) -> None:
        self._turns = turns
        self._has_turn = False

    async def __aenter__(self) -> Self:
        await self._turns.acquire()
        self._has_turn = True
        self._timer = asyncio.get_running_loop().call_later(LEND_AFTER_SEC, self._give_up)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        self._give_up()

    async def take_back(self) -> None:
        """The site answers: from here on the request has its turn to the end."""
        self._timer.cancel()
        if not self._has_turn:
            await self._turns.acquire()
            self._has_turn = True

    def _give_up(self) -> None:
        if self._has_turn:
            self._has_turn = False
            self._turns.release()
