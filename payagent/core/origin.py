"""The parts of a URL: the origin that identifies a merchant (RFC 6454), and the resource that a 402 names.

Never: resolves a name.
"""

import re
from ipaddress import ip_address
from shlex import quote
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from payagent.core.problems import Refused

DEFAULT_PORTS = {"http": 80, "https": 443}
T_BACKEND = "https://api-v3.fluxpointstudios.com"
"""The T Backend, since April 2026. Its revenue shares come on top of the price, but its 402s state no mode."""
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)


def parse_origin(text: str) -> str:
    """Return an origin's canonical spelling: lower case, without the default port.

    Raises ValueError for anything but an http(s) origin. The message gives the reason but never the text.
    """
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("an origin is plain ASCII (an international name in its xn-- form)")
    try:
        parts = urlsplit(text)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        if ":" in host:
            host = f"[{ip_address(host).compressed}]"
    except ValueError:
        raise ValueError("an origin's host or port is not valid") from None
    if scheme not in DEFAULT_PORTS or not host:
        raise ValueError("an origin starts with http:// or https:// and a host")
    if parts.path not in ("", "/") or "?" in text or "#" in text or "@" in parts.netloc:
        raise ValueError("an origin is scheme, host and port only, such as https://api.example.com")
    if parts.netloc.endswith(":") or port == 0:
        raise ValueError("an origin's port is a number from 1 to 65535")
    if not host.startswith("[") and not _HOST_NAME.fullmatch(host):
        raise ValueError("an origin's host is a name or an address")
    return f"{scheme}://{host}" + ("" if port in (None, DEFAULT_PORTS[scheme]) else f":{port}")


def is_t_backend(text: str) -> bool:
    """Whether an origin in any spelling is the T Backend's."""
    try:
        return parse_origin(text) == T_BACKEND
    except ValueError:
        return False


def is_this_machine(host: str) -> bool:
    """Whether a host is `localhost` or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def short_name(origin: str) -> str:
    """A name for a merchant that has none yet: its host with dashes, such as api-example-com, or t."""
    return "t" if is_t_backend(origin) else re.sub(r"[^a-z0-9]+", "-", urlsplit(origin).hostname or "x").strip("-")


def origin_part(url: str) -> str:
    """Scheme, host and port of a URL, unchecked: what `parse_origin` parses."""
    return urlsplit(url)._replace(path="", query="", fragment="").geturl()


def not_configured(origin: str) -> Refused:
    """`merchant_not_allowed` with the command that allows payments to the origin."""
    fix = f"Allow it with `payagent merchants add {short_name(origin)} --origin {quote(origin)}`."
    return Refused("merchant_not_allowed", f"{origin!r} is not in [merchants]", fix=fix, origin=origin)


MCP = "MCP"
"""The method of a call to an MCP server, where HTTP requests have GET, POST and so on.

Its path is the server's, with a hash in place of a query, and what is called: `/mcp#tools/NAME`.
"""


_PATH_DELIMITERS = re.compile(r"(/)")
_QUERY_DELIMITERS = re.compile(r"([&=+;])")


def is_called(resource: SplitResult, request: SplitResult) -> bool:
    """Whether path and query are the same. A resource without a query matches any query.

    Servers name a path as their framework decoded it, for example with a space for %20. So percent-encoding makes
    no difference (RFC 3986, 6.2.2), except for encoded delimiters.
    """
    try:
        return _read(resource.path or "/", _PATH_DELIMITERS) == _read(request.path or "/", _PATH_DELIMITERS) and (
            resource.query == ""
            or _read(resource.query, _QUERY_DELIMITERS) == _read(request.query, _QUERY_DELIMITERS)
        )
    except UnicodeEncodeError:
        return False


def _read(text: str, delimiters: re.Pattern[str]) -> list[bytes]:
    """Split the text at its delimiters, which are kept, and percent-decode each piece."""
    return [unquote_to_bytes(piece) for piece in delimiters.split(text)]
