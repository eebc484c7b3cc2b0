"""Decide where a request to a merchant may connect to: a public name never leads into a private network.

A name is resolved once and its addresses are checked. The connection goes to a checked address. So DNS rebinding
cannot direct a request to this machine or its neighbours.
Never: connects to an address that it did not check.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx

from payagent.core.origin import is_this_machine
from payagent.core.problems import Refused
from payagent.http_client import Lookup, SystemLookup, Transport

_UNICAST = IPv6Network("2000::/3")  # all global unicast addresses in use (RFC 4291, IANA)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")  # RFC 8215


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
        is_allowed = is_this_machine if host == "localhost" else is_public
        stray = next((address for address in addresses if not is_allowed(address)), None)
        if stray is not None and host not in self.private_hosts:
            raise Refused("merchant_in_private_network", f"{host} resolves to {stray}", sent=False)
        return addresses

    def transport(self) -> httpx.AsyncHTTPTransport:
        """An httpx transport that connects only where `addresses` allows."""
        return Transport(self.addresses)
