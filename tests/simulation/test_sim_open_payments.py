"""Under simulated faults, the open payments that chain_sync keeps in memory equal the ledger."""

import pytest

from payagent.agent.chain_sync.open_payments import OpenPayments
from payagent.core.payment.machine import State
from payagent.store.rows import payments
from sim.run import run_share

SEEDS = range(41_000, 41_006)


def test_open_payments_in_memory_equal_the_ledger_in_simulated_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = OpenPayments._fresh
    seen: set[State] = set()

    def compared(self: OpenPayments):  # type: ignore[no-untyped-def]
        conn = fresh(self)
        kept = list(self._payments.values())
        assert kept == payments.open_payments(conn)
        seen.update(row.state for row in kept)
        return conn

    monkeypatch.setattr(OpenPayments, "_fresh", compared)
    result = run_share(SEEDS)
    assert not result.violations
    assert {State.IN_FLIGHT, State.IN_BLOCK, State.CONFIRMED, State.CANCELLING, State.VOID} <= seen
