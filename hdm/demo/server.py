"""The web server of the scenes, a process of its own: `hdm.demo.site` starts it, and it ends when
its standard input closes.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter

from aiohttp import web

from hdm.acquisition.settings import ScenesSettings
from hdm.demo.faults import Item, file_bytes, plan

LOOPBACK = "127.0.0.1"
SLOW_SEC = 0.6


class Pages:
    """What the site answers to each request; a picture is drawn when it is asked for."""

    def __init__(self, settings: ScenesSettings) -> None:
        self.settings = settings
        self.items = plan(settings)
        self.by_path = {item.path: item for item in self.items}
        self.asked: Counter[str] = Counter()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/robots.txt":
            return web.Response(text="User-agent: *\nAllow: /\n")
        item = self.by_path.get(request.path)
        if item is None or item.fault == "missing":
            return web.Response(status=404, text="There is no such picture.\n")
        self.asked[item.path] += 1
        # Only first requests misbehave, so a client that retries gets the same pictures in every
        # run.
        first = self.asked[item.path] == 1
        if item.manner == "busy" and first:
            return web.Response(status=503, text="Too many visitors, try again.\n")
        if item.manner == "slow" and first:
            await asyncio.sleep(SLOW_SEC)
        data = file_bytes(item, self.settings, self.items)
        if item.fault == "cut_off" or (item.manner == "cut_once" and first):
            return await _cut_off(request, data)
        return web.Response(body=data, content_type=_content_type(item))


def _content_type(item: Item) -> str:
    """By the name, as sites do, whatever the bytes are."""
    return "image/png" if item.path.endswith("png") else "image/jpeg"


async def _cut_off(request: web.BaseRequest, data: bytes) -> web.StreamResponse:
    response = web.StreamResponse(
        headers={"Content-Length": str(len(data)), "Content-Type": "image/jpeg"}
    )
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    if request.transport is not None:
        request.transport.close()  # after what is buffered
    return response


async def _serve(settings: ScenesSettings) -> None:
    runner = web.ServerRunner(
        web.Server(Pages(settings).answer, access_log=None), shutdown_timeout=1.0
    )
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0, backlog=512).start()
    print(runner.addresses[0][1], flush=True)
    # Returns when the parent closes the pipe or dies.
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    # Both signals may reach the whole process group, but the download may still need this server
    # to finish its work. The server ends when its input closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_serve(ScenesSettings.model_validate_json(sys.stdin.readline())))
