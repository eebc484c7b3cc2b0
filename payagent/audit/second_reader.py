"""Reads signed bytes again with pycardano, so that no decoder of payagent has the last word on its transactions.

Start at `second_findings`. Only commands call it, in their own process.
Never: imported by the daemon, since pycardano takes more than a second and 62 MB; I/O.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Reading, read

if TYPE_CHECKING:
    from pycardano import Transaction, TransactionOutput

_COMMITMENT_LABEL = 402
_FIELDS = frozenset(("inputs", "outputs", "fee", "ttl", "network_id", "auxiliary_data_hash"))
"""The body's fields that payagent reads. In a transaction of ours all others are empty."""


def second_findings(tx_id: str, cbor: bytes) -> Iterator[AuditFinding]:
    """Everything in which pycardano reads an attempt's bytes differently. Takes about 7 ms."""
    from pycardano import Transaction

    first = read(cbor)
    if isinstance(first, str):  # `verify` reports it
        return
    try:
        second = _second_facts(Transaction.from_cbor(cbor))
    except Exception as error:  # noqa: BLE001  whatever pycardano raises, it cannot read these bytes
        yield AuditFinding("attempts", tx_id, f"pycardano cannot read its bytes: {error or type(error).__name__}")
        return
    for name, fact in _first_facts(first).items():
        if second[name] != fact:
            what = f"pycardano reads the {name} {second[name]} in its bytes, payagent reads {fact}"
            yield AuditFinding("attempts", tx_id, what)


def _first_facts(reading: Reading) -> dict[str, object]:
    """What payagent's decoder read, by name."""
    return {
        "id": hashlib.blake2b(reading.body, digest_size=32).hexdigest(),
        "inputs": sorted(reading.inputs),
        "outputs": [(out.address.hex(), out.lovelace, out.assets) for out in reading.outputs],
        "fee": reading.fee_lovelace,
        "TTL": reading.ttl_slot,
        "network id": reading.network_id,
        "signatures": [(key.hex(), signature.hex()) for key, signature in reading.witnesses],
        "commitment": None if reading.commitment is None else reading.commitment.hex(),
        "other fields": [],
    }


def _second_facts(tx: "Transaction") -> dict[str, object]:
    """The same by pycardano. The id is that of the body as pycardano writes it again."""
    body, witnesses = tx.transaction_body, tx.transaction_witness_set
    others = [one.name for one in fields(body) if one.name not in _FIELDS and getattr(body, one.name)]
    others += [
        one.name for one in fields(witnesses) if one.name != "vkey_witnesses" and getattr(witnesses, one.name)
    ]
    return {
        "id": body.hash().hex(),
        "inputs": sorted((one.transaction_id.payload.hex(), one.index) for one in body.inputs),
        "outputs": [_output(one) for one in body.outputs],
        "fee": body.fee,
        "TTL": body.ttl,
        "network id": None if body.network_id is None else body.network_id.value,
        "signatures": [(one.vkey.payload.hex(), one.signature.hex()) for one in witnesses.vkey_witnesses or ()],
        "commitment": _commitment(tx),
        "other fields": others if tx.valid else [*others, "valid"],
    }


def _output(output: "TransactionOutput") -> tuple[str, int, dict[str, int]]:
    assets = {
        (policy.payload + name.payload).hex(): units
        for policy, names in (output.amount.multi_asset or {}).items()
        for name, units in names.items()
    }
    return bytes(output.address).hex(), output.lovelace, assets


def _commitment(tx: "Transaction") -> str | None:
    """The hash that the transaction's metadata states; the whole metadata if it has another form."""
    data, stated_hash = tx.auxiliary_data, tx.transaction_body.auxiliary_data_hash
    if data is None:
        return None if stated_hash is None else f"missing, with the hash {stated_hash}"
    if stated_hash != data.hash():
        return f"not hashed as {stated_hash}"
    label: Any = dict(data.data).get(_COMMITMENT_LABEL)
    is_ours = len(data.data) == 1 and isinstance(label, dict) and label.keys() == {"h", "p"}
    return label["h"].hex() if is_ours and label["p"] == "http:1" else str(data)
