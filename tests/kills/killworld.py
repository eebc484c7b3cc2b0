"""The world around the killed daemons: a devnet with its merchant, wallets, apps that buy, and faults.

A lane is one wallet: its data folder, its current daemon, and shoppers, which buy one thing after another as real
clients do. A request that dies with the daemon is sent again, with the same key, to the next one. Each purchase
has an amount of its own, so the chain alone shows what was paid and how often. Violations seen by clients go into
`violations` as "kind: what happened"; killchecks looks for the rest.
"""

import asyncio
import base64
import hashlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
from killforks import ForkServer, Life, cold_start
from kit.http import NO_TLS

from payagent.core.network import NETWORKS
from payagent.devnet.ledger import decode_tx
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.wallet.new_keystore import create, new_words

TOKEN = "ab" * 28 + b"KILL".hex()
PASSPHRASE = "canary passphrase of the kill tests"
APP_TOKEN = "canary-app-token-of-the-kill-tests"
PARTNER = "kills"
UTXOS, UTXO_LOVELACE = 50, 60_000_000
TOKEN_UTXOS, TOKEN_UTXO_UNITS = 12, 1_000_000
CONFIRM_DEPTH, SETTLE_DEPTH = 2, 6
BLOCK_EVERY_S = 1.0
"""A slot's: daemons believe no chain that goes on growing faster than its slots."""
STUCK_S = 120.0
SHOPPERS = 6


Json = dict[str, Any]
_CONFIG = """\
network = "devnet"
data_dir = "{data_dir}"
[api]
listen = "127.0.0.1:0"
socket = "{data_dir}/s"
[[chain.providers]]
kind = "blockfrost"
base_url = "{chain}"
[payments]
confirm_depth = {confirm}
void_depth = 3
settle_depth = {settle}
min_window_s = {min_window_s}
[merchants.t]
origin = "{merchant}"
partner = "{partner}"
[[limits.assets]]
asset = "{token}"
per_payment = "1000000"
per_day = "100000000"
[keystore]
passphrase_file = "{data_dir}/passphrase"
"""


@dataclass(frozen=True)
class Goods:
    """What a purchase asks the merchant for; `pay_to_units` of the asset are asked for by no other."""

    number: int
    asset: str
    pay_to_units: int
    settings: Json
    merchant_submits: bool

    @classmethod
    def numbered(cls, number: int) -> "Goods":
        """Varied by its number: asset, shares, how they count, dialect; some the merchant submits."""
        merchant_submits = number % 7 == 4
        asset = TOKEN if number % 6 == 5 else "lovelace"
        least = 1_000_000 if asset == "lovelace" else 100
        pay_to = 2 * least + number
        shares = [
            {"role": role, "units": str(least + index)}
            for index, role in enumerate(("platform", "creator")[: 0 if merchant_submits else number % 3])
        ]
        mode = "inclusive" if number % 4 == 1 else "additional"
        taken = sum(int(share["units"]) for share in shares) if mode == "inclusive" else 0
        settings: Json = {"price": str(pay_to + taken), "asset": asset, "splits": shares, "split_mode": mode}
        settings |= {"timeout": 7200, "dialect": "flux" if number % 5 == 3 else "t-backend"}
        # deeper than any rollback: a merchant that serves earlier may lose the money, and nobody sends it again
        settings["x402"] = {"max_timeout_s": 7200, "confirmations": 2}
        return cls(number, asset, pay_to, settings, merchant_submits)

    @property
    def call(self) -> tuple[str, str, bytes]:
        """Method, path and body of the call that is bought."""
        if self.merchant_submits:
            return "GET", f"/x402/goods/{self.number}", b""
        return "POST", "/chat", b'{"message": "purchase %d"}' % self.number


@dataclass
class Purchase:
    """One purchase of a shopper, and the answers about it so far."""

    goods: Goods
    ask: Json
    payment_id: str | None = None
    tx_hash: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    served: bool = False
    done: bool = False

    @property
    def key(self) -> str:
        return f"purchase-{self.goods.number}"


Step = Callable[[Purchase], Awaitable[bool]]
"""One call of a client; whether it brought the purchase a step further."""


class Lane:
    """One wallet with its daemon and its shoppers."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.dir = world.dir / f"lane{number}"
        self.log = world.dir / f"lane{number}.log"
        self.config = self._configure("config", min_window_s=60)
        # under these terms nothing that was admitted and not signed can be signed any more
        self.strict_config = self._configure("strict", min_window_s=86_400)
        self.words = new_words(os.urandom)
        self.address = self._make_wallet()
        self.purchases: list[Purchase] = []
        self.attempts: dict[str, Any] = {}
        self.life: Life | None = None
        self.shopping = True
        self._door: tuple[httpx.AsyncClient, str] | None = None
        self._opened = asyncio.Event()
        self._unix = httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(self.dir / "s"), verify=NO_TLS))

    def _configure(self, name: str, min_window_s: int) -> Path:
        path = self.world.dir / f"{self.dir.name}-{name}.toml"
        devnet = self.world.devnet
        text = _CONFIG.format(
            data_dir=self.dir,
            chain=devnet.chain_url,
            merchant=devnet.merchant_url,
            partner=PARTNER,
            token=TOKEN,
            confirm=CONFIRM_DEPTH,
            settle=SETTLE_DEPTH,
            min_window_s=min_window_s,
        )
        path.write_text(text)
        return path

    def _make_wallet(self) -> str:
        self.dir.mkdir(mode=0o700)
        passphrase = self.dir / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text(PASSPHRASE)
        header = create(self.dir / "keystore.json", self.words, PASSPHRASE, NETWORKS["devnet"], scrypt_n=16)
        writer = Writer(self.dir / "ledger.db")
        token_hash = hashlib.sha256(APP_TOKEN.encode()).hexdigest()
        scopes = ("operate", "pay", "read")
        writer.submit("app", lambda unit: apps.add_with_token(unit, "app", "shop", token_hash, scopes, 1)).result()
        writer.close()
        return header.address

    # --- the current daemon ---

    async def start(
        self,
        kill_at: tuple[str, int] | None = None,
        *,
        variant: str | None = None,
        strict: bool = False,
        cold: bool = False,
    ) -> Life:
        """Begin a life. The door opens for shoppers when it serves, and closes when it ends (not if `strict`)."""
        if cold:
            life = await cold_start(self.config, self.log, self.dir / "s")
        else:
            config = self.strict_config if strict else self.config
            life = self.world.forks.start(config, self.log, kill_at, variant)
        self.life = life
        if not strict:
            self.world.spawn(self._keep_door(life))
        return life

    async def _keep_door(self, life: Life) -> None:
        if await life.is_ready():
            where = life.ready.result()
            door = (self.world.http, where["api"]) if "api" in where else (self._unix, "http://payagent")
            if await self._sees_chain(life, *door):
                self._door = door
                self._opened.set()
                life.open.set_result(None)
                await asyncio.shield(life.exit)
                self._opened.clear()
        if life.failed is not None:
            self.world.violate("daemon failed", life.failed)

    async def _sees_chain(self, life: Life, client: httpx.AsyncClient, base: str) -> bool:
        """Waits until the daemon can pay (True) or is dead (False)."""
        while not life.exit.done():
            with suppress(httpx.TransportError):
                if (await client.get(f"{base}/readyz")).status_code == 200:
                    return True
            await asyncio.sleep(0.005)
        return False

    async def ended(self, life: Life, timeout_s: float) -> bool:
        """Waits for a daemon to kill itself; True when it did."""
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(life.exit), timeout_s)
        return life.exit.done()

    async def call(self, method: str, path: str, timeout_s: float = 60.0, **options: Any) -> httpx.Response:
        """Send a request to the current daemon; raises httpx.TransportError if it dies meanwhile."""
        await self._opened.wait()
        assert self._door is not None
        client, base = self._door
        headers = {"Authorization": f"Bearer {APP_TOKEN}", **options.pop("headers", {})}
        return await client.request(method, base + path, headers=headers, timeout=timeout_s, **options)

    # --- shopping ---

    async def shop(self) -> None:
        """Buy one thing after another until stopped, and finish the purchases begun."""
        while self.shopping:
            await self.buy()

    async def buy(self) -> None:
        purchase = await self.want()
        await self._carry(purchase, (self._pay, self._until_ready, self._present, self._report))
        purchase.done = True

    async def want(self) -> Purchase:
        purchase = await self.world.price(self.address)
        self.purchases.append(purchase)
        return purchase

    async def pay(self, purchase: Purchase) -> None:
        """Ask for it to be paid, again and again, until there is an answer."""
        await self._carry(purchase, (self._pay,))

    async def confirmed(self, purchase: Purchase) -> None:
        """Wait until the acknowledged payment is confirmed."""
        wait_s, state = 0, None
        async with asyncio.timeout(STUCK_S):
            while state not in ("confirmed", "settled"):
                answer = await self.call("GET", f"/v1/payments/{purchase.payment_id}?wait={wait_s}")
                wait_s, state = 1, answer.json()["state"]

    async def _carry(self, purchase: Purchase, steps: tuple[Step, ...]) -> None:
        at = 0
        while at < len(steps) and not purchase.done:
            try:
                at = at + 1 if await steps[at](purchase) else min(at, 1)
            except httpx.TransportError:
                await asyncio.sleep(0.01)  # it died; the door closes as soon as that is known

    async def _pay(self, purchase: Purchase) -> bool:
        answer = await self.call(
            "POST", "/v1/payments", json=purchase.ask, headers={"Idempotency-Key": purchase.key}
        )
        if answer.status_code in (200, 201):
            self.take(purchase, answer.json())
            return True
        if answer.json().get("code") != "chain_not_ready":
            self.world.violate("refused", f"{purchase.key}: {answer.status_code} {answer.text[:300]}")
            purchase.done = True
        await asyncio.sleep(0.02)
        return False

    async def _until_ready(self, purchase: Purchase) -> bool:
        # it may have become ready while nobody could be asked: look first, and only then wait for a change
        return await self._look(purchase, wait_s=0) or await self._look(purchase, wait_s=3)

    async def _look(self, purchase: Purchase, wait_s: int) -> bool:
        answer = await self.call("GET", f"/v1/payments/{purchase.payment_id}?wait={wait_s}")
        if answer.status_code != 200:
            self.world.violate("payment lost", f"{purchase.payment_id}: {answer.status_code} {answer.text[:300]}")
            purchase.done = True
            return False
        self.take(purchase, answer.json())
        return bool(answer.json()["ready"])

    async def _present(self, purchase: Purchase) -> bool:
        answer = await self.world.ask_merchant(purchase.goods, self.address, purchase.headers)
        if answer.status_code == 200:
            purchase.served = True
            return True
        if not is_pending(answer):
            told = base64.b64decode(answer.headers.get("PAYMENT-REQUIRED", ""))[:200]
            self.world.violate("merchant refused", f"{purchase.key}: {answer.text[:300]} {told!r}")
            purchase.done = True
        return False

    async def _report(self, purchase: Purchase) -> bool:
        answer = await self.call("POST", f"/v1/payments/{purchase.payment_id}/delivery", json={"status": 200})
        if answer.status_code != 200 or answer.json()["delivery"] != "accepted":
            self.world.violate("delivery not recorded", f"{answer.status_code} {answer.text[:300]}")
        return True

    def take(self, purchase: Purchase, view: Json) -> None:
        """An answer about a purchase: what was acknowledged once stays so for ever."""
        told = (view["id"], view["tx_hash"], view["headers"])
        if purchase.payment_id is None:
            purchase.payment_id, purchase.tx_hash, purchase.headers = told
        elif told != (purchase.payment_id, purchase.tx_hash, purchase.headers):
            known = (purchase.payment_id, purchase.tx_hash)
            self.world.violate("answer changed", f"{purchase.key}: {told[:2]} {view['state']} after {known}")
        proof = view["headers"].get("PAYMENT-SIGNATURE" if purchase.goods.merchant_submits else "X-Payment")
        if proof is None or view["tx_hash"] != (
            proof if not purchase.goods.merchant_submits else tx_hash_of(proof)
        ):
            self.world.violate("proof missing", f"{purchase.key}: {view['state']} {view['headers']}")

    async def aclose(self) -> None:
        if self.life is not None:
            await self.life.end(signal.SIGKILL)
        await self._unix.aclose()


WAITING = {f"invalid_exact_cardano_payload_{why}" for why in ("nonce_not_on_chain", "input_not_available")}
WAITING.add("settlement_pending")
"""A facilitator also answers this while a rollback has removed the UTxOs that a transaction spends."""


def is_pending(answer: httpx.Response) -> bool:
    """Whether the merchant says that the same proof will do later."""
    for header, key in (("PAYMENT-RESPONSE", "errorReason"), ("PAYMENT-REQUIRED", "error")):
        if said := answer.headers.get(header):
            return str(json.loads(base64.b64decode(said))[key]) in WAITING
    return bool(answer.json().get("detail") == {"status": "pending"})


def tx_hash_of(header: str) -> str:
    """The id of the transaction that a PAYMENT-SIGNATURE carries."""
    payload = json.loads(base64.b64decode(header))["payload"]
    return decode_tx(base64.b64decode(payload["transaction"])).tx_id


class World:
    """The devnet, its merchant, and all lanes."""

    def __init__(self, folder: Path, seed: int, devnet: DevnetThread, forks: ForkServer) -> None:
        self.dir = folder
        self.devnet = devnet
        self.forks = forks
        self.random = random.Random(seed)
        self.http = httpx.AsyncClient(verify=NO_TLS, timeout=60, limits=httpx.Limits(max_connections=None))
        self.lanes: list[Lane] = []
        self.violations: list[str] = []
        self.kills: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.rejected = 0
        self.calm = False
        self._priced = 0
        self._deposits = 0
        self._floor = 0
        self._pricing = asyncio.Lock()
        self._chain = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def violate(self, kind: str, detail: str) -> None:
        self.violations.append(f"{kind}: {detail}")

    def spawn(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def guarded() -> None:
            try:
                await work
            except Exception as error:
                # a broken world must not look like a quiet one
                self.violate("harness", repr(error))
                raise

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the merchant ---

    async def ask_merchant(self, goods: Goods, wallet: str, proof: dict[str, str]) -> httpx.Response:
        headers = {"Content-Type": "application/json", "X-Partner": PARTNER, "X-Wallet-Address": wallet, **proof}
        method, path, body = goods.call
        return await self.http.request(method, self.devnet.merchant_url + path, content=body, headers=headers)

    async def price(self, wallet: str) -> Purchase:
        """A new purchase: the merchant's 402 for a request of its own."""
        async with self._pricing:
            self._priced += 1
            return await self._invoice(Goods.numbered(self._priced), wallet)

    async def price_again(self, purchase: Purchase, wallet: str) -> Purchase:
        """The same purchase, whose merchant has made a new invoice for it."""
        async with self._pricing:
            asked = await self._invoice(purchase.goods, wallet)
        return replace(purchase, ask=asked.ask, payment_id=None, tx_hash=None)

    async def _invoice(self, goods: Goods, wallet: str) -> Purchase:
        """While no other one is asked for: new settings make new invoices."""
        set_up = await self.http.post(f"{self.devnet.merchant_url}/merchant/settings", json=goods.settings)
        set_up.raise_for_status()
        answer = await self.ask_merchant(goods, wallet, {})
        assert answer.status_code == 402, answer.text
        method, path, body = goods.call
        request = {"method": method, "path": path, "body_sha256": hashlib.sha256(body).hexdigest()}
        received = {"status": 402, "headers": dict(answer.headers), "body": answer.json()}
        return Purchase(goods, {"origin": self.devnet.merchant_url, "request": request, "response": received})

    # --- the chain ---

    async def control(self, name: str, **body: object) -> Json:
        answer = await self.http.post(f"{self.devnet.origin}/devnet/{name}", json=body)
        answer.raise_for_status()
        return dict(answer.json())

    async def add_lane(self) -> Lane:
        """A funded wallet; what it holds lies deeper than any rollback reaches."""
        lane = Lane(self, len(self.lanes))
        self.lanes.append(lane)
        async with self._chain:
            for _ in range(UTXOS):
                await self.control("faucet", address=lane.address, lovelace=str(UTXO_LOVELACE))
            for _ in range(TOKEN_UTXOS):
                assets = {TOKEN: str(TOKEN_UTXO_UNITS)}
                await self.control("faucet", address=lane.address, lovelace="5000000", assets=assets)
            await self.control("blocks", count=3)
            self._floor = (await self.control("blocks", count=1))["blocks"][0]["height"]
        return lane

    async def deposit(self, lane: Lane) -> None:
        """More money for a wallet. Its block stays: a deposit that is rolled back is another story."""
        self._deposits += 1
        async with self._chain:
            await self.control("faucet", address=lane.address, lovelace=str(30_000_000 + self._deposits))
            self._floor = (await self.control("blocks", count=1))["blocks"][0]["height"]

    async def produce(self) -> None:
        """Blocks; and until it is calm rollbacks by one or two, lost replies, late submissions."""
        number = 0
        while True:
            await asyncio.sleep(BLOCK_EVERY_S)
            number += 1
            if not self.calm and number % 4 == 0:
                await self._roll_back(1 + number // 4 % 2)
            if not self.calm and number % 3 == 0:
                kind = min(("lost_reply", "late_accept"), key=self._triggered)
                await self.control("faults", on="submit", kind=kind, count=1)
                self.trouble[kind] += 1
            async with self._chain:
                await self.control("blocks", count=1)

    def _triggered(self, kind: str) -> int:
        """How often this fault has met a submission."""
        return self.devnet.run(lambda devnet: devnet.node.switches.triggered.get(f"submit:{kind}", 0))

    async def _roll_back(self, depth: int) -> None:
        async with self._chain:
            height = self.devnet.run(lambda devnet: devnet.chain.tip.height)
            if height - depth >= self._floor:
                undone = await self.control("rollback", depth=depth)
                self.trouble["rollback"] += 1
                self.trouble["rolled back transactions"] += len(undone["undone"])

    async def settle_down(self) -> None:
        """No more trouble, a last start for everybody, and time until all that was begun is on the chain."""
        self.calm = True
        await self.control("faults", clear=True)
        for lane in self.lanes:
            lane.shopping = False
            await lane.start()
        try:
            async with asyncio.timeout(STUCK_S):
                await asyncio.gather(*(self._finish(lane) for lane in self.lanes))
        except TimeoutError:
            for lane in self.lanes:
                for purchase in lane.purchases:
                    if not purchase.done:
                        self.violate("stuck", f"{lane.dir.name} {purchase.key} {purchase.payment_id}")

    async def _finish(self, lane: Lane) -> None:
        while not all(purchase.done for purchase in lane.purchases):
            await asyncio.sleep(0.05)
        for purchase in lane.purchases:
            if purchase.payment_id is not None:
                again = await lane.call(
                    "POST", "/v1/payments", json=purchase.ask, headers={"Idempotency-Key": purchase.key}
                )
                if again.status_code == 200:
                    lane.take(purchase, again.json())
                else:
                    self.violate("payment lost", f"{purchase.key}: {again.status_code} {again.text[:300]}")
        for purchase in lane.purchases:
            if purchase.payment_id is not None:
                await lane.confirmed(purchase)

    async def aclose(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self.lanes:
            await lane.aclose()
        await self.http.aclose()


@asynccontextmanager
async def running_world(folder: Path, forks: ForkServer, seed: int, lanes: int) -> AsyncIterator[World]:
    """A world with funded wallets and blocks that come; everything in it is gone at the end."""
    with DevnetThread() as devnet:
        made = World(folder, seed, devnet, forks)
        try:
            for _ in range(lanes):
                await made.add_lane()
            made.spawn(made.produce())
            yield made
        finally:
            await made.aclose()
