"""Prepaid balances: what is left, a request served from one, and the check of their books."""

from kit.agent import Run
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.ledger import prepaid_account
from payagent.core.prepaid_balance import CALLS, PrepaidBalance
from payagent.store.rows import prepaid


def balance(run: Run) -> PrepaidBalance:
    (pool,) = prepaid.all_pools(run.context.conn)
    assert (pool.origin, pool.partner, pool.wallet) == (run.world.origin, "demo", run.world.address)
    return prepaid.balance(run.context.conn, pool.id, CALLS)


def call(run: Run, key: str | None = None, path: str = "/chat", partner: str = "demo") -> ServedRequest:
    return ServedRequest("app_test", run.world.origin, Buyer(partner, run.world.address), "POST", path, key)


def require_whole(run: Run, *, in_flight: bool = False) -> None:
    with run.context.readers.snapshot() as conn:
        found = list(verify(conn, Owner(run.context.config.own, run.context.config.network)))
    assert not [one for one in found if isinstance(one, AuditFinding)], found
    books = run.books()
    left = sum(
        one.balance.costs["lovelace"].left for one in prepaid.holdings(run.context.conn) if one.balance.costs
    )
    assert books.get(prepaid_account(run.world.origin), {}).get("lovelace", 0) == left
    assert in_flight or run.owned() == run.world.on_chain()
