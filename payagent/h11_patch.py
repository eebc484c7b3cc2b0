"""Make h11 read the head of an HTTP message in linear time.

h11 reads heads for the API, the proxy and httpx. If a header's value is empty and the line is invalid, its regular
expression tries every split of the blanks before and after the value. A 100 KB line then blocks the whole process
for half a minute. The patch makes the blanks before a value possessive (docs/decisions/0023).
Never: changes what counts as a header.
"""

import re

from h11 import _readers
from h11._abnf import OWS, header_field


def patch_h11() -> None:
    """Patch h11 for this whole process."""
    once = header_field.replace(f":{OWS}", f":{OWS}+", 1)
    _readers.header_field_re = re.compile(once.encode("ascii"))
