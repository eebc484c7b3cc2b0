"""Heads of HTTP messages are read in a time that grows as their length does.

h11 reads them for the API, for the proxy and for httpx. It tries every way to part the blanks before a header's
value from those behind it where the value is empty and the line is none: a line of 100 KB keeps all that the
process does waiting for half a minute, since nothing else runs while a regular expression does. Here the blanks
before a value are taken once (docs/decisions/0023).

May import: h11. Never: changes what is a header and what is none.
"""

import re

from h11 import _readers
from h11._abnf import OWS, header_field


def patch_h11() -> None:
    """From now on, for everything in this process."""
    once = header_field.replace(f":{OWS}", f":{OWS}+", 1)
    _readers.header_field_re = re.compile(once.encode("ascii"))
