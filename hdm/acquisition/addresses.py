"""Allow downloads to connect to public addresses only, checked where the connection is made.

A URL's host is looked up once, here, and the connection goes to the very address that was checked.
A name that resolves to a public address first and a private one later (DNS rebinding) gains
nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from hdm.acquisition.items import Unreadable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# RFC 6052: IPv4 addresses behind this prefix are reached through a gateway.
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# All that IANA gives out. Beyond it lie forms of IPv4 addresses for one network's own use
# (::127.0.0.1, ::ffff:0:127.0.0.1, 64:ff9b:1::/48), some of which Python counts as global.
GIVEN_OUT = ipaddress.ip_network("2000::/3")
# RFC 5214: before an IPv4 address in the last half, whatever the network.
ISATAP = (0x00005EFE, 0x02005EFE)
LOCALHOST = "localhost"


def is_public(address: Address) -> bool:
    """Whether an address, and every IPv4 address embedded in it, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        embedded = list(filter(None, [address.ipv4_mapped, address.sixtofour]))
        embedded += address.teredo or ()
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if (int(address) >> 32) & 0xFFFFFFFF in ISATAP and not is_public(last):
            return False
        if address in NAT64:  # the gateway connects to it
            embedded.append(last)
        # The registry does not list these forms as global, so only the embedded addresses decide.
        if embedded:
            return all(map(is_public, embedded))
        return address in GIVEN_OUT and address.is_global
    # Python counts multicast addresses as global.
    return address.is_global and not address.is_multicast


def refuse_address() -> Unreadable:
    """The refusal of a host that is not on the public internet. It names no address, since these
    change from run to run.
    """
    return Unreadable("refused_address", "the host is not on the public internet")


class Addresses(AbstractResolver):
    """Resolves names and refuses addresses that are not public.

    Args:
        allow_loopback: allow the hosts below, and URLs that name this machine, to lead to it.
        hosts: host name → (loopback address, port).
        names: resolver to use; None: the system's.
    """

    def __init__(
        self,
        allow_loopback: bool,
        hosts: Mapping[str, tuple[str, int]],
        names: AbstractResolver | None = None,
    ) -> None:
        self.allow_loopback = allow_loopback
        self.hosts = dict(hosts) if allow_loopback else {}
        self._names = names

    def check(self, url: URL, listed: URL) -> None:
        """Refuse a URL that is not allowed, as far as that is known before resolving its host.

        Args:
            url: the URL, or one that it redirects to.
            listed: the URL as listed; a redirect may lead to this machine only within the same host
                and port.

        Raises:
            Unreadable: it is refused.
        """
        # Also asked of every redirect: file:, data: and the like never reach aiohttp.
        if url.scheme not in ("http", "https"):
            raise Unreadable("refused_scheme", "only http and https are fetched")
        if url.user is not None or url.password is not None:
            raise Unreadable("refused_credentials", "the URL holds a user name or password")
        # A trailing dot names the same host.
        host = (url.raw_host or "").rstrip(".")
        if not host:
            raise Unreadable("bad_url", "the URL has no host")
        at_home = self.allow_loopback and url.origin() == listed.origin()
        if host == LOCALHOST and not at_home:
            raise refuse_address()
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            if _is_disguised(host):
                raise refuse_address() from None
            return  # a name, about which `resolve` decides
        if not is_public(address) and not (address.is_loopback and at_home):
            raise refuse_address()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The checked addresses of a name.

        Raises:
            Unreadable: none of them is public.
            OSError: the name is not known.
        """
        name = host.rstrip(".")
        # This machine's own sites: their port changes from run to run, but URLs, of which keys are
        # made, hold none.
        if name in self.hosts:
            address, port = self.hosts[name]
            if not ipaddress.ip_address(address).is_loopback:
                raise refuse_address()
            return [
                ResolveResult(
                    hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
                )
            ]
        # Not in the constructor: aiohttp's resolver has to be made inside a running loop.
        self._names = self._names or ThreadedResolver()
        results = await self._names.resolve(host, port, family)
        allowed = []
        for result in results:
            # Without the zone of a link-local address (fe80::1%eth0).
            address_text, _, _ = result["host"].partition("%")
            if self._allowed(name, ipaddress.ip_address(address_text)):
                allowed.append(result)
        if not allowed:
            raise refuse_address()
        return allowed

    def _allowed(self, name: str, address: Address) -> bool:
        return is_public(address) or (
            self.allow_loopback and name == LOCALHOST and address.is_loopback
        )

    async def close(self) -> None:
        if self._names:
            await self._names.close()


def _is_disguised(host: str) -> bool:
    """Whether a host is an address in a form that only the system accepts: 127.1, 2130706433,
    0x7f000001, 017700000001.
    """
    try:
        socket.inet_aton(host)
    except OSError:
        return False
    return True
