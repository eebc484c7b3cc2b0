"""/healthz and /readyz, for monitoring. They need no token.

Never: asks the chain itself.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import Fleet
from payagent.api.http.problems import RETRY_AFTER_S, JsonResponse
from payagent.api.models.health import Health, Readiness
from payagent.api.models.openapi import gives
from payagent.api.models.wallet import ChainStatus, chain_refusal
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.core.version import VERSION
from payagent.store.rows import about, pauses

_REFUSED_AS = {"ledger": "store_failed", "signer": "signer_lost", "pause": "paused"}

Check = Callable[[], str | None]
"""None if the check passes, else what is wrong."""

Heartbeat = Callable[[], tuple[str | None, bool]]
"""Why an account held here had no complete pass over the chain lately, if so; whether passes go on at one."""


def find(fleet: Fleet, heartbeat: Heartbeat, signer: Check) -> dict[str, str | None]:
    """What is wrong, by check. None: the check passes.

    `chain` and `sweeps` fail if any account held here has a problem. The others may still pay.
    """
    context, status, now_ms = fleet.context, fleet.status(), fleet.context.ports.clock.now_ms()
    chains = [one.agent.context.chain for one in fleet.held.values()] or [context.chain]
    return {
        "chain": next((why for one in chains if (why := ChainStatus.of(one, now_ms).problem)), None),
        "ledger": _ledger_problem(context),
        "sweeps": heartbeat()[0],
        "signer": signer(),
        "pause": _pause_problem(context),
        **({} if status is None else {"fleet": status.problem}),
    }


def health_router(fleet: Fleet, checks: Callable[[], dict[str, str | None]], heartbeat: Heartbeat) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Check that the process answers", responses=gives(Health, 200))
    async def healthz() -> JsonResponse:
        return alive()

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", summary="Check that payments can be made", responses=gives(Readiness, 200, 503))
    async def readyz() -> JsonResponse:
        context = fleet.context
        try:
            problems, status = checks(), fleet.status()
        except Refused as why:
            return without_ledger(why, context.config.network.name)
        code = _code(context, problems)
        ready = code is None and heartbeat()[1] and not problems.get("fleet")
        in_fleet: dict[str, Any] = {}
        if status is not None:
            accounts, daemons = list(status.held), len(status.living)
            in_fleet = {"accounts": accounts, "daemons": daemons, "lag_s": int(status.lag_s)}
        return JsonResponse(
            Readiness(
                ready=ready,
                code=code,
                network=context.config.network.name,
                checks={name: problem or "ok" for name, problem in problems.items()},
                providers={name: problem or "ok" for name, problem in context.providers.items()},
                **in_fleet,
            ),
            200 if ready else 503,
            None if ready else {"Retry-After": str(RETRY_AFTER_S)},
        )

    return router


def alive() -> JsonResponse:
    return JsonResponse(Health(status="ok", version=VERSION))


def without_ledger(why: Refused, network: str) -> JsonResponse:
    """What /readyz answers while the ledger cannot be used."""
    checks = {"ledger": why.detail}
    readiness = Readiness(ready=False, code=why.code, network=network, checks=checks, providers={})
    return JsonResponse(readiness, 503, {"Retry-After": str(RETRY_AFTER_S)})


def _code(context: AgentContext, problems: dict[str, str | None]) -> str | None:
    """The code that a payment would be refused with now. Its problem says what to do."""
    refused = chain_refusal(context.chain, context.ports.clock.now_ms())
    if refused is not None:
        return refused.code
    return next((code for check, code in _REFUSED_AS.items() if problems[check]), None)


def _pause_problem(context: AgentContext) -> str | None:
    """Without the reason, because the path needs no token."""
    try:
        pause = pauses.standing(context.conn)
    except Exception:  # noqa: BLE001  the check of the ledger reports it
        return None
    return None if pause is None else f"an operator has paused signing at {iso_time(pause.at_ms)}"


def _ledger_problem(context: AgentContext) -> str | None:
    try:
        about.meta(context.conn, "network")
        problem = context.readers.room_problem()
    except Exception as error:  # noqa: BLE001  this check reports every error
        return f"ledger.db cannot be read: {type(error).__name__}"
    return None if problem is None else f"ledger.db: {problem}"
