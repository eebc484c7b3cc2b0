"""/metrics: the state of the daemon in numbers, for a monitoring system.

Numbers from the ledger outlive the process. Refusals and requests are counted since its start.

May import: core, agent, store, the rest of api, FastAPI. Never: shows an address, an app or a payment, or any
amount but the wallet's own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from payagent.agent.context import AgentContext
from payagent.agent.operator.limits import standing
from payagent.api.models.openapi import gives_text
from payagent.api.models.wallet import wallet_units
from payagent.api.routes.auth import OPERATE, READ, Caller, need
from payagent.core.payment import State
from payagent.core.policy import WALLET
from payagent.core.prometheus import MEDIA_TYPE, Family, alone, by_label, write
from payagent.store.rows import alerts, events, journal, payments, topups, trust
from payagent.store.rows import attempts_and_utxos as queries

Checks = Callable[[], Mapping[str, str | None]]
"""What is wrong, by check. None: the check passes."""


def metrics_router(checks: Checks) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/metrics", summary="Export metrics for a monitoring system", responses=gives_text(MEDIA_TYPE))
    async def metrics(caller: Annotated[Caller, Depends(need(READ, OPERATE))]) -> Response:
        """Prometheus text. Counters of refusals and requests start at zero with the process."""
        context, found = caller.context, checks()
        refusals = dict(sorted(context.refusals.items()))
        text = await run_in_threadpool(lambda: write(families(context, found, refusals)))
        return Response(text, media_type=MEDIA_TYPE)

    return router


def families(
    context: AgentContext, checks: Mapping[str, str | None], refusals: Mapping[str, int]
) -> Iterator[Family]:
    """All metrics, in their order."""
    well = {name: int(problem is None) for name, problem in checks.items()}
    yield Family("payagent_up", "gauge", "1 while what is looked at is well.", by_label("check", well))
    yield Family("payagent_refusals_total", "counter", "Refusals, by their code.", by_label("code", refusals))
    yield from _payments(context)
    yield from _wallet(context)
    yield from _merchants(context)
    yield from _providers(context)


def _payments(context: AgentContext) -> Iterator[Family]:
    states = {state.value: 0 for state in State} | payments.payments_by_state(context.conn)
    yield Family("payagent_payments", "gauge", "Payments by their state.", by_label("state", states))
    open_topups = alone(len(topups.all_open(context.conn)))
    yield Family("payagent_topups_open", "gauge", "Top-ups that are under way.", open_topups)
    raised = by_label("kind", alerts.counts_raised(context.conn))
    yield Family("payagent_alerts_raised", "gauge", "Alerts that are raised, by kind.", raised)
    last_seq, _ = events.last_event(context.conn)
    yield Family("payagent_events_total", "counter", "Events in the ledger.", alone(last_seq))


def _wallet(context: AgentContext) -> Iterator[Family]:
    units = wallet_units(queries.utxos(context.conn), journal.balances(context.conn))
    yield Family(
        "payagent_wallet_units",
        "gauge",
        "What the wallet has of an asset, in its units: available, held for payments, in all.",
        tuple(
            ({"asset": asset, "part": part}, number)
            for asset, parts in units.items()
            for part, number in parts.items()
        ),
    )
    limits = [one for one in standing(context) if one.limit.scope == WALLET]
    yield Family(
        "payagent_limit_left_units",
        "gauge",
        "What a limit of the wallet leaves.",
        tuple(({"limit": one.limit.window, "asset": one.limit.asset}, one.left_units or 0) for one in limits),
    )
    yield Family(
        "payagent_limit_most_units",
        "gauge",
        "What a limit of the wallet is.",
        tuple(({"limit": one.limit.window, "asset": one.limit.asset}, one.limit.most_units) for one in limits),
    )


def _merchants(context: AgentContext) -> Iterator[Family]:
    names = {merchant.name: origin for origin, merchant in sorted(context.terms.merchants.items())}
    unserved_streak = {name: trust.unserved_streak(context.conn, origin) for name, origin in names.items()}
    yield Family(
        "payagent_merchant_strikes",
        "gauge",
        "Payments in a row that a merchant took and did not serve.",
        by_label("merchant", {name: one.count for name, one in unserved_streak.items()}),
    )
    yield Family(
        "payagent_merchant_stopped",
        "gauge",
        "1 where nothing is bought any more.",
        by_label("merchant", {name: int(one.stopped_at_ms is not None) for name, one in unserved_streak.items()}),
    )
    on_way = {name: trust.in_flight(context.conn, origin) for name, origin in names.items()}
    yield Family(
        "payagent_merchant_in_flight",
        "gauge",
        "Payments to a merchant that are in no block yet.",
        by_label("merchant", on_way),
    )


def _providers(context: AgentContext) -> Iterator[Family]:
    tip = context.chain.tip
    yield Family(
        "payagent_provider_calls_total",
        "counter",
        "Calls to a provider.",
        by_label("provider", {source.name: source.calls for source in context.sources}),
    )
    yield Family(
        "payagent_provider_failures_total",
        "counter",
        "Calls to a provider that told nothing.",
        by_label("provider", {source.name: source.failures for source in context.sources}),
    )
    heard = {name: int(why_not is None) for name, why_not in dict(context.providers).items()}
    yield Family("payagent_provider_heard", "gauge", "1 while a provider is heard.", by_label("provider", heard))
    height = alone(None if tip is None else tip.height)
    yield Family("payagent_chain_height", "gauge", "The height of the newest block that is known.", height)
