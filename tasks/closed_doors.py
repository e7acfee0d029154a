"""Let only their own pages speak to the servers on this machine."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ANY_PORT = ":*"
FRAME = (b"x-frame-options", b"SAMEORIGIN")


class OwnPagesOnly:
    """Refuses requests and websockets that a browser sends for a page of another origin, and
    forbids other sites to show these pages in frames.

    Args:
        app: answers the other requests. Programs other than browsers send no `Origin`.
        pages: the allowed origins, such as `http://127.0.0.1:4200`, or `https://images.example:*`
            for any port.
    """

    def __init__(self, app: ASGIApp, pages: Sequence[str]) -> None:
        self.app = app
        self.pages = frozenset(page.lower() for page in pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unframed(message: Message) -> None:
            if message["type"] == "http.response.start":
                # An application's own header may allow more.
                others = [pair for pair in message["headers"] if pair[0].lower() != FRAME[0]]
                message = {**message, "headers": [*others, FRAME]}
            await send(message)

        # Browsers apply no same-origin policy to websockets, so servers have to.
        if scope["type"] in ("http", "websocket"):
            # All of them: a second header must not hide a foreign first one.
            origins = Headers(scope=scope).getlist("origin")
            if not all(self._is_own(origin.lower()) for origin in origins):
                await PlainTextResponse("foreign origin", status_code=403)(scope, receive, send)
                return
        await self.app(scope, receive, send_unframed)

    def _is_own(self, origin: str) -> bool:
        host, _, port = origin.rpartition(":")
        return origin in self.pages or (port.isdecimal() and host + ANY_PORT in self.pages)
