"""Fetch pictures from the web with bounded bytes and seconds and polite retries, and reduce every
failure to one status word.
"""

from __future__ import annotations

import asyncio
import email.utils
import socket
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError
from yarl import URL

from hdm.acquisition.addresses import Addresses
from hdm.acquisition.items import Unreadable, too_large
from hdm.acquisition.opt_outs import AGENT, is_opted_out
from hdm.acquisition.settings import DownloadSettings
from hdm.acquisition.silence import ENOUGH, Silences
from hdm.acquisition.slots import Slot
from hdm.closing import Closing

T = TypeVar("T")
MAX_REDIRECTS = 5
MAX_WAIT_SEC = 60.0  # even if a site asks for a longer wait
FIRST_WAIT_SEC = 0.25  # doubled at each further retry
PER_HOST = ENOUGH  # concurrent requests to one host of the web
WAITING = 8  # connections, as a multiple of the requests at once, that may wait for their sites
LOOK_SEC = 1.0  # how often those that wait look whether their host is given up

REDIRECTS = frozenset({301, 302, 303, 307, 308})
BUSY = frozenset({408, 429, 500, 502, 503, 504})
SLOW_DOWN = "http_429"
PASSING = frozenset(
    {"timeout", "cut_off", "no_connection", "unknown_host", "silent_host"}
) | frozenset(f"http_{code}" for code in BUSY)
"""Statuses of failures that may be temporary."""
UNWANTED = frozenset({"opted_out", "too_large", "bad_redirect", "too_many_redirects"})
"""Statuses of answers that we refuse."""
UNWANTED = frozenset({"opted_out", "too_large", "bad_redirect", "too_many_redirects"})
"""Statuses of answers that we refuse."""

HEADERS = {
    "User-Agent": AGENT,
    "Accept": "image/*,*/*;q=0.5",
    # Pictures are compressed already. If a site compresses all the same, `_body` counts what it
    # expands to.
    "Accept-Encoding": "identity",
}


class _Busy(Exception):  # noqa: N818  (a request to come again)
    """A failure after which a retry may succeed, and the least time to wait before it."""

    def __init__(self, verdict: Unreadable, wait_sec: float = 0.0) -> None:
        super().__init__(verdict)
        self.verdict = verdict
        self.wait_sec = wait_sec


class Fetcher:
    """An HTTP client for pictures. Use it in an `async with` block.

    Args:
        settings: limits, retries, and whether this machine may be reached.
        hosts: names of this machine's own sites (see `Site`).
        respects_opt_outs: whether pictures are refused whose sites ask for that by X-Robots-Tag.
    """

    def __init__(
        self,
        settings: DownloadSettings,
        hosts: Mapping[str, tuple[str, int]],
        respects_opt_outs: bool = False,
    ) -> None:
        self.settings = settings
        self.respects_opt_outs = respects_opt_outs
        self._addresses = Addresses(settings.allow_loopback, hosts)
        self._slots = asyncio.Semaphore(settings.concurrency)
        # Those that wait for their sites have no slot, but each is an open file.
        self._connections = asyncio.Semaphore(WAITING * settings.concurrency)
        # Politeness is for the web, not for this machine's own sites.
        self._per_host = settings.concurrency if self._addresses.hosts else PER_HOST
        # Weak, so that memory does not grow with the number of hosts.
        self._host_slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._not_before: dict[str, float] = {}
        self._silences = Silences(
            (settings.retries + 1) * settings.timeout_sec, settings.timeout_sec
        )

    async def __aenter__(self) -> Fetcher:
        # Names are looked up in threads of the loop. Its own few would let a list's dead names hold
        # up the others until their time is over; a lookup may outlast its request's time.
        lookups = ThreadPoolExecutor(2 * self.settings.concurrency, thread_name_prefix="lookup")
        asyncio.get_running_loop().set_default_executor(lookups)
        # Connections go only to addresses that this resolver has checked, so that a name cannot
        # lead to a public address first and to a private one later.
        connector = aiohttp.TCPConnector(resolver=self._addresses, limit=0, ttl_dns_cache=300)
        # Without cookies: an answer must not depend on earlier ones. Without a limit of the
        # connector's own: the semaphores below limit requests.
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,  # a proxy would resolve names itself, past the check of addresses
            timeout=aiohttp.ClientTimeout(),  # none: `_try` limits the whole attempt
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        await self._addresses.close()

    async def fetch(self, address: str) -> bytes:
        """The body to which a URL leads.

        Raises:
            Unreadable: it cannot be fetched. Status and text depend only on what the site does, so
                that they are the same in every run.
        """
        try:
            url = URL(address)
        except ValueError as error:
            raise Unreadable("bad_url", "this is not a URL") from error
        for number in range(self.settings.retries + 1):
            try:
                return await self._try(url)
            except _Busy as busy:
                verdict = busy.verdict
                wait_sec = max(busy.wait_sec, FIRST_WAIT_SEC * 2**number)
            if number < self.settings.retries:
                # Bounded: a site may ask for an absurdly long wait.
                await self._rest(url, time.monotonic() + min(wait_sec, MAX_WAIT_SEC))
        raise verdict

    async def _try(self, url: URL) -> bytes:
        """One attempt, redirects included, within its time limit, which does not include waiting
        for a free slot.
        """
        host = _host(url)
        slots = self._host_slots.setdefault(host, asyncio.Semaphore(self._per_host))
        # The host's slot before the common one: requests that wait for a slow host leave the others
        # theirs.
        async with slots:
            # Before the common slot and outside the time limit: a host that asks for rest holds up
            # nobody else.
            await self._rest(url, self._not_before.get(host, 0.0))
            if not self._silences.may_be_asked(host):
                raise Unreadable("silent_host", "its host had not answered for long")
            async with self._connections, Slot(self._slots) as slot:
                began = time.monotonic()
                try:
                    async with asyncio.timeout(self.settings.timeout_sec):
                        body = await self._follow(url, slot)
                # First, because TimeoutError is an OSError.
                except TimeoutError as error:
                    self._silences.silent(host, began)
                    raise _Busy(Unreadable("timeout", "no whole answer in time")) from error
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    raise _explain(error) from error
                except _Busy as busy:
                    if busy.verdict.status == SLOW_DOWN:
                        self._silences.silent(host, began, busy.wait_sec > MAX_WAIT_SEC)
                    else:
                        self._silences.answered(host)
                    raise
                except Unreadable as refusal:
                    # Others are our own, before anybody was asked.
                    if refusal.status.startswith("http_") or refusal.status in UNWANTED:
                        self._silences.answered(host)
                    raise
                self._silences.answered(host)
                return body

    async def _rest(self, url: URL, until: float) -> None:
        """Wait until a moment of the monotonic clock, or until the URL's host is given up."""
        while (left_sec := until - time.monotonic()) > 0:
            if self._silences.is_given_up(_host(url)):
                return
            await asyncio.sleep(min(left_sec, LOOK_SEC))

    async def _follow(self, listed: URL, slot: Slot) -> bytes:
        url = listed
        for _ in range(MAX_REDIRECTS + 1):
            # Followed by hand, because each redirect may lead to a forbidden scheme or address.
            self._addresses.check(url, listed)
            async with self._session.get(url, allow_redirects=False) as answer:
                if answer.status not in REDIRECTS:
                    await slot.take_back()
                    return await self._body(answer)
                url = _redirected(url, answer.headers.get("Location"))
        raise Unreadable("too_many_redirects", f"more than {MAX_REDIRECTS} redirects")

    async def _body(self, answer: aiohttp.ClientResponse) -> bytes:
        if answer.status != 200:
            self._refuse(answer)
        if self.respects_opt_outs and is_opted_out(answer.headers.getall("X-Robots-Tag", ())):
            raise Unreadable("opted_out", "its site asks machines not to use it (X-Robots-Tag)")
        if (answer.content_length or 0) > self.settings.max_bytes:
            raise too_large(self.settings.max_bytes)
        # Counted again: a site may send more than it announces, or announce nothing.
        parts = []
        length = 0
        async for part in answer.content.iter_any():
            length += len(part)
            if length > self.settings.max_bytes:
                raise too_large(self.settings.max_bytes)
            parts.append(part)
        return b"".join(parts)

    def _refuse(self, answer: aiohttp.ClientResponse) -> None:
        verdict = Unreadable(f"http_{answer.status}", f"the site answered {answer.status}")
        if answer.status not in BUSY:
            raise verdict
        wait_sec = _retry_after(answer.headers.get("Retry-After"))
        if answer.status == 429:  # the whole host asks for rest
            host = _host(answer.url)
            rested = time.monotonic() + min(wait_sec, MAX_WAIT_SEC)
            # A later answer that asks for less does not shorten the rest.
            self._not_before[host] = max(rested, self._not_before.get(host, 0.0))
        raise _Busy(verdict, wait_sec)


class BlockingFetcher(Closing):
    """A `Fetcher` for readers that take one item after another. Use it in a `with` block; it starts
    at the first URL.

    Args:
        settings, hosts: as for `Fetcher`.
    """

    def __init__(self, settings: DownloadSettings, hosts: Mapping[str, tuple[str, int]]) -> None:
        self.settings = settings
        self.hosts = hosts
        self._loop: asyncio.AbstractEventLoop | None = None

    def close(self) -> None:
        if self._loop is not None:
            self._wait(self._loop, self._fetcher.__aexit__(None, None, None))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def fetch(self, address: str) -> bytes:
        """See `Fetcher.fetch`."""
        if self._loop is None:
            # In a thread of its own: the caller's thread may run a loop already, as in a notebook.
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            self._fetcher = self._wait(self._loop, self._open())
        return self._wait(self._loop, self._fetcher.fetch(address))

    async def _open(self) -> Fetcher:
        return await Fetcher(self.settings, self.hosts).__aenter__()

    @staticmethod
    def _wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()


def _host(url: URL) -> str:
    return url.host or ""


def _redirected(url: URL, location: str | None) -> URL:
    try:
        if location:
            return url.join(URL(location))
    except ValueError:
        pass
    raise Unreadable("bad_redirect", "the redirect leads to no URL")


def _retry_after(value: str | None) -> float:
    """Seconds that a site asks to wait, given as a number or a date; 0 if it does not say."""
    if value is None:
        return 0.0
    # Retry-After is a number of seconds or a date (RFC 9110).
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0


def _explain(error: Exception) -> _Busy | Unreadable:
    """Our verdict on an error of aiohttp. Its own text is never used, since it may contain
    addresses and ports, which would differ from run to run.
    """
    # From the most special class to the most general one.
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        verdict = Unreadable("unknown_host", "the host's name is not known")
        # The name server did not answer; the name may exist.
        is_temporary = getattr(error.__cause__, "errno", None) == socket.EAI_AGAIN
        return _Busy(verdict) if is_temporary else verdict
    if isinstance(error, aiohttp.ClientSSLError):
        return Unreadable("bad_tls", "the site cannot prove who it is")
    if isinstance(error, ValueError):  # among them aiohttp.InvalidURL, and names that IDNA refuses
        return Unreadable("bad_url", "this is not a URL")
    if isinstance(error, aiohttp.ClientConnectorError):
        return _Busy(Unreadable("no_connection", "the site does not take connections"))
    if isinstance(error.__cause__, ContentEncodingError):
        return Unreadable("bad_encoding", "the body's compression is damaged")
    if isinstance(error, aiohttp.ClientResponseError):
        return Unreadable("bad_answer", "the answer is not HTTP")
    return _Busy(Unreadable("cut_off", "the connection ended before the answer did"))
