"""Limits: each is exact to the unit, the tightest one is named, and an asset without a limit is not spent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core import policy
from payagent.core.policy import (
    LENGTH_MS,
    SPAN_MS,
    WALLET,
    Limit,
    Scope,
    SpendSpan,
    Window,
    allowed_assets,
    ask,
    ask_again,
    ask_bounds,
    concerning,
    counts_from_ms,
    frees_at_ms,
    in_force,
    limits_of,
    outranked,
    refusal,
    scopes_of,
    tightest,
)
from payagent.core.problems import Refused

ADA = "lovelace"
TOKEN = "ab" * 28 + "55534454"
APP, SHOP = "app_1", "https://shop.example"
NARROW = Scope(APP, SHOP)


def of_wallet(window: Window, most_units: int, asset: str = ADA) -> Limit:
    return Limit(WALLET, asset, window, most_units)


class TestWhichLimitsApply:
    def test_the_limits_of_wallet_app_and_merchant_apply_to_a_payment(self) -> None:
        scopes = (WALLET, Scope(APP), Scope(merchant=SHOP), NARROW)
        others = (Scope("app_2"), Scope(merchant="https://other.example"), Scope(APP, "https://other.example"))
        limits = [Limit(scope, ADA, Window.DAY, 5) for scope in (*scopes, *others)]
        assert {limit.scope for limit in concerning(limits, APP, SHOP, [ADA])} == set(scopes)
        assert set(scopes_of(APP, SHOP)) == set(scopes)

    def test_only_limits_of_the_spent_assets_apply(self) -> None:
        limits = (*limits_of(ADA, {"per_day": 5}), *limits_of(TOKEN, {"per_day": 5, "total": 9}))
        assert concerning(limits, APP, SHOP, [ADA]) == limits[:1]
        assert concerning(limits, APP, SHOP, [TOKEN, ADA]) == limits

    @pytest.mark.parametrize("scope", [Scope(APP), Scope(merchant=SHOP), NARROW])
    def test_an_asset_is_spent_only_when_the_wallet_has_a_limit_for_it(self, scope: Scope) -> None:
        limits = (of_wallet(Window.DAY, 5), Limit(scope, TOKEN, Window.DAY, 5))
        assert allowed_assets(limits) == {ADA}
        with pytest.raises(Refused, match=f"no limit is set for {TOKEN}") as refused:
            concerning(limits, APP, SHOP, [ADA, TOKEN])
        assert (refused.value.name, refused.value.context) == ("asset_not_allowed", {"asset": TOKEN})

    @pytest.mark.parametrize("window", Window)
    def test_a_per_payment_limit_alone_does_not_allow_an_asset(self, window: Window) -> None:
        lets = window is not Window.PAYMENT
        assert allowed_assets([of_wallet(window, 5)]) == ({ADA} if lets else set())

    def test_a_run_time_limit_overrides_only_the_same_limit_in_the_config_file(self) -> None:
        from_file = (of_wallet(Window.PAYMENT, 5), of_wallet(Window.DAY, 20))
        over = (of_wallet(Window.DAY, 50), Limit(Scope(APP), ADA, Window.DAY, 1))
        assert in_force(from_file, over) == (from_file[0], over[0], over[1])

    def test_a_window_without_an_amount_sets_no_limit(self) -> None:
        limits = limits_of(ADA, {"per_payment": 5, "per_hour": None, "total": 0}, Scope(APP))
        assert limits == (Limit(Scope(APP), ADA, Window.PAYMENT, 5), Limit(Scope(APP), ADA, Window.TOTAL, 0))


class TestLimitCheck:
    @pytest.mark.parametrize(
        ("counted", "units", "left", "is_exceeded"),
        [
            (0, 20, 20, False),
            (0, 21, 20, True),
            (15, 5, 5, False),
            (15, 6, 5, True),
            (20, 1, 0, True),
            (25, 1, 0, True),
            (25, 0, 0, False),
        ],
    )
    def test_a_limit_allows_exactly_what_is_left_and_not_one_unit_more(
        self, counted: int, units: int, left: int, is_exceeded: bool
    ) -> None:
        asked = ask(of_wallet(Window.DAY, 20), counted, {ADA: units})
        assert (asked.left_units, asked.asked_units, asked.is_exceeded) == (left, units, is_exceeded)
        assert (tightest([asked]) is not None) is is_exceeded

    def test_repeated_spends_add_up_in_windows_but_not_per_payment(self) -> None:
        spend = {ADA: 5}
        assert not ask(of_wallet(Window.PAYMENT, 5), 0, spend, count=3).is_exceeded
        assert ask(of_wallet(Window.DAY, 14), 0, spend, count=3).is_exceeded
        assert not ask(of_wallet(Window.TOTAL, 15), 0, spend, count=3).is_exceeded

    def test_a_limit_counts_only_its_own_asset(self) -> None:
        asked = ask(of_wallet(Window.DAY, 5, TOKEN), 0, {ADA: 100, TOKEN: 5})
        assert (asked.asset, asked.asked_units, asked.is_exceeded) == (TOKEN, 5, False)
        assert ask(of_wallet(Window.DAY, 5, TOKEN), 0, {ADA: 100}).asked_units == 0

    def test_limits_are_checked_again_for_the_final_amount(self) -> None:
        asked = (ask(of_wallet(Window.DAY, 20), 15, {ADA: 5}), ask(of_wallet(Window.DAY, 3, TOKEN), 0, {}))
        again = ask_again(asked, {ADA: 6})
        assert [(one.left_units, one.asked_units) for one in again] == [(5, 6), (3, 0)]

    def test_the_callers_bounds_can_only_tighten_the_limits(self) -> None:
        spend = {ADA: 7, TOKEN: 3}
        assert ask_bounds(spend, TOKEN, None, None) == ()
        (most,) = ask_bounds(spend, TOKEN, 3, None, count=4)
        assert (most.name, most.left_units, most.asked_units, most.is_exceeded) == ("max_total", 3, 3, False)
        assert ask_bounds(spend, TOKEN, 2, None)[0].is_exceeded
        (topup,) = ask_bounds(spend, TOKEN, None, 13, count=2)
        assert (topup.name, topup.asset, topup.asked_units) == ("topup_per_day", ADA, 14)
        assert topup.is_exceeded
        assert ask_bounds(spend, ADA, None, -5)[0].left_units == 0
        assert ask_bounds(spend, ADA, None, 9)[0].asked_units == 7
        assert [bound.asked_units for bound in ask_bounds({}, ADA, 1, 1)] == [0, 0]
        assert not ask_bounds(spend, ADA, None, 14, count=2)[0].is_exceeded


class TestTightestLimit:
    def test_the_exceeded_limit_that_leaves_least_is_named(self) -> None:
        limits = [of_wallet(Window.PAYMENT, 4), of_wallet(Window.DAY, 9), of_wallet(Window.TOTAL, 3)]
        asked = [ask(limit, counted, {ADA: 5}) for limit, counted in zip(limits, (0, 7, 0), strict=True)]
        named = tightest(asked)
        assert named is not None
        assert (named.name, named.left_units) == ("per_day", 2)

    def test_of_equally_tight_limits_the_longest_window_is_named(self) -> None:
        asked = [ask(of_wallet(window, 4), 4, {ADA: 5}) for window in (Window.DAY, Window.TOTAL, Window.HOUR)]
        named = tightest(asked)
        assert named is not None
        assert named.name == "total"

    def test_a_limit_is_named_rather_than_an_equally_tight_bound_of_the_caller(self) -> None:
        both = (*ask_bounds({ADA: 5}, ADA, 4, None), ask(of_wallet(Window.HOUR, 4), 0, {ADA: 5}))
        named = tightest(both)
        assert named is not None
        assert named.name == "per_hour"

    def test_no_limit_is_named_when_none_is_exceeded(self) -> None:
        assert tightest([]) is None
        assert tightest([ask(of_wallet(Window.DAY, 5), 0, {ADA: 5})]) is None

    def test_a_refusal_names_the_limit_its_scope_what_is_left_and_when_room_frees_up(self) -> None:
        told = refusal(ask(Limit(NARROW, ADA, Window.DAY, 20), 18, {ADA: 3}), 86_400_000, "bot")
        assert told.code == "limit_exceeded"
        assert told.context == {
            "limit": "per_day",
            "asset": ADA,
            "left": "2",
            "asked": "3",
            "frees_at": "1970-01-02T00:00:00.000Z",
            "app": "bot",
            "merchant": SHOP,
        }
        assert told.detail == (
            f"bot's daily limit at {SHOP} leaves 0.000002 ADA, this payment takes 0.000003 ADA with its "
            "fee; there is no room for it before 1970-01-02T00:00:00.000Z"
        )

    def test_a_refusal_by_a_wallet_wide_per_payment_limit_names_no_app_and_no_time(self) -> None:
        told = refusal(ask(of_wallet(Window.PAYMENT, 2, TOKEN), 0, {TOKEN: 3}), None, "bot")
        assert told.context.keys() == {"limit", "asset", "left", "asked", "frees_at"}
        assert told.context["frees_at"] is None
        assert told.detail == (
            f"the wallet's limit per payment leaves 2 units of {TOKEN}, this payment takes 3 units of {TOKEN} "
            "with its fee"
        )


ROLLING = st.sampled_from(sorted(LENGTH_MS))
TIMES = st.integers(0, 2**43)


class TestWindows:
    @given(ROLLING, TIMES, TIMES)
    def test_a_window_counts_every_newer_spend_and_at_most_one_span_more(
        self, window: Window, spent_ms: int, clock_ms: int
    ) -> None:
        span_ms = SPAN_MS[window]
        is_counted = spent_ms // span_ms * span_ms >= counts_from_ms(window, clock_ms)
        if spent_ms > clock_ms - LENGTH_MS[window]:
            assert is_counted
        if spent_ms <= clock_ms - LENGTH_MS[window] - span_ms:
            assert not is_counted

    @given(ROLLING, TIMES)
    def test_room_frees_up_exactly_at_the_announced_time(self, window: Window, spent_ms: int) -> None:
        start_ms = spent_ms // SPAN_MS[window] * SPAN_MS[window]
        frees_ms = frees_at_ms(window, [SpendSpan(start_ms, 5)], 5)
        assert frees_ms is not None
        assert counts_from_ms(window, frees_ms - 1) <= start_ms < counts_from_ms(window, frees_ms)

    def test_a_day_counts_from_the_start_of_a_span_of_five_minutes(self) -> None:
        assert counts_from_ms(Window.DAY, 86_400_000 + 299_999) == 0
        assert counts_from_ms(Window.DAY, 86_400_000 + 300_000) == 300_000

    def test_the_announced_time_is_when_enough_units_are_free(self) -> None:
        spans = [SpendSpan(0, 3), SpendSpan(300_000, 4), SpendSpan(900_000, 5)]
        day = [frees_at_ms(Window.DAY, spans, units) for units in (1, 3, 4, 7, 8, 12, 13)]
        ends = [start + 300_000 + 86_400_000 for start in (0, 0, 300_000, 300_000, 900_000, 900_000)]
        assert day == [*ends, None]
        assert frees_at_ms(Window.MONTH, [SpendSpan(0, 1)], 1) == 21_600_000 + 30 * 86_400_000

    def test_each_window_has_the_length_its_name_says(self) -> None:
        hours = {window: length_ms / 3_600_000 for window, length_ms in LENGTH_MS.items()}
        assert hours == {Window.HOUR: 1, Window.DAY: 24, Window.WEEK: 168, Window.MONTH: 720}
        assert policy.SPAN_MS.keys() == LENGTH_MS.keys()
        assert all(LENGTH_MS[window] % span_ms == 0 for window, span_ms in SPAN_MS.items())

    def test_windows_are_named_as_in_the_config_file_from_short_to_long(self) -> None:
        assert [*Window] == ["per_payment", "per_hour", "per_day", "per_week", "per_month", "total"]
        assert Scope() == WALLET == ("", "")


@pytest.mark.parametrize(
    "code", ["not_enough_funds", "funds_pending", "utxos_too_small/inputs", "chain_not_ready"]
)
@pytest.mark.parametrize("more", [{}, {"asset": "lovelace"}], ids=["bare", "with its asset"])
def test_a_refusal_shows_an_app_nothing_about_the_wallets_funds(code: str, more: dict[str, str]) -> None:
    told = policy.without_figures(Refused(code, "there are 123456 lovelace", **more, available="123456"))
    assert (told.name, told.context) == (code, more)
    assert "123456" not in told.detail


OF_AN_APP = {"limit": "per_day", "asset": "lovelace", "left": "7", "frees_at": "x", "asked": "9", "app": "bot"}


@pytest.mark.parametrize(
    ("code", "context"),
    [
        ("limit_exceeded", OF_AN_APP),
        ("limit_exceeded", {"limit": "per_payment", "asset": "lovelace", "left": "7", "asked": "9"}),
        ("limit_exceeded", {"limit": "max_total", "asset": "lovelace", "left": "7", "asked": "9"}),
        ("asset_not_allowed", {"asset": "aa"}),
    ],
    ids=["its own", "what each payment may take", "what it asked for itself", "no limit"],
)
def test_a_refusal_without_other_apps_figures_is_shown_in_full(code: str, context: dict[str, str]) -> None:
    refused = Refused(code, "the whole story", **context)
    assert policy.without_figures(refused) is refused


@pytest.mark.parametrize("merchant", [None, "https://shop.example"])
def test_a_shared_limit_is_named_to_an_app_without_its_figures(merchant: str | None) -> None:
    context = {"limit": "per_day", "asset": "lovelace", "left": "7", "frees_at": "x", "asked": "9"}
    whose = {} if merchant is None else {"merchant": merchant}
    told = policy.without_figures(Refused("limit_exceeded", "7 are left until x", **context, **whose))
    assert told.context == context | whose | {"left": None, "frees_at": None}
    assert "daily limit" in told.detail
    assert "0.000009 ADA" in told.detail
    assert "7" not in told.detail
    assert (merchant or "which apps") in told.detail


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("not_enough_funds", "the wallet does not have enough for this payment now"),
        ("funds_pending", "the wallet has enough for this payment once pending change confirms"),
        (
            "utxos_too_small/inputs",
            "the wallet has enough for this payment, but in too many UTxOs for one transaction",
        ),
        ("chain_not_ready", "the chain is not known well enough to sign"),
    ],
)
def test_an_app_learns_that_the_wallet_cannot_pay_but_no_figures(code: str, said: str) -> None:
    told = policy.without_figures(Refused(code, "it has 7 in 3 coins", asset=TOKEN, has="7"))
    assert (told.name, told.detail, told.context) == (code, said, {"asset": TOKEN})
    assert policy.without_figures(Refused(code, "it has 7 in 3 coins")).context == {}


def test_the_message_for_a_shared_limit_points_to_the_operator() -> None:
    context = {"limit": "per_day", "asset": "lovelace", "left": "7", "frees_at": "x", "asked": "9"}
    what = "has no room for this payment, which takes 0.000009 ADA; the operator can see what is left"
    told = policy.without_figures(Refused("limit_exceeded", "7 are left", **context))
    assert told.detail == f"the wallet's daily limit, which apps share, {what}"
    told = policy.without_figures(Refused("limit_exceeded", "7 are left", **context, merchant=SHOP))
    assert told.detail == f"the daily limit at {SHOP}, which apps share, {what}"


@pytest.mark.parametrize(
    ("limit", "other", "is_void"),
    [
        (Limit(WALLET, ADA, Window.DAY, 20), Limit(WALLET, ADA, Window.WEEK, 19), True),
        (Limit(WALLET, ADA, Window.DAY, 20), Limit(WALLET, ADA, Window.WEEK, 20), False),
        (Limit(WALLET, ADA, Window.WEEK, 20), Limit(WALLET, ADA, Window.DAY, 19), False),
        (Limit(WALLET, ADA, Window.DAY, 20), Limit(WALLET, "token", Window.WEEK, 19), False),
        (Limit(Scope("bot"), ADA, Window.DAY, 20), Limit(WALLET, ADA, Window.DAY, 19), True),
        (Limit(WALLET, ADA, Window.DAY, 20), Limit(Scope("bot"), ADA, Window.DAY, 19), False),
        (Limit(Scope("bot"), ADA, Window.DAY, 20), Limit(Scope(merchant="t"), ADA, Window.DAY, 19), False),
    ],
)
def test_a_limit_is_void_if_one_that_always_counts_with_it_allows_less(
    limit: Limit, other: Limit, is_void: bool
) -> None:
    assert outranked(limit, (limit, other)) == (other if is_void else None)
