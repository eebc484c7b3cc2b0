"""Compares each payment's postings with what the chain shows it spent: I2 per payment, and I3.

Never: uses the agent's own sums.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from payagent.core.ledger import EXTERNAL, FEES, WALLET, merchant_account, prepaid_account
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import State
from payagent.devnet.ledger import Tx
from payagent.store.db.unit import Connection
from payagent.store.rows import about
from sim.trace import Trace

Lines = dict[tuple[str, str], int]
"""Units by account and asset."""

_BOOKED = """
SELECT j.payment_id, p.asset, SUM(p.units) FROM entries j JOIN postings p ON p.entry_id = j.id
WHERE j.payment_id IS NOT NULL AND p.account NOT IN (?, ?)
AND p.account NOT LIKE 'wallet/%' GROUP BY j.payment_id, p.asset
"""
_LINES = """
SELECT p.account, p.asset, SUM(p.units) FROM entries j JOIN postings p ON p.entry_id = j.id
WHERE j.payment_id = ? AND p.account <> ? AND p.account NOT LIKE 'wallet/%' GROUP BY p.account, p.asset
"""
_STATES = "SELECT id, state, kind = 'invoice', tx_id FROM payments"


class Spend:
    """One of our transactions: its payment, and what it takes from the wallet if it lands."""

    def __init__(self, payment: str, origin: str, is_cancel: bool, tx: Tx, own: Set[bytes]) -> None:
        self.payment = payment
        self.tx_id = tx.tx_id
        self.origin = origin
        self.is_cancel = is_cancel
        self.fee_lovelace = tx.fee_lovelace
        self.given: dict[str, int] = {}
        """Units by asset that its outputs pay to others."""
        for out in tx.outputs:
            if out.address not in own:
                for asset, units in ((LOVELACE, out.lovelace), *out.assets.items()):
                    self.given[asset] = self.given.get(asset, 0) + units
        self.spent = dict(self.given) if origin else {}
        """Units by asset that count as spent: payments to a merchant, and the fee."""
        self.spent[LOVELACE] = self.spent.get(LOVELACE, 0) + self.fee_lovelace


@dataclass(slots=True)
class Booked:
    """The ledger at one commit: what ended each payment (None: void), and its units held or posted."""

    ended: Mapping[str, str | None] = field(default_factory=dict)
    units: Mapping[tuple[str, str], int] = field(default_factory=dict)


class SpendJudge:
    """The spend judge of one run."""

    def __init__(self, story: Trace, cap_units: int) -> None:
        self._story = story
        self._cap_units = cap_units
        """The limit for each asset."""
        self._as_of: object = None
        self._booked = Booked()
        self._undone: set[str] = set()
        """Payments that were void once, or posted for another attempt than the one that landed."""

    def outflow_is_booked(self, conn: Connection, landed: Sequence[Spend]) -> None:
        """I2 and I3 at all times: each payment has at least as much held or posted as the chain shows it spent.

        Exceptions: a fork deeper than `void_depth` may let a transaction of a void payment land. A fork deeper
        than `confirm_depth` may let an attempt land although a cheaper one was posted. The agent sees either only
        in its next pass, and may have admitted other payments meanwhile.
        """
        booked = self._read(conn)
        for spend in landed:
            if spend.is_cancel:
                continue
            if booked.ended.get(spend.payment, spend.tx_id) != spend.tx_id:
                self._undone.add(spend.payment)
                continue
            for asset, units in spend.spent.items():
                if (booked_units := booked.units.get((spend.payment, asset), 0)) < units:
                    self._story.violate(
                        "I2", f"{units} {asset} left for {spend.payment}, {booked_units} are held or posted"
                    )
        counted = (spend for spend in landed if spend.origin and spend.payment not in self._undone)
        self._check_cap("spent", (line for spend in counted for line in spend.spent.items()))

    def _check_cap(self, how: str, lines: Iterable[tuple[str, int]]) -> None:
        """I3: no asset's (asset, units) sum exceeds its limit."""
        sums: dict[str, int] = {}
        for asset, units in lines:
            sums[asset] = sums.get(asset, 0) + units
        for asset, units in sums.items():
            if units > self._cap_units:
                self._story.violate("I3", f"{units} {asset} are {how}, the limit is {self._cap_units}")

    def at_rest(self, conn: Connection, payment: str, landed: Iterable[Spend]) -> None:
        """I2 at the end: a payment's postings equal the chain, to the unit and by account."""
        booked: Lines = {}
        for account, asset, units in conn.execute(_LINES, (payment, WALLET)):
            if units:
                _add(booked, account, asset, units)
        true: Lines = {}
        for spend in landed:
            for asset, units in spend.given.items():
                _add(true, merchant_account(spend.origin) if spend.origin else EXTERNAL, asset, units)
            _add(true, FEES, LOVELACE, spend.fee_lovelace)
        merged: Lines = {}
        for (account, asset), units in booked.items():
            # prepaid and used are two accounts, but the chain knows only one
            name = account.replace(prepaid_account(""), merchant_account(""), 1)
            _add(merged, name, asset, units)
        if {line: units for line, units in merged.items() if units} != true:
            self._story.violate("I2", f"{payment} is booked as {merged}, the chain has {true}")

    def _read(self, conn: Connection) -> Booked:
        """Read the ledger again after a commit, and check I3: holds and postings are within the limit.

        Payments that were undone do not count. If a fork reopens one, its hold returns, although other payments
        may have been admitted meanwhile.
        """
        if (as_of := (conn, about.version(conn))) == self._as_of:
            return self._booked
        states = conn.execute(_STATES).fetchall()
        rows = conn.execute(_BOOKED, (WALLET, EXTERNAL)).fetchall()
        void: dict[str, str | None] = {row[0]: None for row in states if row[1] == State.VOID}
        self._undone |= void.keys()
        counted = {row[0] for row in states if row[2]} - self._undone
        self._check_cap("held or posted", ((asset, units) for payment, asset, units in rows if payment in counted))
        self._as_of = as_of
        posted = {row[0]: row[3] for row in states if row[1] in (State.CONFIRMED, State.SETTLED)}
        self._booked = Booked(void | posted, {(payment, asset): units for payment, asset, units in rows})
        return self._booked


def _add(lines: Lines, account: str, asset: str, units: int) -> None:
    lines[account, asset] = lines.get((account, asset), 0) + units
