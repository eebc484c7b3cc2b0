"""The policy: may this be spent, by the limits that the operator set? Pure decisions over plain values.

A limit bounds what a scope (an app, a merchant, both, or the wallet as a whole) may spend of one asset in one
payment, in a rolling window, or ever. What counts is what the wallet loses: outputs, fee, and the ADA that rides
along with a token, each asset by itself. All limits that concern a payment hold; the tightest is named.

Windows roll over spans: what was spent in a span counts until all of the span is older than the window, so that a
window is never shorter than it says, and longer by one span at most. The clock is the chain's
(store.rows.limit_counters). The agent asks inside the write transaction that places the hold, so that no race gets
around a limit (rule 7).
May import: the standard library, core.money, core.problems, core.timestamps. Never: reads a clock or a database.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from payagent.core.money import LOVELACE, format_amount
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time

ANY = ""
"""In a scope: whichever app, or whichever merchant."""

_HOUR_MS = 3_600_000
_FINE_MS, _COARSE_MS = 300_000, 6 * _HOUR_MS


class Window(StrEnum):
    """What a limit bounds, from the shortest to the longest. A month is 30 days."""

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
"""How long the spans are that a rolling window is made of: few enough to be added up at each payment."""

_ORDER = list(Window)


class Scope(NamedTuple):
    """Whose spending a limit bounds: of an app (its id), at a merchant (its origin). ANY in both: the wallet's."""

    app: str = ANY
    merchant: str = ANY


WALLET = Scope()


class Limit(NamedTuple):
    """At most so many units of an asset, in the scope, in the window."""

    scope: Scope
    asset: str
    window: Window
    most_units: int


class LimitCheck(NamedTuple):
    """A limit that was asked, by its name: what it leaves, and what the payment takes of it."""

    name: str
    scope: Scope
    asset: str
    left_units: int
    asked_units: int

    @property
    def is_exceeded(self) -> bool:
        return self.asked_units > self.left_units


class SpendSpan(NamedTuple):
    """What was spent in one span of a window."""

    start_ms: int
    units: int


def limits_of(asset: str, most_units: Mapping[str, int | None], scope: Scope = WALLET) -> tuple[Limit, ...]:
    """Limits of one asset and scope, by the names of their windows; None sets none."""
    return tuple(
        Limit(scope, asset, Window(name), units) for name, units in most_units.items() if units is not None
    )


def scopes_of(app: str, merchant: str) -> tuple[Scope, ...]:
    """Every scope that a payment of an app to a merchant is spent in; the narrowest first."""
    return (Scope(app, merchant), Scope(app), Scope(ANY, merchant), WALLET)


def in_force(limits: Iterable[Limit], over: Iterable[Limit]) -> tuple[Limit, ...]:
    """The limits, except those that one of `over` replaces: with the same scope, asset and window."""
    merged = {limit[:3]: limit for limit in (*limits, *over)}
    return tuple(merged.values())


def allowed_assets(limits: Iterable[Limit]) -> frozenset[str]:
    """What the wallet may spend at all: assets with a limit for the wallet as a whole, over time or in total.

    Others only tighten: of an app or a merchant; or of each payment, which bounds nothing when more follow.
    """
    over_time = (limit for limit in limits if limit.window is not Window.PAYMENT)
    return frozenset(limit.asset for limit in over_time if limit.scope == WALLET)


def concerning(limits: Iterable[Limit], app: str, merchant: str, assets: Iterable[str]) -> tuple[Limit, ...]:
    """The limits that bind such a payment. Refused: `asset_not_allowed` where the wallet has none of an asset."""
    limits, wanted, scopes = tuple(limits), tuple(assets), scopes_of(app, merchant)
    for asset in sorted(set(wanted) - allowed_assets(limits)):
        raise Refused("asset_not_allowed", f"no limit is set for {asset}", asset=asset)
    return tuple(limit for limit in limits if limit.asset in wanted and limit.scope in scopes)


def counts_from_ms(window: Window, clock_ms: int) -> int:
    """Where the oldest span begins that a rolling window counts."""
    return (clock_ms - LENGTH_MS[window]) // SPAN_MS[window] * SPAN_MS[window]


def frees_at_ms(window: Window, spans: Sequence[SpendSpan], units: int) -> int | None:
    """When so many units of what the window counts are spent long enough ago; None: never. Oldest spans first."""
    for span in spans:
        units -= span.units
        if units <= 0:
            return span.start_ms + SPAN_MS[window] + LENGTH_MS[window]
    return None


def ask(limit: Limit, counted_units: int, spend: Mapping[str, int], count: int = 1) -> LimitCheck:
    """What a limit leaves, when so much is counted in its window, to a spend that comes `count` times."""
    times = 1 if limit.window is Window.PAYMENT else count
    left_units = max(limit.most_units - counted_units, 0)
    return LimitCheck(limit.window, limit.scope, limit.asset, left_units, spend.get(limit.asset, 0) * times)


def ask_again(asked: Iterable[LimitCheck], spend: Mapping[str, int]) -> tuple[LimitCheck, ...]:
    """The same limits, with what they left, asked for another spend."""
    return tuple(one._replace(asked_units=spend.get(one.asset, 0)) for one in asked)


def ask_bounds(
    spend: Mapping[str, int],
    paid_asset: str,
    max_total_units: int | None,
    topup_left_lovelace: int | None,
    count: int = 1,
) -> tuple[LimitCheck, ...]:
    """Bounds beside the limits, which can only tighten: the caller's own, and the merchant's for top-ups.

    `max_total_units` bounds what leaves in the invoice's asset: the fee counts where that is ADA.
    """
    asked = []
    if max_total_units is not None:
        asked.append(LimitCheck("max_total", WALLET, paid_asset, max_total_units, spend.get(paid_asset, 0)))
    if topup_left_lovelace is not None:
        left, units = max(topup_left_lovelace, 0), spend.get(LOVELACE, 0) * count
        asked.append(LimitCheck("topup_per_day", WALLET, LOVELACE, left, units))
    return tuple(asked)


def tightest(asked: Iterable[LimitCheck]) -> LimitCheck | None:
    """The limit that leaves least, of those that are exceeded; of equal ones, that with the longest window."""
    exceeded = [one for one in asked if one.is_exceeded]
    return min(exceeded, key=lambda one: (one.left_units, -_rank(one.name)), default=None)


def _rank(name: str) -> int:
    return _ORDER.index(Window(name)) if name in _ORDER else -1


_OF_THE_WALLET = {
    "not_enough_funds": "the wallet has not enough for this payment now",
    "funds_in_flight": "the wallet has enough for this payment once what is on its way is in a block",
    "needs_consolidation": "the wallet has enough for this payment in more coins than fit one transaction",
    "chain_not_ready": "the chain is not seen well enough to sign by",
}
"""Refusals that tell what the wallet has, and what is said instead."""


def without_figures(refused: Refused) -> Refused:
    """A refusal as it is told to an app that sees only itself: without what the wallet has or others spent.

    Of a limit that it shares with others the app learns which one it is, and that it has no room. What each
    payment may take at most is no secret.
    """
    told = refused.context
    if refused.code in _OF_THE_WALLET:
        asset = {"asset": told["asset"]} if "asset" in told else {}
        return Refused(refused.code, _OF_THE_WALLET[refused.code], **asset)
    if refused.code != "limit_exceeded" or not is_shared(str(told.get("limit")), told):
        return refused
    at = f" at {told['merchant']}" if "merchant" in told else ""
    takes = format_amount(str(told["asset"]), int(str(told["asked"])))
    detail = (
        f"{told['limit']} of the wallet{at}, which apps share, has no room for this payment, which takes "
        f"{takes}; who operates the wallet sees what it leaves"
    )
    return Refused(refused.code, detail, **{**told, "left": None, "frees_at": None})


def is_shared(name: str, whose: Mapping[str, object]) -> bool:
    """Whether what a limit of that name leaves tells what others spent; `whose` names its app, if it has one."""
    return name in _ORDER and name != Window.PAYMENT and "app" not in whose


def refusal(
    asked: LimitCheck, frees_at: int | None, app_name: str, takes: str = "payment takes {} with its fee"
) -> Refused:
    """`limit_exceeded`, naming the limit, whose it is, what it leaves and before when there is no room.

    `app_name`: how people call the app that asked; `takes`: what was asked for.
    """
    left, wanted = (format_amount(asked.asset, units) for units in (asked.left_units, asked.asked_units))
    app, merchant = asked.scope
    whose = ({} if app == ANY else {"app": app_name}) | ({} if merchant == ANY else {"merchant": merchant})
    of = "".join(f" of {name} {value}" for name, value in whose.items())
    when = "" if frees_at is None else f"; there is no room for it before {iso_time(frees_at)}"
    return Refused(
        "limit_exceeded",
        f"{asked.name}{of} leaves {left}, this {takes.format(wanted)}{when}",
        limit=asked.name,
        asset=asked.asset,
        left=str(asked.left_units),
        asked=str(asked.asked_units),
        frees_at=None if frees_at is None else iso_time(frees_at),
        **whose,
    )
