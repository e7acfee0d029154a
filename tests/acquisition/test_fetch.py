"""What the downloader makes of a web that misbehaves: one word, bounded bytes and seconds, no
connection to where it must not go.
"""

import asyncio
import gzip
import ipaddress
import socket
import threading
import time
from email.utils import formatdate

import pytest
from aiohttp.abc import AbstractResolver
from yarl import URL

from hdm.acquisition.addresses import Addresses, is_public
from hdm.acquisition.fetch import MAX_WAIT_SEC, Fetcher, _retry_after
from hdm.acquisition.items import Unreadable
from hdm.acquisition.settings import DownloadSettings
from tests.acquisition.misbehaving import dripping, endless, http, png

HOST = "pictures.test"
OTHER = "other.test"


def fetch(server, url, **settings):
    """The body, or the status word."""
    return fetch_all(server, [url], **settings)[0]


def fetch_all(server, urls, **settings):
    limits = DownloadSettings(
        **{"allow_loopback": True, "retries": 1, "timeout_sec": 5, **settings}
    )

    messages = []

    async def one(fetcher, url):
        try:
            return await fetcher.fetch(url if "://" in url else f"http://{HOST}{url}")
        except Unreadable as refusal:
            messages.append(refusal.message)
            return refusal.status

    async def everything():
        place = ("127.0.0.1", server.port)
        async with Fetcher(limits, {HOST: place, OTHER: place}) as fetcher:
            return await asyncio.gather(*(one(fetcher, url) for url in urls))

    found = asyncio.run(everything())
    assert not [
        said
        for said in messages
        if str(server.port) in said or "127.0.0.1" in said or " at 0x" in said
    ]
    return found


def test_a_picture_comes_as_it_is(server):
    server.pages["/a.png"] = http(png())
    assert fetch(server, "/a.png") == png()


@pytest.mark.parametrize(
    "status",
    ["404 Not Found", "403 Forbidden", "410 Gone", "204 No Content", "206 Partial Content"],
)
def test_other_answers_are_named_by_their_number_and_not_repeated(server, status):
    server.pages["/a.png"] = http(png() if status[:3] != "204" else b"", status)
    assert fetch(server, "/a.png") == f"http_{status[:3]}"
    assert server.asked["/a.png"] == 1


@pytest.mark.parametrize("status", ["503 Busy", "500 Oops", "429 Slow down"])
def test_a_busy_site_is_asked_again(server, status):
    server.pages["/a.png"] = lambda c: c.wfile.write(
        http(png()) if c.number > 1 else http(b"", status, Retry_After="0")
    )
    assert fetch(server, "/a.png") == png()
    assert server.asked["/a.png"] == 2


def test_a_site_that_stays_busy_is_left_alone_after_the_set_tries(server):
    server.pages["/a.png"] = http(b"", "503 Busy")
    assert fetch(server, "/a.png", retries=2) == "http_503"
    assert server.asked["/a.png"] == 3


def test_waiting_as_the_site_asks():
    assert _retry_after("7") == 7
    assert 50 < _retry_after(formatdate(time.time() + 60, usegmt=True)) <= 61
    assert _retry_after(formatdate(time.time() - 60, usegmt=True)) == 0
    assert _retry_after("tomorrow") == _retry_after(None) == 0
    assert min(_retry_after("99999999999"), MAX_WAIT_SEC) == MAX_WAIT_SEC


def test_an_answer_that_asks_for_less_rest_does_not_shorten_it(server):
    times = {}
    asked_for_rest = threading.Event()

    def slow(connection):
        if connection.number == 1:
            times["asked"] = time.monotonic()
            connection.wfile.write(http(b"", "429 Slow down", Retry_After="1"))
            asked_for_rest.set()
        else:
            connection.wfile.write(http(png()))

    def hasty(connection):
        if connection.number == 1:
            asked_for_rest.wait()
            time.sleep(0.1)  # the other answer arrives first
            connection.wfile.write(http(b"", "429 Slow down"))
        else:
            times["again"] = time.monotonic()
            connection.wfile.write(http(png()))

    server.pages |= {"/slow.png": slow, "/hasty.png": hasty}
    assert fetch_all(server, ["/slow.png", "/hasty.png"]) == [png(), png()]
    assert times["again"] - times["asked"] >= 1


def hang(connection):
    """No answer, until the other side hangs up."""
    connection.rfile.read()


def beside_good_pages(server, answer, count):
    """URLs of another host that all get one answer, each followed by one of a good picture."""
    urls = []
    for number in range(count):
        server.pages[f"/good/{number}.png"] = http(png())
        server.pages[f"/other/{number}.png"] = answer
        urls += [f"http://{OTHER}/other/{number}.png", f"/good/{number}.png"]
    return urls


def asked_of_other(server):
    return sum(count for page, count in server.asked.items() if page.startswith("/other/"))


@pytest.mark.parametrize(
    ("answer", "status"),
    [(hang, "timeout"), (http(b"", "429 Slow down", Retry_After="3600"), "http_429")],
)
def test_a_silent_host_holds_up_no_other(server, answer, status):
    urls = beside_good_pages(server, answer, 100)
    found = fetch_all(server, urls, retries=1, timeout_sec=1, concurrency=8)
    assert found[1::2] == [png()] * 100
    assert set(found[::2]) <= {"silent_host", status}
    assert found.count("silent_host") >= 50
    assert asked_of_other(server) < 50  # of 200 attempts


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http(png(), Content_Length="1000000000"), "too_large"),
        (http(b"", "302 Found", Location=""), "bad_redirect"),
        (lambda one: one.wfile.write(http(b"", "302 F", Location=one.path)), "too_many_redirects"),
    ],
)
def test_an_answer_that_is_refused_is_an_answer(server, answer, status):
    """Whoever gives it is not silent, and the network is there."""
    urls = beside_good_pages(server, hang, 40)
    server.pages |= dict.fromkeys(urls[1::2], answer)
    found = fetch_all(server, urls, retries=1, timeout_sec=0.5, concurrency=8)
    assert found[1::2] == [status] * 40
    assert "silent_host" in found


def test_connections_that_wait_do_not_take_the_turns_of_others(server):
    """The first pages answer once all others were asked for, and there are two turns."""
    others = [f"/good/{number}.png" for number in range(10)]
    asked = []
    all_asked = threading.Event()

    def waits(connection):
        all_asked.wait()
        connection.wfile.write(http(png()))

    def good(connection):
        connection.wfile.write(http(png()))
        asked.append(connection.path)
        if len(asked) == len(others):
            all_asked.set()

    server.pages |= {"/first.png": waits, "/second.png": waits} | dict.fromkeys(others, good)
    urls = [f"http://{OTHER}/first.png", f"http://{OTHER}/second.png", *others]
    found = fetch_all(server, urls, retries=0, timeout_sec=20, concurrency=2)
    assert found == [png()] * 12


def test_without_another_host_nobody_is_given_up(server):
    urls = [url for url in beside_good_pages(server, hang, 20) if OTHER in url]
    assert fetch_all(server, urls, retries=1, timeout_sec=0.2, concurrency=8) == ["timeout"] * 20


def test_a_host_that_answers_again_is_asked_again(server):
    awake = threading.Event()
    urls = beside_good_pages(
        server, lambda c: c.wfile.write(http(png())) if awake.is_set() else hang(c), 30
    )
    settings = DownloadSettings(allow_loopback=True, retries=0, timeout_sec=0.5, concurrency=8)

    async def status(fetcher, url):
        try:
            await fetcher.fetch(url if "://" in url else f"http://{HOST}{url}")
        except Unreadable as refusal:
            return refusal.status
        return "ok"

    async def everything():
        place = ("127.0.0.1", server.port)
        async with Fetcher(settings, {HOST: place, OTHER: place}) as fetcher:
            before = await asyncio.gather(*(status(fetcher, url) for url in urls))
            awake.set()
            while await status(fetcher, urls[0]) == "silent_host":
                await asyncio.sleep(0.05)
            return before, await asyncio.gather(*(status(fetcher, url) for url in urls))

    before, after = asyncio.run(everything())
    assert "silent_host" in before
    assert after == ["ok"] * 60


@pytest.mark.parametrize("first", [b"", http(png(), Content_Length="9000"), http(png())[:60]])
def test_a_connection_that_breaks_is_tried_again(server, first):
    """Closed before the answer, within the body, within the head."""
    server.pages["/a.png"] = lambda c: c.wfile.write(http(png()) if c.number > 1 else first)
    assert fetch(server, "/a.png") == png()


def test_a_body_that_always_ends_early(server):
    server.pages["/a.png"] = http(png(), Content_Length="9000")
    assert fetch(server, "/a.png") == "cut_off"
    assert server.asked["/a.png"] == 2


def test_an_endless_body_is_hung_up_on(server):
    server.pages["/a.png"] = endless
    assert fetch(server, "/a.png", max_bytes=300_000) == "too_large"
    assert server.hung_up.wait(5)


def test_a_length_above_the_limit_is_believed(server):
    server.pages["/a.png"] = http(b"", Content_Length="99999999999")
    assert fetch(server, "/a.png", max_bytes=300_000) == "too_large"


def test_a_compression_bomb_is_unpacked_no_further_than_the_limit(server):
    bomb = gzip.compress(bytes(200_000_000), 9)
    server.pages["/a.png"] = http(bomb, Content_Encoding="gzip")
    assert fetch(server, "/a.png", max_bytes=1_000_000) == "too_large"


def test_honest_and_broken_compression(server):
    server.pages |= {
        "/a.png": http(gzip.compress(png()), Content_Encoding="gzip"),
        "/b.png": http(png(), Content_Encoding="gzip"),
    }
    assert fetch_all(server, ["/a.png", "/b.png"]) == [png(), "bad_encoding"]


def test_one_byte_at_a_time_ends_in_time(server):
    server.pages["/a.png"] = dripping
    assert fetch(server, "/a.png", timeout_sec=0.3, retries=0) == "timeout"


def test_what_is_not_http(server):
    server.pages["/a.png"] = b"SSH-2.0-OpenSSH_9.9\r\n\r\n"
    assert fetch(server, "/a.png") == "bad_answer"


def test_nobody_listens(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
    assert fetch(server, url) == "no_connection"


# Where a download may not go


@pytest.mark.parametrize(
    ("location", "status"),
    [
        ("http://127.0.0.1:{port}/inner.png", "refused_address"),
        ("http://localhost:{port}/inner.png", "refused_address"),
        ("http://[::1]:{port}/inner.png", "refused_address"),
        ("http://[::ffff:127.0.0.1]:{port}/inner.png", "refused_address"),
        ("http://2130706433:{port}/inner.png", "refused_address"),
        ("http://0x7f.1:{port}/inner.png", "refused_address"),
        ("http://017700000001:{port}/inner.png", "refused_address"),
        ("http://169.254.169.254/latest/meta-data", "refused_address"),
        ("http://10.0.0.1/", "refused_address"),
        ("file:///etc/passwd", "refused_scheme"),
        ("ftp://example.org/a.png", "refused_scheme"),
        ("data:image/png;base64,AAAA", "refused_scheme"),
        ("http://user:secret@pictures.test/inner.png", "refused_credentials"),
        ("/loop.png", "too_many_redirects"),
        ("", "bad_redirect"),
        ("http://[", "bad_redirect"),
    ],
)
def test_redirects_that_are_refused(server, location, status):
    server.pages["/inner.png"] = http(png())
    server.pages["/loop.png"] = http(b"", "302 Found", Location=location.format(port=server.port))
    assert fetch(server, "/loop.png") == status
    assert server.asked["/inner.png"] == 0


def test_redirects_within_the_site_are_followed(server):
    server.pages |= {
        "/a.png": http(b"", "301 Moved", Location="/b.png"),
        "/b.png": http(b"moved", "307 Moved", Location=f"http://{HOST}/c.png"),
        "/c.png": http(png()),
    }
    assert fetch(server, "/a.png") == png()


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}/a.png", "http://localhost:{port}/a.png", f"http://{HOST}/a.png"],
)
def test_this_machine_is_reached_by_permission_alone(server, url):
    server.pages["/a.png"] = http(png())
    url = url.format(port=server.port)
    assert fetch(server, url) == png()
    refused = fetch(server, url, allow_loopback=False)
    assert refused in ("refused_address", "unknown_host")
    assert server.asked["/a.png"] == 1


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("file:///etc/passwd", "refused_scheme"),
        ("gopher://x/", "refused_scheme"),
        ("http://user@pictures.test/", "refused_credentials"),
        ("http://192.168.1.1/", "refused_address"),
        ("http://[fe80::1]/", "refused_address"),
        ("http://0.0.0.0/", "refused_address"),
        ("http://", "bad_url"),
        ("http://[", "bad_url"),
        ("http://" + "a" * 300 + ".test/", "bad_url"),
        ("http://pictures.test:99999/", "bad_url"),
    ],
)
def test_urls_that_are_refused(server, url, status):
    assert fetch(server, url) == status


class Names(AbstractResolver):
    """A name server that gives its answers one after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)

    async def close(self):
        pass

    async def resolve(self, host, port=0, family=0):
        return [
            dict(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.answers.pop(0)
        ]


def test_a_name_that_turns_private_gains_nothing():
    names = Names(["93.184.216.34"], ["127.0.0.1"], ["10.0.0.1", "93.184.216.34"])
    addresses = Addresses(allow_loopback=True, hosts={}, names=names)
    assert [found["host"] for found in asyncio.run(addresses.resolve("rebinding.test", 80))] == [
        "93.184.216.34"
    ]
    with pytest.raises(Unreadable, match="refused_address"):
        asyncio.run(addresses.resolve("rebinding.test", 80))
    # Of a mixed answer the public part alone is connected to.
    assert [found["host"] for found in asyncio.run(addresses.resolve("rebinding.test", 80))] == [
        "93.184.216.34"
    ]


def test_names_that_are_looked_up_long_do_not_hold_up_others(server, monkeypatch):
    def look_up(host, port, *_, **__):
        if host == "quick.test":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        time.sleep(1)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    urls = [f"http://slow-{number}.test/" for number in range(100)]
    found = fetch_all(server, [*urls, "http://quick.test/"], retries=0, concurrency=128)
    assert found == ["unknown_host"] * 100 + ["refused_address"]


def test_a_site_on_this_machine_cannot_name_another_one():
    addresses = Addresses(allow_loopback=True, hosts={"inner.test": ("192.168.0.7", 80)})
    with pytest.raises(Unreadable, match="refused_address"):
        asyncio.run(addresses.resolve("inner.test", 80))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1",
        "2606:4700::5efe:8.8.8.8",
    ],
)  # fmt: skip
def test_public_addresses(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::",
        "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::",
        # IPv4 addresses in forms for one network's own use: compatible, translated, NAT64, ISATAP.
        "::127.0.0.1", "::8.8.8.8", "::ffff:0:127.0.0.1", "64:ff9b:1::7f00:1",
        "64:ff9b:1:fffe::10.0.0.1", "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1",
        "2002:808:808::5efe:192.168.0.1", "fe80::5efe:8.8.8.8", "100::1", "ff0e::1", "4000::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(ipaddress.ip_address(address))


def test_a_redirect_keeps_to_the_listed_host_and_port():
    addresses = Addresses(allow_loopback=True, hosts={})
    listed = URL("http://127.0.0.1:8000/a")
    addresses.check(URL("http://127.0.0.1:8000/b"), listed)
    with pytest.raises(Unreadable):
        addresses.check(URL("http://127.0.0.1:22/"), listed)
