"""What of a message passes on and what stays: pure functions over raw headers, names in lower case.

May import: the standard library. Never: decodes a value that it passes on.
"""

from collections.abc import Collection, Sequence

Headers = Sequence[tuple[bytes, bytes]]

TOKEN_HEADER = b"x-payagent-token"
OWN_PREFIX = b"x-payagent-"

PARTNER, WALLET = b"x-partner", b"x-wallet-address"
BUYER = (PARTNER, WALLET)
"""What says whose prepaid balance a call draws on."""

# RFC 9110 7.6.1; Expect is answered here, since the merchant is asked only when the body comes
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
    """Each header's value; several of one name are one list (RFC 9110 5.3)."""
    told: dict[str, str] = {}
    for key, value in headers:
        name, text = key.decode("latin-1"), value.decode("latin-1")
        told[name] = f"{told[name]}, {text}" if name in told else text
    return told


def connection_options(headers: Headers) -> set[bytes]:
    """The names in all Connection headers: options, and headers that are for this hop alone."""
    return {
        option.strip().lower() for key, value in headers if key == b"connection" for option in value.split(b",")
    }


def wants_websocket(headers: Headers) -> bool:
    return any(b"websocket" in value.lower() for value in values(headers, b"upgrade"))


def passing(headers: Headers, *, own: bool = False) -> list[tuple[bytes, bytes]]:
    """What goes on to the next hop, in its order, nothing merged. How the body is framed is said anew.

    X-Payagent-* is between a client and payagent alone, in both directions: a merchant cannot claim a payment. It
    goes on where the next hop is payagent's `own`, whatever Connection says: it bounds what may be paid.
    """
    named = connection_options(headers)
    chunked = any(key == b"transfer-encoding" for key, _ in headers)
    kept = [
        (key, value)
        for key, value in headers
        if key not in _HOP_BY_HOP and (own if key.startswith(OWN_PREFIX) else key not in named)
    ]
    # where a merchant's answer has both, Transfer-Encoding counts (RFC 9112 6.1); a request with both is refused
    return [pair for pair in kept if pair[0] != b"content-length"] if chunked else kept


def has_body(headers: Headers) -> bool:
    """Whether a request says that a body comes."""
    return any(
        key == b"transfer-encoding" or (key == b"content-length" and value.strip() != b"0")
        for key, value in headers
    )


def replaced(headers: Headers, new: Headers, *, unless: Collection[bytes] = ()) -> list[tuple[bytes, bytes]]:
    """The headers with `new` in place of those of the same names; of names in `unless` the old ones stay."""
    kept = {key for key, _ in headers} & set(unless)
    added = [(key, value) for key, value in new if key not in kept]
    names = {key for key, _ in added}
    return [*((key, value) for key, value in headers if key not in names), *added]
