"""Two daemons on one PostgreSQL, each with an account of a wallet that buys by channel."""

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import httpx
from kit.agent import ADA, APP
from kit.channel_calls import OwnChannels, Shop, channel_shop
from kit.fleet_daemons import FleetDaemon, SharedLedger, fleet_daemon

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.core.aggregate import PaymentRow
from payagent.core.channel import Channel, ChannelCall, ChannelPhase
from payagent.core.ledger import merchant_account
from payagent.core.problems import Refused
from payagent.devnet.channel_script import SCRIPT_HASH
from payagent.dialects import parse_answer, parse_response
from payagent.settings.schema import ChannelSettings, MerchantChannelSettings
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import channels


@dataclass
class ChannelDaemon:
    """A daemon, and what signs the vouchers of its accounts."""

    shop: Shop
    ledger: SharedLedger
    daemon: FleetDaemon
    signers: dict[int, OwnChannels]

    @property
    def vouchers(self) -> list[int]:
        """The amounts that it has signed."""
        return [amount for one in self.signers.values() for amount in one.vouchers]

    @property
    def conn(self) -> Connection:
        return self.daemon.context.conn

    @property
    def channel(self) -> Channel:
        """The only one there is."""
        ((_, channel),) = channels.channels_page(self.conn, None, 2)
        return channel

    @property
    def calls(self) -> list[ChannelCall]:
        return channels.calls_page(self.conn, self.channel.id, None, 100)[::-1]

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        world = self.shop.world
        return world.http.get(world.origin + path, headers=headers)

    def ask(self, path: str, with_exact: bool = False) -> PaymentRequest:
        """The 402 of a request, which is its key. `with_exact`: it can be paid without a channel too."""
        answer = self.get(path)
        assert answer.status_code == 402, answer.text
        headers = list(answer.headers.multi_items())
        if with_exact:
            exact, required = (
                json.loads(base64.b64decode(one.headers["payment-required"]))
                for one in (self.get("/x402/report"), answer)
            )
            required["accepts"] += [entry | {"amount": str(2 * ADA)} for entry in exact["accepts"]]
            headers = [("PAYMENT-REQUIRED", base64.b64encode(json.dumps(required).encode()).decode())]
        return PaymentRequest(
            app_id=APP,
            origin=self.shop.world.origin,
            response=parse_response(402, headers, answer.content),
            received=json.dumps({"status": 402}),
            request=MerchantRequest("GET", path, hashlib.sha256(b"").hexdigest()),
            idempotency_key=path,
        )

    @property
    def ceilings(self) -> dict[str, int]:
        """What the files beside its keystore say."""
        files = (self.shop.world.folder / self.daemon.seat.holder).glob("channels*.json")
        return {name: most for file in files for name, most in json.loads(file.read_bytes()).items()}

    def spent(self) -> int:
        """What the books say was spent at the merchant by the channel."""
        found = self.conn.execute(
            "SELECT SUM(units) FROM postings WHERE account = ?", (merchant_account(self.shop.world.origin),)
        ).fetchone()
        return int(found[0])

    async def order(self, step: str, **asked: object) -> Channel:
        """Order a channel's step at this daemon, as its API does."""
        (made,) = await self.daemon.fleet.order_channel(step, APP, **asked)
        return channels.channel(self.conn, made)

    async def pay(self, path: str, with_exact: bool = False) -> PaymentRow:
        row, _ = await self.daemon.fleet.pay(self.ask(path, with_exact))
        return row

    def headers(self, row: PaymentRow) -> dict[str, str]:
        return retry_headers(row, None, self.shop.world.address)

    async def show(self, path: str, row: PaymentRow) -> httpx.Response:
        """Send the voucher, and report the answer."""
        answer = await asyncio.to_thread(self.get, path, self.headers(row))
        await self.report(row, answer)
        return answer

    async def report(self, row: PaymentRow, answer: httpx.Response) -> PaymentRow:
        response = parse_answer(answer.status_code, list(answer.headers.multi_items()), answer.content)
        row, _ = await self.daemon.fleet.deliveries(row.id).take_answer(row.id, response, is_delivered=True)
        return row

    async def silence(self, row: PaymentRow) -> None:
        """No answer came, and none can come any more."""
        await self.daemon.fleet.deliveries(row.id).take_silence(row.id, "test")
        for held in self.daemon.fleet.held.values():
            calls = held.agent.channels.calls  # type: ignore[union-attr]
            calls.now_s = partial(lambda now_s: now_s() + 60, calls.now_s)

    async def call(self, path: str) -> str:
        """A call from its 402 to its answer: the path that was served."""
        answer = await self.show(path, await self.pay(path))
        assert answer.status_code == 200, answer.headers
        return str(answer.json()["path"])


async def settle(*daemons: ChannelDaemon) -> None:
    """A block with all that was submitted, and a pass of each daemon."""
    for one in daemons:
        for held in one.daemon.fleet.held.values():
            await held.agent.submitter.drain(60)
    daemons[0].shop.world.block()
    for one in daemons:
        await one.daemon.run_pass()


async def open_channel(*daemons: ChannelDaemon) -> None:
    """The first daemon opens one, after it heard the merchant's offer."""
    with suppress(Refused):
        await daemons[0].pay("/channel/offer")
    await daemons[0].order("open", origin=daemons[0].shop.world.origin, units=None, key="open")
    await settle(*daemons)
    assert daemons[0].channel.phase is ChannelPhase.OPEN


async def take_over(one: ChannelDaemon, of: str) -> None:
    """Take the accounts of a daemon whose time is over."""

    def job(unit: Unit) -> None:
        unit.conn.execute("UPDATE accounts SET until_ms = 0 WHERE holder = ?", (of,))
        unit.conn.execute("UPDATE daemons SET seen_at_ms = 0 WHERE id = ?", (of,))

    await one.daemon.writer.run("test", job)
    await one.daemon.fleet.leases.keep()
    assert one.daemon.accounts == [0, 1]
    await one.daemon.run_pass()


@asynccontextmanager
async def channel_daemon(
    shop: Shop, ledger: SharedLedger, name: str, accounts: int
) -> AsyncIterator[ChannelDaemon]:
    signers: dict[int, OwnChannels] = {}

    def signer_of(account: int) -> OwnChannels:
        of_account = shop.world.of_account(account)
        of_account.http.close()
        return signers.setdefault(account, OwnChannels(of_account, shop.provider))

    async with fleet_daemon(shop.world, ledger, name, accounts, channels=signer_of) as daemon:
        yield ChannelDaemon(shop, ledger, daemon, signers)


@asynccontextmanager
async def channel_pair(
    shop: Shop, url: str, accounts: int = 2
) -> AsyncIterator[tuple[ChannelDaemon, ChannelDaemon]]:
    """Daemon a holds account 0, daemon b account 1 if there is one. Both have read the chain."""
    ledger = SharedLedger(shop.world, url)
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(channel_daemon(shop, ledger, name, accounts)) for name in "ab"]
        for daemon in (one, two):
            await daemon.daemon.fleet.leases.keep()
        for daemon in (one, two):
            await daemon.daemon.run_pass()
        assert (one.daemon.accounts, two.daemon.accounts) == ([0], [1][: accounts - 1])
        yield one, two


@contextmanager
def fleet_shop(folder: Path) -> Iterator[Shop]:
    """The devnet's channel shop, and a wallet whose two accounts have funds."""
    with channel_shop(folder) as shop:
        world = shop.world
        own = MerchantChannelSettings(provider_keys=(shop.provider,))
        merchant = replace(world.terms.merchants[world.origin], channel=own)
        settings = ChannelSettings(enabled=True, scripts=(SCRIPT_HASH.hex(),))
        world.terms = replace(world.terms, merchants={world.origin: merchant}, channels=settings)
        for number in (0, 1):
            account = world.of_account(number)
            account.fund(*[20 * ADA] * 4)
            account.http.close()
        yield shop
