"""The real agent on a real ledger file, over HTTP to the devnet; everything but the API.

`World` has the devnet in its own thread. `Run` is one run of the agent: `async with world.run() as run`. A
second `run` on the same world is a restart. The agent reads the chain when a test calls `run.run_pass()`.
"""

import hashlib
import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from kit.canaries import plant
from kit.http import NO_TLS
from kit.ledger import lay_ledger
from payagent.agent.agent import Agent
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.agent.chain_sync.recovery import Recovery
from payagent.agent.chain_sync.sync import ChainSync
from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import Fleet, HeldAccount
from payagent.agent.topups.runner import TopupRunner
from payagent.chain.adapter import Timeouts
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.provider import ChainProvider
from payagent.core.aggregate import PaymentRow
from payagent.core.ledger import held_account, wallet_account
from payagent.core.network import NETWORKS
from payagent.core.payment.machine import State
from payagent.core.policy import Limit, limits_of
from payagent.devnet import cbor
from payagent.devnet.decode import decode_tx
from payagent.devnet.server import Devnet, DevnetThread
from payagent.dialects import make_response
from payagent.outbound.merchant_client import MerchantClient
from payagent.signer.channels import Channels
from payagent.store.db.committer import Checkpoint, Ownership
from payagent.store.db.readers import Readers
from payagent.store.db.signer_record import SignerRecord
from payagent.store.db.writer import Writer
from payagent.store.rows import apps, events, journal
from payagent.wallet.keys import Account, Signer, derive, seed_from_words
from sim.in_process_signer import InProcessSigner

WORDS = plant("the recovery words", "abandon " * 23 + "art")
DEVNET = NETWORKS["devnet"]
ADA = 1_000_000
APP = "app_test"
PATIENT = Timeouts(connect_s=60, call_s=60, pages_s=120, submit_s=60)


def daily(per_payment: int, per_day: int, asset: str = "lovelace") -> tuple[Limit, ...]:
    """Wallet-wide limits, in units of an asset."""
    return limits_of(asset, {"per_payment": per_payment, "per_day": per_day})


@dataclass
class Clock:
    """The system's clock, with an offset a test sets; a test can also stop it."""

    ahead_ms: int = 0
    stopped_ms: int | None = None

    def now_ms(self) -> int:
        return (SystemClock().now_ms() if self.stopped_ms is None else self.stopped_ms) + self.ahead_ms

    def stop(self) -> None:
        """Stop the clock, so that two things happen in the same second."""
        self.stopped_ms = SystemClock().now_ms()


def take_only_hashes(devnet: DevnetThread) -> None:
    """A merchant that accepts either form of proof would also serve the wrong one."""
    url = f"{devnet.merchant_url}/merchant/settings"
    httpx.post(url, json={"proof": "tx_hash"}, verify=NO_TLS, trust_env=False).raise_for_status()


OpenLedger = Callable[[Path, Checkpoint, Ownership | None], tuple[Writer, Readers]]


def ledger_in_a_file(path: Path, checkpoint: Checkpoint, own: Ownership | None) -> tuple[Writer, Readers]:
    lay_ledger(path)
    return Writer(path, checkpoint=checkpoint, own=own), Readers(path)


@cache
def own_account(number: int = 0) -> Account:
    """An account of the wallet."""
    return derive(seed_from_words(WORDS), DEVNET, number)


class World:
    """The devnet with its merchant, the wallet's account and the data folder: what outlives a restart."""

    def __init__(self, devnet: DevnetThread, folder: Path) -> None:
        self.devnet = devnet
        self.folder = folder
        self.open_ledger: OpenLedger = ledger_in_a_file
        self.account = own_account()
        self.clock = Clock()
        self.channel_signer: Channels | None = None
        self.http = httpx.Client(verify=NO_TLS, trust_env=False, timeout=60)
        self.terms = AgentConfig(
            network=DEVNET,
            own=self.account.address,
            merchants={
                devnet.merchant_url: MerchantConfig("t", devnet.merchant_url, "demo", None, "confirmed", 5),
            },
            limits=daily(1000 * ADA, 100_000 * ADA),
            decimals={},
            confirm_depth=1,
            void_depth=3,
            settle_depth=2160,
            min_window_s=120,
        )
        take_only_hashes(devnet)

    @property
    def origin(self) -> str:
        return self.devnet.merchant_url

    @property
    def address(self) -> str:
        return self.account.address.text

    def control(self, path: str, **body: object) -> dict[str, object]:
        """POST /devnet/..."""
        answer = self.http.post(f"{self.devnet.origin}/devnet/{path}", json=body)
        answer.raise_for_status()
        return dict(answer.json())

    def fund(self, *lovelace: int, assets: Mapping[str, int] | None = None) -> None:
        """One UTxO for each amount, in a block of their own."""

        def put(devnet: Devnet) -> None:
            for amount in lovelace:
                devnet.node.faucet(self.account.address.raw, amount, assets or {})
            devnet.node.make_blocks(1)

        self.devnet.run(put)

    def fund_with_datum(self, lovelace: int) -> str:
        """A UTxO with a datum hash, in a block of its own; return its ref."""
        address = cbor.byte_string(self.account.address.raw)
        output = b"\x83" + address + cbor.head(cbor.UINT, lovelace) + cbor.byte_string(bytes(32))
        tx = decode_tx(b"\x84\xa3\x00\x80\x01\x81" + output + b"\x02\x00\xa0\xf5\xf6")

        def put(devnet: object) -> None:
            devnet.chain.faucet_ids.add(tx.tx_id)  # type: ignore[attr-defined]
            devnet.chain._admit(tx)  # type: ignore[attr-defined]

        self.devnet.run(put)
        self.block()
        return f"{tx.tx_id}#0"

    def of_account(self, number: int) -> "World":
        """Another account of the same wallet, on the same ledger."""
        other = World(self.devnet, self.folder)
        other.clock, other.account = self.clock, own_account(number)
        other.terms = replace(self.terms, own=other.account.address, account=number)
        return other

    def block(self, count: int = 1) -> None:
        self.devnet.run(lambda devnet: devnet.node.make_blocks(count))

    def fault(self, on: str, kind: str, **more: object) -> None:
        self.control("faults", on=on, kind=kind, **more)

    def settings(self, **settings: object) -> None:
        """POST /merchant/settings."""
        self.http.post(f"{self.origin}/merchant/settings", json=settings).raise_for_status()

    def call(self, message: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """The request that must be paid."""
        sent = {"X-Partner": "demo", "X-Wallet-Address": self.address, **(headers or {})}
        return self.http.post(f"{self.origin}/chat", json={"message": message}, headers=sent)

    def ask(
        self, message: str = "hello", *, key: str | None = None, max_total_units: int | None = None
    ) -> PaymentRequest:
        """The request and its 402, as an app forwards them."""
        answer = self.call(message)
        assert answer.status_code == 402, answer.text
        return self.ask_of(answer, key=key, max_total_units=max_total_units)

    def ask_of(
        self,
        answer: httpx.Response,
        *,
        key: str | None = None,
        max_total_units: int | None = None,
        body: str | None = None,
    ) -> PaymentRequest:
        """A merchant's answer as an app forwards it; `body` replaces the merchant's body."""
        body_sha256 = hashlib.sha256(answer.request.content).hexdigest()
        return PaymentRequest(
            app_id=APP,
            origin=self.origin,
            response=make_response(answer.status_code, dict(answer.headers), body or answer.text),
            received=json.dumps({"status": answer.status_code, "body": answer.text}),
            request=MerchantRequest("POST", "/chat", body_sha256),
            idempotency_key=key,
            max_total_units=max_total_units,
        )

    def on_chain(self) -> dict[str, int]:
        """Units per asset at the wallet's address on the devnet's ledger."""

        def count(devnet: object) -> dict[str, int]:
            total: dict[str, int] = {}
            for _, output in devnet.chain.utxos_at(self.account.address.raw):  # type: ignore[attr-defined]
                for asset, units in (("lovelace", output.lovelace), *output.assets.items()):
                    total[asset] = total.get(asset, 0) + units
            return total

        return self.devnet.run(count)

    def unspent(self) -> set[str]:
        """Refs of the outputs at the wallet's address on the devnet's ledger."""
        raw = self.account.address.raw
        return self.devnet.run(lambda devnet: {f"{ref[0]}#{ref[1]}" for ref, _ in devnet.chain.utxos_at(raw)})

    def waiting(self) -> list[str]:
        """Ids of the transactions in the devnet's mempool."""
        return self.devnet.run(lambda devnet: list(devnet.chain.mempool))

    def transactions(self) -> list[str]:
        """Ids of the transactions with inputs on the devnet's chain, in order."""

        def ids(devnet: object) -> list[str]:
            blocks = devnet.chain.blocks  # type: ignore[attr-defined]
            return [tx.tx_id for block in blocks for tx in block.txs if tx.inputs]

        return self.devnet.run(ids)

    @asynccontextmanager
    async def run(
        self,
        *,
        checkpoint: Checkpoint = lambda _name: None,
        terms: Callable[[AgentConfig], AgentConfig] = lambda terms: terms,
        signer: Signer | None = None,
        providers: Mapping[str, str | ChainProvider] | None = None,
        record: SignerRecord | None = None,
        timeouts: Timeouts = PATIENT,
        writer: Writer | None = None,
    ) -> AsyncIterator["Run"]:
        """One run of the agent. `providers` are base URLs by name, or providers; the default is the devnet alone.

        With a signer's `record` it owns its ledger, and recovery has begun. With a `writer`, that one does.
        """
        path = self.folder / "ledger.db"
        urls = providers or {"devnet": self.devnet.chain_url}
        adapters = [
            Blockfrost(name, one, None, timeouts) if isinstance(one, str) else one for name, one in urls.items()
        ]
        own = None if record is None else Ownership(SystemRandomness().token_hex(12), {0: record})
        shared, merchants = writer, MerchantClient()
        writer, readers = self.open_ledger(path, checkpoint, own) if shared is None else (shared, Readers(path))
        if not readers.conn.execute("SELECT 1 FROM apps").fetchone():
            scopes = ["pay", "read", "operate", "approve"]
            await writer.run("app", lambda unit: apps.add_with_token(unit, APP, "test", "0" * 64, scopes, 1))
        ports = Ports(self.clock, SystemRandomness())
        signs = InProcessSigner(signer or self.account.signer, self.channel_signer)
        agent = Agent(terms(self.terms), ports, writer, readers, adapters, signs)
        recovery = None if record is None else Recovery(agent.context, record)
        try:
            if recovery is not None:
                await recovery.begin()
            yield Run(self, agent, ChainSync(agent, merchants), TopupRunner(agent, merchants), recovery)
        finally:
            await agent.submitter.drain(60)
            await merchants.aclose()
            for source in adapters:
                await source.aclose()
            if shared is None:
                writer.close()


@dataclass
class Run:
    """One run of the agent in a world."""

    world: World
    agent: Agent
    chain_sync: ChainSync
    topups: TopupRunner
    recovery: Recovery | None = None

    @property
    def context(self) -> AgentContext:
        """The agent's."""
        return self.agent.context

    @property
    def fleet(self) -> Fleet:
        """The fleet of this one agent."""
        return Fleet(HeldAccount(self.agent, self.topups))

    @property
    def commits(self) -> int:
        """How many commits this run has made."""
        return self.context._writer.commits  # type: ignore[attr-defined, no-any-return]

    async def run_pass(self) -> None:
        """One pass of chain_sync, until everything it started is submitted."""
        await self.chain_sync.run_once()
        if self.recovery is not None:
            await self.recovery.run_once(self.chain_sync.provider_selection.view)
        await self.agent.submitter.drain(60)

    async def pay(self, message: str = "hello", **more: object) -> PaymentRow:
        """Pay for a request and submit its transaction."""
        row, _ = await self.agent.pay(self.world.ask(message, **more))  # type: ignore[arg-type]
        await self.agent.submitter.drain(60)
        return self.context.payment(row.id)

    async def settle_down(self, blocks: int = 1) -> None:
        """Make blocks, with a pass after each."""
        for _ in range(blocks):
            self.world.block()
            await self.run_pass()

    async def pay_in_block(self, message: str = "hello") -> PaymentRow:
        """Run a pass, pay, and see the payment in a block; return it as it was when submitted."""
        await self.run_pass()
        row = await self.pay(message)
        await self.settle_down()
        return row

    async def pass_time(self, blocks: int, seconds: int = 12) -> None:
        """Let time and blocks pass, so that whatever is due is submitted again."""
        for _ in range(blocks):
            self.world.clock.ahead_ms += seconds * 1000
            await self.settle_down()

    def state(self, payment_id: str) -> State:
        return self.context.payment(payment_id).state

    def selectable(self) -> set[str]:
        """Refs of the UTxOs that the next payment may spend."""
        return {utxo.ref for utxo in self.context.utxos}

    def events(self, payment_id: str) -> list[str]:
        return [row.event for row in events.events(self.context.conn, payment_id)]

    def entries(self) -> list[journal.EntryRow]:
        """All entries, newest first."""
        return journal.entries_page(self.context.conn, payment_id=None, account=None, before_id=None, limit=1000)

    def books(self) -> dict[str, dict[str, int]]:
        """Units by account and asset."""
        found: dict[str, dict[str, int]] = {}
        for account, asset, units in journal.balances(self.context.conn):
            found.setdefault(account, {})[asset] = units
        return found

    def owned(self) -> dict[str, int]:
        """Wallet plus held of its account: what the chain shows when nothing is in flight."""
        books, account = self.books(), self.context.config.account
        total = dict(books.get(wallet_account(account), {}))
        for asset, units in books.get(held_account(account), {}).items():
            total[asset] = total.get(asset, 0) + units
        return {asset: units for asset, units in total.items() if units}


@contextmanager
def world_with_clock(folder: Path) -> Iterator[World]:
    """A world whose devnet follows the agent's clock, which a test can move."""
    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms) as devnet, world_on(devnet, folder) as world:
        world.clock = clock
        yield world


@contextmanager
def world_apart(folder: Path) -> Iterator[World]:
    """A world where a test can set the agent's clock alone."""
    with DevnetThread() as devnet, world_on(devnet, folder) as world:
        yield world


@contextmanager
def world_on(devnet: DevnetThread, folder: Path) -> Iterator[World]:
    world = World(devnet, folder)
    yield world
    world.http.close()


def copied(world: World) -> bytes:
    """The ledger as one file."""
    target = world.folder / "copy.db"
    with closing(sqlite3.connect(world.folder / "ledger.db")) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    return target.read_bytes()


def put(world: World, content: bytes | None) -> None:
    """Replace the ledger with another one, or with none."""
    for path in world.folder.glob("ledger.db*"):
        path.unlink()
    if content is not None:
        (world.folder / "ledger.db").write_bytes(content)


def with_terms(**changes: object) -> Callable[[AgentConfig], AgentConfig]:
    """For `World.run(terms=...)`."""
    return lambda terms: replace(terms, **changes)  # type: ignore[arg-type]


def asking_above(context: AgentContext, units: Mapping[str, int]) -> None:
    """From now on a payment above so many units of an asset needs an approval."""
    rules = context.admission.rules
    rules.config = replace(rules.config, approval_required_above=units)


@dataclass(frozen=True, slots=True)
class Told:
    """An answer a relay gives instead of the devnet's."""

    status: int
    body: object
    headers: Mapping[str, str]


class Relay:
    """A provider in front of the devnet's: a small HTTP server that can give other answers by path.

    `upstream`: where it passes requests on to; by default the devnet's Blockfrost.
    `calls` are the (method, path) that reached it, paths below the API's root.
    """

    def __init__(self, devnet: DevnetThread, upstream: str | None = None) -> None:
        self.upstream = upstream or devnet.chain_url
        self._http = httpx.Client(base_url=self.upstream, verify=NO_TLS, trust_env=False, timeout=60)
        self._told: dict[str, Told] = {}
        self.swallows = False
        """Whether it answers OK to a submission and drops it."""
        self.calls: list[tuple[str, str]] = []
        relay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                relay._serve(self)

            do_POST = do_GET  # noqa: N815  http.server's name

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def tell(self, prefix: str, status: int, body: object = None, **headers: str) -> None:
        """Give this answer for every path with the prefix; the longest prefix wins."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._told[prefix] = Told(status, body, named)

    def untell(self, prefix: str) -> None:
        """Pass requests with this prefix on again."""
        self._told.pop(prefix, None)

    def freeze(self, path: str, query: str = "") -> None:
        """Keep giving the answer of now to this query."""
        answer = self._http.get(path + query)
        self.tell(path, answer.status_code, answer.json())

    def unfreeze(self) -> None:
        """Pass every request on again."""
        self._told.clear()
        self.swallows = False

    def submissions(self) -> int:
        return sum(method == "POST" for method, _ in self.calls)

    def heard(self, path: str, content: bytes) -> None:
        """Called for each request before it is passed on; tests override it."""

    def _serve(self, call: BaseHTTPRequestHandler) -> None:
        path = call.path.partition("?")[0]
        content = call.rfile.read(int(call.headers.get("Content-Length") or 0))
        self.calls.append((call.command, path))
        self.heard(path, content)
        told = [self._told[prefix] for prefix in sorted(self._told, key=len) if path.startswith(prefix)]
        if content and self.swallows:
            status, body, headers = 200, json.dumps(decode_tx(content).tx_id).encode(), {}
        elif told:
            status, body, headers = told[-1].status, json.dumps(told[-1].body).encode(), told[-1].headers
        else:
            kind = {"Content-Type": call.headers["Content-Type"]} if content else {}
            answer = self._http.request(call.command, call.path, content=content, headers=kind)
            status, body, headers = answer.status_code, answer.content, {}
        call.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            call.send_header(name, value)
        call.send_header("Content-Length", str(len(body)))
        call.end_headers()
        call.wfile.write(body)

    @contextmanager
    def serving(self) -> Iterator["Relay"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()
            self._http.close()
