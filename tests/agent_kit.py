"""A whole payagent but for its HTTP face: the real agent on a real file, over real HTTP to the devnet.

`World` has the devnet (its own thread), `Run` one life of the agent: `async with world.run() as run`. A second
`run` on the same world is a restart. Looks at the chain happen when a test says so (`run.look()`).
"""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from canaries import plant

from payagent.agent.agent import Agent, Ask, Request
from payagent.agent.ports import Ports, SystemClock, SystemRandomness
from payagent.agent.terms import MerchantTerms, Terms
from payagent.agent.watch import Watch
from payagent.chain.blockfrost import Blockfrost, Timeouts
from payagent.core.network import NETWORKS
from payagent.core.policy import Limit
from payagent.devnet.server import DevnetThread
from payagent.dialects import make_response
from payagent.merchants.client import MerchantClient
from payagent.store import queries, records
from payagent.store.queries import PaymentRow
from payagent.store.writer import Checkpoint, Readers, Writer
from payagent.wallet.keys import Account, derive, seed_from_words

WORDS = plant("the recovery words", "abandon " * 23 + "art")
DEVNET = NETWORKS["devnet"]
ADA = 1_000_000
APP = "app_test"
FAST = Timeouts(connect_s=2, read_s=2, call_s=3, pages_s=10, submit_s=2)


@dataclass
class Clock:
    """The system's clock, and how far a test has put it off."""

    ahead_ms: int = 0

    def now_ms(self) -> int:
        return SystemClock().now_ms() + self.ahead_ms


class World:
    """The devnet with its merchant, the wallet's account and the data folder; what outlives a restart."""

    def __init__(self, devnet: DevnetThread, folder: Path) -> None:
        self.devnet = devnet
        self.folder = folder
        self.account: Account = derive(seed_from_words(WORDS), DEVNET)
        self.clock = Clock()
        self.http = httpx.Client(trust_env=False, timeout=10)
        self.terms = Terms(
            network=DEVNET,
            own=self.account.address,
            merchants={
                devnet.merchant_url: MerchantTerms("t", devnet.merchant_url, "demo", None, "confirmed", 5),
            },
            limits={"lovelace": Limit(1000 * ADA, 100_000 * ADA)},
            decimals={},
            confirm_depth=1,
            settle_depth=2160,
            min_window_s=120,
        )

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
        """One coin for each amount, in a block of their own."""
        for amount in lovelace:
            tokens = {"assets": {unit: str(n) for unit, n in assets.items()}} if assets else {}
            self.control("faucet", address=self.address, lovelace=str(amount), **tokens)
        self.block()

    def block(self, count: int = 1) -> None:
        self.control("blocks", count=count)

    def fault(self, on: str, kind: str, **more: object) -> None:
        self.control("faults", on=on, kind=kind, **more)

    def settings(self, **settings: object) -> None:
        """POST /merchant/settings."""
        self.http.post(f"{self.origin}/merchant/settings", json=settings).raise_for_status()

    def call(self, message: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """The call that costs money."""
        sent = {"X-Partner": "demo", "X-Wallet-Address": self.address, **(headers or {})}
        return self.http.post(f"{self.origin}/chat", json={"message": message}, headers=sent)

    def ask(self, message: str = "hello", *, key: str | None = None, max_total_units: int | None = None) -> Ask:
        """The call, answered 402, as an app forwards it."""
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
    ) -> Ask:
        """A merchant's answer as an app forwards it; `body` puts other words in the merchant's mouth."""
        body_sha256 = hashlib.sha256(answer.request.content).hexdigest()
        return Ask(
            app_id=APP,
            origin=self.origin,
            response=make_response(answer.status_code, dict(answer.headers), body or answer.text),
            received=json.dumps({"status": answer.status_code, "body": answer.text}),
            request=Request("POST", "/chat", body_sha256),
            idempotency_key=key,
            max_total_units=max_total_units,
        )

    def on_chain(self) -> dict[str, int]:
        """Units per asset at the wallet's address, as the ledger of the devnet has them."""

        def count(devnet: object) -> dict[str, int]:
            total: dict[str, int] = {}
            for _, output in devnet.chain.utxos_at(self.account.address.raw):  # type: ignore[attr-defined]
                for asset, units in (("lovelace", output.lovelace), *output.assets.items()):
                    total[asset] = total.get(asset, 0) + units
            return total

        return self.devnet.run(count)

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
        terms: Callable[[Terms], Terms] = lambda terms: terms,
    ) -> AsyncIterator["Run"]:
        """One life of the agent."""
        path = self.folder / "ledger.db"
        writer, source, merchants = Writer(path, checkpoint=checkpoint), self._source(), MerchantClient()
        readers = Readers(path)
        if not readers.conn.execute("SELECT 1 FROM apps").fetchone():
            scopes = ["pay", "read", "operate", "approve"]
            await writer.run("app", lambda unit: records.add_app(unit, APP, "test", "0" * 64, scopes, 1))
        ports = Ports(self.clock, SystemRandomness())
        agent = Agent(terms(self.terms), ports, writer, readers, [source], self.account.signer)
        try:
            yield Run(self, agent, Watch(agent, merchants))
        finally:
            await agent.drain(10)
            await merchants.aclose()
            await source.aclose()
            writer.close()

    def _source(self) -> Blockfrost:
        return Blockfrost("devnet", self.devnet.chain_url, None, FAST)


@dataclass
class Run:
    """One life of the agent, in a world."""

    world: World
    agent: Agent
    watch: Watch

    async def look(self) -> None:
        """One look at the chain, and everything that it set off has been sent."""
        await self.watch.tick()
        await self.agent.drain(10)

    async def pay(self, message: str = "hello", **more: object) -> PaymentRow:
        """Pay for a call and have its bytes sent."""
        row, _ = await self.agent.pay(self.world.ask(message, **more))  # type: ignore[arg-type]
        await self.agent.drain(10)
        return self.agent.payment(row.id)

    async def settle_down(self, blocks: int = 1) -> None:
        """Blocks, and a look after each."""
        for _ in range(blocks):
            self.world.block()
            await self.look()

    def events(self, payment_id: str) -> list[str]:
        return [event for _, event, *_ in queries.events(self.agent.conn, payment_id)]

    def books(self) -> dict[str, dict[str, int]]:
        """Units by account and asset."""
        found: dict[str, dict[str, int]] = {}
        for account, asset, units in queries.balances(self.agent.conn):
            found.setdefault(account, {})[asset] = units
        return found

    def owned(self) -> dict[str, int]:
        """Wallet and held together: what the chain shows when nothing is in flight."""
        books = self.books()
        total = dict(books.get("wallet", {}))
        for asset, units in books.get("held", {}).items():
            total[asset] = total.get(asset, 0) + units
        return {asset: units for asset, units in total.items() if units}


def with_terms(**changes: object) -> Callable[[Terms], Terms]:
    """For `World.run(terms=...)`."""
    return lambda terms: replace(terms, **changes)  # type: ignore[arg-type]
