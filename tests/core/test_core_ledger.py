"""Double entry: every entry balances, and a payment's entries add up to what left the wallet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core import ledger
from payagent.core.ledger import Entry, Posting

ASSETS = st.sampled_from(["lovelace", "aa" * 28, "bb" * 28 + "01"])
UNITS = st.dictionaries(ASSETS, st.integers(1, 2**63 - 1), min_size=1)


def balances(*entries: Entry) -> dict[tuple[str, str], int]:
    total: dict[tuple[str, str], int] = {}
    for entry in entries:
        for posting in entry.postings:
            key = (posting.account, posting.asset)
            total[key] = total.get(key, 0) + posting.units
    return {key: units for key, units in total.items() if units}


def test_an_entry_that_does_not_balance_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="does not balance"):
        Entry("post", (Posting("wallet", "lovelace", 5), Posting("held", "lovelace", -4)))
    with pytest.raises(ValueError, match="does not balance"):
        Entry("post", (Posting("wallet", "lovelace", 5), Posting("held", "aa" * 28, -5)))
    with pytest.raises(ValueError, match="does not balance"):
        Entry("post", ())


@given(UNITS)
def test_a_released_hold_leaves_every_balance_unchanged(hold: dict[str, int]) -> None:
    assert balances(ledger.reserve(hold), ledger.release(hold)) == {}


@given(UNITS)
def test_a_rolled_back_deposit_leaves_every_balance_unchanged(units: dict[str, int]) -> None:
    assert balances(ledger.deposit(units), ledger.deposit_reversed(units)) == {}


@pytest.mark.parametrize("units", [1, 2**63 - 1, 2**63, 3 * (2**63 - 1), 2**65])
def test_a_token_amount_above_63_bits_is_posted_in_parts(units: int) -> None:
    spent, back = ledger.external_spend({"aa" * 28: units}), ledger.external_spend_reversed({"aa" * 28: units})
    assert balances(spent) == {("wallet", "aa" * 28): -units, ("external", "aa" * 28): units}
    assert balances(spent, back) == {}
    assert all(0 < abs(posting.units) < 2**63 for posting in (*spent.postings, *back.postings))
    assert len(spent.postings) == 2 * -(-units // (2**63 - 1))


@given(UNITS)
def test_each_account_of_the_wallet_has_books_of_its_own(units: dict[str, int]) -> None:
    """One account's deposit, and what it holds and pays, changes no balance of another."""
    hold = units | {"lovelace": units.get("lovelace", 0) + 200_000}
    ours = (ledger.deposit(hold, 2), ledger.reserve(hold, 2))
    assert {account for account, _ in balances(*ours)} == {"held/2", "external"}
    over = (ledger.post(hold, units, 200_000, "merchant:m", 2), ledger.release(hold, of=2))
    assert {account for one in over for account, _ in balances(one)} <= {
        "held/2",
        "wallet/2",
        "merchant:m",
        "fees",
    }


@pytest.mark.parametrize(
    ("name", "general"),
    [
        ("wallet", "wallet"),
        ("wallet/12", "wallet"),
        ("held/1", "held"),
        ("merchant:https://m.example/held/1", "merchant:https://m.example/held/1"),
        ("external", "external"),
    ],
)
def test_the_accounts_of_the_wallet_have_a_general_name(name: str, general: str) -> None:
    assert ledger.general_account(name) == general


@given(UNITS, st.integers(155_381, 900_000), st.integers(0, 10_000))
def test_a_confirmed_payment_books_exactly_its_price_and_fee(spent: dict[str, int], fee: int, spare: int) -> None:
    hold = spent | {"lovelace": spent.get("lovelace", 0) + fee + spare}
    posted = ledger.post(hold, spent, fee, "merchant:m")
    after = balances(ledger.reserve(hold), posted)
    assert after.pop(("fees", "lovelace")) == fee
    assert {asset: units for (account, asset), units in after.items() if account == "merchant:m"} == spent
    gone = spent | {"lovelace": spent.get("lovelace", 0) + fee}
    assert {asset: -units for (account, asset), units in after.items() if account == "wallet"} == gone
    assert all(account != "held" for account, _ in after)


@given(UNITS, st.integers(155_381, 900_000))
def test_a_rolled_back_payment_restores_its_hold(spent: dict[str, int], fee: int) -> None:
    hold = spent | {"lovelace": spent.get("lovelace", 0) + fee}
    posted = ledger.post(hold, spent, fee, "merchant:m")
    assert balances(ledger.reserve(hold), posted, ledger.post_reversed(posted)) == balances(ledger.reserve(hold))


@given(UNITS)
def test_a_reversed_external_spend_leaves_every_balance_unchanged(units: dict[str, int]) -> None:
    gone = ledger.external_spend(units)
    assert balances(gone)["wallet", next(iter(units))] < 0
    assert balances(gone, ledger.external_spend_reversed(units)) == {}


@pytest.mark.parametrize(
    ("origin", "is_prepaid", "account"),
    [
        (None, False, "external"),
        ("https://m", False, "merchant:https://m"),
        ("https://m", True, "prepaid:https://m"),
    ],
)
def test_a_payment_is_booked_to_a_merchant_prepaid_or_external_account(
    origin: str | None, is_prepaid: bool, account: str
) -> None:
    assert ledger.spending_account(origin, is_prepaid) == account


def test_holds_are_added_up_by_asset() -> None:
    assert ledger.add([{"lovelace": 1, "a": 2}, {}, {"lovelace": 3}]) == {"lovelace": 4, "a": 2}
    assert ledger.add([]) == {}


def test_only_what_is_left_in_channels_is_in_channels() -> None:
    rows = [{"account": account, "asset": "lovelace", "units": "5"} for account in ("wallet", "channel:https://m")]
    ended = {**rows[1], "units": "0"}
    assert ledger.in_channels([*rows, ended]) == [{**rows[1], "origin": "https://m"}]
