"""The devnet's Koios: the calls that payagent makes, as rows of PostgREST, in front of the devnet's node.

Start at `KoiosApi`. Koios is several machines behind one name. `behind` says how many blocks each of them lacks,
and each call goes to the next one. Requests may filter, order and cut the rows, and choose columns, as with
PostgREST.

Never: imports the wallet, the agent, the dialects or pycardano.
"""

import asyncio
import itertools
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.devnet import blockfrost_shapes as shapes
from payagent.devnet.catalogue import json_object, read_body
from payagent.devnet.faults import SUBMIT_PATH, Fault
from payagent.devnet.faulty_responses import spoil
from payagent.devnet.ledger import DevnetBlock, LedgerError, OutRef, Tx, TxOut
from payagent.devnet.node import Node, output_of

KOIOS_ROOT = "/koios/api/v1"
MAX_ROWS = 1000
_MOST_BODY_BYTES = 64 * 1024
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "gt": operator.gt,
    "gte": operator.ge,
    "lte": operator.le,
}
_AFTER = re.compile(r"\((\w+)\.gt\.(\w+),and\((\w+)\.eq\.(\w+),(\w+)\.gt\.(\w+)\)\)", re.ASCII)

_Row = Mapping[str, Any]
_Read = Callable[["_Machine", _Row], Iterable[_Row]]


class KoiosApi:
    """The handlers, and what a test sets. `calls` are the paths of the calls so far."""

    def __init__(self, node: Node, stopping: asyncio.Event) -> None:
        self.node = node
        self.stopping = stopping
        self.behind: Sequence[int] = (0,)
        self.token: str | None = None
        """The token that is known. Without one, no token is."""
        self.body_max_bytes = 1000
        """The longest body of a read; five times as long with a token."""
        self.submit_max_bytes: int | None = None
        self.calls: list[str] = []

    def mounts(self) -> list[Mount]:
        reads = [Route(path, self._reader(read), methods=["GET", "POST"]) for path, read in _READS.items()]
        return [Mount(KOIOS_ROOT, routes=[*reads, Route("/submittx", self._submit, methods=["POST"])])]

    def _reader(self, read: _Read) -> Callable[[Request], object]:
        """Make an endpoint. Arguments of a function come in the query of a GET or in the object of a POST."""

        async def endpoint(request: Request) -> Response:
            self.node.tick()
            path = request.url.path.removeprefix(KOIOS_ROOT)
            fault = self.node.switches.take("GET", path)
            raw = await self._body(request, path, self.body_max_bytes)
            if isinstance(raw, Response):
                return raw
            query = dict(request.query_params)
            arguments = {name: query.pop(name) for name in list(query) if name.startswith("_")}
            if fault is not None and fault.answer == "not_found":
                return JSONResponse([])
            rows = read(self._next_machine(fault), {**arguments, **(json_object(raw) or {})})
            honest = JSONResponse(_chosen(list(rows), query))
            return honest if fault is None else spoil(honest, fault, self.stopping)

        return endpoint

    async def _submit(self, request: Request) -> Response:
        raw = await self._body(request, "/submittx", self.submit_max_bytes)
        if isinstance(raw, Response):
            return raw
        fault = self.node.switches.take("POST", SUBMIT_PATH)
        try:
            honest: Response = JSONResponse(self.node.submit(raw, fault), 202)
        except LedgerError as refused:
            honest = Response(shapes.refusal_message(refused), 400, media_type="application/json")
        return honest if fault is None else spoil(honest, fault, self.stopping)

    async def _body(self, request: Request, path: str, most_bytes: int | None) -> bytes | Response:
        """The body, or the refusal of a wrong token or of too long a body."""
        self.calls.append(path)
        token = request.headers.get("authorization")
        if token is not None and token != f"Bearer {self.token}":
            return JSONResponse({"message": "JWSError JWSInvalidSignature"}, 401)
        raw = await read_body(request, _MOST_BODY_BYTES)
        if raw is None or (most_bytes is not None and len(raw) > most_bytes * (5 if token else 1)):
            return Response("Payload Too Large", 413)
        return raw

    def _next_machine(self, fault: Fault | None) -> "_Machine":
        behind = self.behind[len(self.calls) % len(self.behind)]
        return _Machine(self.node, fault.blocks if fault is not None and fault.answer == "stale" else behind)


class _Machine:
    """The chain as a machine shows it that lacks the newest blocks."""

    def __init__(self, node: Node, behind: int) -> None:
        self.node, self.chain, self.behind = node, node.chain, behind
        self.height = max(node.chain.tip.height - behind, 0)

    def blocks(self) -> list[DevnetBlock]:
        return self.chain.blocks[: self.height + 1]

    def blocks_named(self, hashes: Iterable[str]) -> list[DevnetBlock]:
        found = [self.chain.block(hash_) for hash_ in hashes]
        return [block for block in found if block is not None and block.height <= self.height]

    def tx(self, tx_id: str) -> tuple[Tx, DevnetBlock] | None:
        tx, block = self.chain.tx(tx_id) or (None, None)
        return None if tx is None or block is None or block.height > self.height else (tx, block)

    def block_row(self, block: DevnetBlock) -> _Row:
        return {
            "hash": block.hash,
            "epoch_no": block.slot // shapes.EPOCH_LENGTH_SLOTS,
            "abs_slot": block.slot,
            "epoch_slot": block.slot % shapes.EPOCH_LENGTH_SLOTS,
            "block_height": block.height,
            "block_time": self.node.time_s(block.slot),
            "tx_count": len(block.txs),
            "num_confirmations": self.height - block.height,
        }

    def utxo_row(self, ref: OutRef, out: TxOut, *, is_extended: bool) -> _Row:
        made = self.tx(ref[0])
        spender = self.chain.spender.get(ref)
        row = _output(ref, out) | {
            "address": shapes.address_text(out.address),
            "block_height": made[1].height if made else None,
            "is_spent": spender is not None and self.tx(spender) is not None,
        }
        hidden = {} if is_extended else {"inline_datum": None, "reference_script": None, "asset_list": None}
        return row | hidden


def _tip(machine: _Machine, _arguments: _Row) -> Iterable[_Row]:
    row = machine.block_row(machine.blocks()[-1])
    yield {**row, "block_no": row["block_height"], "era": "Conway"}


def _genesis(machine: _Machine, _arguments: _Row) -> Iterable[_Row]:
    yield {
        "networkmagic": str(shapes.NETWORK_MAGIC),
        "networkid": "Testnet",
        "epochlength": str(shapes.EPOCH_LENGTH_SLOTS),
        "systemstart": machine.node.system_start_s,
        "slotlength": "1",
    }


def _epoch_params(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    params, epoch = machine.chain.params, int(arguments["_epoch_no"])
    if epoch * shapes.EPOCH_LENGTH_SLOTS <= machine.blocks()[-1].slot:
        yield {
            "epoch_no": epoch,
            "min_fee_a": params.min_fee_a,
            "min_fee_b": params.min_fee_b,
            "max_tx_size": params.max_tx_size_bytes,
            "max_val_size": params.max_value_size_bytes,
            "coins_per_utxo_size": str(params.coins_per_utxo_byte),
        }


def _block_info(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    return map(machine.block_row, machine.blocks_named(arguments["_block_hashes"]))


def _block_txs(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    for block in machine.blocks_named(arguments["_block_hashes"]):
        for tx in block.txs:
            yield {"block_hash": block.hash, "tx_hash": tx.tx_id, "block_height": block.height}


def _tx_status(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    for tx_id in arguments["_tx_hashes"]:
        found = machine.tx(tx_id)
        yield {"tx_hash": tx_id, "num_confirmations": found and machine.height - found[1].height}


def _tx_info(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    for tx, block in filter(None, map(machine.tx, arguments["_tx_hashes"])):
        spent = [(ref, output_of(machine.chain, ref)) for ref in tx.inputs if arguments.get("_inputs")]
        made = [((tx.tx_id, index), out) for index, out in enumerate(tx.outputs)]
        inputs, outputs = (
            [
                {
                    **_output(ref, out),
                    "payment_addr": {"bech32": shapes.address_text(out.address)},
                    **({} if arguments.get("_assets") else {"asset_list": []}),
                }
                for ref, out in rows
                if out is not None
            ]
            for rows in (spent, made)
        )
        yield {
            "tx_hash": tx.tx_id,
            "block_hash": block.hash,
            "block_height": block.height,
            "absolute_slot": block.slot,
            "inputs": inputs,
            "outputs": outputs,
            "plutus_contracts": [] if tx.is_valid else [{"valid_contract": False}],
        }


def _utxo_info(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    for text in arguments["_utxo_refs"]:
        tx_id, _, index = text.partition("#")
        if (found := machine.tx(tx_id)) is not None and int(index) < len(found[0].outputs):
            out = found[0].outputs[int(index)]
            yield machine.utxo_row((tx_id, int(index)), out, is_extended=bool(arguments.get("_extended")))


def _address_utxos(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    for raw in _addresses(arguments):
        for ref, out in machine.node.utxos_at(raw, machine.behind) or ():
            yield machine.utxo_row(ref, out, is_extended=bool(arguments.get("_extended")))


def _address_txs(machine: _Machine, arguments: _Row) -> Iterable[_Row]:
    for raw in _addresses(arguments):
        for tx, block in filter(None, map(machine.tx, machine.chain.txs_at(raw))):
            if block.height >= arguments.get("_after_block_height", 0):
                row = machine.block_row(block)
                yield {"tx_hash": tx.tx_id, **{name: row[name] for name in ("block_height", "block_time")}}


_READS: Mapping[str, _Read] = {
    "/tip": _tip,
    "/genesis": _genesis,
    "/epoch_params": _epoch_params,
    "/blocks": lambda machine, _: map(machine.block_row, reversed(machine.blocks())),
    "/block_info": _block_info,
    "/block_txs": _block_txs,
    "/tx_status": _tx_status,
    "/tx_info": _tx_info,
    "/utxo_info": _utxo_info,
    "/address_utxos": _address_utxos,
    "/address_txs": _address_txs,
}


def _addresses(arguments: _Row) -> list[bytes]:
    return [parse_address(text, NETWORKS["devnet"]).raw for text in arguments["_addresses"]]


def _output(ref: OutRef, out: TxOut) -> dict[str, Any]:
    row = shapes.output_row(out)
    script = row["reference_script_hash"]
    return {
        "tx_hash": ref[0],
        "tx_index": ref[1],
        "value": str(out.lovelace),
        "datum_hash": row["data_hash"],
        "inline_datum": out.inline_datum and {"bytes": out.inline_datum, "value": None},
        "reference_script": script and {"hash": script},
        "asset_list": [
            {"policy_id": unit[:56], "asset_name": unit[56:], "decimals": 0, "quantity": str(units)}
            for unit, units in out.assets.items()
        ],
    }


def _chosen(rows: list[_Row], query: Mapping[str, str]) -> list[_Row]:
    """The rows and columns that a query chooses, as PostgREST does."""
    limit = int(query.get("limit", MAX_ROWS))
    for name, text in query.items():
        if name == "or":
            rows = [row for row in rows if _is_after(row, text)]
        elif name == "order":
            rows = sorted(rows, key=operator.itemgetter(*text.split(",")))
        elif name not in ("select", "limit"):
            rows = [row for row in rows if _holds(row, name, *text.split("."))]
    columns = query["select"].split(",") if "select" in query else None
    cut = itertools.islice(rows, min(limit, MAX_ROWS))
    return [row if columns is None else {name: row[name] for name in columns} for row in cut]


def _holds(row: _Row, column: str, test: str, value: str) -> bool:
    return _OPERATORS[test](row[column], type(row[column])(value))


def _is_after(row: _Row, text: str) -> bool:
    """Whether a row is after a key of two columns: `(a.gt.1,and(a.eq.1,b.gt.2))`."""
    found = _AFTER.fullmatch(text)
    if found is None:
        raise ValueError(f"the devnet does not understand or={text}")
    major, high, same, equal, minor, low = found.groups()
    is_same = _holds(row, same, "eq", equal)
    return _holds(row, major, "gt", high) or (is_same and _holds(row, minor, "gt", low))
