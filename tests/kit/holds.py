"""Places and ends holds as the effects of a payment do, without the rest of the payment."""

from collections.abc import Mapping

from payagent.core.aggregate import Hold, Stage
from payagent.core.changes import PlaceHold, SetHold, Whose
from payagent.core.money import LOVELACE
from payagent.store.db.unit import Unit
from payagent.store.executor import write


class NoFreeUtxos:
    def change(self, unit: Unit, change: object) -> None:
        raise AssertionError(change)


def place_hold(
    unit: Unit,
    payment_id: str,
    units: Mapping[str, int],
    now_ms: int,
    clock_ms: int,
    is_counted: bool,
    stage: Stage = "payment",
) -> None:
    change = PlaceHold(payment_id, stage, units, clock_ms, is_counted, _whose(unit, payment_id))
    write(unit, (change,), now_ms, NoFreeUtxos())


def post_hold(unit: Unit, payment_id: str, from_ms: int) -> None:
    """It counts from this time of the limits' clock on."""
    _end(unit, payment_id, 0, {}, from_ms, None)


def release_hold(
    unit: Unit, payment_id: str, now_ms: int, kept_lovelace: int = 0, from_ms: int | None = None
) -> None:
    """It is released, except for what was spent anyway."""
    assets = [
        asset for (asset,) in unit.conn.execute("SELECT asset FROM holds WHERE payment_id = ?", (payment_id,))
    ]
    kept = {asset: kept_lovelace if asset == LOVELACE else 0 for asset in assets}
    _end(unit, payment_id, now_ms, kept, from_ms, True)


def renew_hold(unit: Unit, payment_id: str) -> None:
    """Its ending was rolled back: it counts in every window again."""
    _end(unit, payment_id, 0, {}, None, False)


def _end(
    unit: Unit,
    payment_id: str,
    now_ms: int,
    units: Mapping[str, int],
    from_ms: int | None,
    is_released: bool | None,
) -> None:
    rows = unit.conn.execute(
        "SELECT stage, asset, units, counted_units, counted_from_ms, released_at_ms FROM holds "
        "WHERE payment_id = ?",
        (payment_id,),
    ).fetchall()
    for stage, asset, held, counted_units, counted_from_ms, released_at_ms in rows:
        if is_released and released_at_ms is not None:
            continue
        now = units.get(asset, held)
        hold = Hold(stage, asset, held, counted_units, counted_from_ms, released_at_ms is not None)
        whose = _whose(unit, payment_id)
        change = SetHold(payment_id, hold, whose, now, from_ms if now else None, is_released)
        write(unit, (change,), now_ms, NoFreeUtxos())


def _whose(unit: Unit, payment_id: str) -> Whose:
    row = unit.conn.execute(
        "SELECT p.app_id, i.origin, p.pool_id FROM payments p JOIN intents i ON i.id = p.intent_id WHERE p.id = ?",
        (payment_id,),
    ).fetchone()
    return Whose(*row)
