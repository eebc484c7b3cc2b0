"""/metrics: the daemon's state as numbers for a monitoring system. Needs a token with the scope read or operate.

Refusals, provider requests and durations are counted since the process started. All other numbers are the current
state. Labels are names that the operator gave, so there are few.

Never: names an address or a payment; a label from a text that an app or a merchant sent; a read that grows with
the ledger.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from payagent.agent.base.metrics import OTHER_MERCHANT, merchant_label
from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import FleetStatus
from payagent.agent.operator.limits import standing
from payagent.api.models.openapi import gives_as
from payagent.api.models.wallet import wallet_units
from payagent.api.routes.auth import Reader
from payagent.core.payment.machine import State
from payagent.core.policy import ANY, WALLET
from payagent.core.prometheus import MEDIA_TYPE, Family, alone, by_label, write
from payagent.core.version import VERSION
from payagent.store.rows import (
    alerts,
    apps,
    attempts_and_utxos,
    events,
    journal,
    limit_counters,
    merchants,
    notifications,
    payments,
    topups,
)

UNSERVED_MAX = 100

Checks = Callable[[], Mapping[str, str | None]]
"""The problem that each check found; None if it passed."""


def metrics_router(checks: Checks) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get(
        "/metrics",
        summary="Export metrics for a monitoring system",
        responses=gives_as("Text.", MEDIA_TYPE, {"type": "string"}),
    )
    async def metrics(caller: Reader) -> Response:
        """Prometheus text. Counters of refusals and provider requests start at 0 when the daemon starts."""
        context, problems, status = caller.context, checks(), caller.fleet.status()
        refusals = dict(sorted(context.metrics.refusals.items()))
        text = await run_in_threadpool(lambda: write(families(context, problems, refusals, status)))
        return Response(text, media_type=MEDIA_TYPE)

    return router


def families(
    context: AgentContext,
    checks: Mapping[str, str | None],
    refusals: Mapping[str, int],
    status: FleetStatus | None,
) -> Iterator[Family]:
    """Every metric, in the order of the answer."""
    passed = {name: int(problem is None) for name, problem in checks.items()}
    yield Family(
        "payagent_build_info", "gauge", "Always 1. The label names what runs.", (({"version": VERSION}, 1),)
    )
    yield Family("payagent_up", "gauge", "1 if the check passes.", by_label("check", passed))
    yield Family("payagent_refusals_total", "counter", "Refusals, by code.", by_label("code", refusals))
    yield from _purchases(context)
    yield from _payments(context)
    yield from _wallet(context)
    yield from _merchants(context)
    if context.config.channels is not None:
        yield from _channels(context)
    yield from _providers(context)
    if status is not None:
        yield from _fleet(status)


def _fleet(status: FleetStatus) -> Iterator[Family]:
    yield Family(
        "payagent_fleet_daemons", "gauge", "Daemons that renewed within a lease.", alone(len(status.living))
    )
    accounts = [row.account for row in status.accounts]
    held = {str(account): int(account in status.held) for account in accounts}
    yield Family("payagent_fleet_account_held", "gauge", "1 if this daemon holds it.", by_label("account", held))
    yield Family(
        "payagent_fleet_lag_seconds", "gauge", "Since this daemon renewed its leases.", alone(int(status.lag_s))
    )


def _purchases(context: AgentContext) -> Iterator[Family]:
    refused = dict(context.metrics.purchases_refused)
    names = {app.id: app.name for app in apps.all_apps(context.conn)}  # read later, so it has all of them
    yield Family(
        "payagent_purchases_refused_total",
        "counter",
        "Purchases refused since the start, by app, merchant and code.",
        tuple(
            ({"app": names[app_id], "merchant": merchant, "code": code}, count)
            for (app_id, merchant, code), count in sorted(refused.items())
        ),
    )
    yield Family(
        "payagent_spend_units",
        "gauge",
        "Units that an app spent at a merchant or that are held for it, fees included.",
        tuple(
            ({"app": app, "merchant": merchant, "asset": asset}, units)
            for (app, merchant, asset), units in sorted(_spend(context).items())
        ),
    )
    yield Family(
        "payagent_time_to_served_seconds",
        "histogram",
        "From the request of a payment to its served delivery, since the start.",
        by_label("merchant", dict(sorted(dict(context.metrics.time_to_served).items()))),
    )


def _spend(context: AgentContext) -> Mapping[tuple[str, str, str], int]:
    """By app, merchant and asset. `OTHER_MERCHANT`: the app's total less its spend at the configured merchants."""
    spend: Counter[tuple[str, str, str]] = Counter()
    origins, assets = (ANY, *context.config.merchants), context.assets_allowed()
    for app, origin, asset, units in limit_counters.totals_by_app(context.conn, origins, assets):
        if origin == ANY:
            spend[app, OTHER_MERCHANT, asset] += units
        else:
            spend[app, merchant_label(context.config, origin), asset] += units
            spend[app, OTHER_MERCHANT, asset] -= units
    return {key: units for key, units in spend.items() if units}


def _payments(context: AgentContext) -> Iterator[Family]:
    states = {state.value: 0 for state in State} | payments.payments_by_state(context.conn)
    yield Family("payagent_payments", "gauge", "Payments, by state.", by_label("state", states))
    yield Family(
        "payagent_topups_open", "gauge", "Top-ups in progress.", alone(len(topups.all_open(context.conn)))
    )
    yield Family(
        "payagent_alerts_raised",
        "gauge",
        "Raised alerts, by kind.",
        by_label("kind", alerts.counts_raised(context.conn)),
    )
    yield Family(
        "payagent_notifications_waiting",
        "gauge",
        "Notifications not taken yet, by target.",
        by_label("target", notifications.waiting(context.conn)),
    )
    last_seq, _ = events.last_event(context.conn)
    yield Family("payagent_events_total", "counter", "Events in the ledger.", alone(last_seq))


def _wallet(context: AgentContext) -> Iterator[Family]:
    units = wallet_units(attempts_and_utxos.utxos(context.conn), journal.balances(context.conn))
    yield Family(
        "payagent_wallet_units",
        "gauge",
        "Units of an asset in the wallet: available, held for payments, and in total.",
        tuple(
            ({"asset": asset, "part": part}, number)
            for asset, parts in units.items()
            for part, number in parts.items()
        ),
    )
    limits = [one for one in standing(context) if one.limit.scope == WALLET]
    yield Family(
        "payagent_limit_remaining_units",
        "gauge",
        "Units left under a limit of the wallet.",
        tuple(({"limit": one.limit.window, "asset": one.limit.asset}, one.left_units or 0) for one in limits),
    )
    yield Family(
        "payagent_limit_units",
        "gauge",
        "A limit of the wallet, in units.",
        tuple(({"limit": one.limit.window, "asset": one.limit.asset}, one.limit.most_units) for one in limits),
    )


def _merchants(context: AgentContext) -> Iterator[Family]:
    names = {merchant.name: origin for origin, merchant in sorted(context.config.merchants.items())}
    unserved_streak = {name: merchants.unserved_streak(context.conn, origin) for name, origin in names.items()}
    yield Family(
        "payagent_merchant_unserved_streak",
        "gauge",
        "Payments in a row that the merchant did not serve.",
        by_label("merchant", {name: one.count for name, one in unserved_streak.items()}),
    )
    yield Family(
        "payagent_merchant_stopped",
        "gauge",
        "1 if payments to the merchant are stopped.",
        by_label("merchant", {name: int(one.stopped_at_ms is not None) for name, one in unserved_streak.items()}),
    )
    in_flight = {name: merchants.in_flight(context.conn, origin) for name, origin in names.items()}
    yield Family(
        "payagent_merchant_payments_in_flight",
        "gauge",
        "Payments to the merchant that are in no block yet.",
        by_label("merchant", in_flight),
    )


def _channels(context: AgentContext) -> Iterator[Family]:
    from payagent.store.rows import channels

    conn, now_ms = context.conn, context.ports.clock.now_ms()
    of = [(merchant_label(context.config, one.origin), one) for one in channels.locked_channels(conn)]
    for metric, about, numbers in (
        (
            "locked_lovelace",
            "Lovelace in channels at the merchant, its claims left out.",
            {name: sum(one.deposited - one.claimed for at, one in of if at == name) for name, _ in of},
        ),
        (
            "unserved_calls",
            f"Calls in a row charged and not served, {UNSERVED_MAX} at most.",
            {name: channels.unserved_in_a_row(conn, one.id, UNSERVED_MAX) for name, one in of},
        ),
        (
            "elapse_seconds",
            "Until what is left in a closing channel may be taken back.",
            {name: max(one.elapse_at_ms - now_ms, 0) // 1000 for name, one in of if one.elapse_at_ms is not None},
        ),
    ):
        yield Family(f"payagent_channel_{metric}", "gauge", about, by_label("merchant", numbers))


def _providers(context: AgentContext) -> Iterator[Family]:
    tip = context.chain.tip
    yield Family(
        "payagent_provider_requests_total",
        "counter",
        "Requests to the provider since the start.",
        by_label("provider", {provider.name: provider.calls for provider in context.all_providers}),
    )
    yield Family(
        "payagent_provider_failures_total",
        "counter",
        "Failed requests to the provider since the start.",
        by_label("provider", {provider.name: provider.failures for provider in context.all_providers}),
    )
    yield Family(
        "payagent_provider_latency_seconds",
        "histogram",
        "Duration of the operations of a provider since the start, answered or not.",
        tuple(
            ({"provider": provider.name, "operation": operation}, histogram)
            for provider in context.all_providers
            for operation, histogram in sorted(dict(provider.latency).items())
        ),
    )
    healthy = {name: int(why_not is None) for name, why_not in dict(context.providers).items()}
    yield Family(
        "payagent_provider_healthy", "gauge", "1 if the provider is believed.", by_label("provider", healthy)
    )
    yield Family(
        "payagent_chain_tip_height",
        "gauge",
        "Height of the newest known block.",
        alone(None if tip is None else tip.height),
    )
