"""Bounds on what one call may ask for or be answered, said once for all who keep them.

May import: the standard library. Never: bounds money; that is `policy`.
"""

from typing import Literal, get_args

TokenScope = Literal["pay", "read", "operate", "approve"]
"""What a token may be for. Each call needs one of some of these."""
SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)

LIST_LIMIT_MAX = 200

_TRANSACTION_BYTES = 16_384
_UTXO_BYTES = 65
"""An output of less than 4,295 ADA (2^32 lovelace) to a base address."""
_SPLIT_BYTES = 169
"""All of a signed split but its outputs: one input, fee, TTL, witness."""
SPLIT_COUNT_MAX = (_TRANSACTION_BYTES - _SPLIT_BYTES) // _UTXO_BYTES - 1
"""As many coins as one transaction can make out of one coin, with its change."""

ANSWER_MAX_BYTES = 512 * 1024
"""What is read here of a merchant's answer. A 402 may be a web page with the requirements inside."""
