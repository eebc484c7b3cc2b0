"""Pure functions that decide which raw headers are forwarded. Header names are in lower case.

Never: decodes a value that it forwards.
"""

from collections.abc import Collection, Sequence

from payagent.core.cost_headers import OWN_PREFIX

Headers = Sequence[tuple[bytes, bytes]]

TOKEN_HEADER = b"x-payagent-token"

PARTNER, WALLET = b"x-partner", b"x-wallet-address"
BUYER = (PARTNER, WALLET)
"""The headers that name the owner of a prepaid balance."""

# RFC 9110 7.6.1. Expect is answered here, because the merchant is called only when the body arrives.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)


def values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def combined(headers: Headers) -> dict[str, str]:
    """Return the headers as text; several of one name become one list (RFC 9110 5.3)."""
    texts: dict[str, str] = {}
    for key, value in headers:
        name, text = key.decode("latin-1"), value.decode("latin-1")
        texts[name] = f"{texts[name]}, {text}" if name in texts else text
    return texts


def connection_options(headers: Headers) -> set[bytes]:
    """Return the names in all Connection headers: options, and headers for this hop only."""
    return {
        option.strip().lower() for key, value in headers if key == b"connection" for option in value.split(b",")
    }


def wants_websocket(headers: Headers) -> bool:
    return any(b"websocket" in value.lower() for value in values(headers, b"upgrade"))


def passing(headers: Headers, *, own: bool = False) -> list[tuple[bytes, bytes]]:
    """Return the headers for the next hop, in their order and unmerged. The body is framed anew.

    X-Payagent-* headers are between a client and payagent, in both directions: a merchant cannot claim a payment.
    They are forwarded only if the next hop is payagent's `own` daemon, whatever Connection says, because they
    limit what may be paid.
    """
    hop_names = connection_options(headers)
    chunked = any(key == b"transfer-encoding" for key, _ in headers)
    forwarded = [
        (key, value)
        for key, value in headers
        if key not in _HOP_BY_HOP and (own if key.startswith(OWN_PREFIX) else key not in hop_names)
    ]
    # If a merchant's answer has both, Transfer-Encoding counts (RFC 9112 6.1). A request with both is refused.
    return [pair for pair in forwarded if pair[0] != b"content-length"] if chunked else forwarded


def has_body(headers: Headers) -> bool:
    """Whether the request announces a body."""
    return any(
        key == b"transfer-encoding" or (key == b"content-length" and value.strip() != b"0")
        for key, value in headers
    )


def replaced(headers: Headers, new: Headers, *, unless: Collection[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """Replace headers by those of the same names in `new`. Names in `unless` keep their old values."""
    unchanged = {key for key, _ in headers} & set(unless)
    added = [(key, value) for key, value in new if key not in unchanged]
    names = {key for key, _ in added}
    return [*((key, value) for key, value in headers if key not in names), *added]
