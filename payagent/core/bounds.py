"""Bounds on what one call may ask for or be answered, said once for all who keep them.

May import: the standard library. Never: bounds money; that is `policy`.
"""

from typing import Literal, get_args

TokenScope = Literal["pay", "read", "operate", "approve"]
"""What a token may be for. Each call needs one of some of these."""
SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)

LIST_LIMIT_MAX = 200
SPLIT_COUNT_MAX = 250
"""More outputs than a transaction of 16 KiB can hold."""

ANSWER_MAX_BYTES = 512 * 1024
"""What is read here of a merchant's answer. A 402 may be a web page with the requirements inside."""
