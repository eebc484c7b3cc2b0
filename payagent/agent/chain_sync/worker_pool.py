"""Turns: payments are acted on a few at once, each as it is when it has its turn. What is being signed goes first.

May import: core.problems, chain.deadlines, store.rows, store.db, agent.context, agent.payments, structlog. Never:
decides what is done in a turn; lets one that fails keep another from its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from payagent.agent.context import AgentContext
from payagent.agent.payments.sign import NOT_SIGNED, PaymentSigner
from payagent.chain.deadlines import together
from payagent.core.problems import Refused
from payagent.store.db.opening import DatabaseError
from payagent.store.rows import payments
from payagent.store.rows.payments import OpenPayment, PaymentRow

AT_ONCE_MAX = 8

PATIENCE_S = 4.0
"""How long all looks at payments together, a few at once, give way to payments that are being signed."""

TURN = 100
"""After so many steps in a row that waited for nothing, others have their turn."""

log = structlog.get_logger("payagent.watch")


class WorkerPool:
    """`failed`: whether something could not be written down since the last look at the chain began."""

    def __init__(self, context: AgentContext, signing: PaymentSigner) -> None:
        self.failed = False
        self._context = context
        self._signing = signing

    async def each(self, found: Sequence[OpenPayment], act: Callable[[PaymentRow], Awaitable[None]]) -> None:
        """Act on every payment, a few at once, each as it is when it has its turn.

        One that raises is logged and keeps nobody else from their turn. What could not be written down is looked
        at again, as what could not be read.
        """
        left, patience_s = iter(found), PATIENCE_S

        async def work() -> None:
            nonlocal patience_s
            for number, one in enumerate(left, 1):
                if patience_s > 0:
                    waited_s = await self._signing.give_way()
                    patience_s -= waited_s
                try:
                    row = payments.payment(self._context.conn, one.id)
                    if row is not None:
                        await act(row)
                except Exception as error:
                    code = error.code if isinstance(error, Refused) else None
                    self.failed |= code == "store_failed" or isinstance(error, DatabaseError)
                    if code not in NOT_SIGNED:  # these are told by an alert, each time the same
                        log.warning(
                            "payment.step_failed", payment=one.id, error=repr(error), exc_info=code is None
                        )
                if number % TURN == 0:
                    await asyncio.sleep(0)

        await together([work() for _ in range(min(len(found), AT_ONCE_MAX))])
