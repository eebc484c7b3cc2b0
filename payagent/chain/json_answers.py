"""Strict, pure reading of a provider's JSON answers: found, not found or unknown, and the values in them.

Never: I/O; quotes text that a provider sent.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from payagent.chain.provider import AddressTx, Found, NotFound, Read, T, Unknown, Why
from payagent.chain.submit_answers import ANSWER_MAX_BYTES, RawAnswer, TransportError, retry_after_s
from payagent.core import strict_json
from payagent.core.money import LOVELACE, MAX_UNITS, check_supply, parse_count, parse_units
from payagent.core.problems import Refused

_MAX_TOKEN_QUANTITY = 2**64 - 1  # the ledger's limit for one output
_VALUES_MAX = 600_000
"""The most values in one answer. 100 outputs full of assets have 400,000; 16 MB of brackets have 5,000,000."""

_LONG = re.compile(r"[1-9][0-9]{18,19}", re.ASCII)
HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
SCRIPT_HASH = re.compile(r"[0-9a-f]{56}", re.ASCII)
UNIT = re.compile(r"[0-9a-f]{56}(?:[0-9a-f]{2}){0,32}", re.ASCII)

_TRANSPORT_REASONS = {
    TransportError.CONNECT: "no connection",
    TransportError.TLS: "no secure connection",
    TransportError.TIMEOUT: "no answer in time",
    TransportError.RESET: "the connection broke",
    TransportError.TRUNCATED: "the answer broke off",
    TransportError.TOO_BIG: "the answer is too big",
}

_STATUS_REASONS = {
    401: ": the project id or the token is not accepted",
    402: ": the day's calls are used up",
    403: ": the project id is not accepted, or is of another network",
    418: ": banned for going on after too many calls",
}
_STATUS_WHYS = {402: Why.QUOTA, 418: Why.QUOTA, 429: Why.RATE}


def understood(
    answer: RawAnswer, parse: Callable[[Any], T], is_denial: Callable[[Any], bool] = lambda _body: False
) -> Read[T]:
    """Interpret an answer. Only a 200 counts, and a 404 whose body is the provider's own "not found"."""
    if answer.error is not None:
        return Unknown(_TRANSPORT_REASONS[answer.error], Why.OUTAGE)
    if answer.status not in (200, 404):
        status = answer.status or 0
        why_of_others = Why.OUTAGE if status >= 500 else Why.UNCLEAR
        return Unknown(
            f"http {status}{_STATUS_REASONS.get(status, '')}",
            _STATUS_WHYS.get(status, why_of_others),
            retry_after_s(answer.retry_after),
        )
    if sum(map(answer.body.count, (b",", b"[", b"{"))) > _VALUES_MAX:
        return Unknown(f"http {answer.status}, not understood (too many values)")
    try:
        body = strict_json.loads(answer.body, max_bytes=ANSWER_MAX_BYTES)
        if answer.status == 404:
            return NotFound() if is_denial(body) else Unknown("http 404, not in the provider's own form")
        return Found(parse(body))
    except Refused as refused:
        why = refused.name  # its detail quotes the provider's text
    except ValueError as error:
        why = str(error)
    except (LookupError, TypeError) as error:
        why = type(error).__name__
    return Unknown(f"http {answer.status}, not understood ({why})")


def expect(is_right: bool, what: str) -> None:
    """Raise ValueError if an answer is not as it has to be; `what` says what it is instead."""
    if not is_right:
        raise ValueError(what)


def text_of(value: Any, what: str) -> str:
    expect(isinstance(value, str), what)
    return str(value)


def text_hash(value: Any) -> str:
    expect(isinstance(value, str) and HASH.fullmatch(value) is not None, "not a hash")
    return str(value)


def flag(row: Any, name: str) -> bool:
    expect(type(row[name]) is bool, f"{name} is not true or false")
    return bool(row[name])


def list_of(body: Any, most: int | None = None) -> list[Any]:
    """Return the rows of a list, which has at most so many."""
    expect(type(body) is list and (most is None or len(body) <= most), "not a list, or too long a one")
    return list(body)


def once(keys: Iterable[object], what: str) -> None:
    """Check that no key of a list shows twice."""
    listed = list(keys)
    expect(len(set(listed)) == len(listed), f"{what} is listed twice")


def parse_address_tx(row: Any) -> AddressTx:
    """Parse a row of an address's transactions, which Koios writes as Blockfrost does."""
    return AddressTx(
        tx_id=text_hash(row["tx_hash"]),
        block_height=parse_count(row["block_height"], "block_height"),
        time_s=parse_count(row["block_time"], "block_time"),
    )


def quantity(value: Any, unit: str) -> int:
    """Parse the units of one output, above zero.

    A token's may exceed 2^63-1: anyone can send us such an output.
    """
    is_long = isinstance(value, str) and _LONG.fullmatch(value) is not None
    if unit != LOVELACE and is_long and MAX_UNITS < int(value) <= _MAX_TOKEN_QUANTITY:
        return int(value)
    return check_supply(unit, parse_units(value, unit))
