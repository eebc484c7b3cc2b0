"""`payagent wallet unfreeze` at a terminal: it shows what froze the wallet and clears only that."""

from kit.cli import Shop, checks
from kit.second_wallet import frozen_by, spend_elsewhere
from kit.terminal import at_terminal


def test_unfreeze_is_refused_for_an_external_spend_it_has_not_shown(shop: Shop) -> None:
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


def test_resume_and_unfreeze_say_what_still_keeps_payagent_from_signing(shop: Shop) -> None:
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
