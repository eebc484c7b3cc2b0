"""Changes prepaid balances inside a commit: bought at confirmation, used by requests, taken back on rollback.

Never: decides whether to buy; counts the same request twice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from payagent.core.aggregate import LoadedPayment, PaymentRow
from payagent.core.changes import AddUse, Change, MovePrepaid
from payagent.core.invoice import Invoice, is_batch
from payagent.core.money import format_amount
from payagent.core.payment.apply import prepaid_size
from payagent.core.prepaid_balance import CALLS, PrepaidBalance, average, use
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import write
from payagent.store.rows import apps, limit_counters, prepaid, prepaid_uses, topups
from payagent.store.rows.prepaid import Pool
from payagent.store.rows.topups import TopupRow

_HEADER_TEXT = re.compile(r"(?:[!-~](?:[ -~]{0,253}[!-~])?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Buyer:
    """Whose prepaid balance a request uses: the values of X-Partner ('' for none) and X-Wallet-Address."""

    partner: str
    wallet: str

    @classmethod
    def named(cls, partner: str, wallet: str) -> "Buyer":
        """The buyer as a request names it. An address in capitals is the same address (BIP-173)."""
        return cls(partner, wallet.lower() if wallet.isupper() and wallet.startswith("ADDR") else wallet)

    def require_valid_headers(self) -> None:
        """Refused: `bad_request` if a balance query could not carry these values as headers."""
        for name, text in (("X-Partner", self.partner), ("X-Wallet-Address", self.wallet)):
            if not _HEADER_TEXT.fullmatch(text):
                raise Refused(
                    "bad_request",
                    f"{name} must be at most 255 ASCII characters without spaces at the ends",
                    key=name,
                )


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request that was served without a payment of its own. Requests with the same `key` count once."""

    app_id: str
    origin: str
    buyer: Buyer
    method: str
    path: str
    key: str | None


@dataclass(frozen=True, slots=True)
class TopupPart:
    """Which payment of a top-up this is, counted from 1, and the top-up's terms.

    `units` of `unit` (calls, or an asset) are to be bought in all. `is_call`: the request is an ordinary one.
    `is_auto`: an automatic top-up, whose thresholds are in `unit`.
    """

    topup: str
    number: int
    unit: str
    is_call: bool
    per_day_lovelace: int | None
    units: int
    is_auto: bool = False


def fitting(offers: tuple[Invoice, ...], part: TopupPart | None) -> tuple[Invoice, ...]:
    """The offers that fit the top-up; all of them without a top-up.

    Refused: `topup_stopped/nothing_sold`, `topup_stopped/wrong_asset`, `topup_stopped/too_small`.
    """
    if part is None:
        return offers
    if part.is_call or part.unit == CALLS:
        offers = tuple(offer for offer in offers if is_batch(offer.batch_target))
        if not offers:
            raise Refused("topup_stopped/nothing_sold", "its 402 is for one call, not for a batch of calls")
    if part.is_auto and part.unit != CALLS and all(is_batch(offer.batch_target) for offer in offers):
        raise Refused(
            "topup_stopped/wrong_asset",
            "the merchant sells calls: give topup.auto_below and topup.auto_to in calls, not in an asset",
        )
    fit = tuple(offer for offer in offers if part.unit in (CALLS, offer.asset))
    if not fit:
        raise Refused("topup_stopped/wrong_asset", f"the merchant asks for {offers[0].asset}, not for {part.unit}")
    affordable = tuple(offer for offer in fit if part.unit == CALLS or offer.total_units <= part.units)
    if not affordable:
        raise Refused(
            "topup_stopped/too_small",
            f"one payment takes {format_amount(part.unit, fit[0].total_units)}, the top-up is for"
            f" {format_amount(part.unit, part.units)} in total",
        )
    return affordable


def part_of(topup: TopupRow, number: int, per_day_lovelace: int | None) -> TopupPart:
    """The part that payment `number` of a top-up is. `per_day_lovelace`: the merchant's top-up limit."""
    return TopupPart(
        topup=topup.id,
        number=number,
        unit=topup.unit,
        is_call=topup.is_call,
        per_day_lovelace=per_day_lovelace,
        units=topup.units,
        is_auto=topup.trigger == "auto",
    )


def require_may_buy(conn: Connection, topup: TopupRow, now_ms: int) -> None:
    """Refused: the code that stopped the top-up, or `topup_stopped/app_revoked` if its app has ended."""
    if topup.stop_problem is not None:
        raise Refused(topup.stop_problem, topup.stop_detail or "", topup=topup.id)
    if apps.has_ended(conn, topup.app_id, now_ms):
        raise Refused("topup_stopped/app_revoked", "its token was revoked, or has expired", topup=topup.id)


def left(conn: Connection, pool: Pool, name: str, now_ms: int) -> int:
    """The balance of a pool plus purchases under way: the lower of our count and the merchant's report.

    A report from before the last purchase does not count, and neither does one dated in the future.
    """
    units = prepaid.balance(conn, pool.id, name).left
    report = prepaid.last_observation(conn, pool.id)
    last_purchase_ms = max(prepaid.last_purchase_ms(conn, pool.id), topups.last_ended_ms(conn, pool.id))
    is_newer = report is not None and last_purchase_ms < report.at_ms <= now_ms
    if report is not None and is_newer and report.remaining is not None and (report.unit or CALLS) == name:
        units = min(units, report.remaining)
    return units + prepaid.coming(conn).get((pool.id, name), 0)


def balance_of(conn: Connection, payment: LoadedPayment) -> PrepaidBalance:
    """The balance that a payment raises; an empty one if it raises none."""
    pool_id = payment.row.prepaid.pool_id
    return PrepaidBalance() if pool_id is None else prepaid.balance(conn, pool_id, prepaid_size(payment)[0])


def owed(conn: Connection, payment: LoadedPayment) -> int:
    """Calls served that no purchase covers, once this payment for the balance is void."""
    pool_id = payment.row.prepaid.pool_id
    if pool_id is None:
        return 0
    name, count = prepaid_size(payment)
    pending = prepaid.coming(conn).get((pool_id, name), 0)
    own = count if payment.row.state in prepaid.COMING else 0
    return prepaid.balance(conn, pool_id, name).unexplained - (pending - own)


def first_use(conn: Connection, row: PaymentRow) -> Iterator[Change]:
    """The request that a batch was bought for is the batch's first use, once.

    A top-up by a dedicated request has no such use.
    """
    topup = None if row.prepaid.topup_id is None else topups.find(conn, row.prepaid.topup_id)
    pool_id = row.prepaid.pool_id
    if (topup is not None and not topup.is_call) or pool_id is None or not is_batch(row.invoice.batch_target):
        return
    if prepaid.has_used(conn, row.id):
        return
    cost = cost_of(conn, prepaid.pool(conn, pool_id), (CALLS, 1))
    yield AddUse(pool_id, row.app_id, (CALLS, 1), cost, limit_counters.clock_ms(conn, None))
    yield _use(conn, prepaid.pool(conn, pool_id), CALLS, 1, payment_id=row.id, app_id=row.app_id)


def _use(conn: Connection, pool: Pool, name: str, count: int, **of: str | None) -> MovePrepaid:
    before = prepaid.balance(conn, pool.id, name)
    return MovePrepaid(pool.id, pool.origin, name, "use", before, use(before, count), **of)


def is_counted(conn: Connection, call: ServedRequest) -> bool:
    """Whether a served request uses a balance: it once answered 402, and its buyer has a pool."""
    if prepaid.price(conn, call.origin, call.method, call.path) is None:
        return False
    return prepaid.find_pool(conn, call.origin, call.buyer.partner, call.buyer.wallet) is not None


def drawn(conn: Connection, pool: Pool, call: ServedRequest) -> tuple[str, int]:
    """(unit, count) that a request would use: one call of a batch, or else the price last asked for it.

    Taken from the balance left. If nothing is left, from purchases under way, and without any, from everything
    ever bought. At most the balance left plus purchases under way: the price may be a lie, and no balance serves a
    request that costs more.
    """
    priced = prepaid.price(conn, call.origin, call.method, call.path)
    if priced is not None:
        asset, units = priced
        calls, paid = (prepaid.balance(conn, pool.id, name) for name in (CALLS, asset))
        purchases = prepaid.coming(conn)
        pending = purchases.get((pool.id, CALLS), 0), purchases.get((pool.id, asset), 0)
        most = paid.left + pending[1] or paid.bought
        for of_calls, of_asset in ((calls.left, paid.left), pending, (calls.bought, paid.bought)):
            if of_calls or of_asset:
                return (CALLS, 1) if of_calls else (asset, min(units, most))
    return CALLS, 1


def serving(conn: Connection, pool: Pool, call: ServedRequest, now_ms: int) -> tuple[str, int | None] | None:
    """(unit, count) that a request would use of the pool; None if the pool would not serve it.

    The larger of our count and the merchant's report decides. The count is None for a request that never answered
    402: its price is unknown, and anything left may serve it.
    """
    balances = {one.unit: left(conn, pool, one.unit, now_ms) for one in prepaid.holdings(conn) if one.pool == pool}
    report = prepaid.last_observation(conn, pool.id)
    if report is not None:
        balances[report.unit or CALLS] = max(balances.get(report.unit or CALLS, 0), report.remaining or 0)
    priced = prepaid.price(conn, call.origin, call.method, call.path)
    needed = None if priced is None else {priced[0]: priced[1], CALLS: 1}
    for name in sorted(balances, key=lambda name: name != CALLS):
        if needed is None and balances[name] > 0:
            return name, None
        if needed is not None and balances[name] >= needed.get(name, balances[name] + 1):
            return name, needed[name]
    return None


def cost_of(conn: Connection, pool: Pool, drawn: tuple[str, int]) -> dict[str, int]:
    """The cost per asset of (unit, count) of a pool, also while it is still being bought."""
    name, count = drawn
    balance = prepaid.balance(conn, pool.id, name)
    if balance.left == 0:
        balance = prepaid.bought_soon(conn).get((pool.id, name), balance)
    return average(balance, count)


def used(unit: Unit, call: ServedRequest, clock_ms: int, now_ms: int, use_number: int | None = None) -> None:
    """Record a request that was served without a payment. Use that no balance covers counts as unexplained.

    `use_number`: the use that counted it against its app's limits before it was sent; None: it counts from now on.
    A repeat with the same key counts there too, since some merchants ignore the key, but uses no more of the
    balance.
    """
    priced = prepaid.price(unit.conn, call.origin, call.method, call.path)
    pool = prepaid.find_pool(unit.conn, call.origin, call.buyer.partner, call.buyer.wallet)
    if priced is None or pool is None:
        return
    name, count = drawn(unit.conn, pool, call)
    if use_number is None:
        prepaid_uses.add(
            unit, pool.id, call.app_id, (name, count), cost_of(unit.conn, pool, (name, count)), clock_ms
        )
    if call.key is not None and prepaid.knows_call(unit.conn, call.app_id, call.key):
        return
    moved = _use(
        *(unit.conn, pool, name, count),
        app_id=call.app_id,
        call=f"{call.method} {call.path}",
        call_key=call.key,
    )
    write(unit, (moved,), now_ms)
