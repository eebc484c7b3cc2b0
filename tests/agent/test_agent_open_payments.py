"""The open payments that chain_sync keeps in memory: equal to the ledger, read again only where it changed."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.store import ACCOUNT, Payer, payment_id
from payagent.agent.chain_sync.open_payments import OpenPayments
from payagent.core.payment.machine import State
from payagent.store.rows import payments
from payagent.store.rows import writes as records
from sim.signing import sign


@pytest.fixture
def payer(tmp_path: Path) -> Iterator[Payer]:
    with closing(Payer(tmp_path / "ledger.db", 101)) as payer:
        yield payer


def open_some(payer: Payer, numbers: range) -> None:
    for number in numbers:
        plan = payer.admit(number)
        payer.record(number, plan, sign(plan, ACCOUNT.signer))


def steps_after_one_commit(payer: Payer, rows: OpenPayments) -> int:
    """How many SQLite steps it takes to read the open payments after one of them changed."""
    rows.open(tuple(State))
    payer.do(lambda unit: records.note(unit, payment_id(0), "looked_at", State.SIGNED, 1))
    steps = [0]

    def step() -> None:
        steps[0] += 1

    payer.readers.conn.set_progress_handler(step, 1)
    rows.open(tuple(State))
    payer.readers.conn.set_progress_handler(None, 1)
    return steps[0]


def test_the_reads_of_a_pass_do_not_grow_with_the_open_payments(payer: Payer) -> None:
    rows = OpenPayments(SimpleNamespace(conn=payer.readers.conn, config=SimpleNamespace(account=0)))  # type: ignore[arg-type]
    open_some(payer, range(10))
    steps_after_one_commit(payer, rows)
    few = steps_after_one_commit(payer, rows)
    open_some(payer, range(10, 100))
    assert 0 < steps_after_one_commit(payer, rows) <= few * 1.1
    assert len(rows.open((State.SIGNED,))) == 100


def test_open_payments_in_memory_equal_the_ledger(payer: Payer) -> None:
    rows = OpenPayments(SimpleNamespace(conn=payer.readers.conn, config=SimpleNamespace(account=0)))  # type: ignore[arg-type]

    def as_in_the_ledger() -> bool:
        return rows.open(tuple(State)) == payments.open_payments(payer.readers.conn)

    assert as_in_the_ledger()
    open_some(payer, range(3))
    assert as_in_the_ledger()
    plan = payer.admit(3)
    assert as_in_the_ledger()
    payer.record(3, plan, sign(plan, ACCOUNT.signer))
    payer.follow(3, plan)
    assert as_in_the_ledger()
    assert [row.id for row in rows.open((State.SIGNED,))] == [payment_id(number) for number in range(3)]
