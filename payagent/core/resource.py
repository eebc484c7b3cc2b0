"""Whether the resource that a 402 names is the one that was called, however its path and query are spelt.

May import: the standard library. Never: judges an origin.
"""

import re
from urllib.parse import SplitResult, unquote_to_bytes

_PATH_DELIMITERS = re.compile(r"(/)")
_QUERY_DELIMITERS = re.compile(r"([&=+;])")


def is_called(named: SplitResult, called: SplitResult) -> bool:
    """Whether a resource's path and query are the call's; the query counts only when the resource has one.

    Servers name a path as their framework decoded it, with a blank for %20: percent signs make no difference
    (RFC 3986, 6.2.2) but where they keep a delimiter from being one.
    """
    try:
        return _read(named.path or "/", _PATH_DELIMITERS) == _read(called.path or "/", _PATH_DELIMITERS) and (
            named.query == "" or _read(named.query, _QUERY_DELIMITERS) == _read(called.query, _QUERY_DELIMITERS)
        )
    except UnicodeEncodeError:
        return False


def _read(text: str, delimiters: re.Pattern[str]) -> list[bytes]:
    """The text without its percent signs, in pieces of which every second one is a delimiter."""
    return [unquote_to_bytes(piece) for piece in delimiters.split(text)]
