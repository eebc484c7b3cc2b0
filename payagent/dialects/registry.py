"""The dialects that payagent speaks. To add one, write its module and add its line here.

No other module outside `dialects` names a dialect or compares its name: ask its `Dialect`.
"""

from collections.abc import Callable

from payagent.core.problems import Refused
from payagent.dialects import flux, t_backend, x402_orynq, x402_v1, x402_v2
from payagent.dialects.dialect import Dialect, Shape, Terms
from payagent.dialects.http_wire import PAYMENT_REQUIRED, HttpResponse, fields_of

DIALECTS = (
    t_backend.DIALECT,
    flux.DIALECT,
    x402_orynq.DIALECT,  # read from another 402, and otherwise flux
    x402_v1.DIALECT,
    x402_v2.DIALECT,
)
"""Dialects of one shape try a 402 in this order."""

_BY_NAME = {dialect.name: dialect for dialect in DIALECTS}

TIMED_BY_BLOCK = frozenset(dialect.name for dialect in DIALECTS if dialect.is_timed_by_block)
"""Dialects whose facilitators count `maxTimeoutSeconds` from the newest block's slot, and refuse a later TTL."""

WITH_STATUS = frozenset(dialect.name for dialect in DIALECTS if dialect.has_status)
"""Dialects whose merchants report the status of a payment."""

NAMES_PAYER = frozenset(dialect.name for dialect in DIALECTS if dialect.names_payer)
"""Dialects whose proof names the address that paid."""

PENDING_IN_BODY = frozenset(dialect.name for dialect in DIALECTS if dialect.answers.read_pending is not None)
"""Dialects whose 202 may say in its body that the merchant serves later."""


def dialect_of(name: str) -> Dialect:
    """Return a dialect by the name that its invoices have."""
    if name not in _BY_NAME:
        raise Refused("invoice_invalid/body", f"no proof is known for the dialect {name}")
    return _BY_NAME[name]


def _unsupported(name: str, has_marks: Callable[[HttpResponse], bool]) -> Shape:
    def refuse(response: HttpResponse) -> Terms:
        raise Refused("invoice_invalid/body", f"the 402 has the form of {name}, which is not supported")

    return Shape(name, has_marks, refuse)


def _is_wrapped(response: HttpResponse) -> bool:
    return isinstance(fields_of(response.body).get("payment"), dict) and PAYMENT_REQUIRED not in response.headers


SHAPES = (
    *dict.fromkeys(dialect.shape for dialect in DIALECTS),
    _unsupported("payment-wrapped", _is_wrapped),
    _unsupported("materios", lambda response: "x-402-payment-required" in response.headers),
)
"""Every form of 402 that is recognised."""
