"""kill -9 around the calls of a channel: before and after V1, the signature, the request, the charge and V2.

A daemon pays calls at the devnet's channel shop, through the proxy or by an app that presents the voucher itself.
Each kill ends a daemon in the middle of a call. The next daemon gets the same call again, with the same key, or
another one before it. The shop is watched: each voucher that reaches it must be promised in the file already.
What is wrong goes into `violations` as "kind: what happened".

As a program: `killchannel.py --kills N --seed S` runs N kills and prints a summary. Its exit status is 0 only
without violations.
"""

import argparse
import asyncio
import hashlib
import logging
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from killforks import ForkServer, Life, fork_server
from kit.http import NO_TLS

from payagent.core.network import NETWORKS
from payagent.devnet.channel_shop import ChannelShop, Sold
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.store.rows import apps
from payagent.wallet.new_keystore import create, new_words

Json = dict[str, Any]
PASSPHRASE, APP_TOKEN = "canary passphrase of the channel kills", "canary-app-token-of-the-channel-kills"
PRICE = 1_000
SILENT_S = 1
"""How long the daemon waits for the answer to an earlier call: the setting `timeout_s` of the merchant."""

STUCK_S = 60.0
COMMITS = ("before promise", "after promise", "after voucher", "before delivery", "after delivery")
"""Where the daemon kills itself: at V1, at the signature and at V2."""

AT_THE_SHOP = ("sent", "arrived", "charged", "asked for the count")
"""Where the shop kills it: with the voucher there but never charged, before the charge, and before the answer."""

POINTS = (*COMMITS, *AT_THE_SHOP, "delivered")
WAYS = ("proxy", "app")
UNDER_WAY = ("chain_not_ready", "ledger_behind", "channel_opening", "starting", "stopping")
LOST = ("channel_unserved", "invoice_already_paid")
"""How a call ends that was charged and whose answer died with the daemon, if another call came before it again."""

_CONFIG = """\
network = "devnet"
data_dir = "{folder}/data"
[api]
listen = "127.0.0.1:0"
socket = "{folder}/s"
[[chain.providers]]
kind = "blockfrost"
base_url = "{chain}"
[keystore]
passphrase_file = "{folder}/passphrase"
[channels]
enabled = true
[merchants.shop]
origin = "{merchant}"
timeout_s = {silent_s}
[merchants.shop.channel]
provider_keys = ["{provider}"]
deposit = "15 ADA"
open = "auto"
"""


@dataclass(frozen=True)
class Seen:
    """A voucher at the shop. `was_new`: it is above what the shop had counted before it."""

    path: str
    amount: int
    signature: str
    was_new: bool


@dataclass
class Call:
    """What an app asks for, and what it got. `held`: the headers that its daemon gave it first."""

    number: int
    way: str
    offer: Json | None = None
    held: dict[str, str] | None = None
    served: bool = False
    refused: str | None = None

    @property
    def path(self) -> str:
        return f"/channel/{self.number}"

    @property
    def key(self) -> str:
        return f"call-{self.number}"


class Watch:
    """What the shop gets, and the daemon that it kills when `due`. It is asked in the devnet's thread."""

    def __init__(self, database: Path, violations: list[str]) -> None:
        self.due: str | None = None
        self.pid = 0
        self.seen: list[Seen] = []
        self.charged: list[Seen] = []
        self._database, self._violations = database, violations

    @contextmanager
    def watching(self) -> Iterator[None]:
        """As long as it is open, every shop of this process is watched."""
        ask = ChannelShop.ask

        def watched(shop: ChannelShop, path: str, payment: Json | None) -> Sold | None:
            return ask(shop, path, None) if payment is None else self.ask(shop, partial(ask, shop), path, payment)

        setattr(ChannelShop, "ask", watched)  # noqa: B010  a method is not to be assigned
        try:
            yield
        finally:
            setattr(ChannelShop, "ask", ask)  # noqa: B010  as above

    def ask(
        self, shop: ChannelShop, ask: Callable[[str, Json], Sold | None], path: str, payment: Json
    ) -> Sold | None:
        voucher = payment["payload"]["voucher"]
        amount, before = int(voucher["maxClaimableAmount"]), _count(shop)
        seen = Seen(path, amount, voucher["signature"], amount > before)
        self.seen.append(seen)
        if amount > (signed := self._signed()):
            self._violations.append(f"left before durable: {path} for {amount}, and {signed} is promised")
        if self.due == "asked for the count" and not seen.was_new:
            self._kill()
        if self.due == "sent" and seen.was_new:
            self._kill()
            return None
        if self.due == "arrived" and seen.was_new:
            self._kill()
        try:
            return ask(path, payment)
        finally:
            if _count(shop) > before:
                self.charged.append(seen)
                if self.due == "charged":
                    self._kill()

    def _signed(self) -> int:
        """What is promised in the daemon's file, as another process reads it."""
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as conn:
            return int(conn.execute("SELECT max(signed) FROM channels").fetchone()[0])

    def _kill(self) -> None:
        self.due = None
        os.kill(self.pid, signal.SIGKILL)


def _count(shop: ChannelShop) -> int:
    return sum(record.count for record in shop.records.values())


class Died(Exception):  # noqa: N818  what a client sees of a daemon that was killed
    """The daemon is gone."""


@dataclass
class ChannelWorld:
    """One wallet with its daemon, its channel, and the calls of its apps, one after the other."""

    folder: Path
    devnet: DevnetThread
    forks: ForkServer
    http: httpx.AsyncClient
    watch: Watch
    violations: list[str]
    variant: str | None = None
    calls: list[Call] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    life: Life | None = None
    _api: str = ""
    _started_s: float = 0.0

    @property
    def armed(self) -> Path:
        return self.folder / "armed"

    def _arm(self, point: str) -> None:
        with self.armed.open("r+b") as file:
            file.write(point.encode())

    def _is_armed(self) -> bool:
        return any(self.armed.read_bytes())

    def violate(self, kind: str, detail: str) -> None:
        self.violations.append(f"{kind}: {detail}")

    # --- the daemon

    async def start(self) -> None:
        config, log = self.folder / "config.toml", self.folder / "daemon.log"
        self.life = life = self.forks.start(config, log, None, self.variant, self.armed)
        if not await life.is_ready():
            raise AssertionError(f"the daemon did not start: {life.failed}")
        self.watch.pid, self._api = await life.pid, life.ready.result()["api"]
        self._started_s = time.time()

    async def kill(self, point: str, way: str, *, is_other_first: bool = False) -> None:
        """Kill a daemon in the middle of a new call, and let the app ask for that call again."""
        if self.life is None or self.life.exit.done():
            await self.start()
        if point == "asked for the count":  # a daemon that was killed does not know it
            await self._end("idle")
            await self.start()
        call = self._new(way)
        if point in COMMITS:
            self._arm(point)
        elif point in AT_THE_SHOP:
            self.watch.due = point
        try:
            async with asyncio.timeout(STUCK_S):
                await self.ask(call)
        except Died:
            pass
        if point == "delivered":
            await self._end(point)
        elif self.watch.due or self._is_armed():
            self.violate("not reached", f"{point}, {way}, {call.path}: {call.refused}")
            return
        else:
            await self._buried(point)
        await self.start()
        if is_other_first:
            await self._buy_another(way)
        async with asyncio.timeout(STUCK_S):
            await self.ask(call)
        self._check(call, is_other_first=is_other_first)

    async def _end(self, point: str) -> None:
        assert self.life is not None
        os.kill(await self.life.pid, signal.SIGKILL)
        await self._buried(point)

    async def _buried(self, point: str) -> None:
        assert self.life is not None
        status = await asyncio.wait_for(asyncio.shield(self.life.exit), STUCK_S)
        if status != -signal.SIGKILL:
            self.violate("ended by itself", f"{point}: status {status} {self.life.failed}")
        self.kills[point] += 1

    async def _buy_another(self, way: str) -> None:
        """Another call before the one that was cut off, once its answer is not waited for any more."""
        await asyncio.sleep(max(0.0, self._started_s + SILENT_S + 0.1 - time.time()))
        other = self._new(way)
        async with asyncio.timeout(STUCK_S):
            await self.ask(other)
        self._check(other, is_other_first=False)

    # --- the apps

    def _new(self, way: str) -> Call:
        self.calls.append(call := Call(len(self.calls), way))
        return call

    async def ask(self, call: Call) -> None:
        """Ask until there is an answer. Raises `Died` if the daemon is killed meanwhile."""
        call.served, call.refused = False, None
        while not call.served and call.refused is None:
            await (self._by_proxy(call) if call.way == "proxy" else self._by_app(call))

    async def _by_proxy(self, call: Call) -> None:
        answer = await self._request("GET", f"/proxy/shop{call.path}", call)
        if answer.status_code == 200:
            self._take(call, answer)
        else:
            await self._take_problem(call, answer)

    async def _by_app(self, call: Call) -> None:
        """The app keeps its 402, presents the voucher itself and reports what came."""
        merchant = self.devnet.merchant_url
        if call.offer is None:
            unpaid = await self.http.get(merchant + call.path)
            received = {"status": 402, "headers": dict(unpaid.headers), "body": unpaid.json()}
            request = {"method": "GET", "path": call.path, "body_sha256": hashlib.sha256(b"").hexdigest()}
            call.offer = {"origin": merchant, "request": request, "response": received}
        answer = await self._request("POST", "/v1/payments", call, json=call.offer)
        if answer.status_code not in (200, 201):
            await self._take_problem(call, answer)
            return
        payment = answer.json()
        call.held = call.held or payment["headers"]
        if call.held != payment["headers"] and not self._was_voided(call):
            self.violate("another voucher", f"{call.path}: {payment['headers']} after {call.held}")
        try:
            paid = await self.http.get(merchant + call.path, headers=payment["headers"])
        except httpx.TransportError:  # the shop dropped it as it killed the daemon
            raise Died from None
        report = {"status": paid.status_code, "headers": dict(paid.headers), "body": paid.json()}
        told = await self._request("POST", f"/v1/payments/{payment['id']}/delivery", call, json=report)
        if told.status_code != 200:
            self.violate("delivery not recorded", f"{call.path}: {told.status_code} {told.text[:300]}")
        self._take(call, paid)

    def _was_voided(self, call: Call) -> bool:
        """Whether another call came first, so that this one was promised anew."""
        return call.number + 1 < len(self.calls)

    async def _request(self, method: str, path: str, call: Call, **more: Any) -> httpx.Response:
        headers = {"X-Payagent-Token": APP_TOKEN, "Idempotency-Key": call.key}
        if not path.startswith("/proxy"):
            headers = {"Authorization": f"Bearer {APP_TOKEN}", "Idempotency-Key": call.key}
        try:
            return await self.http.request(method, self._api + path, headers=headers, **more)
        except httpx.TransportError:
            raise Died from None

    def _take(self, call: Call, answer: httpx.Response) -> None:
        if answer.status_code != 200 or answer.json().get("path") != call.path:
            self.violate("answer of another", f"{call.path}: {answer.status_code} {answer.text[:300]}")
        call.served = True

    async def _take_problem(self, call: Call, answer: httpx.Response) -> None:
        code = answer.json().get("code")
        if code in UNDER_WAY:
            await asyncio.sleep(0.02)
        else:
            call.refused = str(code)

    # --- the checks

    def _check(self, call: Call, *, is_other_first: bool) -> None:
        charges = [seen for seen in self.watch.charged if seen.path == call.path]
        vouchers = {(seen.amount, seen.signature) for seen in self.watch.seen if seen.path == call.path}
        vouchers = {one for one in vouchers if one[0] >= (charges[0].amount if charges else 0)}
        if len(charges) != 1:
            self.violate("charges", f"{call.path} was charged {len(charges)} times: {charges}")
        if not call.served and not (is_other_first and call.refused in LOST):
            self.violate("not served", f"{call.path} {call.way}: {call.refused}")
        if len(vouchers) > 1 and not is_other_first:
            self.violate("another voucher", f"{call.path}: {vouchers}")

    async def settle(self) -> None:
        """The last start, and the books: of the merchant, of the ledger, and what the daemon finds in it."""
        if self.life is None or self.life.exit.done():
            await self.start()
        assert self.life is not None
        headers = {"Authorization": f"Bearer {APP_TOKEN}"}
        last = self._new("proxy")  # its answer tells the daemon the count
        await self.ask(last)
        self._check(last, is_other_first=False)
        for name in ("verify", "reconcile"):
            answer = await self.http.get(f"{self._api}/v1/ledger/{name}", headers=headers)
            if answer.status_code != 200 or answer.json()["findings"]:
                self.violate(f"ledger {name}", f"{answer.status_code} {answer.text[:500]}")
        (channel,) = (await self.http.get(f"{self._api}/v1/channels", headers=headers)).json()["channels"]
        os.kill(await self.life.pid, signal.SIGTERM)
        if (status := await asyncio.wait_for(asyncio.shield(self.life.exit), STUCK_S)) != 0:
            self.violate("stop", f"the daemon ended with {status}")
        shop = (await self.http.get(f"{self.devnet.merchant_url}/merchant/state")).json()["channel"]
        (record,) = shop["channels"].values()
        wanted = PRICE * len(self.calls)
        with closing(sqlite3.connect(self.folder / "data/ledger.db")) as conn:
            signed, count = conn.execute("SELECT signed, count FROM channels").fetchone()
            charged = conn.execute("SELECT sum(charged) FROM channel_calls").fetchone()[0]
            twice = conn.execute(
                "SELECT intent_id FROM channel_calls WHERE state <> 'void' GROUP BY 1 HAVING count(*) > 1"
            ).fetchall()
        counts = (int(record["count"]), PRICE * shop["counts"]["served"], count, charged)
        if set(counts) != {wanted} or twice:
            self.violate(
                "books", f"{len(self.calls)} calls for {wanted}; shop, its answers, ledger: {counts} {twice}"
            )
        if not int(record["signed"]) <= max(seen.amount for seen in self.watch.seen) <= signed:
            self.violate("signed", f"{signed} is promised, the shop has {record['signed']}: {channel}")


@asynccontextmanager
async def channel_world(
    folder: Path, forks: ForkServer, variant: str | None = None
) -> AsyncIterator[ChannelWorld]:
    """A wallet with money and an open channel."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # each daemon has a port of its own
    violations: list[str] = []
    watch = Watch(folder / "data/ledger.db", violations)
    with watch.watching(), DevnetThread(block_time_s=1) as devnet:
        async with httpx.AsyncClient(verify=NO_TLS, trust_env=False, timeout=60, limits=limits) as http:
            provider = await _furnish(folder, devnet, http)
            (folder / "config.toml").write_text(
                _CONFIG.format(
                    folder=folder,
                    chain=devnet.chain_url,
                    merchant=devnet.merchant_url,
                    provider=provider,
                    silent_s=SILENT_S,
                )
            )
            made = ChannelWorld(folder, devnet, forks, http, watch, violations, variant)
            await made.start()
            async with asyncio.timeout(STUCK_S):
                await made.ask(first := made._new("proxy"))
            if not first.served:
                made.violate("no channel", f"{first.refused}")
            try:
                yield made
            finally:
                if made.life is not None:
                    await made.life.end(signal.SIGKILL)


async def _furnish(folder: Path, devnet: DevnetThread, http: httpx.AsyncClient) -> str:
    """The wallet and its app, their money, and the shop's claiming key."""
    (folder / "data").mkdir(mode=0o700)
    (folder / "armed").write_bytes(bytes(32))
    passphrase = folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(PASSPHRASE)
    keystore = folder / "data/keystore.json"
    own = create(keystore, new_words(os.urandom), PASSPHRASE, NETWORKS["devnet"], scrypt_n=16)
    token_hash, scopes = hashlib.sha256(APP_TOKEN.encode()).hexdigest(), ("operate", "pay", "read")
    with closing(Writer(folder / "data/ledger.db")) as writer:
        writer.submit("app", lambda unit: apps.add_with_token(unit, "app", "op", token_hash, scopes, 1)).result()
    for _ in range(3):
        gift = {"address": own.address, "lovelace": "100000000"}
        (await http.post(f"{devnet.origin}/devnet/faucet", json=gift)).raise_for_status()
    settings = {"dialect": "x402-channel", "price": str(PRICE)}
    (await http.post(f"{devnet.merchant_url}/merchant/settings", json=settings)).raise_for_status()
    (await http.post(f"{devnet.origin}/devnet/blocks", json={"count": 1})).raise_for_status()
    state = (await http.get(f"{devnet.merchant_url}/merchant/state")).json()
    return str(state["channel"]["provider_key"])


async def campaign(kills: int, seed: int, until_s: float | None = None) -> int:
    """So many kills, or as many as there is time for. A tenth of the calls that were cut off are not the next."""
    began_s, chosen = time.monotonic(), random.Random(seed)
    folder = Path(tempfile.mkdtemp(prefix="channel-kills"))
    async with fork_server() as forks, channel_world(folder, forks) as made:
        number = 0
        while made.kills.total() < kills and not made.violations:
            if until_s is not None and time.time() > until_s:
                break
            point, way = POINTS[number % len(POINTS)], chosen.choice(WAYS)
            await made.kill(point, way, is_other_first=chosen.random() < 0.1)
            number += 1
            if number % 100 == 0:
                print(f"{made.kills.total()} kills, {time.monotonic() - began_s:.0f} s", flush=True)
        if not made.violations:
            await made.settle()
    for point, count in sorted(made.kills.items()):
        print(f"{count:5} {point}")
    for violation in made.violations:
        print(violation, file=sys.stderr)
    print(
        f"seed {seed}: {made.kills.total()} kills in {time.monotonic() - began_s:.0f} s, {len(made.calls)} calls, "
        f"{len(made.watch.seen)} vouchers at the shop, {len(made.violations)} violations"
    )
    if made.violations:
        print(f"the files and the log are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/kills --channels",
        description="Kill a daemon again and again while it pays calls by a channel.",
    )
    parser.add_argument("--kills", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="no further kill after so long")
    options = parser.parse_args()
    # a daemon that dies while it sends leaves half a request, which the devnet's server would tell at length
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    until_s = None if options.minutes is None else time.time() + 60 * options.minutes
    return asyncio.run(campaign(options.kills, options.seed, until_s))


if __name__ == "__main__":
    sys.exit(main())
