"""Strict, pure parsing of what Ogmios and Kupo answer.

Never: I/O; quotes text that a server sent.
"""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from payagent.chain.json_answers import expect, list_of, once, quantity, text_hash, text_of
from payagent.chain.provider import ChainUtxo, Genesis, ProtocolParameters, SubmitAnswer, SubmitKind
from payagent.chain.submit_answers import SHORT_MAX_BYTES, RawAnswer, classify_submit
from payagent.core import strict_json
from payagent.core.money import LOVELACE, MAX_UNITS, parse_count, parse_units
from payagent.core.problems import Refused

NO_INTERSECTION = 1000
"""Ogmios' code for a block that is not on the node's chain."""

NOT_A_TRANSACTION = -32602
"""Ogmios' code for bytes that are no transaction."""

_LATER = (3005, 3997)
"""The node has not reached the transaction's era; an error of the node's that Ogmios has no code for."""

_ASSET = re.compile(r"[0-9a-f]{56}(?:\.(?:[0-9a-f]{2}){1,32})?", re.ASCII)
_ANCESTOR = re.compile(rb'"ancestor"\s*:\s*"([0-9a-f]{64})"')
_HEIGHT = re.compile(rb'"height"\s*:\s*([0-9]{1,15})\s*[,}]')
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_UNIX_START = datetime(1970, 1, 1, tzinfo=UTC)


class Point(NamedTuple):
    """A block, as both servers name it."""

    slot: int
    hash: str


class IndexedSpend(NamedTuple):
    """The transaction that spends an output, and its block."""

    tx_id: str
    point: Point


class Match(NamedTuple):
    """An output that Kupo has, the block that made it, and what spends it, if anything in a block does."""

    utxo: ChainUtxo
    made: Point
    spend: IndexedSpend | None

    @property
    def units(self) -> dict[str, int]:
        """Units by asset, with lovelace."""
        return {LOVELACE: self.utxo.lovelace, **self.utxo.assets}


# --- Ogmios ---


def parse_intersection(body: Any, point: Point) -> tuple[bool, Point, int]:
    """Return whether a block is on the node's chain, the node's newest block, and its height."""
    if "error" in body:
        expect(body["error"]["code"] == NO_INTERSECTION, "another error")
        return (False, *_tip(body["error"]["data"]["tip"]))
    expect(_point(body["result"]["intersection"]) == point, "another block")
    return (True, *_tip(body["result"]["tip"]))


def _point(value: Any) -> Point:
    return Point(parse_count(value["slot"], "slot"), text_hash(value["id"]))


def _tip(value: Any) -> tuple[Point, int]:
    return _point(value), parse_count(value["height"], "height")


def height_below(raw: bytes, block_hash: str) -> int:
    """Return the height of a block, from Ogmios' answer with the next one. Raises ValueError if it is not that.

    Only the next block's header is read. Its transactions are anybody's text: they may be megabytes, and nested
    deeper than any parser goes.
    """
    header = raw.partition(b'"block"')[2].partition(b'"transactions"')[0]
    ancestor, height = _ANCESTOR.search(header), _HEIGHT.search(header)
    if ancestor is None or height is None or ancestor[1].decode() != block_hash:
        raise ValueError("not the next block")
    return int(height[1]) - 1


def parse_genesis(body: Any) -> Genesis:
    result = body["result"]
    length_s, rest = divmod(parse_units(result["slotLength"]["milliseconds"], "slotLength"), 1000)
    expect(_TIME.fullmatch(result["startTime"]) is not None, "startTime is no time")
    started = (datetime.fromisoformat(result["startTime"]) - _UNIX_START) // timedelta(seconds=1)
    expect(not rest, "slots are not of whole seconds")
    return Genesis(parse_count(result["networkMagic"], "networkMagic"), parse_count(started), length_s)


def parse_epoch(body: Any) -> int:
    return parse_count(body["result"], "epoch")


def parse_parameters(body: Any, epoch: int) -> ProtocolParameters:
    result = body["result"]
    return ProtocolParameters(
        min_fee_a=parse_units(result["minFeeCoefficient"], "minFeeCoefficient"),
        min_fee_b=parse_units(result["minFeeConstant"]["ada"]["lovelace"], "minFeeConstant"),
        coins_per_utxo_byte=parse_units(result["minUtxoDepositCoefficient"], "minUtxoDepositCoefficient"),
        max_tx_size=parse_units(result["maxTransactionSize"]["bytes"], "maxTransactionSize"),
        max_value_size=parse_units(result["maxValueSize"]["bytes"], "maxValueSize"),
        epoch=epoch,
    )


def parse_ledger(body: Any) -> set[str]:
    """Parse the node's own list of unspent outputs, into their references."""
    rows = body["result"]
    return {f"{text_hash(row['transaction']['id'])}#{parse_count(row['index'], 'index')}" for row in rows}


def error_code(answer: RawAnswer) -> object:
    """Return the code of an error of Ogmios; None if the answer has none."""
    return strict_json.value_at(_body(answer), "error", "code")


def classify(answer: RawAnswer, tx_id: str) -> SubmitAnswer:
    """Classify Ogmios' answer to a submission, which has the code and text of what the ledger refused.

    Ogmios answers 500 if it lost its node on the way, so the bytes may have arrived.
    """
    body = _body(answer)
    code, named = error_code(answer), strict_json.value_at(body, "result", "transaction", "id")
    if answer.status == 200 and code is not None:
        answer = replace(answer, status=400)
    elif answer.status == 200 and isinstance(named, str):
        answer = replace(answer, body=named.encode())
    submitted = classify_submit(answer, tx_id)
    if answer.status == 500:
        return replace(submitted, kind=SubmitKind.AMBIGUOUS)
    if submitted.kind is SubmitKind.CLIENT and code in _LATER:
        return replace(submitted, kind=SubmitKind.OUTAGE)
    return submitted


def _body(answer: RawAnswer) -> object:
    """Return the answer's JSON; None if it is none, or not whole."""
    try:
        whole = b"" if answer.error else answer.body
        return strict_json.loads(whole, max_bytes=SHORT_MAX_BYTES, any_text=True)
    except Refused:
        return None


# --- Kupo ---


def parse_checkpoint(body: Any) -> Point:
    return Point(parse_count(body["slot_no"], "slot_no"), text_hash(body["header_hash"]))


def parse_patterns(body: Any) -> bool:
    """Return whether any pattern includes the address."""
    return type(body) is list and body != []


def parse_matches(body: Any) -> tuple[Match, ...]:
    rows = tuple(map(_parse_match, list_of(body)))
    once((row.utxo.ref for row in rows), "an output")
    return rows


def _parse_match(row: Any) -> Match:
    made, value = parse_checkpoint(row["created_at"]), row["value"]
    held = dict(value["assets"]) if "assets" in value else {}
    units = {_asset(key): _quantity(raw, key) for key, raw in held.items()}
    utxo = ChainUtxo(
        tx_id=text_hash(row["transaction_id"]),
        index=parse_count(row["output_index"], "output_index"),
        address=text_of(row["address"], "not an address"),
        lovelace=_quantity(value["coins"], LOVELACE),
        assets={asset: count for asset, count in units.items() if count <= MAX_UNITS},
        block_hash=made.hash,
        has_datum=row["datum_hash"] is not None,
        has_script=row["script_hash"] is not None,
        unreadable=any(count > MAX_UNITS for count in units.values()),
    )
    return Match(utxo, made, None if row["spent_at"] is None else _parse_spend(row["spent_at"]))


def _asset(key: str) -> str:
    """Return policy and name, which Kupo separates by a dot. An empty name has none."""
    expect(_ASSET.fullmatch(key) is not None, "not an asset")
    return key.replace(".", "")


def _quantity(value: Any, unit: str) -> int:
    expect(type(value) is int, "not an amount")
    return quantity(str(value), unit)


def _parse_spend(spent: Any) -> IndexedSpend:
    """Parse what spends an output. A database of Kupo before 2.10 did not keep which transaction does."""
    named = "transaction_id" in spent and spent["transaction_id"] is not None
    expect(named, "spent by a transaction that it does not name: its database was made before Kupo 2.10")
    return IndexedSpend(text_hash(spent["transaction_id"]), parse_checkpoint(spent))
