"""`payagent wallet unfreeze` at a terminal: it shows what froze the wallet and clears only that."""

from kit.cli import Shop, checks, running, until
from kit.terminal import at_terminal

from payagent.core.address import encode_address
from payagent.core.invoice import Output
from payagent.core.network import NETWORKS
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.transaction import select, sign
from payagent.wallet.utxo_index import Utxo, UtxoIndex

DEVNET = NETWORKS["devnet"]
OUT = Output("pay_to", encode_address(bytes([0x60]) + bytes(28)), "lovelace", 3_000_000)


def spend_elsewhere(shop: Shop) -> str:
    """Another program with the wallet's words sends some of its money away, and the daemon sees it."""
    account, chain = derive(seed_from_words(shop.words), DEVNET), shop.devnet.chain_url
    slot = shop.http.get(f"{chain}/blocks/latest").json()["slot"]
    rows = shop.payagent("wallet", "utxos").json["utxos"]
    utxos = UtxoIndex(
        Utxo(row["ref"].partition("#")[0], int(row["ref"].partition("#")[2]), int(row["lovelace"]), ())
        for row in rows
        if row["state"] == "available"
    )
    plan = select(utxos, (OUT,), change=account.address, ttl_slot=slot + 500, network_id=DEVNET.network_id)
    sent = shop.http.post(
        f"{chain}/tx/submit", content=sign(plan, account.signer), headers={"Content-Type": "application/cbor"}
    )
    assert sent.status_code == 200, sent.text
    until(lambda: plan.tx_id in frozen_by(shop), "the daemon does not see it")
    return plan.tx_id


def frozen_by(shop: Shop) -> list[str]:
    told: list[str] = shop.payagent("wallet", "show").json["frozen_by"]
    return told


def test_unfreeze_is_refused_for_an_external_spend_it_has_not_shown(closed_shop: Shop) -> None:
    shop = closed_shop
    for _ in range(3):
        shop.control("faucet", address=shop.made["address"], lovelace="100000000")
    with running(shop):
        until(lambda: len(shop.payagent("wallet", "utxos").json["utxos"]) == 3, "no deposit")
        first = spend_elsewhere(shop)
        with at_terminal("wallet", "unfreeze", "--config", shop.config) as session:
            session.expect(first)
            session.expect("[y/N]")
            second = spend_elsewhere(shop)
            session.type("y")
            session.expect(second)
            assert session.end() == 2
        assert frozen_by(shop) == [first, second]
        refused = shop.payagent("wallet", "unfreeze", "--reviewed", first)
        assert (refused.code, refused.problem) == (2, "external_spend_new")
        unfrozen = shop.payagent("wallet", "unfreeze", "--reviewed", first, "--reviewed", second)
        assert unfrozen.json == {"tx": second, "txs": [first, second]}
        assert frozen_by(shop) == []
        assert shop.payagent("wallet", "unfreeze", "--human").out == "Nothing was frozen.\n"


def test_resume_and_unfreeze_say_what_still_keeps_payagent_from_signing(closed_shop: Shop) -> None:
    shop = closed_shop
    shop.control("faucet", address=shop.made["address"], lovelace="100000000")
    with running(shop):
        until(lambda: shop.payagent("wallet", "utxos").json["utxos"], "no deposit")
        assert shop.payagent("wallet", "--human").err == ""
        tx = spend_elsewhere(shop)
        assert tx in shop.payagent("wallet", "--human").err
        doctor = checks(shop.config)["daemon"]
        assert doctor["code"] == "external_spend"
        assert "payagent wallet unfreeze" in doctor["fix"]
        shop.payagent("pause")
        resumed = shop.payagent("resume", "--human")
        assert resumed.out == "The pause is over.\n"
        assert (
            f"Still not signing: nothing is signed until the operator unfreezes the wallet: transaction {tx}"
            in resumed.err
        )
        shop.payagent("pause")
        unfrozen = shop.payagent("wallet", "unfreeze", "--human")
        assert unfrozen.out == f"Unfrozen. It was frozen by {tx}.\n"
        assert "Still not signing: an operator has paused signing" in unfrozen.err
        assert shop.payagent("resume", "--human").out == "payagent signs again.\n"
