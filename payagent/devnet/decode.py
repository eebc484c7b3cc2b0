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
        body = _read_fields(reader, "body", _BODY_FIELDS, _UNSUPPORTED_BODY_FIELDS)
        missing = sorted({0, 1, 2} - body.keys())
        require(not missing, f"body: missing fields {missing}")
        body_bytes = raw[body_start : reader.pos]
        witnesses_start = reader.pos
        witnesses = _read_fields(reader, "witness set", _WITNESS_FIELDS, _UNSUPPORTED_WITNESSES)
        witnesses_size = reader.pos - witnesses_start
        is_valid = reader.boolean("isValid")
        aux_start = reader.pos
        has_aux = not reader.skip(cbor.NULL)
        metadata_fits = not has_aux or _read_aux(reader)
        aux = raw[aux_start : reader.pos] if has_aux else None
    reader.end("transaction")
    redeemers, redeemers_raw = witnesses.get(5, ((), b""))
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
        witnesses=witnesses.get(0, ()),
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
            scripts=witnesses.get(7, ()),
            redeemers=redeemers,
            redeemers_raw=redeemers_raw,
        ),
    )


# --- body ---------------------------------------------------------------------------------------------------


def _read_fields(
    reader: Reader, what: str, known: dict[int, Callable[[Reader], Any]], unsupported: dict[int, str]
) -> dict[int, Any]:
    """The fields of a body or a witness set, by their numbers in the CDDL."""
    fields = {}
    for key in reader.keys(what):
        if key in unsupported:
            raise LedgerError(UNSUPPORTED, f"{unsupported[key]} in the {what}")
        require(key in known, f"{what}: unknown field {key}")
        fields[key] = known[key](reader)
    return fields


def _read_set(reader: Reader, what: str, read: Callable[[Reader], T], least: int = 1) -> tuple[T, ...]:
    """A set of different items. Only that of inputs may be empty."""
    items: list[T] = []
    for _ in reader.set_items(what):
        item = read(reader)
        require(item not in items, f"{what}: the same twice in the set")
        items.append(item)
    require(len(items) >= least, f"{what}: an empty set")
    return tuple(items)


def _read_input(reader: Reader) -> OutRef:
    with reader.array(2, "input"):
        return reader.bytes_("input transaction id", 32).hex(), reader.uint("input index", 0xFFFF)


def _read_sized_output(reader: Reader) -> tuple[TxOut, int]:
    start = reader.pos
    return _read_output(reader), reader.pos - start


def _read_outputs(reader: Reader) -> list[tuple[TxOut, int]]:
    """Each output, and its length as sent."""
    return [_read_sized_output(reader) for _ in reader.items("outputs")]


_BODY_FIELDS: dict[int, Callable[[Reader], Any]] = {
    0: lambda reader: _read_set(reader, "inputs", _read_input, least=0),
    1: _read_outputs,
    2: lambda reader: reader.uint("fee"),
    3: lambda reader: reader.uint("ttl"),
    7: lambda reader: reader.bytes_("auxiliary data hash", 32),
    8: lambda reader: reader.uint("validity start"),
    11: lambda reader: reader.bytes_("script data hash", 32),
    13: lambda reader: _read_set(reader, "collateral", _read_input),
    14: lambda reader: _read_set(reader, "required signers", lambda one: one.bytes_("required signer", 28)),
    15: lambda reader: reader.uint("network id", 1),
    16: _read_sized_output,
    17: lambda reader: reader.uint("total collateral"),
    18: lambda reader: _read_set(reader, "reference inputs", _read_input),
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


def _read_scripts(reader: Reader) -> tuple[bytes, ...]:
    scripts = _read_set(reader, "Plutus V3 scripts", lambda one: one.bytes_("Plutus V3 script"))
    if scripts != (SCRIPT,):
        raise LedgerError(UNSUPPORTED, "Plutus V3 scripts in the witness set")
    return scripts


def _read_signature(reader: Reader) -> tuple[bytes, bytes]:
    with reader.array(2, "key witness"):
        return reader.bytes_("verification key", 32), reader.bytes_("signature", 64)


def _read_redeemers(reader: Reader) -> tuple[tuple[Redeemer, ...], bytes]:
    """Redeemers and their bytes: a map of Conway, or a list as before."""
    start, in_map = reader.pos, reader.major() == cbor.MAP
    rows = reader.pairs("redeemers") if in_map else reader.items("redeemers")
    redeemers = [_read_redeemer(reader, in_map=in_map) for _ in rows]
    count = len({(one.purpose, one.index) for one in redeemers})
    require(count == len(redeemers) > 0, "redeemers: none, or two of one purpose and index")
    return tuple(redeemers), reader.buf[start : reader.pos]


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


_WITNESS_FIELDS: dict[int, Callable[[Reader], Any]] = {
    0: lambda reader: _read_set(reader, "key witnesses", _read_signature),
    5: _read_redeemers,
    7: _read_scripts,
}


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
