"""The demo's checks. They read the chain's own API, and never the daemon's view of the chain.

Each check raises `DemoFailed` with the difference.

Never: repairs or waits.
"""

from collections.abc import Iterable
from typing import Any

from payagent.core.ledger import add
from payagent.demo.stage import Json, Stage, require

PAGE_ROWS = 100


def paid(on: Stage, payment: Json) -> None:
    """Check that the chain shows the exact fee and each output exactly once."""
    fees = on.chain(f"/txs/{payment['tx_hash']}")["fees"]
    require(fees == payment["fee"], f"the fee is {fees} on the chain, {payment['fee']} in the daemon")
    outputs = on.chain(f"/txs/{payment['tx_hash']}/utxos")["outputs"]
    paid_outputs = [(out["address"], part["unit"], part["quantity"]) for out in outputs for part in out["amount"]]
    for output in payment["outputs"]:
        expected = (output["address"], output["asset"], output["units"])
        require(paid_outputs.count(expected) == 1, f"the chain does not show the output {expected} exactly once")


def transactions(on: Stage, *, before: int, count: int) -> None:
    """Check that the wallet has `count` more transactions than `before`."""
    on_chain = len(transactions_of(on)) - before
    require(on_chain == count, f"the chain shows {on_chain} transactions for this request, not {count}")


def transactions_of(on: Stage) -> list[Any]:
    """Every transaction of the wallet's addresses, oldest first at each."""
    return [row for address in on.addresses for row in _all_pages(on, f"/addresses/{address}/transactions")]


def books(on: Stage, balances: Iterable[Json]) -> dict[str, int]:
    """Check that postings sum to zero and wallet + held equal the chain. Returns the chain's units per asset."""
    rows = [(row["account"].partition("/")[0], {row["asset"]: int(row["units"])}) for row in balances]
    sums = add(units for _, units in rows)
    owned = add(units for account, units in rows if account in ("wallet", "held"))
    require(not any(sums.values()), f"the postings do not sum to zero: {sums}")
    utxos = [utxo for address in on.addresses for utxo in _all_pages(on, f"/addresses/{address}/utxos")]
    chain = add({part["unit"]: int(part["quantity"])} for utxo in utxos for part in utxo["amount"])
    require(owned == chain, f"the ledger says {owned}, the chain shows {chain}")
    return chain


def _all_pages(on: Stage, path: str) -> list[Any]:
    rows: list[Any] = []
    while True:
        page = on.chain(f"{path}?page={len(rows) // PAGE_ROWS + 1}")
        rows += page
        if len(page) < PAGE_ROWS:
            return rows
