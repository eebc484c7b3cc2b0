"""Raises an alert when a check of the ledger found something, and clears it after a clean one.

Never: checks anything.
"""

from payagent.agent.context import AgentContext
from payagent.store.db.unit import Unit
from payagent.store.executor import clear_alert, raise_alert
from payagent.store.rows import alerts


async def note_check(context: AgentContext, command: str, found: int) -> None:
    """Note how many findings a check of the whole ledger had. `command`: what repeats it."""
    subject = f"books:{command}"
    if alerts.is_raised(context.conn, subject) == (found > 0):
        return

    def job(unit: Unit, now_ms: int) -> None:
        if found:
            detail = f"`{command}` found {found} differences. Run it again to see them"
            raise_alert(unit, "books_wrong", subject, {"detail": detail, "found": str(found)}, now_ms)
        else:
            clear_alert(unit, subject, {"detail": f"`{command}` found nothing"}, now_ms)

    await context.write_at("alert", job)
