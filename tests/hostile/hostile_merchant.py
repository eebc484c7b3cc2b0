"""A merchant that takes the money and then misbehaves, and a naive client of it.

It stands in front of the devnet's merchant, which verifies and settles; it only spoils the answers.
`Naive` signs a new transaction for each 402, as simple clients do: it is the control.
"""

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from kit.agent import ADA, DEVNET, World
from kit.http import NO_TLS

from payagent.core.address import parse_address
from payagent.core.invoice import Output
from payagent.devnet.merchant import role_address
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.transaction import select
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

PRICE = 2 * ADA
TRIES = 4
"""A first request and three retries."""

MODES = (
    "clean",
    "accept_then_timeout",
    "5xx_after_settle",
    "double_402_same",
    "double_402_new_invoice",
    "double_402_dearer",
    "slow_answer",
)
SILENT = ("accept_then_timeout", "slow_answer")
"""Modes in which a client with a short timeout gets no answer."""
STATUS_MODES = ("status_unavailable", "status_prose", "status_oversized", "status_truncated", "status_lies")
"""What happens after a 502: payagent asks the merchant for the invoice's status."""

_PROOFS = ("x-payment", "payment-signature")
_HOP = ("connection", "content-length", "transfer-encoding", "keep-alive", "date", "server")
_STATUS = {
    "status_unavailable": (503, b'{"detail": "try later"}', "application/json"),
    "status_prose": (200, b"<html><h1>Not here</h1></html>", "text/html"),
    "status_oversized": (200, b'{"status": "expired", "pad": "' + b"x" * 100_000 + b'"}', "application/json"),
    "status_truncated": (200, b'{"status": "expired"}', "application/json"),
    "status_lies": (200, b'{"status": "expired"}', "application/json"),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it goes out; `missing` bytes are announced and never come."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    missing: int = 0

    @classmethod
    def of(cls, answer: httpx.Response) -> "Reply":
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP}
        return cls(answer.status_code, kept, answer.content)


@dataclass
class HostileMerchant:
    """`mode` says how requests with a proof are answered once the devnet's merchant has settled them.

    `counts`: how often each mode did its work, and how often it was asked with and without a proof.
    """

    world: World
    mode: str = "clean"
    slow_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    url: str = ""

    def __post_init__(self) -> None:
        self._http = httpx.Client(base_url=self.world.origin, verify=NO_TLS, trust_env=False, timeout=60)
        self._closing = threading.Event()
        self._first: Reply | None = None
        self._first_at_s = 0.0

    @contextmanager
    def serving(self) -> Iterator["HostileMerchant"]:
        merchant = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                merchant._serve(self)

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            server.shutdown()
            thread.join()
            server.server_close()
            self._http.close()

    def _serve(self, call: BaseHTTPRequestHandler) -> None:
        content = call.rfile.read(int(call.headers.get("Content-Length") or 0))
        if call.path.startswith("/payments/status/") and self.mode in _STATUS:
            reply: Reply | None = self._tell_status()
        else:
            reply = self._pass_on(call, content)
        if reply is None:
            call.close_connection = True
            return
        call.send_response(reply.status)
        for name, value in reply.headers.items():
            call.send_header(name, value)
        call.send_header("Content-Length", str(len(reply.body) + reply.missing))
        call.send_header("Connection", "close")
        call.end_headers()
        call.wfile.write(reply.body)

    def _tell_status(self) -> Reply:
        self.counts[self.mode] += 1
        status, body, kind = _STATUS[self.mode]
        return Reply(status, {"Content-Type": kind}, body, 40 if self.mode == "status_truncated" else 0)

    def _pass_on(self, call: BaseHTTPRequestHandler, content: bytes) -> Reply | None:
        headers = {name: value for name, value in call.headers.items() if name.lower() not in _HOP}
        answer = Reply.of(self._http.request(call.command, call.path, content=content, headers=headers))
        if call.path.startswith("/payments/"):
            return answer
        if not any(name in call.headers for name in _PROOFS):
            self.counts["asked"] += 1
            if answer.status == 402 and self._first is None:
                self._first, self._first_at_s = answer, time.monotonic()
            return answer
        self.counts["shown"] += 1
        return self._spoil(call, answer, content, headers)

    def _spoil(
        self, call: BaseHTTPRequestHandler, answer: Reply, content: bytes, headers: Mapping[str, str]
    ) -> Reply | None:
        """The answer to a proof, as the mode wants it; None hangs up without one."""
        assert self._first is not None
        if self.mode == "clean":
            self.counts["clean"] += 1
            return answer
        self.counts[self.mode if self.mode not in _STATUS else "5xx_after_settle"] += 1
        match self.mode:
            case "accept_then_timeout":
                self._closing.wait(60)
                return None
            case "slow_answer":
                self._closing.wait(max(0.0, self._first_at_s + self.slow_s - time.monotonic()))
                return answer
            case "double_402_same":
                return self._first
            case "double_402_new_invoice":
                return self._ask_anew(call, content, headers, PRICE)
            case "double_402_dearer":
                return self._ask_anew(call, content, headers, 2 * PRICE)
        return Reply(502, {"Content-Type": "text/html"}, b"<html><h1>502 Bad Gateway</h1></html>")

    def _ask_anew(
        self, call: BaseHTTPRequestHandler, content: bytes, headers: Mapping[str, str], price: int
    ) -> Reply:
        """Another invoice for the same request, for which the devnet's merchant would accept a payment."""
        assert self._first is not None
        if "payment-required" in self._first.headers:
            # x402 names no invoice: only the price may be another
            told = json.loads(base64.b64decode(self._first.headers["payment-required"]))
            told["accepts"][0]["amount"] = str(price)
            packed = base64.b64encode(json.dumps(told).encode()).decode()
            return replace(self._first, headers={**self._first.headers, "payment-required": packed})
        self.world.settings(price=str(price))
        bare = {
            name: value for name, value in headers.items() if name.lower() not in ("x-payment", "x-invoice-id")
        }
        return Reply.of(self._http.request(call.command, call.path, content=content, headers=bare))


def settlements(world: World) -> list[str]:
    """Ids of the transactions that pay the merchant: in the devnet's blocks and in its mempool."""
    pay_to = role_address("pay_to").raw

    def ids(devnet: object) -> list[str]:
        chain = devnet.chain  # type: ignore[attr-defined]
        txs = [tx for block in chain.blocks for tx in block.txs if tx.inputs]
        txs += list(chain.mempool.values())
        return [tx.tx_id for tx in txs if any(out.address == pay_to for out in tx.outputs)]

    return world.devnet.run(ids)


@dataclass
class Purchase:
    """A request that costs money, in one dialect."""

    method: str
    path: str
    body: bytes

    def send(
        self, client: httpx.Client, base: str, headers: Mapping[str, str], timeout_s: float = 60
    ) -> httpx.Response:
        kind = {"Content-Type": "application/json"} if self.body else {}
        return client.request(
            self.method, base + self.path, content=self.body, headers={**kind, **headers}, timeout=timeout_s
        )


@dataclass
class Naive:
    """Pays every 402 with a new transaction from UTxOs that it has not spent yet."""

    world: World
    merchant: HostileMerchant
    proof: str
    patience_s: float

    def __post_init__(self) -> None:
        self.account = derive(seed_from_words("zoo " * 23 + "vote"), DEVNET)
        self._spent: set[str] = set()
        self._http = httpx.Client(verify=NO_TLS, trust_env=False)

    def buy(self, purchase: Purchase) -> bool:
        """Whether it was served within its tries; a failed request starts over."""
        headers = {"X-Partner": "naive", "X-Wallet-Address": self.account.address.text}
        with self._http:
            for _ in range(TRIES):
                try:
                    answer = purchase.send(self._http, self.merchant.url, headers)
                    for _ in range(2):
                        if answer.status_code == 402:
                            proof = self._pay(answer)
                            answer = purchase.send(self._http, self.merchant.url, headers | proof, self.patience_s)
                    if answer.status_code == 200:
                        return True
                except httpx.TransportError:
                    continue
        return False

    def _pay(self, answer: httpx.Response) -> dict[str, str]:
        if "payment-required" in answer.headers:
            told = json.loads(base64.b64decode(answer.headers["payment-required"]))
            terms = told["accepts"][0]
            nonce, raw = self._sign(terms["payTo"], int(terms["amount"]))
            payload = {"transaction": base64.b64encode(raw).decode(), "nonce": nonce}
            shown = {"x402Version": 2, "resource": told["resource"], "accepted": terms, "payload": payload}
            return {"PAYMENT-SIGNATURE": base64.b64encode(json.dumps(shown).encode()).decode()}
        terms = answer.json()["detail"]
        if "payTo" not in terms:
            return {}
        _, raw = self._sign(terms["payTo"], int(terms["amountUnits"]))
        proof = raw.hex()
        if self.proof == "tx_hash":
            url = f"{self.world.devnet.chain_url}/tx/submit"
            kind = {"Content-Type": "application/cbor"}
            proof = self.world.http.post(url, content=raw, headers=kind).raise_for_status().json()
        return {"X-Invoice-Id": terms["invoiceId"], "X-Payment": proof}

    def _sign(self, pay_to: str, units: int) -> tuple[str, bytes]:
        raw = self.account.address.raw
        listed = self.world.devnet.run(lambda devnet: list(devnet.chain.utxos_at(raw)))
        utxos = [Utxo(ref[0], ref[1], out.lovelace) for ref, out in listed]
        plan = select(
            UtxoIndex(utxo for utxo in utxos if utxo.ref not in self._spent),
            (Output("pay_to", parse_address(pay_to, DEVNET), "lovelace", units),),
            change=self.account.address,
            ttl_slot=self.world.devnet.run(lambda devnet: devnet.chain.slot) + 200,
            network_id=DEVNET.network_id,
        )
        self._spent |= {utxo.ref for utxo in plan.inputs}
        return plan.nonce_utxo.ref, sign(plan, self.account.signer)
