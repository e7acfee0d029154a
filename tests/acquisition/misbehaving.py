"""A web server on loopback that answers exactly the bytes it is told to, and misbehaves on
demand.
"""

import io
import socketserver
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache

from PIL import Image

Answer = bytes | Callable[["Connection"], None]


@cache
def png(seed: int = 0, width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").rotate(seed * 7).resize((width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and ends there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IDAT"
    )


def http(body: bytes = b"", status: str = "200 OK", **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): text for name, text in headers.items()}
    head = [
        f"HTTP/1.1 {status}",
        *(f"{name}: {text}" for name, text in fields.items() if text),
        "",
        "",
    ]
    return "\r\n".join(head).encode() + body


class Connection(socketserver.StreamRequestHandler):
    """One request; then the connection closes."""

    server: "Site"

    def handle(self) -> None:
        self.path = self.rfile.readline().split(b" ")[1].decode()
        while self.rfile.readline().strip():
            pass
        with self.server.counting:
            self.server.asked[self.path] += 1
            self.number = self.server.asked[self.path]
        reply = self.server.pages.get(self.path, http(b"no such page", "404 Not Found"))
        try:
            if isinstance(reply, bytes):
                self.wfile.write(reply)
            else:
                reply(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()


class Site(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Connection)
        self.pages: dict[str, Answer] = {}
        self.asked: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.hung_up = threading.Event()

    @property
    def port(self) -> int:
        return self.server_address[1]


def endless(connection: Connection) -> None:
    """A body that never ends, until the other side hangs up."""
    connection.wfile.write(http(Content_Length=""))
    while True:
        connection.wfile.write(b"x" * 65536)


def dripping(connection: Connection) -> None:
    connection.wfile.write(http(Content_Length="100000"))
    while True:
        connection.wfile.write(b"x")
        time.sleep(0.05)
