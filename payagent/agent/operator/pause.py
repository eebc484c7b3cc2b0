"""The switch that stops all signing: an operator's app throws it, and only one puts it back.

Once it is answered no transaction is signed any more, not a replacement and not a cancel either. What was signed
before is sent and followed as ever: it may land.

May import: core, store, agent.context, agent.base. Never: ends a pause by itself.
"""

import structlog

from payagent.agent.base.alert_records import clear_alert, raise_alert
from payagent.agent.context import AgentContext
from payagent.store.db.unit import Unit
from payagent.store.rows import pauses
from payagent.store.rows.pauses import Pause

_SUBJECT = "pause"

log = structlog.get_logger("payagent.pause")


async def pause(context: AgentContext, by_app: str, reason: str) -> tuple[Pause | None, bool]:
    """Stop all signing, from the commit of this on: the pause that stands, and whether it is this one.

    An earlier one stands as it is, with its own reason.
    """
    now_ms = context.ports.clock.now_ms()

    def job(unit: Unit) -> bool:
        is_new = pauses.begin(unit, by_app, reason, now_ms)
        detail = f"nothing is signed{': ' + reason if reason else ''}"
        raise_alert(unit, "paused", _SUBJECT, {"detail": detail, "by": by_app}, now_ms)
        return is_new

    is_new = await context.write("pause", job)
    log.warning("wallet.paused" if is_new else "wallet.paused_already", by=by_app, reason=reason)
    return pauses.standing(context.conn), is_new


async def unpause(context: AgentContext, by_app: str) -> Pause | None:
    """Sign again. What was admitted before the pause, and has time left, is signed by the next look."""
    now_ms = context.ports.clock.now_ms()

    def job(unit: Unit) -> bool:
        clear_alert(unit, _SUBJECT, {"detail": "payagent signs again", "by": by_app}, now_ms)
        return pauses.end(unit, by_app, now_ms)

    if await context.write("resume", job):
        log.warning("wallet.resumed", by=by_app)
    return pauses.standing(context.conn)
