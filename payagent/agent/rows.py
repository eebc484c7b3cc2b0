"""The payments and coins that a look at the chain is about, which its steps ask for again and again.

May import: core, store, agent.agent. Never: holds what was read when anything has been committed since.
"""

from collections.abc import Collection

from payagent.agent.agent import Agent
from payagent.core.payment import State
from payagent.store import queries
from payagent.store.queries import CoinRow, PaymentRow
from payagent.store.writer import Connection

LOOKED_FOR = (State.SIGNED, State.IN_FLIGHT, State.REPLACING, State.CANCELLING)
"""States in which an attempt may come into a block, and none is known to be in one."""

SEEN = (State.IN_BLOCK, State.CONFIRMED)
_OPEN = (State.RESERVED, *LOOKED_FOR, *SEEN)


class Rows:
    """Read again when anything was committed since."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._as_of: object = None
        self._payments: list[PaymentRow] | None = None
        self._voids: list[PaymentRow] | None = None
        self._coins: list[CoinRow] | None = None

    def open(self, states: Collection[State]) -> list[PaymentRow]:
        """Admitted payments in any of these states, none of which is final; oldest first."""
        return self._open(self._fresh(), states)

    def on_chain(self) -> list[PaymentRow]:
        """Payments of which a transaction is in a block that may still be lost."""
        conn = self._fresh()
        return [*self._open(conn, SEEN), *self._watched_voids(conn)]

    def watched_voids(self) -> list[PaymentRow]:
        return self._watched_voids(self._fresh())

    def coins(self) -> list[CoinRow]:
        """Every coin that is not spent."""
        conn = self._fresh()
        if self._coins is None:
            self._coins = queries.coins(conn)
        return self._coins

    def _open(self, conn: Connection, states: Collection[State]) -> list[PaymentRow]:
        if self._payments is None:
            self._payments = queries.payments_in(conn, _OPEN)
        return [row for row in self._payments if row.state in states]

    def _watched_voids(self, conn: Connection) -> list[PaymentRow]:
        if self._voids is None:
            self._voids = queries.watched_voids(conn)
        return self._voids

    def _fresh(self) -> Connection:
        conn = self._agent.conn
        if (as_of := (conn, queries.version(conn))) != self._as_of:
            self._as_of = as_of
            self._payments = self._voids = self._coins = None
        return conn
