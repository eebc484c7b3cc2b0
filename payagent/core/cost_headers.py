"""The X-Payagent headers about cost: what a client sets on a request, and what it reads on a paid answer.

This module alone names them. The proxy and the transports of `client` write them, and `mcp` and `cli` read them.

Never: reads a token.
"""

from collections.abc import Iterable, Sequence

from payagent.core.money import LOVELACE, NO_TOKENS, Tokens, parse_bound
from payagent.core.problems import Refused

OWN_PREFIX = b"x-payagent-"

MAX_COST_HEADER, DRY_RUN_HEADER = "X-Payagent-Max-Cost", "X-Payagent-Dry-Run"
"""On a request: the most that it may cost, and whether only a quote is wanted."""

PAYMENT_HEADER, COST_HEADER, STATE_HEADER = "X-Payagent-Payment", "X-Payagent-Cost", "X-Payagent-State"
"""On a paid answer: the payment's id, its cost as `cost_text` writes it, and its state."""

_MAX_COST, _DRY_RUN = MAX_COST_HEADER.lower().encode(), DRY_RUN_HEADER.lower().encode()
_SWITCHES = {None: False, "false": False, "true": True}


def read_cost_headers(
    headers: Iterable[tuple[bytes, bytes]], tokens: Tokens = NO_TOKENS
) -> tuple[int | None, str | None, bool]:
    """Return the most units that a request may cost, their asset, and whether only a quote is wanted.

    `headers` have names in lower case. `tokens` are those that the config names. Refused `bad_request` for another
    header that begins with X-Payagent-, and for two different values of one.
    """
    values: dict[bytes, str] = {}
    for name, value in headers:
        if not name.startswith(OWN_PREFIX):
            continue
        if name not in (_MAX_COST, _DRY_RUN):
            raise Refused("bad_request", f"the header {name.decode('latin-1')[:60]!a} is not known")
        text = value.decode(errors="replace")  # thin spaces separate thousands
        if values.setdefault(name, text) != text:
            raise Refused("bad_request", f"the header {name.decode()} is given twice", key=name.decode())
    if values.get(_DRY_RUN) not in _SWITCHES:
        raise Refused("bad_request", f"{DRY_RUN_HEADER} is true or false", key=DRY_RUN_HEADER)
    is_dry_run = _SWITCHES[values.get(_DRY_RUN)]
    if _MAX_COST not in values:
        return None, None, is_dry_run
    try:
        return *parse_bound(values[_MAX_COST], tokens), is_dry_run
    except Refused as refused:
        detail = f"{MAX_COST_HEADER}: {refused.detail}"
        raise Refused("bad_request", detail, key=MAX_COST_HEADER) from None


def cost_text(outputs: Sequence[tuple[str, int]], fee_lovelace: int) -> str:
    """Format the cost of outputs, given as (asset, units), in the invoice's asset. If that is ADA, add the fee."""
    asset = outputs[0][0]
    units = sum(units for name, units in outputs if name == asset)
    return f"{units + fee_lovelace if asset == LOVELACE else units} {asset}"


def paid_headers(
    payment_id: str, outputs: Sequence[tuple[str, int]], fee_lovelace: int, state: str
) -> dict[str, str]:
    """Return the headers of a paid answer."""
    return {PAYMENT_HEADER: payment_id, COST_HEADER: cost_text(outputs, fee_lovelace), STATE_HEADER: state}


def read_cost(text: str) -> tuple[str, int]:
    """Return the (asset, units) of `COST_HEADER`."""
    units, asset = text.split()
    return asset, int(units)
