"""The table of error codes: what each says about money and what to do is true wherever it is raised."""

import re

import pytest

from payagent.core.problems import PROBLEMS, Refused, agent_fix, name_of, own_order

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
"""Also raised without a payment, while other payments may be in flight."""


@pytest.mark.parametrize("code", ANYWHERE)
def test_a_refusal_that_is_not_about_a_payment_says_nothing_about_money(code: str) -> None:
    assert Refused(code, "").money == ""


NAMES = [name_of(code, reason) or "" for code, row in PROBLEMS.items() for reason in row.reasons or (None,)]


@pytest.mark.parametrize("name", NAMES)
def test_every_refusal_has_a_code_a_reason_and_a_short_title(name: str) -> None:
    refused = Refused(name, "what happened")
    assert name_of(refused.code, refused.reason) == name
    assert refused.record == {"code": refused.code, "reason": refused.reason, "detail": "what happened"}
    assert 0 < len(refused.problem.title) <= 60
    assert not refused.problem.title.endswith(".")


@pytest.mark.parametrize("code", [code for code, row in PROBLEMS.items() if row.reasons])
def test_a_code_with_reasons_cannot_be_raised_without_one(code: str) -> None:
    with pytest.raises(KeyError):
        Refused(code, "what happened")


@pytest.mark.parametrize("code", PROBLEMS)
def test_no_money_text_says_only_that_nothing_is_held(code: str) -> None:
    assert "nothing is held." not in PROBLEMS[code].money


@pytest.mark.parametrize("code", [code for code, row in PROBLEMS.items() if row.exit_code in (2, 5)])
def test_a_callers_or_operators_mistake_never_says_to_tell_the_merchant(code: str) -> None:
    assert "Tell the merchant" not in PROBLEMS[code].fix


NO_AGENT_MEETS = {
    "channel_unoffered",
    *(
        "already_decided",
        "already_exists",
        "approved_amount_exceeded",
        "external_spend_new",
        "last_pinned_address",
    ),
    *("already_running", "keystore_invalid", "ledger_missing", "ledger_newer", "ledger_older", "ledger_tampered"),
    *("file_invalid", "mnemonic_invalid", "passphrase_too_short", "project_id_missing", "recovery_words_on_disk"),
    *("limit_not_lower", "tables_missing", "transfer_invalid", "write_failed", "wrong_state"),
    *("topup_in_progress", "topup_not_configured", "topup_stopped"),
    *("idempotency_key_invalid", "idempotency_key_reused", "media_type_refused", "method_not_allowed"),
    "websocket_not_supported",
}
"""Codes of a start, of what an operator orders, and of requests that `payagent mcp` never makes."""

FOR_PERSONS = re.compile(
    r"`payagent |payagent [a-z]+ [A-Z]|--[a-z]|\b(merchants|api|proxy|limits|chain)\.|\[|restart|Raise"
)
"""Commands and settings: an agent that tries them works around its limits."""


def test_each_problem_that_an_agent_can_meet_has_a_text_for_agents() -> None:
    assert {code for code, row in PROBLEMS.items() if not row.agent} == NO_AGENT_MEETS


@pytest.mark.parametrize("name", NAMES)
def test_a_text_for_agents_tells_them_nothing_that_only_a_person_may_do(name: str) -> None:
    code, _, reason = name.partition("/")
    told = agent_fix(code, reason or None, "")
    assert not FOR_PERSONS.search(told)
    assert set(re.findall(r"`([^`]+)`", told)) <= {"max_cost", "reason", "headers"}
    assert "`" not in agent_fix(code, reason or None, "", is_proxied=True)
    assert FOR_PERSONS.search("Raise this limit, or wait until room frees up. If you passed --max, raise that.")


def test_a_problem_of_a_newer_daemon_keeps_its_own_text() -> None:
    assert agent_fix("unheard_of", None, "Do this.") == "Do this."
    assert agent_fix("payment_void", "unheard_of", "Do that.") == "Do that."


def test_a_refusal_with_an_unknown_code_cannot_be_made() -> None:
    with pytest.raises(KeyError, match="no_such_code"):
        Refused("no_such_code", "why")


@pytest.mark.parametrize("code", ["address_invalid/script", "utxos_too_small/transaction_size"])
def test_an_invalid_address_in_a_transfer_is_refused_as_transfer_invalid(code: str) -> None:
    with pytest.raises(Refused) as refused, own_order(place=3):
        raise Refused(code, "why", output=1)
    told = refused.value
    assert (told.code, told.detail, told.context) == ("transfer_invalid", "why", {"output": 1, "place": 3})


def test_any_other_refusal_of_a_transfer_keeps_its_code() -> None:
    with pytest.raises(Refused) as refused, own_order(place=3):
        raise Refused("limit_exceeded", "why")
    assert (refused.value.name, refused.value.context) == ("limit_exceeded", {})
    with own_order():
        pass


def test_a_refusal_can_override_its_money_text_without_changing_the_table() -> None:
    refused = Refused("paused", "an operator stopped it", payment="pay_1")
    told = refused.with_money("It is all there.")
    assert (told.code, told.detail, told.context) == (refused.code, refused.detail, refused.context)
    assert told.money == "It is all there."
    assert refused.money == refused.problem.money != told.money


def test_a_refusals_message_has_title_detail_money_and_fix() -> None:
    assert Refused("limit_exceeded", "5 ADA, 4 are left").message == (
        f"{PROBLEMS['limit_exceeded'].title}: 5 ADA, 4 are left. "
        f"{PROBLEMS['limit_exceeded'].money} {PROBLEMS['limit_exceeded'].fix}"
    )
    assert Refused("unauthorized", "no token.").message == (
        f"{PROBLEMS['unauthorized'].title}: no token. {PROBLEMS['unauthorized'].fix}"
    )


def test_a_refusal_by_a_limit_records_which_limit_it_was() -> None:
    known = {"limit": "per_day", "asset": "lovelace"}
    ledger = Refused("limit_exceeded", "too much", **known, app="a", merchant="https://b").limit_record
    assert ledger == {**known, "scope": "app a, merchant https://b"}
    assert Refused("limit_exceeded", "too much", **known).limit_record == {**known, "scope": "wallet"}
    assert Refused("paused", "by the operator").limit_record == {}
