"""The table of refusals: what a row says of the money, and whom it sends where, is true wherever it is told."""

import pytest

from payagent.core.problems import PROBLEMS, Refused, name_of, own_order

ANYWHERE = (
    "bad_request",
    "body_too_slow",
    "browser_refused/web_page",
    "config_invalid",
    "already_exists/file",
    "forbidden",
    "browser_refused/host",
    "already_exists/keystore",
    "keystore_invalid",
    "keystore_locked",
    "method_not_allowed",
    "mnemonic_invalid",
    "not_found",
    "provider_untrusted",
    "rate_limited",
    "unauthorized",
    "amount_invalid",
)
"""Told also where no payment was asked for, while others may be in flight and their money held."""


@pytest.mark.parametrize("code", ANYWHERE)
def test_what_is_not_about_a_payment_says_nothing_of_money(code: str) -> None:
    assert Refused(code, "").money == ""


NAMES = [name_of(code, reason) or "" for code, row in PROBLEMS.items() for reason in row.reasons or (None,)]


@pytest.mark.parametrize("name", NAMES)
def test_a_refusal_keeps_its_code_its_reason_and_a_text_for_people(name: str) -> None:
    refused = Refused(name, "what happened")
    assert name_of(refused.code, refused.reason) == name
    assert refused.record == {"code": refused.code, "reason": refused.reason, "detail": "what happened"}
    assert 0 < len(refused.problem.title) <= 60
    assert not refused.problem.title.endswith(".")


@pytest.mark.parametrize("code", [code for code, row in PROBLEMS.items() if row.reasons])
def test_a_family_without_its_reason_is_a_mistake(code: str) -> None:
    with pytest.raises(KeyError):
        Refused(code, "what happened")


@pytest.mark.parametrize("code", PROBLEMS)
def test_a_row_that_says_that_nothing_is_held_says_for_what(code: str) -> None:
    assert "nothing is held." not in PROBLEMS[code].money


@pytest.mark.parametrize("code", [code for code, row in PROBLEMS.items() if row.exit_code in (2, 5)])
def test_a_mistake_of_the_caller_or_the_operator_is_not_the_merchants_to_hear(code: str) -> None:
    assert "Tell the merchant" not in PROBLEMS[code].fix


def test_a_refusal_without_a_row_cannot_be_made() -> None:
    with pytest.raises(KeyError, match="no_such_code"):
        Refused("no_such_code", "why")


@pytest.mark.parametrize("code", ["address_invalid/script", "utxos_too_small/transaction_size"])
def test_what_a_merchant_would_be_told_is_the_operators_own_mistake_in_an_order_of_his(code: str) -> None:
    with pytest.raises(Refused) as refused, own_order(place=3):
        raise Refused(code, "why", output=1)
    told = refused.value
    assert (told.code, told.detail, told.context) == ("transfer_invalid", "why", {"output": 1, "place": 3})


def test_any_other_refusal_of_an_order_stays_what_it_is() -> None:
    with pytest.raises(Refused) as refused, own_order(place=3):
        raise Refused("limit_exceeded", "why")
    assert (refused.value.name, refused.value.context) == ("limit_exceeded", {})
    with own_order():
        pass


def test_a_refusal_can_override_the_money_text_of_its_row_for_itself_alone() -> None:
    refused = Refused("paused", "an operator stopped it", payment="pay_1")
    told = refused.with_money("It is all there.")
    assert (told.code, told.detail, told.context) == (refused.code, refused.detail, refused.context)
    assert told.money == "It is all there."
    assert refused.money == refused.problem.money != told.money


def test_a_refusals_message_is_all_that_a_person_needs() -> None:
    assert Refused("limit_exceeded", "5 ADA, 4 are left").message == (
        f"{PROBLEMS['limit_exceeded'].title}: 5 ADA, 4 are left. "
        f"{PROBLEMS['limit_exceeded'].money} {PROBLEMS['limit_exceeded'].fix}"
    )
    assert Refused("unauthorized", "no token.").message == (
        f"{PROBLEMS['unauthorized'].title}: no token. {PROBLEMS['unauthorized'].fix}"
    )
