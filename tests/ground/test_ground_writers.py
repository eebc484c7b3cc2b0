"""Each table of a payment has one writer in the source: the executor of the effects."""

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "payagent"
STATEMENT = re.compile(r"\b(?:INSERT INTO|UPDATE|DELETE FROM|REPLACE INTO) ([a-z_]+)")
EXECUTOR = "store/executor.py"
CHAINS = "store/rows/writes.py"
"""What is only ever appended, by every step: the journal and the event chain."""

WRITERS = {
    **dict.fromkeys(
        (
            *("payments", "intents", "invoices", "approvals", "holds", "attempts", "submissions"),
            *("block_observations", "external_spends", "utxos", "reservations"),
        ),
        EXECUTOR,
    ),
    **dict.fromkeys(("entries", "postings", "events"), CHAINS),
    **dict.fromkeys(("prepaid_moves", "prepaid_totals", "prepaid_costs"), "store/rows/prepaid.py"),
    **dict.fromkeys(("prepaid_uses", "prepaid_shares"), "store/rows/prepaid_uses.py"),
    **dict.fromkeys(("agreed_prices", "address_pins", "unserved_streaks"), "store/rows/merchants.py"),
}


def written() -> set[tuple[str, str]]:
    """(table, module) for each statement in the source that writes one of these tables."""
    return {
        (table, str(file.relative_to(PACKAGE)))
        for file in PACKAGE.rglob("*.py")
        for table in STATEMENT.findall(file.read_text())
        if table in WRITERS
    }


def test_each_table_of_a_payment_is_written_by_one_module() -> None:
    assert written() == set(WRITERS.items())


def test_what_the_executor_hands_on_is_handed_on_by_nobody_else() -> None:
    """The modules below it write a balance, a use and a streak for the executor alone."""
    handed = re.compile(
        r"\b(?:prepaid\.record_move|prepaid_uses\.(?:pay|take_back_newest)|merchants\.agree|limit_counters\.recount)\("
    )
    callers = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if handed.search(file.read_text())}
    assert callers == {EXECUTOR}
