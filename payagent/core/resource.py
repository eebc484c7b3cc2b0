"""Compares the resource that a 402 names with the URL that was called, whatever their percent-encoding.

May import: the standard library.
Never: compares origins.
"""

import re
from urllib.parse import SplitResult, unquote_to_bytes

_PATH_DELIMITERS = re.compile(r"(/)")
_QUERY_DELIMITERS = re.compile(r"([&=+;])")


def is_called(named: SplitResult, called: SplitResult) -> bool:
    """Whether path and query are the same. A resource without a query matches any query.

    Servers name a path as their framework decoded it, for example with a space for %20. So percent-encoding makes
    no difference (RFC 3986, 6.2.2), except for encoded delimiters.
    """
    try:
        return _read(named.path or "/", _PATH_DELIMITERS) == _read(called.path or "/", _PATH_DELIMITERS) and (
            named.query == "" or _read(named.query, _QUERY_DELIMITERS) == _read(called.query, _QUERY_DELIMITERS)
        )
    except UnicodeEncodeError:
        return False


def _read(text: str, delimiters: re.Pattern[str]) -> list[bytes]:
    """Split the text at its delimiters, which are kept, and percent-decode each piece."""
    return [unquote_to_bytes(piece) for piece in delimiters.split(text)]
