"""Loads a payment as `core.payment.apply` sees it, in two statements.

Never: writes.
"""

import json
from collections.abc import Iterable
from typing import Any

from payagent.core.aggregate import AttemptRow, Hold, LoadedPayment, Maker, OwnUtxo, PaymentRow, UtxoRow
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection
from payagent.store.rows import onchain, payments

_UTXO = (
    "json_array(c.ref, c.tx_id, c.output_index, c.lovelace, json(c.assets), c.source, c.state, r.payment_id, "
    "c.account, c.spent_by, p.id, p.state, p.tx_id, "
    "NOT EXISTS (SELECT 1 FROM reservations o WHERE o.payment_id = p.id))"
)
_UTXOS = (
    "utxos c LEFT JOIN reservations r ON r.ref = c.ref LEFT JOIN attempts m ON m.tx_id = c.tx_id "
    "LEFT JOIN payments p ON p.id = m.payment_id"
)
_PARTS = f"""
SELECT 'attempt', json_array(tx_id, kind, nonce_utxo, invoice_seq, inputs, fee_lovelace, ttl_slot)
FROM (SELECT * FROM attempts WHERE payment_id = ?1 ORDER BY rowid) a
UNION ALL
SELECT 'hold', json_array(stage, asset, units, counted_units, counted_from_ms, released_at_ms IS NOT NULL)
FROM (SELECT * FROM holds WHERE payment_id = ?1 ORDER BY rowid) h
UNION ALL
SELECT 'utxo', {_UTXO} FROM {_UTXOS} WHERE c.ref IN (
  SELECT ref FROM reservations WHERE payment_id = ?1
  UNION SELECT u.ref FROM attempts a JOIN utxos u ON u.tx_id = a.tx_id AND u.account = a.account
        WHERE a.payment_id = ?1
  UNION SELECT i.value FROM attempts a, json_each('["' || replace(a.inputs, ' ', '","') || '"]') i
        WHERE a.payment_id = ?1)
UNION ALL
SELECT 'posting', json_array(account, asset, units) FROM (
  SELECT q.* FROM (SELECT id, kind FROM entries WHERE payment_id = ?1
                   AND kind IN ('post', 'release', 'post_reversed') ORDER BY id DESC LIMIT 1) e
  JOIN postings q ON q.entry_id = e.id WHERE e.kind <> 'post_reversed' ORDER BY q.seq) p
"""  # noqa: S608  our own names


def load(conn: Connection, payment_id: str, *, landed: str | None = None) -> LoadedPayment:
    """A payment with its attempts (without their bytes), holds and UTxOs. Refused: `not_found`.

    `landed`: an attempt in a block, whose inputs an external spend may have spent: then those are loaded too.
    """
    row = load_row(conn, payment_id)
    attempts: list[AttemptRow] = []
    holds: list[Hold] = []
    utxos: dict[str, OwnUtxo] = {}
    posted: list[tuple[str, str, int]] = []
    for kind, text in conn.execute(_PARTS, (payment_id,)):
        values: list[Any] = json.loads(text)
        if kind == "attempt":
            tx_id, attempt_kind, nonce_utxo, invoice_seq, inputs, fee_lovelace, ttl_slot = values
            attempts.append(
                AttemptRow(
                    *(tx_id, payment_id, attempt_kind, nonce_utxo, invoice_seq, tuple(inputs.split(" "))),
                    *(b"", fee_lovelace, ttl_slot, row.account),
                )
            )
        elif kind == "hold":
            stage, asset, units, counted_units, counted_from_ms, is_released = values
            holds.append(Hold(stage, asset, units, counted_units, counted_from_ms, bool(is_released)))
        elif kind == "utxo":
            utxos[values[0]] = _own_utxo(values)
        else:
            posted.append((values[0], values[1], values[2]))
    payment = LoadedPayment(row, tuple(attempts), tuple(holds), utxos, tuple(posted))
    attempt = payment.attempt(landed) if landed is not None else None
    if attempt is None or not any(_is_spent_by_other(payment, ref) for ref in attempt.inputs):
        return payment
    spends = onchain.external_spends_of(conn, attempt.inputs, row.account)
    utxos |= load_utxos(conn, (ref for spend in spends for ref in spend.inputs))
    return LoadedPayment(row, tuple(attempts), tuple(holds), utxos, tuple(posted), tuple(spends))


def load_utxos(conn: Connection, refs: Iterable[str]) -> dict[str, OwnUtxo]:
    """Those of these UTxOs that we have, by ref."""
    rows = conn.execute(
        f"SELECT {_UTXO} FROM {_UTXOS} WHERE c.ref IN (SELECT value FROM json_each(?))",  # noqa: S608  our own names
        (json.dumps(list(refs)),),
    )
    return {own.row.ref: own for own in (_own_utxo(json.loads(text)) for (text,) in rows)}


def load_row(conn: Connection, payment_id: str) -> PaymentRow:
    """The payment alone. Refused: `not_found`."""
    row = payments.payment(conn, payment_id)
    if row is None:
        raise Refused("not_found", f"there is no payment {payment_id[:80]!r}")
    return row


def _is_spent_by_other(payment: LoadedPayment, ref: str) -> bool:
    own = payment.utxos.get(ref)
    return own is not None and own.row.state == "spent" and payment.attempt(own.spent_by) is None


def _own_utxo(values: list[Any]) -> OwnUtxo:
    maker_id = values[10]
    maker = None if maker_id is None else Maker(maker_id, State(values[11]), values[12], bool(values[13]))
    return OwnUtxo(UtxoRow(*values[:9]), values[9], maker)
