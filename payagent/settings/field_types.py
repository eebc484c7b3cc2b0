"""The types of setting values. Each says how to fix a wrong value.

May import: pydantic, core.
Never: opens a file; repeats a value in its fix.
"""

import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from payagent.core.money import LOVELACE, format_ada, parse_ada, parse_asset, parse_count, parse_units
from payagent.core.origin import DEFAULT_PORTS, is_this_machine, parse_origin
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused

SOCKET_PATH_BYTES_MAX = 107  # sun_path in unix(7) has 108 bytes with the closing zero byte
OFF = "off"
T = TypeVar("T")
_MERCHANT_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
_VISIBLE = re.compile(r"[!-~]{1,128}", re.ASCII)


def _told(parse: Callable[[object], T], fix: str) -> Callable[[object], T]:
    """Turn a parser from core into a validator. Its refusal becomes the fix, without the value."""

    def parsed(value: object) -> T:
        try:
            return parse(value)
        except Refused:
            raise ValueError(fix) from None

    return parsed


def _absolute(value: object) -> Path:
    path = Path(value).expanduser() if isinstance(value, str | Path) and value else None
    if path is None or not path.is_absolute():
        raise ValueError('write an absolute path, or one that starts with "~/"')
    return path


def _socket_path(path: Path) -> Path:
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        raise ValueError(f"a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one")
    return path


def _url(value: str) -> str:
    if not value.isascii() or " " in value:
        raise ValueError("an address is plain ASCII without spaces")
    parts = urlsplit(value)
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
        raise ValueError("write the complete address, from http:// or https:// on")
    if "@" in parts.netloc or "?" in value or "#" in value:
        raise ValueError("no user, query or fragment; a secret belongs in a file that another key names")
    return value


def _base_url(value: str) -> str:
    url = _url(value).rstrip("/")
    parts = urlsplit(url)
    if (parts.hostname or "").endswith(".blockfrost.io") and parts.path != "/api/v0":
        raise ValueError(
            "write https://cardano-NETWORK.blockfrost.io/api/v0: the address of Blockfrost's API ends so"
        )
    return url


def _unheard(value: str) -> str:
    """Check that a URL cannot be overheard: https, or this machine."""
    parts = urlsplit(value)
    if parts.scheme != "https" and not is_this_machine(parts.hostname or ""):
        raise ValueError("write an address with https://; http:// is for this machine alone")
    return value


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not _is_place(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("write an address and a port, such as 127.0.0.1:8402 (port 0: any free one)")
    return value


def require_loopback(listen: str, what: str) -> None:
    """Refuse `config_invalid` unless the address is loopback. `what` names the setting."""
    try:
        host = _listen(listen).rpartition(":")[0].removeprefix("[").removesuffix("]")
    except ValueError as error:
        raise Refused("config_invalid", f"{what}: {error}") from None
    if not is_this_machine(host):
        raise Refused(
            "config_invalid", f"{what} {listen} accepts connections from other machines; write a loopback address"
        )


def _is_place(host: str) -> bool:
    """Whether it is an IP address or localhost. An IPv6 address is in brackets."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or (ip_address(bare).version == 6) == (bare != host)
    except ValueError:
        return False


def _host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("write a name in lower case without a port, such as payagent.internal")
    return value


def _partner(value: str) -> str:
    if not _VISIBLE.fullmatch(value):
        raise ValueError("1 to 128 visible ASCII characters without spaces: it travels in a header")
    return value


def _level(value: object) -> tuple[str, int]:
    """Parse a balance level: a number of calls, or an amount of ADA."""
    for unit, parse in ((CALLS, parse_count), (LOVELACE, parse_ada)):
        try:
            return unit, parse(value)
        except Refused:
            continue
    raise ValueError('write a whole number of calls, or an amount such as "5 ADA"')


def or_off(least: int, most: int) -> Callable[[object], int | None]:
    """Return a parser for a whole number in a range, or "off" (None)."""

    def parsed(value: object) -> int | None:
        if value == OFF:
            return None
        try:
            number = parse_count(value)
        except Refused:
            number = -1
        if not least <= number <= most:
            raise ValueError(f'write a whole number from {least} to {most}, or "{OFF}"')
        return number

    return parsed


def _token(asset: str) -> str:
    if asset == LOVELACE:
        raise ValueError("ADA has its limits in limits.per_payment and limits.per_day")
    return asset


def not_empty(rows: tuple[T, ...]) -> tuple[T, ...]:
    if not rows:
        raise ValueError("it names none; write one table at least, under this key in [[ ]]")
    return rows


def named(table: Mapping[str, T]) -> Mapping[str, T]:
    if not all(_MERCHANT_NAME.fullmatch(name) for name in table):
        raise ValueError("a merchant's name is lower-case letters and digits, with single - or _ between them")
    return MappingProxyType(dict(table))


Lovelace = Annotated[
    int,
    BeforeValidator(_told(parse_ada, 'write an amount as "5 ADA", "0.25 ADA" or "250000 lovelace"')),
    PlainSerializer(format_ada),
]
Units = Annotated[
    int,
    BeforeValidator(_told(parse_units, 'write the smallest units as whole digits, such as "1000000"')),
    PlainSerializer(str),
]
Count = Annotated[int, BeforeValidator(_told(parse_count, "write a whole number"))]
Level = Annotated[tuple[str, int], BeforeValidator(_level)]
Asset = Annotated[
    str,
    BeforeValidator(
        _told(parse_asset, "write policy id and asset name in lower-case hex, joined or with a dot between")
    ),
    AfterValidator(_token),
]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
Listen = Annotated[str, AfterValidator(_listen)]
SocketPath = Annotated[Path, BeforeValidator(_absolute), AfterValidator(_socket_path)]
HostName = Annotated[str, AfterValidator(_host)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]
Origin = Annotated[str, AfterValidator(parse_origin)]
SafeOrigin = Annotated[Origin, AfterValidator(_unheard)]
SafeUrl = Annotated[str, AfterValidator(_url), AfterValidator(_unheard)]
Partner = Annotated[str, AfterValidator(_partner)]
