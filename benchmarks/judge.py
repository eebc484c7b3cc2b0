"""Whether a builder's transaction is one: the independent ledger takes it, and it pays what was asked.

May import: tests/ledger_check. Never: payagent's own reader, which cannot judge payagent.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ledger_check.raw import parse
from ledger_check.scalus import Scalus, available
from ledger_check.txkit import Out

from benchmarks.wallets import NETWORK_ID, OWN, TTL_SLOT
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.wallet.utxo_index import Utxo

VALID = "valid"
NOT_JUDGED = "not judged: node or scalus is missing"
SLOT = TTL_SLOT - 1_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """`said` is `VALID`, `NOT_JUDGED` or "refused: " and why; the fee is None when there is none to read."""

    fee_lovelace: int | None
    said: str

    @property
    def is_refused(self) -> bool:
        return self.said not in (VALID, NOT_JUDGED)


class Judge:
    """Judges transactions that spend coins of ours, each on a state of its own."""

    def __init__(self, ledger: Scalus | None) -> None:
        self._ledger = ledger

    def verdict(self, tx: bytes, utxos: Iterable[Utxo], asked: Sequence[Output]) -> Verdict:
        try:
            body = dict(parse(tx)[0])
            fee_lovelace, left_over = body[2], _unpaid(body[1], asked)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return Verdict(None, f"refused: not a transaction: {error}")
        if left_over:
            return Verdict(fee_lovelace, f"refused: it does not pay {left_over}")
        if self._ledger is None:
            return Verdict(fee_lovelace, NOT_JUDGED)
        unspent = {(c.tx_id, c.index): Out(OWN.raw, c.lovelace, dict(c.assets)).encode() for c in utxos}
        refused = self._ledger.validate(tx, unspent, SLOT, NETWORK_ID)
        return Verdict(fee_lovelace, f"refused: {refused}"[:300] if refused else VALID)


@contextmanager
def judging() -> Iterator[Judge]:
    """With the independent ledger where it is installed; without, nothing is called valid."""
    if not available():
        yield Judge(None)
        return
    with Scalus() as ledger:
        yield Judge(ledger)


def _unpaid(found: list[Any], asked: Sequence[Output]) -> str:
    """What no output pays, in words; each output is counted for one."""
    left = [_held(output) for output in found]
    for wanted in asked:
        for place, (address, held) in enumerate(left):
            if address == wanted.address.raw and held.get(wanted.asset) == wanted.units:
                del left[place]
                break
        else:
            return f"{wanted.units} {wanted.asset} to {wanted.address}"
    return ""


def _held(output: list[Any]) -> tuple[bytes, dict[str, int]]:
    """The address and units of an output in either form: a map, or the older array."""
    fields = dict(output) if isinstance(output[0], tuple) else dict(enumerate(output))
    value = fields[1]
    lovelace, policies = (value, []) if isinstance(value, int) else value
    assets = {policy.hex() + name.hex(): units for policy, names in policies for name, units in names}
    return fields[0], {LOVELACE: lovelace} | assets
