"""Decodes bytes into a transaction, as strictly as the Conway ledger does at protocol version 10.

Start at `decode_tx`. It checks form only (rules.py checks the rest), and hashes and measures bytes as sent. It
refuses by name the parts of Cardano that a payment never has. Pure.

Sources: the Conway CDDL of cardano-ledger and its decoders. They allow no zero quantity and no empty asset map in
an output. From protocol version 9 on they allow no duplicate map key or set element.

Never: checks a transaction against a state.
"""

from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar

from payagent.devnet import cbor
from payagent.devnet.address import read_address
from payagent.devnet.cbor import MalformedError, Reader, require
from payagent.devnet.channel_script import SCRIPT, SCRIPT_CBOR
from payagent.devnet.ledger_types import UNSUPPORTED, LedgerError, OutRef, Redeemer, ScriptParts, Tx, TxOut
from payagent.devnet.plutus_data import read_plutus_data

_UNSUPPORTED_BODY_FIELDS = {
    4: "certificates",
    5: "withdrawals",
    9: "mint",
    19: "votes",
    20: "proposals",
    21: "treasury value",
    22: "treasury donation",
}
_UNSUPPORTED_WITNESSES = {
    1: "native scripts",
    2: "bootstrap witnesses",
    3: "Plutus V1 scripts",
    4: "Plutus data",
    6: "Plutus V2 scripts",
}
_METADATA_STRING_MOST_BYTES = 64
T = TypeVar("T")


def decode_tx(raw: bytes) -> Tx:
    """Decode one signed transaction.

    Raises `LedgerError` with rule `DecoderErrorDeserialiseFailure` for bytes that the ledger cannot decode, and
    with `unsupported_on_devnet` for parts of Cardano that a payment never uses.
    """
    try:
        return _decode_tx(raw)
    except MalformedError as error:
        raise LedgerError("DecoderErrorDeserialiseFailure", str(error)) from error


def hash_256(data: bytes) -> bytes:
    """Blake2b-256, the hash of bodies, auxiliary data and blocks."""
    return blake2b(data, digest_size=32).digest()


@lru_cache(maxsize=256)  # a client sends the same bytes to nodes and merchants repeatedly
def _decode_tx(raw: bytes) -> Tx:
    reader = Reader(raw)
    with reader.array(4, "transaction"):
        body_start = reader.pos
        body = _read_body(reader)
        body_bytes = raw[body_start : reader.pos]
        witnesses_start = reader.pos
        witnesses, scripts, redeemers = _read_witnesses(reader)
        witnesses_size = reader.pos - witnesses_start
        is_valid = reader.boolean("isValid")
        aux_start = reader.pos
        has_aux = not reader.skip(cbor.NULL)
        metadata_fits = not has_aux or _read_aux(reader)
        aux = raw[aux_start : reader.pos] if has_aux else None
    reader.end("transaction")
    return Tx(
        tx_id=hash_256(body_bytes).hex(),
        raw=raw,
        inputs=body[0],
        outputs=tuple(out for out, _ in body[1]),
        fee_lovelace=body[2],
        ttl_slot=body.get(3),
        start_slot=body.get(8),
        network_id=body.get(15),
        body=body_bytes,
        witnesses=witnesses,
        is_valid=is_valid,
        aux_hash=body.get(7),
        aux=aux,
        metadata_fits=metadata_fits,
        size_bytes=1 + len(body_bytes) + witnesses_size + (len(aux) if aux is not None else 1),
        output_sizes_bytes=tuple(size for _, size in body[1]),
        script_parts=ScriptParts(
            data_hash=body.get(11),
            collateral=body.get(13, ()),
            signers=body.get(14, ()),
            collateral_return=body.get(16),
            total_collateral=body.get(17),
            reference_inputs=body.get(18, ()),
            scripts=scripts,
            redeemers=redeemers[0],
            redeemers_raw=redeemers[1],
        ),
    )


# --- body ---------------------------------------------------------------------------------------------------


def _read_body(reader: Reader) -> dict[int, Any]:
    """The fields of a body, by their numbers in the CDDL."""
    body = {}
    for key in reader.keys("body"):
        if key in _UNSUPPORTED_BODY_FIELDS:
            raise LedgerError(UNSUPPORTED, f"{_UNSUPPORTED_BODY_FIELDS[key]} in the body")
        require(key in _BODY_FIELDS, f"body: unknown field {key}")
        body[key] = _BODY_FIELDS[key](reader)
    if missing := {0, 1, 2} - body.keys():
        raise MalformedError(f"body: missing fields {sorted(missing)}")
    return body


def _read_inputs(reader: Reader) -> tuple[OutRef, ...]:
    inputs: list[OutRef] = []
    for _ in reader.set_items("inputs"):
        with reader.array(2, "input"):
            tx_id = reader.bytes_("input transaction id", 32).hex()
            ref = (tx_id, reader.uint("input index", 0xFFFF))
        require(ref not in inputs, f"inputs: {tx_id}#{ref[1]} twice in the set")
        inputs.append(ref)
    return tuple(inputs)


def _read_some_inputs(reader: Reader) -> tuple[OutRef, ...]:
    """A set of inputs that may be absent, but not empty."""
    return _not_empty(_read_inputs(reader), "inputs")


def _read_signers(reader: Reader) -> tuple[bytes, ...]:
    signers = tuple([reader.bytes_("required signer", 28) for _ in reader.set_items("required signers")])
    if len(set(signers)) < len(signers):
        raise MalformedError("required signers: the same twice in the set")
    return _not_empty(signers, "required signers")


def _not_empty(items: tuple[T, ...], what: str) -> tuple[T, ...]:
    if not items:
        raise MalformedError(f"{what}: an empty set")
    return items


def _read_sized_output(reader: Reader) -> tuple[TxOut, int]:
    start = reader.pos
    return _read_output(reader), reader.pos - start


def _read_outputs(reader: Reader) -> list[tuple[TxOut, int]]:
    """Each output, and its length as sent."""
    return [_read_sized_output(reader) for _ in reader.items("outputs")]


_BODY_FIELDS: dict[int, Callable[[Reader], Any]] = {
    0: _read_inputs,
    1: _read_outputs,
    2: lambda reader: reader.uint("fee"),
    3: lambda reader: reader.uint("ttl"),
    7: lambda reader: reader.bytes_("auxiliary data hash", 32),
    8: lambda reader: reader.uint("validity start"),
    11: lambda reader: reader.bytes_("script data hash", 32),
    13: _read_some_inputs,
    14: _read_signers,
    15: lambda reader: reader.uint("network id", 1),
    16: _read_sized_output,
    17: lambda reader: reader.uint("total collateral"),
    18: _read_some_inputs,
}


# --- outputs ------------------------------------------------------------------------------------------------


def _read_output(reader: Reader) -> TxOut:
    """A map, or the array from before Babbage: [address, value] or [address, value, datum hash]."""
    is_map = reader.major() == cbor.MAP
    address: bytes | None = None
    value: tuple[int, dict[str, int]] | None = None
    datum_hash, inline_datum, reference_script = None, None, None
    for key in reader.keys("output") if is_map else reader.items("output"):
        match key, is_map:
            case 0, _:
                address = reader.bytes_("output address")
                read_address(address)
            case 1, _:
                value = _read_value(reader)
            case 2, True:
                datum_hash, inline_datum = _read_datum_option(reader)
            case 2, False:
                datum_hash = reader.bytes_("datum hash", 32).hex()
            case 3, True:
                reference_script = _read_reference_script(reader)
            case _:
                raise MalformedError(f"output: unknown field {key}")
    if address is None or value is None:
        raise MalformedError("output: address or value is missing")
    return TxOut(address, *value, datum_hash, inline_datum, reference_script)


def _read_reference_script(reader: Reader) -> str:
    """The script of channels, the only one that the devnet runs."""
    reader.tag(24, "reference script")
    script = reader.bytes_("reference script")
    if script != SCRIPT_CBOR:
        raise LedgerError(UNSUPPORTED, "reference script in an output")
    return script.hex()


def _read_value(reader: Reader) -> tuple[int, dict[str, int]]:
    if reader.major() == cbor.UINT:
        return reader.uint("lovelace"), {}
    with reader.array(2, "value"):
        return reader.uint("lovelace"), _read_assets(reader)


def _read_assets(reader: Reader) -> dict[str, int]:
    assets: dict[str, int] = {}
    policies = set()
    for _ in reader.pairs("assets"):
        policy = reader.bytes_("policy id", 28).hex()
        require(policy not in policies, f"assets: policy {policy} twice")
        policies.add(policy)
        count = len(assets)
        for _ in reader.pairs("assets of a policy"):
            name = reader.bytes_("asset name")
            require(len(name) <= 32, f"asset name: {len(name)} bytes, at most 32")
            asset = policy + name.hex()
            require(asset not in assets, f"assets: {asset} twice")
            assets[asset] = reader.uint("asset units")
            require(assets[asset] != 0, f"assets: zero units of {asset}")
        require(len(assets) != count, f"assets: policy {policy} without assets")
    return assets


def _read_datum_option(reader: Reader) -> tuple[str | None, str | None]:
    """(datum hash, inline datum), one of them None."""
    with reader.array(2, "datum"):
        if reader.uint("datum kind", 1) == 0:
            return reader.bytes_("datum hash", 32).hex(), None
        reader.tag(24, "inline datum")
        datum = reader.bytes_("inline datum")
    inner = Reader(datum)
    read_plutus_data(inner)
    inner.end("inline datum")
    return None, datum.hex()


# --- witnesses and auxiliary data ---------------------------------------------------------------------------


def _read_witnesses(reader: Reader) -> tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...], "_Redeemers"]:
    """Signatures with their keys, attached scripts, and redeemers."""
    witnesses: tuple[tuple[bytes, bytes], ...] = ()
    scripts: tuple[bytes, ...] = ()
    redeemers: _Redeemers = ((), b"")
    for key in reader.keys("witness set"):
        if key in _UNSUPPORTED_WITNESSES:
            raise LedgerError(UNSUPPORTED, f"{_UNSUPPORTED_WITNESSES[key]} in the witness set")
        if key == 0:
            witnesses = _read_signatures(reader)
        elif key == 5:
            redeemers = _read_redeemers(reader)
        elif key == 7:
            found = [reader.bytes_("Plutus V3 script") for _ in reader.set_items("Plutus V3 scripts")]
            scripts = _not_empty(tuple(found), "Plutus V3 scripts")
            if set(scripts) != {SCRIPT}:
                raise LedgerError(UNSUPPORTED, "Plutus V3 scripts in the witness set")
        else:
            raise MalformedError(f"witness set: unknown field {key}")
    return witnesses, scripts, redeemers


def _read_signatures(reader: Reader) -> tuple[tuple[bytes, bytes], ...]:
    witnesses: list[tuple[bytes, bytes]] = []
    for _ in reader.set_items("key witnesses"):
        with reader.array(2, "key witness"):
            witness = (reader.bytes_("verification key", 32), reader.bytes_("signature", 64))
        if witness in witnesses:
            raise MalformedError("key witnesses: the same twice in the set")
        witnesses.append(witness)
    return _not_empty(tuple(witnesses), "key witnesses")


_Redeemers = tuple[tuple[Redeemer, ...], bytes]


def _read_redeemers(reader: Reader) -> _Redeemers:
    """Redeemers and their bytes: a map of Conway, or a list as before."""
    start = reader.pos
    if reader.major() == cbor.MAP:
        redeemers = [_read_redeemer(reader, in_map=True) for _ in reader.pairs("redeemers")]
    else:
        redeemers = [_read_redeemer(reader, in_map=False) for _ in reader.items("redeemers")]
    if len({(one.purpose, one.index) for one in redeemers}) < len(redeemers):
        raise MalformedError("redeemers: two of one purpose and index")
    return _not_empty(tuple(redeemers), "redeemers"), reader.buf[start : reader.pos]


def _read_redeemer(reader: Reader, *, in_map: bool) -> Redeemer:
    with reader.array(2 if in_map else 4, "redeemer"):
        purpose, index = reader.uint("redeemer purpose", 5), reader.uint("redeemer index", 2**32 - 1)
        if not in_map:
            return Redeemer(purpose, index, read_plutus_data(reader), *_read_units(reader))
    with reader.array(2, "redeemer"):
        return Redeemer(purpose, index, read_plutus_data(reader), *_read_units(reader))


def _read_units(reader: Reader) -> tuple[int, int]:
    with reader.array(2, "execution units"):
        return reader.uint("memory units"), reader.uint("step units")


def _read_aux(reader: Reader) -> bool:
    """Read auxiliary data in any of its three forms. Returns whether every string in it is short enough."""
    major = reader.major()
    if major == cbor.MAP:
        return _read_metadata(reader)
    if major == cbor.ARRAY:
        with reader.array(2, "auxiliary data"):
            fits = _read_metadata(reader)
            for _ in reader.items("auxiliary scripts"):
                raise LedgerError(UNSUPPORTED, "scripts in the auxiliary data")
        return fits
    reader.tag(259, "auxiliary data")
    fits = True
    for key in reader.keys("auxiliary data"):
        if key in (1, 2, 3, 4):
            raise LedgerError(UNSUPPORTED, "scripts in the auxiliary data")
        require(key == 0, f"auxiliary data: unknown field {key}")
        fits = _read_metadata(reader)
    return fits


def _read_metadata(reader: Reader) -> bool:
    fits = True
    for _ in reader.keys("metadata"):
        fits = _read_metadatum(reader, 0) and fits
    return fits


def _read_metadatum(reader: Reader, depth: int) -> bool:
    """Read one metadatum. Returns whether its strings have at most 64 bytes (the ledger's `validMetadatum`)."""
    if depth > cbor.MAX_DEPTH:
        raise LedgerError(UNSUPPORTED, f"metadata nested deeper than {cbor.MAX_DEPTH}")
    major = reader.major()
    if major in (cbor.UINT, cbor.NINT):
        reader.head()
        return True
    if major == cbor.BYTES:
        return len(reader.chunks(cbor.BYTES, "metadata bytes")) <= _METADATA_STRING_MOST_BYTES
    if major == cbor.TEXT:
        return reader.text_size("metadata text") <= _METADATA_STRING_MOST_BYTES
    fits = True
    if major == cbor.ARRAY:
        for _ in reader.items("metadata list"):
            fits = _read_metadatum(reader, depth + 1) and fits
        return fits
    if major == cbor.MAP:
        for _ in reader.pairs("metadata map"):
            key_fits = _read_metadatum(reader, depth + 1)
            fits = _read_metadatum(reader, depth + 1) and key_fits and fits
        return fits
    raise MalformedError(f"metadata: major type {major}")
