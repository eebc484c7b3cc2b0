"""The table of refusals: what a row says of the money, and whom it sends where, is true wherever it is told."""

import pytest

from payagent.core.problem import PROBLEMS

ANYWHERE = (
    "bad_request",
    "body_too_slow",
    "browser_refused",
    "config_invalid",
    "file_exists",
    "forbidden",
    "host_refused",
    "keystore_exists",
    "keystore_invalid",
    "keystore_locked",
    "method_not_allowed",
    "mnemonic_invalid",
    "not_found",
    "provider_untrusted",
    "rate_limited",
    "unauthorized",
    "units_not_understood",
)
"""Told also where no payment was asked for, while others may be in flight and their money held."""


@pytest.mark.parametrize("code", ANYWHERE)
def test_what_is_not_about_a_payment_says_nothing_of_money(code: str) -> None:
    assert PROBLEMS[code].money == ""


@pytest.mark.parametrize("code", PROBLEMS)
def test_a_row_that_says_that_nothing_is_held_says_for_what(code: str) -> None:
    assert "nothing is held." not in PROBLEMS[code].money


@pytest.mark.parametrize("code", [code for code, row in PROBLEMS.items() if row.exit_code in (2, 5)])
def test_a_mistake_of_the_caller_or_the_operator_is_not_the_merchants_to_hear(code: str) -> None:
    assert "Tell the merchant" not in PROBLEMS[code].fix
