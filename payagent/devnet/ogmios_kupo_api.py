"""The devnet's Ogmios under /ogmios and Kupo under /kupo, which answer as the programs do.

Ogmios speaks for the node, over HTTP and a WebSocket. Kupo is an index that follows the node. What can go wrong
between the two is set on `OgmiosKupoApi`; the faults of the control API apply to both.

Never: imports the wallet, the agent, the dialects or pycardano.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.devnet import blockfrost_shapes as shapes
from payagent.devnet.blockfrost_shapes import Json
from payagent.devnet.faults import SUBMIT_PATH, Fault
from payagent.devnet.faulty_responses import another, spoil
from payagent.devnet.ledger import DevnetBlock, LedgerError, Tx
from payagent.devnet.node import Node

OGMIOS_ROOT, KUPO_ROOT = "/ogmios", "/kupo"

_CODES = {
    "InvalidWitnessesUTXOW": 3100,
    "MissingVKeyWitnessesUTXOW": 3101,
    "BadInputsUTxO": 3117,
    "OutsideValidityIntervalUTxO": 3118,
    "MaxTxSizeUTxO": 3119,
    "OutputTooBigUTxO": 3120,
    "InputSetEmptyUTxO": 3121,
    "FeeTooSmallUTxO": 3122,
    "ValueNotConservedUTxO": 3123,
    "WrongNetwork": 3124,
    "BabbageOutputTooSmallUTxO": 3125,
    "DecoderErrorDeserialiseFailure": -32602,
}
_UNEXPECTED = 3997
_NO_INTERSECTION, _NO_METHOD = 1000, -32601


@dataclass
class OgmiosKupoApi:
    """Both servers. What a test sets here makes Kupo lag, lie or forget."""

    node: Node
    stopping: asyncio.Event
    network_magic: int = shapes.NETWORK_MAGIC
    watched: set[str] | None = None
    """The addresses that Kupo watches; None: all."""
    blocks_behind: int = 0
    forked_from: int | None = None
    """The height from which Kupo's blocks are not the node's."""
    slots_ahead: int = 0
    """How far the headers of Kupo's answers are ahead of its rows."""
    is_pruned: bool = False
    is_migrated: bool = False
    before_matches: list[Callable[[], object]] = field(default_factory=list)
    """What happens before Kupo's next lists, one at a time."""

    def mounts(self) -> list[Mount]:
        """The routes of both."""
        ogmios = [Route("/", self._rpc, methods=["POST"]), WebSocketRoute("/", self._socket)]
        kupo = [
            Route(path, self._reader(read), methods=["GET"])
            for path, read in (
                ("/checkpoints/{slot:int}", self._checkpoint),
                ("/patterns/{pattern:path}", self._patterns),
                ("/matches/{pattern:path}", self._matches),
            )
        ]
        return [Mount(OGMIOS_ROOT, routes=ogmios), Mount(KUPO_ROOT, routes=kupo)]

    # --- Ogmios ---

    async def _rpc(self, request: Request) -> Response:
        """POST /: a session of one request."""
        body = json.loads(await request.body())
        method = body["method"]
        path = SUBMIT_PATH if method == "submitTransaction" else f"/{method}"
        fault = self.node.switches.take("POST" if path == SUBMIT_PATH else "GET", path)
        answer = _Session(self, fault).answer(body)
        honest = JSONResponse(answer, 400 if "error" in answer else 200)
        return honest if fault is None else spoil(honest, fault, self.stopping)

    async def _socket(self, socket: WebSocket) -> None:
        """A session of as many requests as the client makes."""
        session = _Session(self, None)
        await socket.accept()
        async for request in socket.iter_json():
            if answer := session.answer(request):
                await socket.send_json(answer)

    # --- Kupo ---

    def _reader(self, read: Callable[[Request, int], object]) -> Callable[[Request], object]:
        async def endpoint(request: Request) -> Response:
            fault = self.node.switches.take("GET", request.url.path.removeprefix(KUPO_ROOT))
            self.node.tick()
            behind = fault.blocks if fault is not None and fault.answer == "stale" else self.blocks_behind
            height = max(self.node.chain.tip.height - behind, 0)
            slot = self.node.chain.blocks[height].slot + self.slots_ahead
            honest = JSONResponse(read(request, height), headers={"X-Most-Recent-Checkpoint": str(slot)})
            return honest if fault is None else spoil(honest, fault, self.stopping)

        return endpoint

    def _checkpoint(self, request: Request, height: int) -> object:
        """GET /checkpoints/{slot}: the newest block at the slot or before."""
        blocks = self.node.chain.blocks[: height + 1]
        return self._point([block for block in blocks if block.slot <= request.path_params["slot"]][-1])

    def _patterns(self, request: Request, _height: int) -> object:
        """GET /patterns/{address}: the patterns that include it."""
        address = request.path_params["pattern"]
        return ["*"] if self.watched is None else [one for one in self.watched if one == address]

    def _matches(self, request: Request, height: int) -> object:
        """GET /matches/{address} or /matches/{index}@{transaction}, the newest first."""
        if self.before_matches:
            self.before_matches.pop(0)()
        query, pattern = request.query_params, request.path_params["pattern"]
        made_from, spent_from = int(query.get("created_after", 0)), int(query.get("spent_after", 0))
        rows = list(self._rows(pattern, height))
        if "unspent" in query:
            rows = [row for row in rows if row["spent_at"] is None]
        if "spent" in query or spent_from:
            spent = [row for row in rows if row["spent_at"] is not None]
            rows = [row for row in spent if row["spent_at"]["slot_no"] >= spent_from]
        return [row for row in rows if row["created_at"]["slot_no"] >= made_from]

    def _rows(self, pattern: str, height: int) -> Iterator[dict[str, Any]]:
        """The rows that the index has at a height."""
        index, is_reference, tx_id = pattern.partition("@")
        at = b"" if is_reference else parse_address(pattern, NETWORKS["devnet"]).raw
        for block in reversed(self.node.chain.blocks[: height + 1]):
            for tx in reversed(block.txs):
                for number, output in reversed(list(enumerate(tx.outputs))):
                    if output.address == at or (tx.tx_id == tx_id and index in ("*", str(number))):
                        row = self._row(block, tx, number, height)
                        is_watched = self.watched is None or row["address"] in self.watched
                        if is_watched and not (self.is_pruned and row["spent_at"]):
                            yield row

    def _row(self, block: DevnetBlock, tx: Tx, index: int, height: int) -> dict[str, Any]:
        chain, output = self.node.chain, tx.outputs[index]
        shown = shapes.utxo(chain, (tx.tx_id, index), output)
        spent_at = None
        found = chain.tx(chain.spender.get((tx.tx_id, index)) or "")
        if found is not None and found[1] is not None and found[1].height <= height:
            spender = None if self.is_migrated else found[0].tx_id
            input_index = found[0].inputs.index((tx.tx_id, index))
            spent_at = self._point(found[1]) | {
                "transaction_id": spender,
                "input_index": input_index,
                "redeemer": None,
            }
        assets = {f"{unit[:56]}.{unit[56:]}".rstrip("."): units for unit, units in output.assets.items()}
        return {
            "transaction_index": block.txs.index(tx),
            "transaction_id": tx.tx_id,
            "output_index": index,
            "address": shown["address"],
            "value": {"coins": output.lovelace, "assets": assets},
            "datum_hash": shown["data_hash"],
            "script_hash": shown["reference_script_hash"],
            "created_at": self._point(block),
            "spent_at": spent_at,
        }

    def _point(self, block: DevnetBlock) -> dict[str, object]:
        is_own = self.forked_from is not None and block.height >= self.forked_from
        return {"slot_no": block.slot, "header_hash": block.hash[::-1] if is_own else block.hash}


class _Session:
    """One connection to Ogmios, with the block that `nextBlock` goes on from."""

    def __init__(self, api: OgmiosKupoApi, fault: Fault | None) -> None:
        self.api, self.node, self.fault = api, api.node, fault
        self.height = 0
        self.goes_back = True

    def answer(self, request: Mapping[str, Any]) -> dict[str, object]:
        """The answer to one request; empty while there is none."""
        self.node.tick()
        method = request["method"]
        act = self._methods().get(method)
        outcome = _error(_NO_METHOD) if act is None else act(**request.get("params", {}))
        return {"jsonrpc": "2.0", "method": method, **outcome, "id": request.get("id")} if outcome else {}

    def _methods(self) -> Mapping[str, Callable[..., Json]]:
        start = datetime.fromtimestamp(self.node.system_start_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "findIntersection": self._find,
            "nextBlock": self._next,
            "queryNetwork/startTime": lambda: {"result": start},
            "queryNetwork/genesisConfiguration": lambda era: {
                "result": {
                    "era": era,
                    "networkMagic": self.api.network_magic,
                    "startTime": start,
                    "slotLength": {"milliseconds": 1000},
                }
            },
            "queryLedgerState/epoch": lambda: {"result": self.node.chain.slot // shapes.EPOCH_LENGTH_SLOTS},
            "queryLedgerState/protocolParameters": self._parameters,
            "queryLedgerState/utxo": self._utxo,
            "submitTransaction": self._submit,
        }

    def _parameters(self) -> Json:
        params = self.node.chain.params
        named: Json = {
            "minFeeCoefficient": params.min_fee_a,
            "minFeeConstant": {"ada": {"lovelace": params.min_fee_b}},
            "minUtxoDepositCoefficient": params.coins_per_utxo_byte,
            "maxTransactionSize": {"bytes": params.max_tx_size_bytes},
            "maxValueSize": {"bytes": params.max_value_size_bytes},
        }
        return {"result": named}

    def _tip(self) -> Json:
        return _point(self.node.chain.tip) | {"height": self.node.chain.tip.height}

    def _find(self, points: list[dict[str, Any]]) -> Json:
        block = self.node.chain.block(points[0]["id"])
        if block is None or block.slot != points[0]["slot"]:
            return _error(_NO_INTERSECTION, tip=self._tip())
        self.height, self.goes_back = block.height, True
        return {"result": {"intersection": _point(block), "tip": self._tip()}}

    def _next(self) -> Json:
        """First back to the block that was found, then block by block; nothing while there is none."""
        blocks = self.node.chain.blocks
        if self.goes_back:
            self.goes_back = False
            return {"result": {"direction": "backward", "point": _point(blocks[self.height]), "tip": self._tip()}}
        if self.height + 1 == len(blocks):
            return {}
        self.height += 1
        block = blocks[self.height]
        shown = {
            "type": "praos",
            "era": "conway",
            "id": block.hash,
            "ancestor": block.prev_hash,
            "height": block.height,
            "slot": block.slot,
            "transactions": [{"id": tx.tx_id} for tx in block.txs],
        }
        return {"result": {"direction": "forward", "block": shown, "tip": self._tip()}}

    def _utxo(self, addresses: list[str]) -> Json:
        refs = [
            ref
            for address in addresses
            for ref, _ in self.node.chain.utxos_at(parse_address(address, NETWORKS["devnet"]).raw)
        ]
        return {"result": [{"transaction": {"id": tx_id}, "index": index} for tx_id, index in refs]}

    def _submit(self, transaction: Mapping[str, str]) -> Json:
        try:
            tx_id = self.node.submit(bytes.fromhex(transaction["cbor"]), self.fault)
        except LedgerError as refused:
            code = min(_CODES.get(rule, _UNEXPECTED) for rule, _ in refused.failures)
            return _error(code, error=refused.detail)
        is_lying = self.fault is not None and self.fault.answer == "other_hash"
        return {"result": {"transaction": {"id": another(tx_id) if is_lying else tx_id}}}


def _error(code: int, **data: object) -> Json:
    return {"error": {"code": code, "message": "See data.", "data": data}}


def _point(block: DevnetBlock) -> Json:
    return {"slot": block.slot, "id": block.hash}
