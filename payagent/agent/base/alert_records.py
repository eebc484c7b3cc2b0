"""Raises and clears alerts inside a commit, once per subject, for steps that change nothing else.

May import: core, store. Never: tells anybody (agent.operator.notifier does); commits.
"""

from collections.abc import Mapping

from payagent.core.changes import Clear, Raise
from payagent.store import executor
from payagent.store.db.unit import Unit


def raise_alert(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Raise an alert unless its subject has one already. Returns whether it was new.

    `facts` need a `detail` for people.
    """
    return executor.raise_alert(unit, Raise(kind, subject, facts), now_ms)


def raise_again(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """Raise an alert even if its subject has one already, for news about the same subject."""
    executor.raise_alert(unit, Raise(kind, subject, facts, again=True), now_ms)


def clear_alert(unit: Unit, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Clear a subject's alert. Returns whether there was one."""
    return executor.clear_alert(unit, Clear(subject, facts), now_ms)
