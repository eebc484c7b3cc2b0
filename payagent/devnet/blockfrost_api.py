"""The devnet's HTTP API: a Blockfrost-compatible one under /api/v0, and the control API under /devnet.

A thin layer over `Node`: it reads requests, calls the node, and returns what `blockfrost_shapes` renders. Faults
are applied to the finished answer.

Never: imports the wallet, the agent, the dialects or pycardano.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from payagent.core.address import encode_address, parse_address
from payagent.core.money import MAX_LOVELACE, check_supply, parse_asset, parse_units
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.devnet import blockfrost_shapes as shapes
from payagent.devnet.catalogue import json_object, read_body
from payagent.devnet.channel_script import SCRIPT, SCRIPT_ADDRESS, SCRIPT_HASH
from payagent.devnet.faults import read_fault
from payagent.devnet.faulty_responses import spoil
from payagent.devnet.ledger import DevnetBlock, LedgerError, Tx
from payagent.devnet.node import Node, output_of

API_ROOT = "/api/v0"
FAUCET_RIDE_ALONG_LOVELACE = 5_000_000
_DEVNET = NETWORKS["devnet"]
_CHANNELS = encode_address(SCRIPT_ADDRESS).text
_MOST_BODY_BYTES = 64 * 1024
_MOST_BLOCKS = 5_000
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)

_Row = TypeVar("_Row")
_Read = Callable[["ChainApi", Request, int], object]


class _Failed(Exception):  # noqa: N818  it carries an error answer
    """An error answer, raised by a handler."""

    def __init__(self, status: int, name: str, message: str) -> None:
        super().__init__(message)
        self.answer = JSONResponse(shapes.error(status, name, message), status)


def _not_found() -> _Failed:
    return _Failed(404, "Not Found", "The requested component has not been found.")


def _found(value: _Row | None) -> _Row:
    if value is None:
        raise _not_found()
    return value


def _bad(message: str) -> _Failed:
    return _Failed(400, "Bad Request", message)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _bad(otherwise)


def _address(request: Request) -> bytes:
    """A key's address, or that of channels: `parse_address` refuses scripts as payees."""
    if request.path_params["address"] == _CHANNELS:
        return SCRIPT_ADDRESS
    try:
        return parse_address(request.path_params["address"], _DEVNET).raw
    except Refused as refused:
        raise _bad("Invalid address for this network or malformed address format.") from refused


def _page(request: Request, rows: Sequence[_Row]) -> Sequence[_Row]:
    """The rows that `count`, `page` and `order` select (Blockfrost: 1 to 100 a page, oldest first)."""
    count = _query_number(request, "count", 100, 100)
    page = _query_number(request, "page", 1, 21_474_836)
    order = request.query_params.get("order", "asc")
    _require(order in ("asc", "desc"), "querystring/order must be equal to one of the allowed values")
    ordered = rows if order == "asc" else rows[::-1]
    return ordered[(page - 1) * count : page * count]


def _query_number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    _require(_NUMBER.fullmatch(text) is not None, f"querystring/{name} must be integer")
    _require(int(text) >= 1, f"querystring/{name} must be >= 1")
    _require(int(text) <= most, f"querystring/{name} must be <= {most}")
    return int(text)


class ChainApi:
    """The Blockfrost handlers. `stopping` ends answers that hang; `project_id`, if set, is required."""

    def __init__(self, node: Node, stopping: asyncio.Event, project_id: str | None) -> None:
        self.node = node
        self.stopping = stopping
        self.project_id = project_id

    def reader(self, read: _Read) -> Callable[[Request], object]:
        """Make a GET endpoint. It checks the project id, answers, and applies a fault if one is on."""

        async def endpoint(request: Request) -> Response:
            fault = self.node.switches.take("GET", request.url.path.removeprefix(API_ROOT))
            behind = fault.blocks if fault is not None and fault.answer == "stale" else 0
            self.node.tick()
            try:
                self._authorise(request)
                honest: Response = JSONResponse(read(self, request, behind))
            except _Failed as failed:
                honest = failed.answer
            return honest if fault is None else spoil(honest, fault, self.stopping)

        return endpoint

    async def submit(self, request: Request) -> Response:
        """POST /tx/submit: takes a signed transaction as raw CBOR; 200 with its hash, or the node's refusal."""
        try:
            self._authorise(request)
            if request.headers.get("content-type") != "application/cbor":
                raise _Failed(415, "Unsupported Media Type", "Content-Type must be application/cbor.")
            raw = await _bounded_body(request)
        except _Failed as failed:
            return failed.answer
        fault = self.node.switches.take("POST", request.url.path.removeprefix(API_ROOT))
        try:
            honest: Response = JSONResponse(self.node.submit(raw, fault))
        except LedgerError as refused:
            honest = _bad(shapes.refusal_message(refused)).answer
        return honest if fault is None else spoil(honest, fault, self.stopping)

    def _authorise(self, request: Request) -> None:
        if self.project_id is None:
            return
        token = request.headers.get("project_id")
        if token is None:
            raise _Failed(403, "Forbidden", "Missing project token. Please include project_id in your request.")
        if token != self.project_id:
            raise _Failed(403, "Forbidden", "Invalid project token.")

    def utxos(self, request: Request, behind: int) -> object:
        """GET /addresses/{address}/utxos, of all assets or one. 404 for an address that was never used."""
        rows = _found(self.node.utxos_at(_address(request), behind))
        if (unit := request.path_params.get("asset")) is not None:
            rows = [(ref, out) for ref, out in rows if unit == "lovelace" or unit in out.assets]
        return [shapes.utxo(self.node.chain, ref, out) for ref, out in _page(request, rows)]

    def address(self, request: Request, behind: int) -> object:
        """GET /addresses/{address}."""
        raw = _address(request)
        return shapes.address(raw, [out for _, out in _found(self.node.utxos_at(raw, behind))])

    def address_transactions(self, request: Request, _behind: int) -> object:
        """GET /addresses/{address}/transactions."""
        tx_ids = _found(self.node.chain.txs_at(_address(request)) or None)
        return [shapes.address_transaction(self.node, *self.in_block(tx_id)) for tx_id in _page(request, tx_ids)]

    def named(self, request: Request) -> tuple[Tx, DevnetBlock]:
        """The transaction that the path names, if it is in a block."""
        return self.in_block(request.path_params["hash"])

    def in_block(self, tx_id: str) -> tuple[Tx, DevnetBlock]:
        """A transaction with its block. 404 if it is in none."""
        tx, block = _found(self.node.chain.tx(tx_id))
        return tx, _found(block)

    def block(self, request: Request) -> DevnetBlock:
        """The block that the path names by hash, number or `latest`."""
        name = request.path_params.get("block", "latest")
        chain = self.node.chain
        if name == "latest":
            return chain.tip
        found = chain.block(name) if _HASH.fullmatch(name) else None
        if found is None and _NUMBER.fullmatch(name):
            found = chain.block(int(name))
        return _found(found)

    def mempool_transaction(self, request: Request, _behind: int) -> object:
        """GET /mempool/{hash}."""
        tx = _found(self.node.chain.mempool.get(request.path_params["hash"]))
        return shapes.mempool_transaction(self.node.chain, tx)

    def mempool_at(self, request: Request, _behind: int) -> object:
        """GET /mempool/addresses/{address}: transactions in the mempool that pay to or spend from the address."""
        raw, chain = _address(request), self.node.chain
        tx_ids = [tx.tx_id for tx in chain.mempool.values() if self._touches(tx, raw)]
        return _hashes(_page(request, tx_ids))

    def parameters(self, _request: Request, _behind: int) -> object:
        """GET /epochs/latest/parameters."""
        chain = self.node.chain
        return shapes.parameters(chain.params, chain.slot // shapes.EPOCH_LENGTH_SLOTS)

    def script(self, request: Request, _behind: int) -> object:
        """GET /scripts/{hash}/cbor. The devnet knows the script of channels only."""
        return {"cbor": _found(SCRIPT if request.path_params["hash"] == SCRIPT_HASH.hex() else None).hex()}

    def _touches(self, tx: Tx, raw: bytes) -> bool:
        spent = [output_of(self.node.chain, ref) for ref in tx.inputs]
        return any(out is not None and out.address == raw for out in (*spent, *tx.outputs))


_READS: tuple[tuple[str, _Read], ...] = (
    ("/", lambda *_: {"url": "https://blockfrost.io/", "version": "0.1.0"}),
    ("/health", lambda *_: {"is_healthy": True}),
    ("/health/clock", lambda api, *_: {"server_time": api.node.now_ms()}),
    ("/genesis", lambda api, *_: shapes.genesis(api.node.system_start_s)),
    ("/epochs/latest", lambda api, *_: shapes.epoch(api.node)),
    ("/epochs/latest/parameters", ChainApi.parameters),
    ("/blocks/{block}", lambda api, request, _: shapes.block(api.node, api.block(request))),
    ("/blocks/{block}/txs", lambda api, request, _: _page(request, [tx.tx_id for tx in api.block(request).txs])),
    ("/addresses/{address}", ChainApi.address),
    ("/addresses/{address}/utxos", ChainApi.utxos),
    ("/addresses/{address}/utxos/{asset}", ChainApi.utxos),
    ("/addresses/{address}/transactions", ChainApi.address_transactions),
    ("/txs/{hash}", lambda api, request, _: shapes.transaction(api.node, *api.named(request))),
    (
        "/txs/{hash}/utxos",
        lambda api, request, _: shapes.transaction_utxos(api.node.chain, api.named(request)[0]),
    ),
    ("/txs/{hash}/cbor", lambda api, request, _: {"cbor": api.named(request)[0].raw.hex()}),
    ("/scripts/{hash}/cbor", ChainApi.script),
    ("/mempool", lambda api, request, _: _hashes(_page(request, tuple(api.node.chain.mempool)))),
    ("/mempool/{hash}", ChainApi.mempool_transaction),
    ("/mempool/addresses/{address}", ChainApi.mempool_at),
)


def _hashes(tx_ids: Iterable[str]) -> list[shapes.Json]:
    return [{"tx_hash": tx_id} for tx_id in tx_ids]


# --- the control API ---------------------------------------------------------------------------------------------


async def _bounded_body(request: Request) -> bytes:
    try:
        body = await read_body(request, _MOST_BODY_BYTES)
    except ClientDisconnect:
        raise _bad("The caller went away in the middle of its body.") from None
    if body is None:
        raise _Failed(413, "Payload Too Large", f"At most {_MOST_BODY_BYTES} bytes.")
    return body


async def _json_object(request: Request) -> Mapping[str, object]:
    body = json_object(await _bounded_body(request))
    if body is None:
        raise _bad("The body must be a JSON object.")
    return body


def _number(body: Mapping[str, object], name: str, default: int, least: int, most: int) -> int:
    value = body.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise _bad(f"{name} must be a whole number from {least} to {most}.")
    return value


def _amounts(amounts: object) -> dict[str, int]:
    """Units by asset, from {unit: units} or from Blockfrost's list of {"unit", "quantity"}."""
    if isinstance(amounts, dict):
        amounts = [{"unit": unit, "quantity": units} for unit, units in amounts.items()]
    if not isinstance(amounts, list) or not all(_is_amount(row) for row in amounts):
        raise _bad('assets must be an object of unit and units, or a list of {"unit", "quantity"}.')
    pairs = [(row["unit"], row["quantity"]) for row in amounts]
    assets = {parse_asset(unit): parse_units(units, "units") for unit, units in pairs}
    _require(len(assets) == len(pairs), "an asset is given twice.")
    return assets


def _is_amount(row: object) -> bool:
    return isinstance(row, dict) and set(row) == {"unit", "quantity"}


class Switchboard:
    """The control API: POST /devnet/faucet, /blocks, /rollback, /faults and GET /devnet/state."""

    def __init__(self, node: Node, block_time_s: int) -> None:
        self.node = node
        self.block_time_s = block_time_s

    def poster(self, act: Callable[[Mapping[str, object]], shapes.Json]) -> Callable[[Request], object]:
        """Make a POST endpoint that takes a JSON object. A refusal becomes a 400 with the reason."""

        async def endpoint(request: Request) -> Response:
            try:
                return JSONResponse(act(await _json_object(request)))
            except _Failed as failed:
                return failed.answer
            except (Refused, LedgerError, ValueError) as refused:
                return _bad(str(refused)).answer

        return endpoint

    def faucet(self, body: Mapping[str, object]) -> shapes.Json:
        """{"address", "lovelace"?, "assets"?: {unit: units}} -> {"tx_hash"}; it lands in the next block."""
        address = parse_address(body.get("address"), _DEVNET)
        assets = _amounts(body.get("assets", {}))
        _require(not ("lovelace" in assets and "lovelace" in body), "lovelace is given twice.")
        _require("lovelace" in body or assets != {}, "lovelace or assets must be given.")
        default = assets.pop("lovelace", FAUCET_RIDE_ALONG_LOVELACE)
        lovelace = parse_units(body.get("lovelace", default), "lovelace")
        check_supply("lovelace", lovelace, f"lovelace (at most {MAX_LOVELACE})")
        return {"tx_hash": self.node.faucet(address.raw, lovelace, assets)}

    def blocks(self, body: Mapping[str, object]) -> shapes.Json:
        """{"count"} -> the blocks made, oldest first. They take no time: all have the clock's slot."""
        blocks = self.node.make_blocks(_number(body, "count", 1, 1, _MOST_BLOCKS))
        return {"blocks": [{"hash": block.hash, "height": block.height, "slot": block.slot} for block in blocks]}

    def rollback(self, body: Mapping[str, object]) -> shapes.Json:
        """{"depth", "readd"?} -> the ids of the transactions whose blocks were undone."""
        readd = body.get("readd", False)
        if not isinstance(readd, bool):
            raise _bad("readd must be true or false.")
        self.node.tick()
        undone = self.node.chain.rollback(_number(body, "depth", 1, 1, 10**9), readd=readd)
        return {"undone": [tx.tx_id for block in undone for tx in block.txs], "height": self.node.chain.tip.height}

    def faults(self, body: Mapping[str, object]) -> shapes.Json:
        """Switch on one fault (see faults.read_fault), or {"clear": true}."""
        if body == {"clear": True}:
            self.node.switches.clear()
        else:
            self.node.switches.add(read_fault(body))
        return self.node.switches.as_json()

    def state(self) -> shapes.Json:
        """The chain's state, and how often each fault was triggered."""
        self.node.tick()
        chain = self.node.chain
        return {
            "network": _DEVNET.name,
            "system_start": self.node.system_start_s,
            "slot": chain.slot,
            "block_time": self.block_time_s,
            "tip": {"hash": chain.tip.hash, "height": chain.tip.height, "slot": chain.tip.slot},
            "mempool": list(chain.mempool),
            "held": len(self.node.held),
            "faults": self.node.switches.as_json(),
        }


def chain_app(
    node: Node, stopping: asyncio.Event, block_time_s: int, project_id: str | None, others: Iterable[Mount] = ()
) -> Starlette:
    """The ASGI application of the chain's port. `others`: the APIs of other kinds of providers."""
    api, board = ChainApi(node, stopping, project_id), Switchboard(node, block_time_s)

    async def state(_request: Request) -> Response:
        return JSONResponse(board.state())

    async def unknown(_request: Request, _error: Exception) -> Response:
        return _not_found().answer

    reads = [Route(path, api.reader(read), methods=["GET"]) for path, read in _READS]
    posts = (
        ("faucet", board.faucet),
        ("blocks", board.blocks),
        ("rollback", board.rollback),
        ("faults", board.faults),
    )
    return Starlette(
        routes=[
            Mount(API_ROOT, routes=[*reads, Route("/tx/submit", api.submit, methods=["POST"])]),
            *[Route(f"/devnet/{name}", board.poster(act), methods=["POST"]) for name, act in posts],
            Route("/devnet/state", state, methods=["GET"]),
            *others,
        ],
        exception_handlers={404: unknown},
    )
