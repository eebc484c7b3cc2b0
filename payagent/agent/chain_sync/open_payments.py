"""The open payments and UTxOs of a pass: `OpenPayments` keeps them in memory, `WorkerPool` acts on them.

The steps of a pass read them again and again. Only the fields that tell whether a step is due are kept
(`OpenPayment`), because many payments may be open for hours. A step reads its payment in full, a few payments are
acted on at a time, and those being signed go first. Only payments with newer events are read again.

Never: returns data from before the newest commit; decides what is done with a payment; lets a failing payment keep
another from its turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence

from payagent.agent.base.log import log
from payagent.agent.context import AgentContext
from payagent.agent.payments.sign import NOT_SIGNED, PaymentSigner
from payagent.chain.deadlines import together
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import IN_NO_BLOCK, State
from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError
from payagent.store.db.unit import Connection
from payagent.store.rows import about, attempts_and_utxos, events, payments
from payagent.store.rows.payments import OpenPayment

LOOKED_FOR = IN_NO_BLOCK
"""States in which an attempt may come into a block, and none is known to be in one."""

SEEN = (State.IN_BLOCK, State.CONFIRMED)

AT_ONCE_MAX = 8

PATIENCE_S = 4.0
"""Seconds that one call of `each`, in total, gives way to payments that are being signed."""

TURN = 100
"""After this many steps in a row without waiting, other tasks may run."""


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


class WorkerPool:
    """Runs steps on payments. `failed`: whether something could not be recorded since the last pass began."""

    def __init__(self, context: AgentContext, signing: PaymentSigner) -> None:
        self.failed = False
        self._context = context
        self._signing = signing

    async def each(self, rows: Sequence[OpenPayment], act: Callable[[PaymentRow], Awaitable[None]]) -> None:
        """Act on every payment, a few at a time, each as it stands at its turn.

        An exception is logged and keeps no other payment from its turn. If a step could not be recorded, `failed`
        makes the next pass read it again.
        """
        left, patience_s = iter(rows), PATIENCE_S

        async def work() -> None:
            nonlocal patience_s
            for number, open_row in enumerate(left, 1):
                if patience_s > 0:
                    waited_s = await self._signing.give_way()
                    patience_s -= waited_s
                try:
                    row = payments.payment(self._context.conn, open_row.id)
                    if row is not None:
                        await act(row)
                except Exception as error:
                    code = error.code if isinstance(error, Refused) else None
                    self.failed |= code == "store_failed" or isinstance(error, DatabaseError)
                    if code not in NOT_SIGNED:  # an alert reports these, and they would repeat
                        log.warning(
                            "payment.step_failed", payment=open_row.id, error=repr(error), exc_info=code is None
                        )
                if number % TURN == 0:
                    await asyncio.sleep(0)

        await together([work() for _ in range(min(len(rows), AT_ONCE_MAX))])
