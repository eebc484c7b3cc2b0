"""Lists the limits with what each leaves, and sets them while the daemon runs.

A limit set at run time overrides the config file, survives restarts, and is recorded as an event.
Never: decides about a payment (admission does).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from payagent.agent.context import AgentContext
from payagent.core import policy
from payagent.core.money import LOVELACE
from payagent.core.policy import ANY, Limit, Scope, Window
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, limit_counters, writes
from payagent.store.rows.apps import AppRow


@dataclass(frozen=True, slots=True)
class LimitStatus:
    """A limit, and what its window counts now.

    For an app that sees only itself, a shared limit has `left_units` None and counts only that app's spending.
    `frees_at_ms`: when the oldest counted spending leaves the window.
    """

    limit: Limit
    is_from_file: bool
    spent_units: int
    left_units: int | None
    frees_at_ms: int | None


def standing(context: AgentContext, only_app: str | None = None) -> list[LimitStatus]:
    """The status of every limit; for an app that sees only itself, of those that bind it."""
    at_run_time = tuple(limit_counters.limits(context.conn))
    limits = policy.in_force(context.config.limits, at_run_time)
    if only_app is not None:
        app = apps.require(context.conn, only_app)
        limits = tuple(limit for limit in limits if _binds(limit, app))
    clock_ms = context.admission.rules.clock_ms(context.conn, context.ports.clock.now_ms())
    ordered = sorted(limits, key=lambda limit: (limit.scope, limit.asset, list(Window).index(limit.window)))
    return [_status_of(context, limit, limit not in at_run_time, only_app, clock_ms) for limit in ordered]


def _binds(limit: Limit, app: AppRow) -> bool:
    """Whether an app can meet a limit. Other limits would only reveal names of apps, merchants and tokens."""
    origin, assets = limit.scope.merchant, app.assets
    return (
        limit.scope.app in (ANY, app.id)
        and (origin == ANY or app.merchants is None or origin in app.merchants)
        and (limit.asset == LOVELACE or assets is None or limit.asset in assets)
    )


def _status_of(
    context: AgentContext, limit: Limit, is_from_file: bool, only_app: str | None, clock_ms: int
) -> LimitStatus:
    is_shared = only_app is not None and limit.scope.app == ANY
    counted = limit._replace(scope=Scope(only_app or ANY, limit.scope.merchant)) if is_shared else limit
    units = limit_counters.counted(context.conn, counted, clock_ms)
    left_units = None if is_shared else max(limit.most_units - units, 0)
    frees_at_ms = None
    if limit.window in policy.LENGTH_MS:
        frees_at_ms = policy.frees_at_ms(limit.window, limit_counters.spans(context.conn, counted, clock_ms), 1)
    return LimitStatus(limit, is_from_file, units, left_units, frees_at_ms)


async def set_limits(
    context: AgentContext,
    by_app: str,
    app_name: str | None,
    merchant_name: str | None,
    asset: str,
    most_units: Mapping[Window, int | None],
    *,
    only_lower: bool = False,
) -> None:
    """Set limits of a scope and asset; None reverts to the config file. Refused: `not_found`.

    `only_lower`: refused with `limit_not_lower`, in the same commit, if any of them could let more out.
    """
    app = ANY if app_name is None else apps.find(context.conn, app_name).id
    scope = Scope(app, ANY if merchant_name is None else _limited_origin(context, merchant_name))

    def job(unit: Unit, now_ms: int) -> None:
        if only_lower:
            present = policy.in_force(context.config.limits, limit_counters.limits(unit.conn))
            _require_lower(context.config.limits, present, scope, asset, most_units)
        write_limits(unit, scope, asset, most_units, by_app, now_ms)

    await context.write_at("limits", job)


def _require_lower(
    from_file: Sequence[Limit],
    present: Sequence[Limit],
    scope: Scope,
    asset: str,
    most_units: Mapping[Window, int | None],
) -> None:
    """Refuse a change that loosens a limit, `limit_not_lower`.

    A token without a limit cannot be spent, so adding one loosens. A first limit of ADA only lowers.
    """
    for window, units in most_units.items():
        now, in_config = (
            next((limit.most_units for limit in limits if limit[:3] == (scope, asset, window)), None)
            for limits in (present, from_file)
        )
        if units is None or (asset != LOVELACE if now is None else units > now):
            raise Refused(
                "limit_not_lower",
                f"{window} would not only be lowered",
                limit=window,
                now=None if now is None else str(now),
                in_config=None if in_config is None else str(in_config),
            )


def _limited_origin(context: AgentContext, name: str) -> str:
    """The merchant's origin, as `origin_of`; an origin that has limits is taken as it is.

    After a merchant is removed, its limits are known by its origin alone.
    """
    limited = {limit.scope.merchant for limit in limit_counters.limits(context.conn)}
    return name if name in limited - {ANY} else origin_of(context, name)


def write_limits(
    unit: Unit, scope: Scope, asset: str, most_units: Mapping[Window, int | None], by_app: str, now_ms: int
) -> None:
    """Inside a commit: set or drop each limit and record it as an event."""
    for window, units in most_units.items():
        if units is None:
            limit_counters.drop_limit(unit, scope, asset, window)
        else:
            limit_counters.set_limit(unit, Limit(scope, asset, window, units))
        detail = {
            **scope._asdict(),
            "asset": asset,
            "limit": window,
            "most": None if units is None else str(units),
            "by": by_app,
        }
        writes.note(unit, None, "limit_set", None, now_ms, detail)


def origin_of(context: AgentContext, name: str) -> str:
    """The origin of a merchant in the config. Refused: `not_found`."""
    for merchant in context.config.merchants.values():
        if merchant.name == name:
            return merchant.origin
    raise Refused("not_found", f"there is no merchant {name[:80]!r} in [merchants]")


def names_of(context: AgentContext) -> Iterator[tuple[str, str]]:
    """The name of each app (by its id) and of each merchant (by its origin)."""
    yield from ((app.id, app.name) for app in apps.all_apps(context.conn))
    yield from ((origin, merchant.name) for origin, merchant in context.config.merchants.items())
