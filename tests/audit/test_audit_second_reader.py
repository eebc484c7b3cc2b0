"""The second reader agrees about every transaction of ours, and sees what a broken decoder of ours hides."""

import asyncio
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from kit.agent import ADA, World
from kit.audit import Past, findings
from kit.wallet import OWN, SIGNER, TTL_SLOT, random_outputs, random_wallet, wallet_size

from payagent.audit.second_reader import second_findings
from payagent.audit.signed_bytes import Owner
from payagent.core.problems import Refused
from payagent.store.audit.payment_records import SignedTransaction, signed_transactions
from payagent.wallet import cbor_write, tx_decode, tx_plan
from payagent.wallet.transaction import select
from payagent.wallet.utxo_index import UtxoIndex
from sim.signing import sign


def pages(path: Path, limit: int) -> list[SignedTransaction]:
    """All signed transactions of a ledger, page by page."""
    found: list[SignedTransaction] = []
    with closing(sqlite3.connect(path)) as conn:
        while page := signed_transactions(conn, found[-1].seq if found else None, limit):
            found += page
    return found


def test_both_readers_agree_about_every_transaction_of_a_ledger(lived: Past) -> None:
    transactions = pages(lived.path, 2)
    assert transactions == pages(lived.path, 200)
    assert len(transactions) > 8
    assert [one for tx in transactions for one in second_findings(tx.tx_id, tx.cbor)] == []


def test_both_readers_agree_about_tokens_and_commitments() -> None:
    rnd, count = random.Random(7), 0
    while count < 20:
        wallet = random_wallet(rnd, wallet_size(rnd))
        try:
            plan = select(
                UtxoIndex(wallet), random_outputs(rnd, wallet), change=OWN, ttl_slot=TTL_SLOT, network_id=0,
                commitment=rnd.randbytes(32) if count % 2 else None,
            )  # fmt: skip
        except Refused:
            continue
        count += 1
        assert list(second_findings(plan.tx_id, sign(plan, SIGNER))) == []


def test_what_our_decoder_reads_wrongly_is_found(lived: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    tx = pages(lived.path, 1)[0]
    right = tx_decode.decode(tx.cbor)
    others = {
        "inputs": {"inputs": right.inputs[1:]},
        "outputs": {"outputs": (right.outputs[0]._replace(lovelace=1), *right.outputs[1:])},
        "fee": {"fee_lovelace": right.fee_lovelace - 1},
        "TTL": {"ttl_slot": right.ttl_slot + 1},
        "network id": {"network_id": 1},
        "signatures": {"witnesses": ()},
        "commitment": {"commitment": bytes(32)},
        "id": {"body": right.body[:-1]},
    }
    for name, wrong in others.items():
        monkeypatch.setattr(
            "payagent.audit.second_reader.read", lambda _cbor, wrong=wrong: right._replace(**wrong)
        )
        (found,) = second_findings(tx.tx_id, tx.cbor)
        assert (found.table, found.row) == ("attempts", tx.tx_id)
        assert found.what.startswith(f"pycardano reads the {name} ")


def test_a_fee_that_is_written_and_read_as_another_is_found_by_the_second_reader_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault is in our encoder and our decoder alike, so the ledger is consistent with itself."""

    def written(value: int) -> bytes:
        return cbor_write.uint(value + 1 if 150_000 < value < 250_000 else value)

    right = tx_decode._field

    def read_less(buf: bytes, at: int, key: int, name: str) -> tuple[int, int]:
        value, end = right(buf, at, key, name)
        return value - (key == 2), end

    monkeypatch.setattr(tx_plan, "cbor", SimpleNamespace(**{**vars(cbor_write), "uint": written}))
    monkeypatch.setattr(tx_decode, "_field", read_less)

    world.fund(100 * ADA)

    async def pay() -> None:
        async with world.run() as run:
            await run.run_pass()
            await run.pay()

    asyncio.run(pay())
    path = world.folder / "ledger.db"
    assert findings(path, Owner(world.account.address, world.terms.network)) == []
    (tx,) = pages(path, 200)
    (found,) = second_findings(tx.tx_id, tx.cbor)
    fee = tx_decode.decode(tx.cbor).fee_lovelace
    assert found.what == f"pycardano reads the fee {fee + 1} in its bytes, payagent reads {fee}"


def test_bytes_that_only_payagent_can_read_are_found(lived: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    tx = pages(lived.path, 1)[0]
    right = tx_decode.decode(tx.cbor)
    monkeypatch.setattr("payagent.audit.second_reader.read", lambda _cbor: right)
    (found,) = second_findings(tx.tx_id, tx.cbor[:-1])
    assert found.what.startswith("pycardano cannot read its bytes")
