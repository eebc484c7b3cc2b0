"""The X-Payagent headers about cost: what a client sets on a request, and what it reads on a paid answer.

The proxy and the transports of `client` read and write them here.

May import: core.money, core.problems.
Never: reads a token.
"""

from collections.abc import Iterable, Sequence

from payagent.core.money import LOVELACE, NO_TOKENS, Tokens, parse_bound
from payagent.core.problems import Refused

OWN_PREFIX = b"x-payagent-"

_MAX_COST, _DRY_RUN = b"x-payagent-max-cost", b"x-payagent-dry-run"
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
        text = value.decode("latin-1")
        if values.setdefault(name, text) != text:
            raise Refused("bad_request", f"the header {name.decode()} is given twice", key=name.decode())
    if values.get(_DRY_RUN) not in _SWITCHES:
        raise Refused("bad_request", "X-Payagent-Dry-Run is true or false", key="X-Payagent-Dry-Run")
    is_dry_run = _SWITCHES[values.get(_DRY_RUN)]
    if _MAX_COST not in values:
        return None, None, is_dry_run
    try:
        return *parse_bound(values[_MAX_COST], tokens), is_dry_run
    except Refused as refused:
        detail = f"X-Payagent-Max-Cost: {refused.detail}"
        raise Refused("bad_request", detail, key="X-Payagent-Max-Cost") from None


def cost_text(outputs: Sequence[tuple[str, int]], fee_lovelace: int) -> str:
    """Format the cost of outputs, given as (asset, units), in the invoice's asset. If that is ADA, add the fee."""
    asset = outputs[0][0]
    units = sum(units for name, units in outputs if name == asset)
    return f"{units + fee_lovelace if asset == LOVELACE else units} {asset}"
