"""Keeps the open payments and UTxOs in memory during a pass, whose steps read them again and again.

It keeps only the fields that tell whether a step is due (`OpenPayment`), because many payments may be open for
hours. A step reads its payment in full. Only payments with newer events are read again.

Never: returns data from before the newest commit.
"""

from collections.abc import Collection

from payagent.agent.context import AgentContext
from payagent.core.payment.machine import IN_NO_BLOCK, State
from payagent.store.db.unit import Connection
from payagent.store.rows import about, attempts_and_utxos, events, payments
from payagent.store.rows.payments import OpenPayment

LOOKED_FOR = IN_NO_BLOCK
"""States in which an attempt may come into a block, and none is known to be in one."""

SEEN = (State.IN_BLOCK, State.CONFIRMED)


class OpenPayments:
    """The open payments and unspent UTxOs of the context's account, read again after each commit."""

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._account = context.config.account
        self._as_of: object = None
        self._last_event: int | None = None
        self._payments: dict[str, OpenPayment] = {}
        self._utxos: dict[str, str] | None = None

    def open(self, states: Collection[State]) -> list[OpenPayment]:
        """Admitted payments in any of these states, none of which is final; oldest first."""
        self._fresh()
        return [row for row in self._payments.values() if row.state in states]

    def on_chain(self) -> list[OpenPayment]:
        """Payments with a transaction in a block that may still be lost; oldest first."""
        return self.open((*SEEN, State.VOID))

    def utxos(self) -> dict[str, str]:
        """The state of every unspent UTxO, by its reference."""
        conn = self._fresh()
        if self._utxos is None:
            self._utxos = attempts_and_utxos.utxo_states(conn, self._account)
        return self._utxos

    def _fresh(self) -> Connection:
        conn = self._context.conn
        if (as_of := (conn, about.version(conn))) != self._as_of:
            self._as_of, self._utxos = as_of, None
            # read first: an event that comes meanwhile is then read again
            last_event, _ = events.last_event(conn)
            if self._last_event is None:
                self._payments = {row.id: row for row in payments.open_payments(conn, self._account)}
            else:
                self._reread(conn, self._last_event)
            self._last_event = last_event
        return conn

    def _reread(self, conn: Connection, last_event: int) -> None:
        """Read the payments with new events. Void ones too: no event tells when their UTxOs are given back."""
        voids = {row.id for row in self._payments.values() if row.state is State.VOID}
        is_sorted = True
        for payment_id in events.payments_after(conn, last_event) | voids:
            is_known = payment_id in self._payments
            if (row := payments.open_payment(conn, payment_id, self._account)) is not None:
                self._payments[payment_id] = row
                is_sorted &= is_known
            elif is_known:
                del self._payments[payment_id]
        if not is_sorted:
            self._payments = dict(sorted(self._payments.items(), key=lambda item: item[1].seq))
