"""A merchant's prepaid balance: read under many names and in many places, and never guessed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.strict_json import JsonNumber
from payagent.dialects import HttpResponse, PrepaidAnswer, read_prepaid, wants_wallet_address

TOKEN = "ab" * 28 + "544f4b"


def read(body: object) -> PrepaidAnswer:
    return read_prepaid(200, json.dumps(body))


def said(
    remaining: int, total: int | None = None, used: int | None = None, unit: str | None = None
) -> PrepaidAnswer:
    return PrepaidAnswer(remaining, total, used, unit, None, understood=True, why="")


def refused(body: object) -> str:
    """Why an answer is not understood; such an answer has no values."""
    answer = read(body)
    assert answer.why
    assert answer == PrepaidAnswer(None, None, None, None, None, understood=False, why=answer.why)
    return answer.why


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ({"remaining": 97, "total": 100, "expires_at": None}, said(97, 100)),
        ({"partner": "p", "wallet": "addr1", "remaining": "97", "total": "100"}, said(97, 100)),
        ({"remaining": 0}, said(0)),
        ({"remaining": 100, "total": 100}, said(100, 100)),
        ({"left": 5}, said(5)),
        ({"available": 5}, said(5)),
        ({"balance": 5}, said(5)),
        ({"credits": "5"}, said(5)),
        ({"credit": 5, "bought": 6, "spent": 1}, said(5, 6, 1)),
        ({"prepaid_balance": 5, "purchased": 6, "consumed": 1}, said(5, 6, 1)),
        ({"remainingCredits": 5, "totalCredits": 6, "usedCredits": 1}, said(5, 6, 1)),
        ({"remaining_credits": 5, "total_credits": 6, "credits_used": 1}, said(5, 6, 1)),
        ({"credits": {"totalRemaining": 5, "totalUsed": 1, "freeRemaining": 3}}, said(5, None, 1)),
        ({"detail": {"remaining": 5}}, said(5)),
        ({"result": {"remaining": 5}}, said(5)),
        ({"success": True, "data": {"balance": 5}}, said(5)),
        ({"ok": True, "error": "", "errors": [], "balance": 5}, said(5)),
        ({f"{'_' * count}balance": 5 for count in range(16)}, said(5)),
        ({"detail": {"balance": {"available": 5, "total": 9}}}, said(5, 9)),
        ({"balance": {"amount": "5"}}, said(5)),
        ({"balance": 5, "remaining": "5"}, said(5)),
        ({"remaining": 5, "left": None, "total": None}, said(5)),
        ({"remaining": 5, "period_remaining": 3, "limit": {"remaining": 2}, "history": [{"used": 9}]}, said(5)),
    ],
)
def test_the_remaining_balance_is_read_under_many_names(body: object, meant: PrepaidAnswer) -> None:
    assert read(body) == meant


@pytest.mark.parametrize(
    ("body", "meant"),
    [
        ({"remaining": 5, "unit": "calls"}, said(5, unit="calls")),
        ({"calls_remaining": 5, "totalCalls": 6}, said(5, 6, unit="calls")),
        ({"calls": {"left": 5}, "currency": "USDC"}, said(5, unit="calls")),
        *(({f"remaining_{word}": 5}, said(5, unit="calls")) for word in ("call", "calls", "request", "requests")),
        *(({"left": 5, "unit": word}, said(5, unit="calls")) for word in ("call", "calls", "Request", "requests")),
        *(({"remaining": 5, "unit": word}, said(5)) for word in ("credits", "Credit")),
        ({"remaining": 5, "unit": "calls", "decimals": 0}, said(5, unit="calls")),
        ({"balance": "12500000", "unit": "lovelace"}, said(12_500_000, unit="lovelace")),
        ({"balance_lovelace": 12_500_000}, said(12_500_000, unit="lovelace")),
        ({"balance": {"lovelace": "12500000", "ada": "12.5"}}, said(12_500_000, unit="lovelace")),
        ({"balance_ada": 12}, said(12_000_000, unit="lovelace")),
        ({"balance": "12.5 ADA"}, said(12_500_000, unit="lovelace")),
        ({"balance": "12500000 lovelace"}, said(12_500_000, unit="lovelace")),
        (
            {"balance": "12.5", "currency": "ADA", "total": "20.000000"},
            said(12_500_000, 20_000_000, None, "lovelace"),
        ),
        ({"balance": "12500000", "asset": "ADA", "decimals": 6}, said(12_500_000, unit="lovelace")),
        ({"balance_units": "12500000", "asset": "ADA"}, said(12_500_000, unit="lovelace")),
        ({"balance": {"units": "7", "asset": f"{TOKEN[:56]}.{TOKEN[56:]}"}}, said(7, unit=TOKEN)),
    ],
)
def test_the_unit_of_a_balance_is_the_one_the_answer_names(body: object, meant: PrepaidAnswer) -> None:
    assert read(body) == meant


@pytest.mark.parametrize(
    "body",
    [
        None, 5, "5", [], [{"remaining": 5}], {}, {"status": "ok"}, {"total": 5}, {"total": 5, "used": 2},
        {"amount": 5}, {"lovelace": 5}, {"remaining_period": 5}, {"remaining24": 5}, {"": 5}, {"balance": {"": 5}},
        {"a": {"remaining": 5}}, {"detail": {"data": {"result": {"remaining": 5}}}}, {"balance": {"detail": 5}},
        {"detail": "Not found"}, {"remaining": None},
    ],
)  # fmt: skip
def test_an_answer_without_a_remaining_balance_is_not_understood(body: object) -> None:
    refused(body)


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        5.0,
        1e3,
        -1,
        2**63,
        10**400,
        "",
        "-5",
        "5.5",
        "5e3",
        "0x5",
        " 5",
        "05",
        "5,000",
        "\u0665",
        "many",
        [5],
    ],
)
def test_a_balance_that_is_not_a_plain_whole_number_is_not_understood(value: object) -> None:
    refused({"remaining": value})
    refused({"remaining": 5, "total": value})


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"remaining": 5, "balance": 6}, "remaining has two values: 5 and 6"),
        ({"credits": 100, "remaining": 80}, "remaining has two values: 100 and 80"),
        ({"remaining": 5, "detail": {"remaining": 6}}, "remaining has two values: 5 and 6"),
        ({"remaining": 5, "total": 4}, "5 left are more than 4 in total"),
        ({"remaining": 5, "total": 6, "used": 2}, "5 left and 2 used are more than 6 in total"),
        ({"remaining": 5, "error": "database is down"}, "the answer says error: \"database is down\""),
        ({"remaining": 5, "errors": ["x"]}, "the answer says errors: [\"x\"]"),
        ({"remaining": 0, "success": False}, "the answer says success: false"),
        ({"remaining": 0, "ok": False}, "the answer says ok: false"),
        ({"remaining_calls": 5, "balance_lovelace": 5}, "the numbers are in calls and lovelace"),
        ({"remaining": 5, "unit": "calls", "asset": "lovelace"}, "two units are named: calls and lovelace"),
        ({"remaining": 12, "currency": "ADA"}, "remaining is 12, whole or in the smallest unit of lovelace"),
        ({"remaining": 12, "asset": TOKEN}, f"remaining is 12, whole or in the smallest unit of {TOKEN}"),
        ({"remaining": 12, "asset": "ADA", "decimals": 2}, "decimals is 2"),
        ({"remaining": 12, "decimals": 6}, "decimals is 6, and no asset is named"),
    ],
)  # fmt: skip
def test_an_ambiguous_or_contradictory_balance_is_not_understood(body: object, why: str) -> None:
    assert refused(body) == why


@pytest.mark.parametrize(
    "body",
    [
        {"remaining": 5, "currency": "USDC"},
        {"balance": "12.5", "asset": TOKEN, "decimals": 6},
        {"balance": "12.5000001", "currency": "ADA"},
        {"balance": 12.5, "currency": "ADA"},
        {"balance_lovelace": 45 * 10**15 + 1},
        {f"{'_' * count}balance": 5 for count in range(17)},
    ],
)
def test_a_balance_in_an_unknown_unit_or_with_an_impossible_amount_is_not_understood(body: object) -> None:
    refused(body)


@pytest.mark.parametrize(
    ("value", "at_ms"),
    [
        ("2026-11-24T13:38:18.993Z", 1_795_527_498_993),
        ("2026-11-24T13:38:18Z", 1_795_527_498_000),
        ("2026-11-24 13:38:18.993999+00:00", 1_795_527_498_993),
        ("2026-11-24T15:38:18+02:00", 1_795_527_498_000),
        (10**9, 10**12),
        (10**11 - 1, 10**14 - 1000),
        (10**12, 10**12),
        (10**14 - 1, 10**14 - 1),
        (1_795_527_498, 1_795_527_498_000),
        ("1795527498", 1_795_527_498_000),
        (1_795_527_498_993, 1_795_527_498_993),
    ],
)
@pytest.mark.parametrize("name", ["expires_at", "expiresAt", "expires", "expiry", "expiration", "valid_until"])
def test_the_expiry_of_a_balance_is_read_in_many_forms(value: object, at_ms: int, name: str) -> None:
    answer = read({"detail": {"remaining": 5, name: value}})
    assert (answer.remaining, answer.expires_at_ms, answer.why) == (5, at_ms, "")


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-24T13:38:18",
        "2026-11-24",
        "24.11.2026",
        "never",
        0,
        3600,
        10**9 - 1,
        10**11,
        10**12 - 1,
        10**14,
        1.5,
        True,
        -1,
        10**30,
        "2026-99-24T13:38:18Z",
        "9999-12-31T23:59:59-05:00",
    ],
)
def test_an_unreadable_expiry_is_reported_and_the_balance_is_kept(value: object) -> None:
    answer = read({"remaining": 5, "expires_at": value})
    assert (answer.remaining, answer.understood, answer.expires_at_ms) == (5, True, None)
    assert answer.why.startswith("its expiry is ")
    assert read({"remaining": 5, "expires_at": 1_795_527_498, "expiry": value}).why == "it states two expiry times"


@pytest.mark.parametrize("status", [199, 300, 302, 401, 404, 500])
def test_an_error_status_gives_no_balance_whatever_its_body(status: int) -> None:
    answer = read_prepaid(status, '{"remaining": 5}')
    assert (answer.understood, answer.remaining, answer.why) == (False, None, f"the status is {status}")


KEYS = st.sampled_from(
    ["remaining", "left", "balance", "credits", "total", "used", "calls", "detail", "data", "amount", "units",
     "ada", "lovelace", "unit", "asset", "currency", "decimals", "expires_at", "error", "success", "x", ""]
)  # fmt: skip
WORDS = st.sampled_from(
    ["5", "12.5", "12.5 ADA", "5 lovelace", "ADA", "lovelace", "calls", "credits", TOKEN, "2026-11-24T13:38:18Z"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 10)
    | st.floats()
    | st.text(max_size=8)
    | WORDS
    | st.sampled_from([10**18, 10**30, 1_795_527_498, 6]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=6),
    max_leaves=12,
)
OBJECTS: st.SearchStrategy[Any] = st.dictionaries(KEYS, VALUES, max_size=6)


def _holds_together(answer: PrepaidAnswer) -> None:
    numbers = (answer.remaining, answer.total, answer.used, answer.expires_at_ms)
    assert all(number is None or (type(number) is int and number >= 0) for number in numbers)
    assert answer.why.isprintable()
    assert len(answer.why) <= 300
    if not answer.understood:
        assert answer.why
        assert (*numbers, answer.unit) == (None,) * 5
        return
    assert answer.remaining is not None
    assert answer.total is None or answer.remaining + (answer.used or 0) <= answer.total
    assert answer.unit is None or answer.unit in ("calls", "lovelace", TOKEN)


@given(OBJECTS | VALUES, st.sampled_from([200, 200, 201, 404]))
def test_any_json_gives_whole_numbers_or_a_reason(body: object, status: int) -> None:
    _holds_together(read_prepaid(status, json.dumps(body)))


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_whole_numbers_or_a_reason(raw: bytes) -> None:
    _holds_together(read_prepaid(200, raw))


WANTED = "wallet_address_required_for_prepaid_batches"


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (400, {"detail": WANTED}, True),
        (422, {"detail": [{"msg": f"error: {WANTED}!"}]}, True),
        (402, {"errors": {WANTED: True}}, True),
        (403, f"<p>{WANTED}</p>", True),
        (400, {"detail": "wallet_address_required"}, False),
        (200, {"reply": f"merchants answer {WANTED}"}, False),
        (502, WANTED, False),
        (400, JsonNumber("1.5"), False),
    ],
)
def test_an_error_that_asks_for_the_wallet_address_is_recognized(status: int, body: object, wanted: bool) -> None:
    assert wants_wallet_address(HttpResponse(status, {}, body)) is wanted
