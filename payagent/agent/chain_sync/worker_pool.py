"""Acts on payments a few at a time, each as it stands at its turn. Payments being signed go first.

Never: decides what is done with a payment; lets a failing payment keep another from its turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from payagent.agent.base.log import log
from payagent.agent.context import AgentContext
from payagent.agent.payments.sign import NOT_SIGNED, PaymentSigner
from payagent.chain.deadlines import together
from payagent.core.aggregate import PaymentRow
from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError
from payagent.store.rows import payments
from payagent.store.rows.payments import OpenPayment

AT_ONCE_MAX = 8

PATIENCE_S = 4.0
"""Seconds that one call of `each`, in total, gives way to payments that are being signed."""

TURN = 100
"""After this many steps in a row without waiting, other tasks may run."""


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
