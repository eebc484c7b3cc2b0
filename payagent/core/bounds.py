"""Size and count limits that several rooms share.

Never: limits money; `policy` does.
"""

from typing import Literal, get_args

TokenScope = Literal["pay", "read", "operate", "approve"]
"""A permission of a token. Each API call accepts one or more of them."""
SCOPES: tuple[TokenScope, ...] = get_args(TokenScope)

APP_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

LIST_LIMIT_MAX = 200

_TRANSACTION_BYTES = 16_384
_UTXO_BYTES = 65
"""Size of an output of less than 4,295 ADA (2^32 lovelace) to a base address."""
_SPLIT_BYTES = 169
"""Size of a signed split without its outputs: one input, fee, TTL, witness."""
SPLIT_COUNT_MAX = (_TRANSACTION_BYTES - _SPLIT_BYTES) // _UTXO_BYTES - 1
"""The most UTxOs that one transaction can make from one UTxO, besides its change."""

ANSWER_MAX_BYTES = 512 * 1024
"""The most bytes read of a merchant's response. A 402 may be a web page that contains the requirements."""
