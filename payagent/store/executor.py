"""Writes changes: the only code that writes a payment's tables. `core.effects` decides what changes.

May import: core, store. Never: decides; commits; changes the order.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from payagent.core import ledger
from payagent.core.changes import (
    AddAttempt,
    AddExternalSpend,
    AddObservation,
    AddSubmission,
    AddUtxo,
    AgreePrice,
    Book,
    Change,
    Clear,
    EndHold,
    ForgetUtxo,
    Free,
    MovePayment,
    MovePrepaid,
    Note,
    PlaceHold,
    Raise,
    Reserve,
    SetUtxo,
    TakeBackUses,
    Unreserve,
)
from payagent.core.prepaid_balance import Cost
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import limit_counters, merchants, prepaid, prepaid_uses, writes
from payagent.store.rows.prepaid import Move


class FreeUtxos(Protocol):
    """The free set in memory. A change is undone if the job or its commit fails."""

    def change(self, unit: Unit, change: Free) -> None: ...


def write(unit: Unit, changes: Iterable[Change], now_ms: int, free: FreeUtxos) -> None:
    """Write the changes in order.

    Refused: `wrong_state` if the payment is not in the state that the changes were made for.
    """
    for change in changes:
        if isinstance(change, Free):
            free.change(unit, change)
        else:
            _WRITERS[type(change)](unit, change, now_ms)


def _move_payment(unit: Unit, change: MovePayment, now_ms: int) -> None:
    columns = change.columns
    sets = "".join(f", {name} = ?" for name in columns)
    cursor = unit.conn.execute(
        f"UPDATE payments SET state = ?, updated_at_ms = ?{sets} WHERE id = ? AND state = ?",  # noqa: S608
        (change.after, now_ms, *columns.values(), change.payment_id, change.before),
    )
    if cursor.rowcount != 1:
        raise Refused("wrong_state", f"{change.payment_id} is no longer {change.before}")
    writes.note(unit, change.payment_id, change.event, change.after, now_ms, {**columns, **change.detail})


def _note(unit: Unit, change: Note, now_ms: int) -> None:
    writes.note(unit, change.payment_id, change.event, change.state, now_ms, change.detail)


def _book(unit: Unit, change: Book, now_ms: int) -> None:
    writes.write_entry(
        unit, change.entry, now_ms, payment_id=change.payment_id, ref=change.ref, pool_id=change.pool_id
    )


def _place_hold(unit: Unit, change: PlaceHold, now_ms: int) -> None:
    rows = ", ".join(["(?, ?, ?, ?, ?, ?, ?)"] * len(change.units))
    unit.conn.execute(
        "INSERT INTO holds(payment_id, stage, asset, units, at_ms, counted_units, counted_at_ms) "  # noqa: S608
        f"VALUES {rows}",
        [
            value
            for asset, n in change.units.items()
            for value in (
                *(change.payment_id, change.stage, asset, n, now_ms),
                *(n if change.is_counted else None, change.clock_ms),
            )
        ],
    )
    if change.is_counted:
        whose = change.whose
        limit_counters.count(unit, whose.app_id, whose.origin, change.units, limit_counters.OPEN_MS)
        if whose.pool_id is not None and change.stage == "payment":
            prepaid_uses.pay(unit, whose.pool_id, whose.app_id, change.units)


def _end_hold(unit: Unit, change: EndHold, now_ms: int) -> None:
    """What it counted moves in the counters; the row follows."""
    sets: dict[str, object] = {}
    if change.is_released is not None:
        sets["released_at_ms"] = now_ms if change.is_released else None
    if change.before_units is not None:
        whose, asset = change.whose, change.asset
        limit_counters.recount(
            *(unit, whose.app_id, whose.origin, asset),
            *(change.before_units, _counted_at_ms(change.before_ms)),
            *(change.units, _counted_at_ms(change.from_ms)),
        )
        if whose.pool_id is not None and change.stage == "payment":
            prepaid_uses.pay(unit, whose.pool_id, whose.app_id, {asset: change.units - change.before_units})
        sets |= {"counted_units": change.units, "counted_from_ms": change.from_ms if change.units else None}
    if sets:
        unit.conn.execute(
            f"UPDATE holds SET {', '.join(f'{name} = ?' for name in sets)} "  # noqa: S608
            "WHERE payment_id = ? AND stage = ? AND asset = ?",
            (*sets.values(), change.payment_id, change.stage, change.asset),
        )


def _counted_at_ms(from_ms: int | None) -> int:
    return limit_counters.OPEN_MS if from_ms is None else from_ms


def _add_attempt(unit: Unit, change: AddAttempt, now_ms: int) -> None:
    one = change.attempt
    unit.conn.execute(
        "INSERT INTO attempts(tx_id, payment_id, kind, nonce_utxo, invoice_seq, inputs, cbor, fee_lovelace, "
        "ttl_slot, signed_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.tx_id, one.payment_id, one.kind, one.nonce_utxo, one.invoice_seq, " ".join(one.inputs)),
            *(one.cbor, one.fee_lovelace, one.ttl_slot, now_ms),
        ),
    )


def _add_submission(unit: Unit, change: AddSubmission, now_ms: int) -> None:
    unit.conn.execute(
        "INSERT INTO submissions(tx_id, provider, at_ms) VALUES (?, ?, ?)", (change.tx_id, change.provider, now_ms)
    )


def _add_observation(unit: Unit, change: AddObservation, now_ms: int) -> None:
    unit.conn.execute(
        "INSERT INTO block_observations(tx_id, block_hash, block_height, block_slot, provider, at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (change.tx_id, change.block_hash, change.block_height, change.block_slot, change.provider, now_ms),
    )


def _add_external_spend(unit: Unit, change: AddExternalSpend, now_ms: int) -> None:
    one = change.spend
    unit.conn.execute(
        "INSERT INTO external_spends(tx_id, is_on_chain, inputs, spent, block_hash, block_height, block_slot, "
        "provider, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.tx_id, int(one.is_on_chain), " ".join(one.inputs), _json(dict(one.spent))),
            *(one.block_hash, one.block_height, one.block_slot, change.provider, now_ms),
        ),
    )


def _add_utxo(unit: Unit, change: AddUtxo, _now_ms: int) -> None:
    one = change.utxo
    unit.conn.execute(
        "INSERT INTO utxos(ref, tx_id, output_index, lovelace, assets, source, state) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (one.ref, one.tx_id, one.output_index, one.lovelace, _json(dict(one.assets)), one.source, one.state),
    )


def _set_utxo(unit: Unit, change: SetUtxo, _now_ms: int) -> None:
    unit.conn.execute(
        "UPDATE utxos SET state = ?, spent_by = ? WHERE ref = ?", (change.state, change.spent_by, change.ref)
    )


def _forget_utxo(unit: Unit, change: ForgetUtxo, _now_ms: int) -> None:
    unit.conn.execute("DELETE FROM utxos WHERE ref = ?", (change.ref,))


def _reserve(unit: Unit, change: Reserve, _now_ms: int) -> None:
    rows = ", ".join(["(?, ?)"] * len(change.refs))
    unit.conn.execute(
        f"INSERT INTO reservations(ref, payment_id) VALUES {rows}",  # noqa: S608  placeholders
        [value for ref in change.refs for value in (ref, change.payment_id)],
    )


def _unreserve(unit: Unit, change: Unreserve, _now_ms: int) -> None:
    unit.conn.execute("DELETE FROM reservations WHERE payment_id = ?", (change.payment_id,))


def _move_prepaid(unit: Unit, change: MovePrepaid, now_ms: int) -> None:
    before, after = change.before, change.after
    spent = {asset: cost.used - before.costs.get(asset, Cost()).used for asset, cost in after.costs.items()}
    entry = ledger.use(change.origin, spent)
    number = None if entry is None else writes.write_entry(unit, entry, now_ms, pool_id=change.pool_id)
    move = Move(
        change.kind,
        after.bought - before.bought,
        after.used - before.used,
        after.unexplained - before.unexplained,
        *(change.payment_id, change.app_id, change.call, change.call_key),
    )
    prepaid.record_move(unit, change.pool_id, change.unit, move, after, number, now_ms)


def _take_back_uses(unit: Unit, change: TakeBackUses, _now_ms: int) -> None:
    prepaid_uses.take_back_newest(unit, change.pool_id, change.unit, change.count)


def _agree_price(unit: Unit, change: AgreePrice, now_ms: int) -> None:
    price = change.price
    merchants.agree(unit, change.origin, price)
    detail = {
        "merchant": change.origin,
        "call": f"{price.method} {price.path}",
        "asset": price.asset,
        "calls": str(price.calls),
        "units": str(price.units),
        **change.why,
    }
    writes.note(unit, None, "price_agreed", None, now_ms, detail)


def _raise(unit: Unit, change: Raise, now_ms: int) -> None:
    if change.again or _last_kind(unit, change.subject) in (None, CLEARED):
        _alert(unit, change.kind, change.subject, change.facts, now_ms)


def _clear(unit: Unit, change: Clear, now_ms: int) -> None:
    if _last_kind(unit, change.subject) not in (None, CLEARED):
        _alert(unit, CLEARED, change.subject, change.facts, now_ms)


CLEARED = "cleared"


def _last_kind(unit: Unit, subject: str) -> str | None:
    row = unit.conn.execute(
        "SELECT kind FROM alerts WHERE subject = ? ORDER BY seq DESC LIMIT 1", (subject,)
    ).fetchone()
    return row[0] if row else None


def _alert(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """An alert's row, then its event. The id is a hash over the last event, so no other alert has it."""
    digest = hashlib.sha256(f"{unit.heads.event_hash}\n{kind}\n{subject}\n{now_ms}".encode()).hexdigest()
    alert_id = f"alert_{digest[:24]}"
    unit.conn.execute(
        "INSERT INTO alerts(id, kind, subject, body, at_ms, next_try_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (alert_id, kind, subject, _json(dict(facts)), now_ms, now_ms),
    )
    writes.note(unit, None, "alert", None, now_ms, {"alert": alert_id, "kind": kind, "subject": subject, **facts})


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


_WRITERS: dict[type[Change], Callable[[Unit, Any, int], None]] = {
    MovePayment: _move_payment,
    Note: _note,
    Book: _book,
    PlaceHold: _place_hold,
    EndHold: _end_hold,
    AddAttempt: _add_attempt,
    AddSubmission: _add_submission,
    AddObservation: _add_observation,
    AddExternalSpend: _add_external_spend,
    AddUtxo: _add_utxo,
    SetUtxo: _set_utxo,
    ForgetUtxo: _forget_utxo,
    Reserve: _reserve,
    Unreserve: _unreserve,
    MovePrepaid: _move_prepaid,
    TakeBackUses: _take_back_uses,
    AgreePrice: _agree_price,
    Raise: _raise,
    Clear: _clear,
}
