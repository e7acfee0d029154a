"""What hosts that hang cost a download, against the same list without their URLs."""

from __future__ import annotations

import argparse
import asyncio
import io
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import add_number, parser_of

from hdm.acquisition import download
from hdm.acquisition.settings import DownloadSettings
from hdm.config import Pipeline
from hdm.store import Store

EXPLANATION = """\
Lists of URLs that lead to this machine, on whose site some hosts take connections and say nothing:
  third   a third of 600 URLs on one such host
  many    40 of 4,000 URLs, each on such a host of its own, in shards of 100

Each is downloaded by turns with and without the URLs that hang, with attempts of 2 s and one retry.
Printed: the medians, in seconds, and the longest that the attempts of one URL take.

Examples:
  python bench/hosts.py
"""
TIMEOUT_SEC = 2.0
RETRIES = 1


def main() -> None:
    parser = parser_of(__doc__, EXPLANATION)
    add_number(parser, "--rounds", 3)
    given: argparse.Namespace = parser.parse_args()
    logging.disable(logging.WARNING)
    ports: multiprocessing.Queue[int] = multiprocessing.Queue()
    site = multiprocessing.Process(target=serve, args=(ports,), daemon=True)
    site.start()
    port = ports.get()
    # Every address of 127.0.0.0/8 is this machine, and so a host.
    good = [f"http://127.0.0.1:{port}/{number}.png" for number in range(4000)]
    one = [f"http://127.0.0.2:{port}/hang/{number}" for number in range(200)]
    many = [f"http://127.0.1.{number + 1}:{port}/hang/{number}" for number in range(40)]
    print(f"attempts of one URL: {TIMEOUT_SEC * (RETRIES + 1):.1f} s")
    compare("third", good[:400], one, 1000, given.rounds)
    compare("many", good[:3960], many, 100, given.rounds)
    site.terminate()


def compare(name: str, good: list[str], hanging: list[str], shard_items: int, rounds: int) -> None:
    mixed = []
    step = len(good) // len(hanging)
    for number, url in enumerate(hanging):
        mixed += [url, *good[number * step : (number + 1) * step]]
    taken: dict[str, list[float]] = {"without": [], "with": []}
    for _ in range(rounds):
        taken["without"].append(seconds(good, shard_items))
        taken["with"].append(seconds(mixed, shard_items))
    without, with_them = (statistics.median(times) for times in taken.values())
    print(f"{name:6}  without {without:.1f} s  with {with_them:.1f} s")


def seconds(urls: Iterable[str], shard_items: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "list.txt"
        source.write_text("\n".join(urls))
        settings = DownloadSettings(
            kind="urls",
            source=str(source),
            allow_loopback=True,
            timeout_sec=TIMEOUT_SEC,
            retries=RETRIES,
            shard_items=shard_items,
        )
        pipeline = Pipeline(name="hosts", download=settings, threads=1)
        identity = download.identify(pipeline, {})
        begun = time.perf_counter()
        download.make(pipeline, identity, {}, Store(Path(folder) / "store"))
        return time.perf_counter() - begun


def serve(ports: multiprocessing.Queue[int]) -> None:
    """Answer every request with one picture, but those for /hang/ never."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, "PNG")
    body = buffer.getvalue()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        if b"/hang/" in request:
            await reader.read()
        else:
            writer.write(head + body)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "0.0.0.0", 0, backlog=1000)
        ports.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


if __name__ == "__main__":
    main()
