"""Writes to the ledger: the small steps that jobs are made of.

Each function writes one fact. The agent decides which facts share a commit.
May import: core, store. Never: commits.
"""

import json
from collections.abc import Iterable, Mapping

from payagent.core.invoice import Invoice
from payagent.core.ledger import Entry
from payagent.core.money import LOVELACE
from payagent.core.payment import Delivery, Event, State, move
from payagent.store.db.unit import Unit
from payagent.store.db.wide_sums import add_halves, halves
from payagent.store.rows import limit_counters, prepaid_uses
from payagent.store.rows.attempts_and_utxos import AttemptKind, UtxoRow
from payagent.store.rows.events import event_hash, last_event
from payagent.store.rows.onchain import ExternalSpendRow
from payagent.store.rows.payments import OutputRow, Stage, dump_outputs


def put_meta(unit: Unit, key: str, value: str) -> None:
    """Record a fact about this database for good. A second value for the same key raises IntegrityError."""
    unit.conn.execute("INSERT INTO meta(key, value) VALUES (?, ?)", (key, value))


def add_intent(
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


def end_intent(unit: Unit, intent_id: str, now_ms: int) -> None:
    """End an intent with a derived key, so the same request may be bought again."""
    unit.conn.execute(
        "UPDATE intents SET ended_at_ms = ? WHERE id = ? AND is_key_derived = 1 AND ended_at_ms IS NULL",
        (now_ms, intent_id),
    )


def output_rows(invoice: Invoice) -> tuple[OutputRow, ...]:
    return tuple(OutputRow(o.role, o.address.text, o.asset, o.units) for o in invoice.outputs)


def add_invoice(unit: Unit, invoice: Invoice, intent_id: str, received_at_ms: int, response: str) -> int:
    """Add an invoice; returns its row number. `response` is the 402 as received."""
    cursor = unit.conn.execute(
        "INSERT INTO invoices(origin, invoice_id, intent_id, dialect, terms_hash, outputs, batch_target, proof, "
        "merchant_submits, echo, commitment, received_at_ms, expires_at_ms, response_402) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
    )
    return int(cursor.lastrowid or 0)


def add_payment(
    unit: Unit,
    *,
    payment_id: str,
    kind: str,
    app_id: str,
    intent_id: str,
    invoice_seq: int | None,
    outputs: Iterable[OutputRow],
    now_ms: int,
    pool_id: int | None = None,
    topup_id: str | None = None,
) -> None:
    """Add a payment in the state `received`; `move_payment` moves it on."""
    unit.conn.execute(
        "INSERT INTO payments(id, kind, app_id, intent_id, first_invoice_seq, invoice_seq, origin, outputs, "
        "state, delivery, pool_id, topup_id, created_at_ms, updated_at_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?5, "
        "(SELECT origin FROM invoices WHERE seq = ?5), ?6, ?7, ?8, ?9, ?10, ?11, ?11)",
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
        ),
    )


def move_payment(
    unit: Unit,
    payment_id: str,
    event: Event,
    now_ms: int,
    facts: Mapping[str, object] | None = None,
    /,
    **columns: object,
) -> State:
    """Move a payment along one row of the transition table, and set the columns that change with it.

    The event records these columns and `facts`, so the log explains how each got its value.
    The state is read inside the transaction, so an event decided on older data is checked again. Refused:
    `wrong_state`, and nothing changes.
    """
    old = State(unit.conn.execute("SELECT state FROM payments WHERE id = ?", (payment_id,)).fetchone()[0])
    new = move(old, event)
    sets = "".join(f", {name} = ?" for name in columns)
    unit.conn.execute(
        f"UPDATE payments SET state = ?, updated_at_ms = ?{sets} WHERE id = ?",  # noqa: S608
        (new, now_ms, *columns.values(), payment_id),
    )
    note(unit, payment_id, event, new, now_ms, columns | dict(facts or {}))
    return new


def note(
    unit: Unit,
    payment_id: str | None,
    event: str,
    state: State | None,
    now_ms: int,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Append an event of a payment or (None) of the wallet, chained to the event before.

    An event of the wallet says by which way its request came in, if not by a token.
    """
    last_seq, last_hash = last_event(unit.conn)
    way = {} if payment_id is not None or unit.via is None else {"via": unit.via}
    text = json.dumps({**(detail or {}), **way}, separators=(",", ":"))
    row = (last_seq + 1, payment_id, event, state, text, now_ms)
    unit.conn.execute(
        "INSERT INTO events(seq, payment_id, event, state, detail, at_ms, prev_hash, hash) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, last_hash, event_hash(last_hash, *row)),
    )


def set_delivery(unit: Unit, payment_id: str, delivery: Delivery, now_ms: int) -> None:
    unit.conn.execute(
        "UPDATE payments SET delivery = ?, updated_at_ms = ? WHERE id = ?", (delivery, now_ms, payment_id)
    )


def set_merchant_status(unit: Unit, payment_id: str, status: str, now_ms: int) -> None:
    unit.conn.execute(
        "UPDATE payments SET merchant_status = ?, updated_at_ms = ? WHERE id = ?", (status, now_ms, payment_id)
    )


def place_hold(
    unit: Unit,
    payment_id: str,
    units: Mapping[str, int],
    now_ms: int,
    counted_at_ms: int,
    is_counted: bool,
    stage: Stage = "payment",
) -> None:
    """Hold units, at this time of the limits' clock.

    If `is_counted`, they count against limits at once, in every window until `post_hold` or `release_hold`.
    """
    unit.conn.executemany(
        "INSERT INTO holds(payment_id, stage, asset, units, at_ms, counted_units, counted_at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (payment_id, stage, asset, n, now_ms, n if is_counted else None, counted_at_ms)
            for asset, n in units.items()
        ],
    )
    if is_counted:
        app, origin, pool_id = _whose(unit, payment_id)
        limit_counters.count(unit, app, origin, units, limit_counters.OPEN_MS)
        if pool_id is not None and stage == "payment":
            prepaid_uses.pay(unit, pool_id, app, units)


def post_hold(unit: Unit, payment_id: str, from_ms: int) -> None:
    """The hold is spent: it counts in windows from this time of the limits' clock on."""
    rows = unit.conn.execute(
        "SELECT asset, units FROM holds WHERE payment_id = ? AND stage = 'payment'", (payment_id,)
    ).fetchall()
    _count_anew(unit, payment_id, dict(rows), "payment", from_ms)


def release_hold(
    unit: Unit,
    payment_id: str,
    now_ms: int,
    kept_lovelace: int = 0,
    from_ms: int | None = None,
    stage: Stage = "payment",
) -> None:
    """Release a hold. Units spent anyway, such as the fee of a cancel, count from `from_ms` on."""
    rows = unit.conn.execute(
        "UPDATE holds SET released_at_ms = ? WHERE payment_id = ? AND stage = ? AND released_at_ms IS NULL "
        "RETURNING asset",
        (now_ms, payment_id, stage),
    ).fetchall()
    spent = {asset: kept_lovelace if asset == LOVELACE else 0 for (asset,) in rows}
    _count_anew(unit, payment_id, spent, stage, from_ms)


def renew_hold(unit: Unit, payment_id: str) -> None:
    """Restore a hold whose ending was rolled back: all of it counts again, as while it was open."""
    rows = unit.conn.execute(
        "UPDATE holds SET released_at_ms = NULL WHERE payment_id = ? AND stage = 'payment' RETURNING asset, units",
        (payment_id,),
    ).fetchall()
    _count_anew(unit, payment_id, dict(rows), "payment", None)


def _count_anew(unit: Unit, payment_id: str, units: Mapping[str, int], stage: Stage, from_ms: int | None) -> None:
    """Recount a payment's holds, if they count at all, as `units` from a time of the limits' clock on.

    `from_ms` None: in every window.
    """
    rows = unit.conn.execute(
        "SELECT asset, counted_units, counted_from_ms FROM holds "
        "WHERE payment_id = ? AND stage = ? AND counted_units IS NOT NULL",
        (payment_id, stage),
    ).fetchall()
    for asset, before, before_ms in rows:
        if asset in units:
            app, origin, pool_id = _whose(unit, payment_id)
            limit_counters.count(unit, app, origin, {asset: -before}, _counted_at_ms(before_ms))
            limit_counters.count(unit, app, origin, {asset: units[asset]}, _counted_at_ms(from_ms))
            if pool_id is not None and stage == "payment":
                prepaid_uses.pay(unit, pool_id, app, {asset: units[asset] - before})
            unit.conn.execute(
                "UPDATE holds SET counted_units = ?, counted_from_ms = ? "
                "WHERE payment_id = ? AND stage = ? AND asset = ?",
                (units[asset], from_ms if units[asset] else None, payment_id, stage, asset),
            )


def _counted_at_ms(from_ms: int | None) -> int:
    return limit_counters.OPEN_MS if from_ms is None else from_ms


def _whose(unit: Unit, payment_id: str) -> tuple[str, str, int | None]:
    """(app, merchant's origin, prepaid pool) of a payment."""
    app, origin, pool_id = unit.conn.execute(
        "SELECT p.app_id, i.origin, p.pool_id FROM payments p JOIN intents i ON i.id = p.intent_id WHERE p.id = ?",
        (payment_id,),
    ).fetchone()
    return app, origin, pool_id


def write_entry(
    unit: Unit,
    entry: Entry,
    now_ms: int,
    *,
    payment_id: str | None = None,
    ref: str | None = None,
    pool_id: int | None = None,
) -> int:
    """Append an entry: its postings, which update the balances, then the row that seals them. Returns its id."""
    (entry_id,) = unit.conn.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM entries").fetchone()
    unit.conn.executemany(
        "INSERT INTO postings(entry_id, account, asset, units) VALUES (?, ?, ?, ?)",
        [(entry_id, p.account, p.asset, p.units) for p in entry.postings],
    )
    changed = [(p.account, p.asset, *halves(p.units)) for p in entry.postings]
    add_halves(unit.conn, "balances(account, asset, units_high, units_low)", changed)
    unit.conn.execute(
        "INSERT INTO entries(id, kind, payment_id, pool_id, ref, at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (entry_id, entry.kind, payment_id, pool_id, ref, now_ms),
    )
    return int(entry_id)


def reserve(unit: Unit, refs: Iterable[str], payment_id: str) -> None:
    unit.conn.executemany(
        "INSERT INTO reservations(ref, payment_id) VALUES (?, ?)", [(ref, payment_id) for ref in refs]
    )


def unreserve(unit: Unit, payment_id: str) -> None:
    unit.conn.execute("DELETE FROM reservations WHERE payment_id = ?", (payment_id,))


def add_attempt(
    unit: Unit,
    *,
    tx_id: str,
    payment_id: str,
    kind: AttemptKind,
    nonce_utxo: str,
    invoice_seq: int | None,
    inputs: Iterable[str],
    cbor: bytes,
    fee_lovelace: int,
    ttl_slot: int,
    now_ms: int,
) -> None:
    unit.conn.execute(
        "INSERT INTO attempts(tx_id, payment_id, kind, nonce_utxo, invoice_seq, inputs, cbor, fee_lovelace, "
        "ttl_slot, signed_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (tx_id, payment_id, kind, nonce_utxo, invoice_seq, " ".join(inputs), cbor, fee_lovelace, ttl_slot, now_ms),
    )


def add_submission(unit: Unit, tx_id: str, provider: str, now_ms: int) -> None:
    unit.conn.execute(
        "INSERT INTO submissions(tx_id, provider, at_ms) VALUES (?, ?, ?)", (tx_id, provider, now_ms)
    )


def add_block_observation(
    unit: Unit, tx_id: str, block_hash: str, height: int, slot: int, provider: str, now_ms: int
) -> None:
    unit.conn.execute(
        "INSERT INTO block_observations(tx_id, block_hash, block_height, block_slot, provider, at_ms) "
        "VALUES (?, ?, ?, ?, ?, ?)",
        (tx_id, block_hash, height, slot, provider, now_ms),
    )


def add_external_spend(unit: Unit, row: ExternalSpendRow, provider: str, now_ms: int) -> None:
    unit.conn.execute(
        "INSERT INTO external_spends(tx_id, is_on_chain, inputs, spent, block_hash, block_height, block_slot, "
        "provider, at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            row.tx_id,
            int(row.is_on_chain),
            " ".join(row.inputs),
            json.dumps(dict(row.spent), separators=(",", ":")),
            row.block_hash,
            row.block_height,
            row.block_slot,
            provider,
            now_ms,
        ),
    )


def add_utxo(unit: Unit, utxo: UtxoRow) -> None:
    unit.conn.execute(
        "INSERT INTO utxos(ref, tx_id, output_index, lovelace, assets, source, state) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            utxo.ref,
            utxo.tx_id,
            utxo.output_index,
            utxo.lovelace,
            json.dumps(dict(utxo.assets), separators=(",", ":")),
            utxo.source,
            utxo.state,
        ),
    )


def set_utxo_state(unit: Unit, ref: str, state: str) -> None:
    """Set any state but `spent`, which `spend_utxo` sets together with the spender."""
    unit.conn.execute("UPDATE utxos SET state = ?, spent_by = NULL WHERE ref = ?", (state, ref))


def spend_utxo(unit: Unit, ref: str, tx_id: str) -> None:
    unit.conn.execute("UPDATE utxos SET state = 'spent', spent_by = ? WHERE ref = ?", (tx_id, ref))


def forget_utxo(unit: Unit, ref: str) -> None:
    """Delete a UTxO that turned out never to have existed. What the log and the entries say about it stays."""
    unit.conn.execute("DELETE FROM utxos WHERE ref = ?", (ref,))
