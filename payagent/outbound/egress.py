"""Where a call to a merchant may go, and whom TLS trusts there: a public name never leads into a private network.

A name is looked up once, what comes is judged, and the connection goes to an address that was judged: whoever
answers for the name (DNS rebinding) can lead a call neither to this machine nor to its neighbours.
May import: core, h11_patch, httpx and httpcore (the outbound' client). Never: connects to what it did not judge.
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

from payagent import h11_patch as heads
from payagent.core.bounds import ANSWER_MAX_BYTES
from payagent.core.problems import Refused

heads.patch_h11()

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Finds the addresses of a host, in the order in which they are to be tried. Raises OSError where there are none.
"""

_READ_BYTES = 8 * 1024
"""So much of an answer is taken in before others have their turn: in chunks of a byte it keeps them waiting."""

_ANSWER_BYTES = 2 * ANSWER_MAX_BYTES
"""An answer with its head and what frames it; one of nothing but frames is not read for as long as it goes on."""

_UNICAST = IPv6Network("2000::/3")  # all of IPv6 that is given out as global unicast (RFC 4291, IANA)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215


def trusted() -> ssl.SSLContext:
    """Whom TLS trusts, as httpx has it ($SSL_CERT_FILE, $SSL_CERT_DIR).

    One for the whole process: to read the certificates takes 25 ms and a megabyte. Refused, `config_invalid`, when
    they cannot be read.
    """
    return _trusted(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@cache
def _trusted(file: str | None, _folder: str | None) -> ssl.SSLContext:
    try:
        context = httpx.create_ssl_context()
    except OSError as error:
        reason = "it holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise Refused("config_invalid", f"$SSL_CERT_FILE names {file}: {reason}") from None
    context.set_alpn_protocols(["http/1.1"])  # all that is spoken here; httpcore says the same for its own calls
    return context


class SystemLookup:
    """The addresses that the machine's resolver gives; of one host one question is under way at a time.

    A question holds one of a few threads until it is answered, though who asked has given up: a host of which no
    name server tells must not hold them all, and keep all others waiting.
    """

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, int], asyncio.Task[Sequence[str]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        place = (host, port)
        question = self._under_way.get(place)
        if question is None:
            question = self._under_way[place] = asyncio.create_task(_looked_up(host, port))
            question.add_done_callback(partial(self._end, place))
        await asyncio.wait((question,))
        return question.result()

    def _end(self, place: tuple[str, int], question: asyncio.Task[Sequence[str]]) -> None:
        del self._under_way[place]
        if not question.cancelled():
            question.exception()  # which all who asked may have given up hearing of


async def _looked_up(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an address is one of the internet's, and so is what it stands for where it holds an IPv4 address."""
    ip = ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip in _NAT64_LOCAL:
            return False
        inner = ip.ipv4_mapped or ip.sixtofour or (IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None)
        if inner is not None:
            return is_public(str(inner))
        if ip not in _UNICAST:  # site-local ones, and those that held an IPv4 address once, are global to Python
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_loopback(address: str) -> bool:
    """Whether an address is this machine's."""
    return ip_address(address).is_loopback


def _is_address(host: str) -> bool:
    """Whether the operator's file says the place itself."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Egress:
    """`private_hosts` are the names that the operator allows to lead into a private network."""

    private_hosts: frozenset[str] = frozenset()
    lookup: Lookup = field(default_factory=SystemLookup)

    async def addresses(self, host: str, port: int) -> Sequence[str]:
        """Where a call to a merchant's host may go. OSError as the lookup.

        Refused, `merchant_address_private`, when any place that a name leads to is not public (or, of localhost,
        not this machine): who can add one to the answers can have it taken. An address is taken as it is: the
        operator's file says it.
        """
        if _is_address(host):
            return (host,)
        found = await self.lookup(host, port)
        is_allowed = is_loopback if host == "localhost" else is_public
        stray = next((address for address in found if not is_allowed(address)), None)
        if stray is not None and host not in self.private_hosts:
            raise Refused("merchant_address_private", f"{host} leads to {stray}", sent=False)
        return found

    def transport(self) -> httpx.AsyncHTTPTransport:
        """httpx's own, whose connections go where `addresses` says."""
        return _Transport(self)


class _Transport(httpx.AsyncHTTPTransport):
    def __init__(self, egress: Egress) -> None:
        super().__init__(verify=trusted())
        # httpx has no argument for httpcore's network_backend; all else is as httpx has it
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=trusted(),
            max_connections=100,
            max_keepalive_connections=20,
            keepalive_expiry=5.0,
            network_backend=_Backend(egress),
        )


class _Backend(httpcore.AsyncNetworkBackend):
    """TLS comes after, and asks for the name and not for the address."""

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
    """A connection of which little is taken in at a time, and so much for each request."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._left_bytes = _ANSWER_BYTES

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._left_bytes <= 0:
            raise httpcore.ReadError("the answer does not come to an end")
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
