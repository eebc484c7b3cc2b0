"""Whether an operator has paused the wallet. The wallet's last pause or resume event decides, also after a
restart.

Never: pauses by itself.
"""

import json
from dataclasses import dataclass

from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import writes
from payagent.store.rows.onchain import last_of_wallet

_PAUSED, _RESUMED = "paused", "resumed"


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause: since when nothing is signed, the app that ordered it (its id), and why."""

    at_ms: int
    by: str
    reason: str


def standing(conn: Connection) -> Pause | None:
    """The pause in force; None if the wallet is not paused."""
    seq, detail, at_ms = last_of_wallet(conn, _PAUSED)
    if seq == 0 or seq <= last_of_wallet(conn, _RESUMED)[0]:
        return None
    facts = json.loads(detail)
    return Pause(at_ms, facts["by"], facts["reason"])


def require_running(conn: Connection) -> None:
    """Checked before every signature, and again in the commit that makes it durable. Refused: `paused`."""
    if (pause := standing(conn)) is not None:
        why = f": {pause.reason}" if pause.reason else ""
        raise Refused("paused", f"the operator paused the wallet at {iso_time(pause.at_ms)}{why}")


def begin(unit: Unit, by_app: str, reason: str, now_ms: int) -> bool:
    """Pause the wallet. False, and no change, if it is paused already."""
    if standing(unit.conn) is not None:
        return False
    writes.note(unit, None, _PAUSED, None, now_ms, {"by": by_app, "reason": reason})
    return True


def end(unit: Unit, by_app: str, now_ms: int) -> bool:
    """Resume the wallet. False, and no change, if it is not paused."""
    if standing(unit.conn) is None:
        return False
    writes.note(unit, None, _RESUMED, None, now_ms, {"by": by_app})
    return True
