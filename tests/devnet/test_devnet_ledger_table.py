"""The mutation table: the devnet's ledger and scalus against the real ledger's verdict."""

from collections.abc import Iterator

import pytest
from ledger_check.cases import Case, all_cases
from ledger_check.scalus import Scalus, needs_scalus

from payagent.devnet.ledger import LedgerError, Params, TxOut, check_tx, decode_tx

CASES = all_cases()
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def scalus() -> Iterator[Scalus]:
    with Scalus() as judge:
        yield judge


def verdict(case: Case) -> str | None:
    """The first rule that the devnet's ledger names, None when it accepts."""
    utxos = {
        ref: TxOut(out.address, out.lovelace, out.assets, None, out.inline_datum, out.reference_script)
        for ref, out in case.utxos.items()
    }
    try:
        check_tx(decode_tx(case.tx), utxos, case.slot, Params(network_id=case.network_id))
    except LedgerError as error:
        return error.rule
    return None


def test_the_table_has_65_distinct_cases() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == 65


@by_name
def test_the_devnet_gives_the_real_ledgers_verdict(case: Case) -> None:
    assert verdict(case) == case.rule


@needs_scalus
@by_name
def test_scalus_gives_the_real_ledgers_verdict(case: Case, scalus: Scalus) -> None:
    error = scalus.validate(case.tx, case.utxos, case.slot, case.network_id)
    assert (error is None) == (case.rule is None), error


@needs_scalus
@by_name
def test_scalus_alone_is_wrong_only_in_the_known_cases(case: Case, scalus: Scalus) -> None:
    scalus.open(case.utxos, case.slot, case.network_id)
    error = scalus.raw_verdict(case.tx)
    assert ((error is None) == (case.rule is None)) is not case.scalus_errs, error
