"""Pauses and resumes all signing. An operator's app starts a pause, and only an operator's app ends it.

Once the pause is acknowledged, nothing is signed, not even a replacement or a cancel. What was signed before is
still submitted and followed: it may land.

Never: ends a pause by itself.
"""

from payagent.agent.base.log import log
from payagent.agent.context import AgentContext
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import pauses
from payagent.store.rows.pauses import Pause

_SUBJECT = "pause"


async def pause(context: AgentContext, by_app: str, reason: str) -> tuple[Pause | None, bool]:
    """Stop all signing from this commit on. Returns the pause in force, and whether it is this one.

    An earlier pause stays in force, with its own reason.
    """

    def job(unit: Unit, now_ms: int) -> bool:
        is_new = pauses.begin(unit, by_app, reason, now_ms)
        detail = f"nothing is signed{': ' + reason if reason else ''}"
        raise_alert(unit, "paused", _SUBJECT, {"detail": detail, "by": by_app}, now_ms)
        return is_new

    is_new = await context.write_at("pause", job)
    log.warning("wallet.paused" if is_new else "wallet.paused_already", by=by_app, reason=reason)
    return pauses.standing(context.conn), is_new


async def unpause(context: AgentContext, by_app: str) -> Pause | None:
    """Resume signing. The next pass signs what was admitted before the pause and has time left."""

    def job(unit: Unit, now_ms: int) -> bool:
        clear_alert(unit, _SUBJECT, {"detail": "payagent signs again", "by": by_app}, now_ms)
        return pauses.end(unit, by_app, now_ms)

    if await context.write_at("resume", job):
        log.warning("wallet.resumed", by=by_app)
    return pauses.standing(context.conn)
