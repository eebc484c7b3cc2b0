"""Types of setting values. The error for a wrong value says what to write instead.

Never: opens a file; repeats a value in an error.
"""

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo

from payagent.core.money import (
    LOVELACE,
    NO_TOKENS,
    Tokens,
    format_ada,
    parse_ada,
    parse_amount,
    parse_asset,
    parse_count,
)
from payagent.core.notifications import TYPES, matches
from payagent.core.origin import is_this_machine, parse_origin
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused

SOCKET_PATH_BYTES_MAX = 107  # sun_path in unix(7) has 108 bytes with the closing zero byte
OFF = "off"
T = TypeVar("T")
_MERCHANT_NAME = re.compile(r"[a-z0-9]+(?:[_-][a-z0-9]+)*", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)
_TOKEN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,31}", re.ASCII)
_VISIBLE = re.compile(r"[!-~]{1,128}", re.ASCII)


def _or_advise(parse: Callable[[object], T], fix: str) -> Callable[[object], T]:
    """Return a validator that runs a parser from core. If the parser refuses, the error is `fix`."""

    def parsed(value: object) -> T:
        try:
            return parse(value)
        except Refused:
            raise ValueError(fix) from None

    return parsed


def require(is_right: Callable[[T], object], fix: str) -> AfterValidator:
    """Return a validator that raises `fix` unless the value is right."""

    def check(value: T) -> T:
        if not is_right(value):
            raise ValueError(fix)
        return value

    return AfterValidator(check)


def _absolute(value: object) -> Path:
    path = Path(value).expanduser() if isinstance(value, str | Path) and value else None
    if path is None or not path.is_absolute():
        raise ValueError('write an absolute path, or one that starts with "~/"')
    return path


def _url(value: str) -> str:
    if not re.fullmatch("[!-~]*", value):
        raise ValueError("write a URL in ASCII without spaces")
    parts = urlsplit(value)
    try:
        is_port = parts.port != 0
    except ValueError:
        is_port = False
    if not value.startswith(("http://", "https://")) or not parts.hostname or not is_port:
        raise ValueError("write a complete URL that starts with http:// or https://")
    if "@" in parts.netloc or "?" in value or "#" in value:
        raise ValueError("remove the user, query or fragment. A secret belongs in a file that another key names")
    return value


def parse_base_url(value: str) -> str:
    """Return a provider's base URL without a final slash. Raises ValueError, with what to write."""
    return _url(value).rstrip("/")


def is_safe(url: str) -> bool:
    """Whether nobody on the network can read the traffic to a URL: https, or this machine."""
    return urlsplit(url).scheme == "https" or is_this_machine(urlsplit(url).hostname or "")


def _is_safe_link(origin: str) -> bool:
    """Browsers never look up a name under localhost, so its requests stay on this machine."""
    return is_safe(origin) or (urlsplit(origin).hostname or "").endswith(".localhost")


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if not separator or not _is_address(host) or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("write an address and a port, such as 127.0.0.1:8402. Port 0 takes any free port")
    return value


def require_loopback(listen: str, setting: str) -> None:
    """Require a loopback address. Refused `config_invalid` otherwise; `what` names the setting."""
    try:
        host = _listen(listen).rpartition(":")[0].removeprefix("[").removesuffix("]")
    except ValueError as error:
        raise Refused("config_invalid", f"{setting}: {error}") from None
    if not is_this_machine(host):
        raise Refused("config_invalid", f"{setting}: other machines can reach {listen}. Write a loopback address")


def _is_address(host: str) -> bool:
    """Whether the host is an IP address or localhost. An IPv6 address must be in brackets."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return host == "localhost" or (ip_address(bare).version == 6) == (bare != host)
    except ValueError:
        return False


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


def _token_name(name: str, info: ValidationInfo) -> str:
    if not _TOKEN_NAME.fullmatch(name) or name.lower() in ("ada", LOVELACE, "units"):
        raise ValueError("write a short name in ASCII such as USDM, and not the name of another unit")
    if info.data.get("decimals") is None:
        raise ValueError("set decimals too: amounts with the name are in whole tokens")
    return name


def _token_units(value: object, info: ValidationInfo) -> int:
    """Parse an amount of the table's token: its smallest units, or an amount with its name."""
    asset, name = info.data.get("asset"), info.data.get("name")
    tokens: Tokens = NO_TOKENS if asset is None or name is None else {name: (asset, info.data["decimals"])}
    with suppress(Refused):
        units, named = parse_amount(str(value) if type(value) is int else value, tokens)
        if units > 0 and named in (None, asset):
            return units
    raise ValueError('write a whole number of smallest units in quotes, such as "1000000", or "5 NAME"')


def named(table: Mapping[str, T]) -> Mapping[str, T]:
    if not all(_MERCHANT_NAME.fullmatch(name) for name in table):
        raise ValueError("name a merchant with lower-case letters and digits, and single - or _ between them")
    return MappingProxyType(dict(table))


Lovelace = Annotated[
    int,
    BeforeValidator(
        _or_advise(parse_ada, 'write an amount with its unit: "5 ADA", "0.25 ADA" or "250000 lovelace"')
    ),
    PlainSerializer(format_ada),
]
TokenUnits = Annotated[int, BeforeValidator(_token_units), PlainSerializer(str)]
Count = Annotated[int, BeforeValidator(_or_advise(parse_count, "write a whole number"))]
Level = Annotated[tuple[str, int], BeforeValidator(_level)]
Asset = Annotated[
    str,
    BeforeValidator(
        _or_advise(parse_asset, "write policy id and asset name in lower-case hex, joined or separated by a dot")
    ),
    require(
        lambda asset: asset != LOVELACE,
        "name a native token. The limits of ADA are limits.per_payment and limits.per_day",
    ),
]
TokenName = Annotated[str, AfterValidator(_token_name)]
AbsolutePath = Annotated[Path, BeforeValidator(_absolute)]
Listen = Annotated[str, AfterValidator(_listen)]
SocketPath = Annotated[
    AbsolutePath,
    require(
        lambda path: len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX,
        f"the path is too long. Write one of at most {SOCKET_PATH_BYTES_MAX} bytes",
    ),
]
HostName = Annotated[
    str, require(_HOST.fullmatch, "write a lower-case name without a port, such as payagent.internal")
]
BaseUrl = Annotated[str, AfterValidator(parse_base_url)]
Origin = Annotated[str, AfterValidator(parse_origin)]
_SAFE = "write a URL with https://. http:// is accepted only for this machine"
SafeOrigin = Annotated[Origin, require(is_safe, _SAFE)]
LinkOrigin = Annotated[Origin, require(_is_safe_link, _SAFE)]
SafeUrl = Annotated[str, AfterValidator(_url), require(is_safe, _SAFE)]
TargetName = Annotated[
    str,
    require(
        _MERCHANT_NAME.fullmatch, "name it with lower-case letters and digits, and single - or _ between them"
    ),
]
EventPattern = Annotated[
    str,
    require(
        lambda pattern: any(matches(pattern, event_type) for event_type in TYPES),
        "no event is called that. Write a type of docs/reference/notifications.md, or its beginning and *, "
        "such as approval.*",
    ),
]
Partner = Annotated[
    str,
    require(
        _VISIBLE.fullmatch,
        "write 1 to 128 visible ASCII characters without spaces. The value is sent in a header",
    ),
]
