"""The spending policy: decides whether a payment is within the operator's limits.

A limit bounds what a scope may spend of one asset per payment, in a rolling window, or in total. A scope is an
app, a merchant, both, or the whole wallet. What counts is what leaves the wallet: outputs, fee and min-ADA, for
each asset separately. A payment must be within all limits of its scopes; a refusal names the tightest.

A rolling window consists of spans. A span counts until all of it is older than the window. So the effective window
is never shorter than stated, and at most one span longer. Time is the chain's (store.rows.limit_counters). The
agent checks the limits in the write transaction that places the hold, so races cannot exceed them.

Never: reads a clock or a database.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from payagent.core.money import LOVELACE, format_amount
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time

ANY = ""
"""In a scope: any app, or any merchant."""

_HOUR_MS = 3_600_000
_FINE_MS, _COARSE_MS = 300_000, 6 * _HOUR_MS


class Window(StrEnum):
    """The period of a limit, from the shortest to the longest. A month is 30 days."""

    PAYMENT = "per_payment"
    HOUR = "per_hour"
    DAY = "per_day"
    WEEK = "per_week"
    MONTH = "per_month"
    TOTAL = "total"


LENGTH_MS = {
    Window.HOUR: _HOUR_MS,
    Window.DAY: 24 * _HOUR_MS,
    Window.WEEK: 7 * 24 * _HOUR_MS,
    Window.MONTH: 30 * 24 * _HOUR_MS,
}
SPAN_MS = {
    Window.HOUR: _FINE_MS,
    Window.DAY: _FINE_MS,
    Window.WEEK: _COARSE_MS,
    Window.MONTH: _COARSE_MS,
}
"""Length of the spans of each rolling window. Each payment sums them, so there must be few."""

_ORDER = list(Window)


_IN_WORDS = {
    Window.PAYMENT: "limit per payment",
    Window.HOUR: "hourly limit",
    Window.DAY: "daily limit",
    Window.WEEK: "weekly limit",
    Window.MONTH: "monthly limit",
    Window.TOTAL: "total limit",
}


CALLS_OWN = "the call's own limit"
CHANGE_OWN = "If the price is right, change it: --max, max_cost, max_cost_units or X-Payagent-Max-Cost."
"""What people and programs that set `max_total` call it, each in its own way, and how to change it."""


def limit_in_words(limit: Mapping[str, Any]) -> str:
    """Which limit it is, by its window and its names: "bot's daily limit at t", "the wallet's total limit"."""
    name, app, merchant = (limit.get(part) for part in ("limit", "app", "merchant"))
    if name not in _ORDER:
        return CALLS_OWN if name == "max_total" else str(name)  # a bound that is no limit (`ask_bounds`)
    owner = f"{app}'s" if app else "the" if merchant else "the wallet's"
    return f"{owner} {_IN_WORDS[Window(name)]}{f' at {merchant}' if merchant else ''}"


class Scope(NamedTuple):
    """Whose spending a limit bounds: an app's (id), at a merchant (origin). ANY in both means the whole wallet."""

    app: str = ANY
    merchant: str = ANY


WALLET = Scope()


class Limit(NamedTuple):
    """At most `most_units` of an asset, in one scope and window."""

    scope: Scope
    asset: str
    window: Window
    most_units: int


class LimitCheck(NamedTuple):
    """The result of checking one limit: its name, the units it leaves, and the units the payment takes.

    `most_units`: of the limit itself; None for a bound that is no limit (`ask_bounds`).
    """

    name: str
    scope: Scope
    asset: str
    left_units: int
    asked_units: int
    most_units: int | None = None

    @property
    def is_exceeded(self) -> bool:
        return self.asked_units > self.left_units


class SpendSpan(NamedTuple):
    """Units spent in one span of a window."""

    start_ms: int
    units: int


def limits_of(asset: str, most_units: Mapping[str, int | None], scope: Scope = WALLET) -> tuple[Limit, ...]:
    """Build the limits of one asset and scope from units by window name. None sets no limit."""
    return tuple(
        Limit(scope, asset, Window(name), units) for name, units in most_units.items() if units is not None
    )


def scopes_of(app: str, merchant: str) -> tuple[Scope, ...]:
    """Return every scope that contains a payment of an app to a merchant, narrowest first."""
    return (Scope(app, merchant), Scope(app), Scope(ANY, merchant), WALLET)


def in_force(limits: Iterable[Limit], over: Iterable[Limit]) -> tuple[Limit, ...]:
    """Merge two sets of limits. A limit in `over` replaces one with the same scope, asset and window."""
    merged = {limit[:3]: limit for limit in (*limits, *over)}
    return tuple(merged.values())


def outranked(limit: Limit, limits: Iterable[Limit]) -> Limit | None:
    """The tightest of the limits that leave this one without effect.

    Such a limit allows less, over as long a time or longer, in a scope that contains this one's.
    """
    length, scopes = _ORDER.index(limit.window), scopes_of(*limit.scope)
    tighter = (
        other
        for other in limits
        if (other.asset, other.scope in scopes) == (limit.asset, True)
        and other.most_units < limit.most_units
        and _ORDER.index(other.window) >= length
    )
    return min(tighter, key=lambda other: other.most_units, default=None)


def allowed_assets(limits: Iterable[Limit]) -> frozenset[str]:
    """Return the assets that the wallet may spend: those with a wallet-wide limit over time or in total.

    A per-payment limit allows no asset, because it does not bound the sum. A limit of an app or a merchant only
    tightens others.
    """
    over_time = (limit for limit in limits if limit.window is not Window.PAYMENT)
    return frozenset(limit.asset for limit in over_time if limit.scope == WALLET)


def concerning(limits: Iterable[Limit], app: str, merchant: str, assets: Iterable[str]) -> tuple[Limit, ...]:
    """Return the limits that apply to a payment. Refused: `asset_not_allowed` if an asset has no wallet limit."""
    limits, assets, scopes = tuple(limits), tuple(assets), scopes_of(app, merchant)
    for asset in sorted(set(assets) - allowed_assets(limits)):
        raise Refused("asset_not_allowed", f"no limit is set for {asset}", asset=asset)
    return tuple(limit for limit in limits if limit.asset in assets and limit.scope in scopes)


def counts_from_ms(window: Window, clock_ms: int) -> int:
    """Return the start of the oldest span that a rolling window still counts."""
    return (clock_ms - LENGTH_MS[window]) // SPAN_MS[window] * SPAN_MS[window]


def frees_at_ms(window: Window, spans: Sequence[SpendSpan], units: int) -> int | None:
    """Return when `units` of the counted spending will have left the window; None if never. Oldest spans first."""
    for span in spans:
        units -= span.units
        if units <= 0:
            return span.start_ms + SPAN_MS[window] + LENGTH_MS[window]
    return None


def ask(limit: Limit, counted_units: int, spend: Mapping[str, int], count: int = 1) -> LimitCheck:
    """Check one limit against a spend that occurs `count` times; `counted_units` are spent in its window."""
    times = 1 if limit.window is Window.PAYMENT else count
    left_units = max(limit.most_units - counted_units, 0)
    asked_units = spend.get(limit.asset, 0) * times
    return LimitCheck(limit.window, limit.scope, limit.asset, left_units, asked_units, limit.most_units)


def ask_again(checks: Iterable[LimitCheck], spend: Mapping[str, int]) -> tuple[LimitCheck, ...]:
    """Check another spend against the same limits, with the same units left."""
    return tuple(check._replace(asked_units=spend.get(check.asset, 0)) for check in checks)


def ask_bounds(
    spend: Mapping[str, int],
    paid_asset: str,
    max_total_units: int | None,
    topup_left_lovelace: int | None,
    count: int = 1,
) -> tuple[LimitCheck, ...]:
    """Check the two bounds besides the limits: the caller's own, and the merchant's bound on top-ups.

    `max_total_units` bounds what leaves the wallet in the invoice's asset. If that is ADA, the fee counts.
    """
    checks = []
    if max_total_units is not None:
        checks.append(LimitCheck("max_total", WALLET, paid_asset, max_total_units, spend.get(paid_asset, 0)))
    if topup_left_lovelace is not None:
        left, units = max(topup_left_lovelace, 0), spend.get(LOVELACE, 0) * count
        checks.append(LimitCheck("topup_per_day", WALLET, LOVELACE, left, units))
    return tuple(checks)


def tightest(checks: Iterable[LimitCheck]) -> LimitCheck | None:
    """Return the exceeded limit that leaves least; among equal ones, the one with the longest window."""
    exceeded = [check for check in checks if check.is_exceeded]
    return min(exceeded, key=lambda check: (check.left_units, -_rank(check.name)), default=None)


def _rank(name: str) -> int:
    return _ORDER.index(Window(name)) if name in _ORDER else -1


_WALLET_REFUSALS = {
    "not_enough_funds": "the wallet does not have enough for this payment now",
    "funds_pending": "the wallet has enough for this payment once pending change confirms",
    "utxos_too_small/inputs": "the wallet has enough for this payment, but in too many UTxOs for one transaction",
    "chain_not_ready": "the chain is not known well enough to sign",
}
"""Refusals whose detail reveals what the wallet holds, with the detail that replaces it."""


def without_figures(refused: Refused) -> Refused:
    """Return a refusal for an app that sees only its own data: without the wallet's funds or others' spending.

    Of a limit that apps share, the app learns its name and that it has no room. Per-payment limits are not secret.
    """
    context = refused.context
    if refused.name in _WALLET_REFUSALS:
        asset = {"asset": context["asset"]} if "asset" in context else {}
        return Refused(refused.name, _WALLET_REFUSALS[refused.name], **asset)
    if refused.code != "limit_exceeded" or not is_shared(str(context.get("limit")), context):
        return refused
    takes = format_amount(str(context["asset"]), int(str(context["asked"])))
    detail = (
        f"{limit_in_words(context)}, which apps share, has no room for this payment, which takes {takes}; "
        "the operator can see what is left"
    )
    return Refused(refused.code, detail, **{**context, "left": None, "frees_at": None})


def is_shared(name: str, context: Mapping[str, object]) -> bool:
    """Whether the room left in a limit reveals what other apps spent. An app's own has `app` in `context`."""
    return name in _ORDER and name != Window.PAYMENT and "app" not in context


def refusal(
    check: LimitCheck, frees_at: int | None, app_name: str, takes: str = "payment takes {} with its fee"
) -> Refused:
    """Build `limit_exceeded`: names the limit, its scope, what it leaves, and when room frees up.

    `app_name`: the name of the app for people. `takes`: a format for the amount that was requested.
    """
    left, requested = (format_amount(check.asset, units) for units in (check.left_units, check.asked_units))
    app, merchant = check.scope
    owners = ({} if app == ANY else {"app": app_name}) | ({} if merchant == ANY else {"merchant": merchant})
    when = "" if frees_at is None else f"; there is no room for it before {iso_time(frees_at)}"
    fix = CHANGE_OWN if check.name == "max_total" else None
    return Refused(
        "limit_exceeded",
        f"{limit_in_words({'limit': check.name, **owners})} leaves {left}, this {takes.format(requested)}{when}",
        fix=fix,
        limit=check.name,
        asset=check.asset,
        left=str(check.left_units),
        asked=str(check.asked_units),
        frees_at=None if frees_at is None else iso_time(frees_at),
        **owners,
    )
