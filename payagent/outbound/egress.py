"""Decide where a request to a merchant may connect to: a public name never leads into a private network.

A name is resolved once and its addresses are checked. The connection goes to a checked address. So DNS rebinding
cannot direct a request to this machine or its neighbours. This module also holds the TLS trust store.
May import: core, h11_patch, httpx and httpcore (the client of this room).
Never: connects to an address that it did not check.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpcore
import httpx

from payagent import h11_patch
from payagent.core.bounds import ANSWER_MAX_BYTES
from payagent.core.problems import Refused

h11_patch.patch_h11()

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host to addresses, in the order to try. Raises OSError if there are none."""

_READ_BYTES = 8 * 1024
"""Bytes read before other tasks get their turn. An answer in one-byte chunks would otherwise block them."""

_ANSWER_BYTES = 2 * ANSWER_MAX_BYTES
"""The most bytes of an answer with its head and chunk framing. An answer of framing alone must end too."""

_UNICAST = IPv6Network("2000::/3")  # all global unicast addresses in use (RFC 4291, IANA)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215


def trusted() -> ssl.SSLContext:
    """The TLS trust store, as httpx configures it ($SSL_CERT_FILE, $SSL_CERT_DIR).

    The process has one: loading the certificates takes 25 ms and a megabyte. Refused `config_invalid` if they
    cannot be read.
    """
    return _trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _trusted(file: str | None, _folder: str | None) -> ssl.SSLContext:
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise Refused("config_invalid", f"$SSL_CERT_FILE names {file}: {reason}") from None
    context.set_alpn_protocols(["http/1.1"])  # the only protocol used; httpcore sets the same for its own calls
    return context


class SystemLookup:
    """The machine's resolver, with one lookup per host and port at a time.

    A lookup holds one of a few threads until it ends, even if its caller gave up. A host whose name servers do not
    answer must not hold all threads and block other lookups.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, int], asyncio.Task[Sequence[str]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        key = (host, port)
        lookup_task = self._under_way.get(key)
        if lookup_task is None:
            lookup_task = self._under_way[key] = asyncio.create_task(_looked_up(host, port))
            lookup_task.add_done_callback(partial(self._end, key))
        await asyncio.wait((lookup_task,))
        return lookup_task.result()

    def _end(self, key: tuple[str, int], lookup_task: asyncio.Task[Sequence[str]]) -> None:
        del self._under_way[key]
        if not lookup_task.cancelled():
            lookup_task.exception()  # read it, because all callers may have given up


async def _looked_up(host: str, port: int) -> Sequence[str]:
    addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in addresses))


def is_public(address: str) -> bool:
    """Whether an address is on the public internet. An embedded IPv4 address must be public too."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip in _NAT64_LOCAL:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:  # Python calls site-local and IPv4-compatible addresses global
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_loopback(address: str) -> bool:
    return ip_address(address).is_loopback


def _is_address(host: str) -> bool:
    """Whether the host is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Egress:
    """Decides which addresses a request may reach.

    `private_hosts` are the names that the operator allows to resolve into a private network.
    """

    private_hosts: frozenset[str] = frozenset()
    lookup: Lookup = field(default_factory=SystemLookup)

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Resolve a merchant's host to the addresses a request may reach. Raises OSError like the lookup.

        Refused: `merchant_in_private_network` if any address is not public (for localhost: not loopback).
        One bad address is enough, because an attacker who can add an address to the answer can have it used. A
        literal IP address is allowed as it is, because it comes from the operator's config.
        """
        if _is_address(host):
            return (host,)
        addresses = await self.lookup(host, port)
        is_allowed = is_loopback if host == "localhost" else is_public
        stray = next((address for address in addresses if not is_allowed(address)), None)
        if stray is not None and host not in self.private_hosts:
            raise Refused("merchant_in_private_network", f"{host} resolves to {stray}", sent=False)
        return addresses

    def transport(self) -> httpx.AsyncHTTPTransport:
        """An httpx transport that connects only where `addresses` allows."""
        return _Transport(self)


class _Transport(httpx.AsyncHTTPTransport):
    def __init__(self, egress: Egress) -> None:
        super().__init__(verify=trusted())
        # httpx has no argument for httpcore's network_backend. The other values are httpx's defaults.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Backend(egress),
        )


class _Backend(httpcore.AsyncNetworkBackend):
    """Connects to checked addresses. TLS starts later and verifies the name, not the address."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        try:
            async with asyncio.timeout(timeout):
                for address in await self._egress.addresses(host, port):
                    try:
                        return _Stream(
                            await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
                        )
                    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                        failed = error
        except TimeoutError:
            failed = httpcore.ConnectTimeout(f"no connection to {host}")
        except OSError as error:
            failed = httpcore.ConnectError(str(error))
        raise failed

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that reads in small pieces, and a limited total for each request."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left_bytes = _ANSWER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left_bytes <= 0:
            raise httpcore.ReadError("the answer does not end")
        data = await self._stream.read(min(max_bytes, _READ_BYTES), timeout)
        self._left_bytes -= len(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._left_bytes = _ANSWER_BYTES
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
