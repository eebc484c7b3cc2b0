"""Writes changes: the only code that writes a payment's tables. `core.payment.apply` decides what changes.

Never: decides; commits; changes the order.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from payagent.core import ledger
from payagent.core.aggregate import OutputRow
from payagent.core.changes import (
    AddApproval,
    AddAttempt,
    AddExternalSpend,
    AddObservation,
    AddSubmission,
    AddUse,
    AddUtxo,
    AgreePrice,
    Book,
    Change,
    Clear,
    EndIntent,
    ForgetUtxo,
    Free,
    MovePayment,
    MovePrepaid,
    Note,
    PinAddress,
    PlaceHold,
    Raise,
    Reserve,
    SetColumn,
    SetHold,
    SetStreak,
    SetUtxo,
    TakeBackUses,
    Unreserve,
)
from payagent.core.invoice import Invoice
from payagent.core.payment.machine import Delivery, State
from payagent.core.prepaid_balance import Cost
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import alerts, limit_counters, merchants, prepaid, prepaid_uses, writes
from payagent.store.rows.merchants import UnservedStreak
from payagent.store.rows.payments import dump_outputs


class FreeUtxos(Protocol):
    """The free set in memory. A change is undone if the job or its commit fails."""

    def change(self, unit: Unit, change: Free) -> None: ...


def write(unit: Unit, changes: Iterable[Change], now_ms: int, free: FreeUtxos | None = None) -> None:
    """Write the changes in order. `free`: for steps that change which UTxOs are free; TypeError without it.

    Refused: `wrong_state` if the payment is not in the state that the changes were made for.
    """
    for change in changes:
        if not isinstance(change, Free):
            _WRITERS[type(change)](unit, change, now_ms)
        elif free is None:
            raise TypeError(change)
        else:
            free.change(unit, change)


def open_intent(
    unit: Unit,
    *,
    intent_id: str,
    app_id: str,
    idempotency_key: str,
    is_key_derived: bool,
    fingerprint: str,
    origin: str,
    request: str | None,
    request_id: str,
    now_ms: int,
) -> None:
    unit.conn.execute(
        "INSERT INTO intents(id, app_id, idempotency_key, is_key_derived, fingerprint, origin, request, "
        "request_id, created_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            intent_id,
            app_id,
            idempotency_key,
            int(is_key_derived),
            fingerprint,
            origin,
            request,
            request_id,
            now_ms,
        ),
    )


def output_rows(invoice: Invoice) -> tuple[OutputRow, ...]:
    return tuple(OutputRow(o.role, o.address.text, o.asset, o.units) for o in invoice.outputs)


def add_invoice(unit: Unit, invoice: Invoice, intent_id: str, received_at_ms: int, response: str) -> int:
    """Add an invoice; returns its row number. `response` is the 402 as received."""
    (seq,) = unit.conn.execute(
        "INSERT INTO invoices(origin, invoice_id, intent_id, dialect, terms_hash, outputs, batch_target, proof, "
        "merchant_submits, echo, commitment, received_at_ms, expires_at_ms, response_402) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING seq",
        (
            invoice.origin,
            invoice.invoice_id,
            intent_id,
            invoice.dialect,
            invoice.terms_hash,
            dump_outputs(output_rows(invoice)),
            invoice.batch_target,
            invoice.proof,
            int(invoice.merchant_submits),
            invoice.echo,
            invoice.commitment,
            received_at_ms,
            invoice.expires_at_ms,
            response,
        ),
    ).fetchone()
    return int(seq)


def open_payment(
    unit: Unit,
    *,
    payment_id: str,
    kind: str,
    app_id: str,
    intent_id: str,
    invoice_seq: int | None,
    outputs: Iterable[OutputRow],
    now_ms: int,
    account: int = 0,
    pool_id: int | None = None,
    topup_id: str | None = None,
) -> None:
    """Add a payment in the state `received`."""
    unit.conn.execute(
        "INSERT INTO payments(id, kind, app_id, intent_id, first_invoice_seq, invoice_seq, origin, outputs, "
        "state, delivery, pool_id, topup_id, created_at_ms, updated_at_ms, account) VALUES (?1, ?2, ?3, ?4, ?5, "
        "?5, (SELECT origin FROM invoices WHERE seq = ?5), ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12)",
        (
            payment_id,
            kind,
            app_id,
            intent_id,
            invoice_seq,
            dump_outputs(outputs),
            State.RECEIVED,
            Delivery.NOT_PRESENTED,
            pool_id,
            topup_id,
            now_ms,
            account,
        ),
    )


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


def _set_hold(unit: Unit, change: SetHold, now_ms: int) -> None:
    """What it counted moves in the counters; the row follows."""
    sets: dict[str, object] = {}
    if change.is_released is not None:
        sets["released_at_ms"] = now_ms if change.is_released else None
    whose, hold = change.whose, change.hold
    if hold.counted_units is not None:
        limit_counters.recount(
            *(unit, whose.app_id, whose.origin, hold.asset),
            *(hold.counted_units, _counted_at_ms(hold.counted_from_ms)),
            *(change.units, _counted_at_ms(change.from_ms)),
        )
        if whose.pool_id is not None and hold.stage == "payment":
            paid = {hold.asset: change.units - hold.counted_units}
            prepaid_uses.pay(unit, whose.pool_id, whose.app_id, paid)
        sets |= {"counted_units": change.units, "counted_from_ms": change.from_ms if change.units else None}
    if sets:
        unit.conn.execute(
            f"UPDATE holds SET {', '.join(f'{name} = ?' for name in sets)} "  # noqa: S608
            "WHERE payment_id = ? AND stage = ? AND asset = ?",
            (*sets.values(), change.payment_id, hold.stage, hold.asset),
        )


def _counted_at_ms(from_ms: int | None) -> int:
    return limit_counters.OPEN_MS if from_ms is None else from_ms


def _add_approval(unit: Unit, change: AddApproval, now_ms: int) -> None:
    reasons = [[reason.code, reason.detail] for reason in change.reasons]
    unit.conn.execute(
        "INSERT INTO approvals(payment_id, terms_hash, reasons, plan, max_total, asked_at_ms, expires_at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            *(change.payment_id, change.terms_hash, _json(reasons), _json(change.plan)),
            *(change.max_total_units, now_ms, change.expires_at_ms),
        ),
    )


def _set_column(unit: Unit, change: SetColumn, now_ms: int) -> None:
    unit.conn.execute(
        f"UPDATE payments SET {change.column} = ?, updated_at_ms = ? WHERE id = ?",  # noqa: S608  our own names
        (change.value, now_ms, change.payment_id),
    )


def _end_intent(unit: Unit, change: EndIntent, now_ms: int) -> None:
    unit.conn.execute(
        "UPDATE intents SET ended_at_ms = ? WHERE id = ? AND is_key_derived = 1 AND ended_at_ms IS NULL",
        (now_ms, change.intent_id),
    )


def _add_attempt(unit: Unit, change: AddAttempt, now_ms: int) -> None:
    one = change.attempt
    unit.conn.execute(
        "INSERT INTO attempts(tx_id, payment_id, kind, nonce_utxo, invoice_seq, inputs, cbor, fee_lovelace, "
        "ttl_slot, signed_at_ms, account) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.tx_id, one.payment_id, one.kind, one.nonce_utxo, one.invoice_seq, " ".join(one.inputs)),
            *(one.cbor, one.fee_lovelace, one.ttl_slot, now_ms, one.account),
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
        (*change.block, change.provider, now_ms),
    )


def _add_external_spend(unit: Unit, change: AddExternalSpend, now_ms: int) -> None:
    one = change.spend
    unit.conn.execute(
        "INSERT INTO external_spends(tx_id, is_on_chain, inputs, spent, block_hash, block_height, block_slot, "
        "provider, at_ms, account) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.tx_id, int(one.is_on_chain), " ".join(one.inputs), _json(dict(one.spent))),
            *(one.block_hash, one.block_height, one.block_slot, change.provider, now_ms, one.account),
        ),
    )


def _add_utxo(unit: Unit, change: AddUtxo, _now_ms: int) -> None:
    one = change.utxo
    unit.conn.execute(
        "INSERT INTO utxos(ref, tx_id, output_index, lovelace, assets, source, state, spent_by, account) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(one.ref, one.tx_id, one.output_index, one.lovelace, _json(dict(one.assets))),
            *(one.source, one.state, change.spent_by, one.account),
        ),
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
    before = change.before.costs
    spent = {asset: cost.used - before.get(asset, Cost()).used for asset, cost in change.after.costs.items()}
    entry = ledger.use(change.origin, spent)
    number = None if entry is None else writes.write_entry(unit, entry, now_ms, pool_id=change.pool_id)
    prepaid.record_move(unit, change, number, now_ms)


def _add_use(unit: Unit, change: AddUse, _now_ms: int) -> None:
    prepaid_uses.add(unit, change.pool_id, change.app_id, change.drawn, change.cost, change.clock_ms)


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


def _pin_address(unit: Unit, change: PinAddress, now_ms: int) -> None:
    merchants.add_pins(unit, change.origin, (change.pin,))
    detail = {"merchant": change.origin, "role": change.pin.role, "address": change.pin.address, **change.why}
    writes.note(unit, None, "address_pinned", None, now_ms, detail)


def _set_streak(unit: Unit, change: SetStreak, _now_ms: int) -> None:
    merchants.set_unserved_streak(unit, change.origin, UnservedStreak(change.count, change.stopped_at_ms))


def raise_alert(
    unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int, *, again: bool = False
) -> bool:
    """Raise an alert unless its subject has one already; `again`: even then. Returns whether it was raised.

    `facts` need a `detail` for people.
    """
    if not again and alerts.is_raised(unit.conn, subject):
        return False
    _alert(unit, kind, subject, facts, now_ms)
    return True


def clear_alert(unit: Unit, subject: str, facts: Mapping[str, str], now_ms: int) -> bool:
    """Clear a subject's alert. Returns whether there was one."""
    if not alerts.is_raised(unit.conn, subject):
        return False
    _alert(unit, alerts.CLEARED, subject, facts, now_ms)
    return True


def _alert(unit: Unit, kind: str, subject: str, facts: Mapping[str, str], now_ms: int) -> None:
    """An alert's row, then its event. The id is a hash over the last event, so no other alert has it."""
    digest = hashlib.sha256(f"{unit.heads.event_hash}\n{kind}\n{subject}\n{now_ms}".encode()).hexdigest()
    alert_id = f"alert_{digest[:24]}"
    unit.conn.execute(
        "INSERT INTO alerts(id, kind, subject, body, at_ms) VALUES (?, ?, ?, ?, ?)",
        (alert_id, kind, subject, _json(dict(facts)), now_ms),
    )
    writes.note(unit, None, "alert", None, now_ms, {"alert": alert_id, "kind": kind, "subject": subject, **facts})


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


_WRITERS: dict[type[Change], Callable[[Unit, Any, int], object]] = {
    MovePayment: _move_payment,
    Note: _note,
    Book: _book,
    PlaceHold: _place_hold,
    SetHold: _set_hold,
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
    Raise: lambda unit, one, now_ms: raise_alert(unit, one.kind, one.subject, one.facts, now_ms, again=one.again),
    Clear: lambda unit, one, now_ms: clear_alert(unit, one.subject, one.facts, now_ms),
    AddApproval: _add_approval,
    SetColumn: _set_column,
    EndIntent: _end_intent,
    AddUse: _add_use,
    PinAddress: _pin_address,
    SetStreak: _set_streak,
}
