"""Shows what is known of each merchant, and changes it while the daemon runs: add, remove, pin, resume.

Merchants added at run time survive restarts, and an event records who added them. The config file's merchants stay
as they are.
Never: decides about a payment (admission does).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from payagent.agent.base import merchant_trust
from payagent.agent.base.config import MerchantConfig
from payagent.agent.context import AgentContext
from payagent.agent.operator.limits import origin_of
from payagent.core.address import parse_address
from payagent.core.aggregate import AgreedPriceRow
from payagent.core.invoice import Role
from payagent.core.merchant_rules import Pin
from payagent.core.problems import Refused
from payagent.core.retry_schedule import MerchantReadiness
from payagent.settings.loading import read_merchant
from payagent.store.db.unit import Unit
from payagent.store.rows import merchants, writes
from payagent.store.rows.merchants import MerchantRow, UnservedStreak


@dataclass(frozen=True, slots=True)
class MerchantStatus:
    """What is known of a merchant now. `pins` are those beside the config's, by role and address."""

    merchant: MerchantConfig
    pins: tuple[Pin, ...]
    prices: tuple[AgreedPriceRow, ...]
    unserved_streak: UnservedStreak
    readiness: MerchantReadiness
    in_flight: int


def standing(context: AgentContext, name: str) -> MerchantStatus:
    """The status of a merchant in the config, by its name. Refused: `not_found`."""
    origin = origin_of(context, name)
    return MerchantStatus(
        context.config.merchants[origin],
        tuple(sorted(merchants.pins(context.conn, origin))),
        tuple(merchants.prices(context.conn, origin)),
        merchants.unserved_streak(context.conn, origin),
        merchants.readiness(context.conn, origin),
        merchants.in_flight(context.conn, origin),
    )


async def add_merchant(context: AgentContext, by_app: str, name: str, settings: Mapping[str, object]) -> None:
    """Add a merchant that may be paid from now on.

    Refused: `bad_request`; `already_exists/merchant`, also if it is in the config file.
    """
    origin = read_merchant(name, settings, context.config.network.name).origin
    row, now_ms = MerchantRow(name, origin, {**settings, "origin": origin}), context.ports.clock.now_ms()

    def job(unit: Unit) -> None:
        from_file = [(one.name, one.origin) for one in context.from_file.merchants.values()]
        at_run_time = [(one.name, one.origin) for one in merchants.all_merchants(unit.conn)]
        for other_name, other_origin in (*from_file, *at_run_time):
            if name == other_name or origin == other_origin:
                raise Refused("already_exists/merchant", f"the merchant {other_name} is {other_origin}")
        merchants.add(unit, row)
        detail = {"name": name, "origin": origin, "settings": row.settings, "by": by_app}
        writes.note(unit, None, "merchant_added", None, now_ms, detail)

    await context.take_config(context.from_file, job)


async def remove_merchant(context: AgentContext, by_app: str, name: str) -> None:
    """Remove a merchant: nothing new is paid there, payments under way go on. Refused: `not_found`."""
    now_ms = context.ports.clock.now_ms()

    def job(unit: Unit) -> None:
        row = next((one for one in merchants.all_merchants(unit.conn) if one.name == name), None)
        if row is None:
            raise Refused(
                "not_found",
                f"no merchant {name[:80]!r} was added at run time; edit the config file for its merchants",
            )
        merchants.remove(unit, name)
        detail = {"name": name, "origin": row.origin, "by": by_app}
        writes.note(unit, None, "merchant_removed", None, now_ms, detail)

    await context.take_config(context.from_file, job)


async def pin(context: AgentContext, by_app: str, name: str, role: Role, address: str) -> None:
    """Allow payments of this merchant to an address. Refused: `not_found`; `bad_request` if it cannot be paid."""
    origin = origin_of(context, name)
    try:
        new_pin = Pin(role, parse_address(address, context.config.network).text)
    except Refused as refused:
        raise Refused("bad_request", str(refused), key="address") from None
    await context.write_at("trust", lambda unit, now_ms: merchant_trust.pin(unit, origin, new_pin, by_app, now_ms))


async def unpin(context: AgentContext, by_app: str, name: str, role: Role, address: str) -> None:
    """Forget a learnt or pinned address; the config's stay. Refused: `not_found`, `last_pinned_address`."""
    origin = origin_of(context, name)

    def job(unit: Unit, now_ms: int) -> None:
        merchant_trust.unpin(unit, context.config.rules(origin), origin, Pin(role, address), by_app, now_ms)

    await context.write_at("trust", job)


async def resume(context: AgentContext, by_app: str, name: str) -> None:
    """Resume payments to a merchant and reset its unserved streak. Refused: `not_found`."""
    origin = origin_of(context, name)
    await context.write_at("trust", lambda unit, now_ms: merchant_trust.resume(unit, origin, by_app, now_ms))
