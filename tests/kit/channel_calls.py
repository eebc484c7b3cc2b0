"""A channel at the devnet's merchant, and calls of an agent that it pays."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from kit.agent import ADA, APP, Run, World, world_with_clock
from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.agent.channels.calls import ChannelCalls
from payagent.core.aggregate import PaymentRow
from payagent.core.channel import Channel, ChannelPhase
from payagent.core.ledger import merchant_account
from payagent.core.pay_and_retry import Answered
from payagent.devnet import cbor
from payagent.devnet.channel_script import OPENED, SCRIPT_ADDRESS, SCRIPT_HASH, ChannelDatum
from payagent.devnet.decode import decode_tx
from payagent.dialects import parse_answer, parse_response
from payagent.settings.schema import ChannelSettings, MerchantChannelSettings
from payagent.signer.channels import Channels, Windows
from payagent.signer.policy import Clocks, Policy
from payagent.store.db.ceiling_file import CeilingFile, ceiling_file
from payagent.store.rows import channels
from payagent.wallet.keys import SoftwareSigner

PRICE, TAG, DELAY_S = 1_000, "17" * 32, 900


class OwnChannels(Channels):
    """Signs as the signer's process does. `vouchers`: the amounts that it was asked for."""

    def __init__(self, world: World, provider: str) -> None:
        assert isinstance(world.account.signer, SoftwareSigner)
        rules = {
            "network": "cardano:devnet",
            "scripts": (SCRIPT_HASH.hex(),),
            "providers": {provider: (20 * ADA, DELAY_S * 1000)},
            "locked_per_day": 50 * ADA,
            "signed_per_day": 10 * ADA,
        }
        caps = {"lovelace": 1000 * ADA}
        policy = Policy(world.account.address.raw, caps, caps, Clocks(lambda: 0, lambda: None))
        super().__init__(rules, world.account.signer, policy, Windows(rules))
        self.vouchers: list[int] = []
        self.before_voucher: Callable[[int], None] = lambda _amount: None

    def answer(self, request: bytes) -> bytes:
        ((kind, fields),) = json.loads(request).items()
        if kind == "voucher":
            self.before_voucher(fields["amount"])
            self.vouchers.append(fields["amount"])
        return super().answer(request)


@dataclass
class Shop:
    """The devnet's channel shop, and the wallet that buys there."""

    world: World
    provider: str

    def mood(self, mood: str | None = None, price: int = PRICE, **more: object) -> None:
        self.world.settings(dialect="x402-channel", price=str(price), channel={"mood": mood, **more})

    @property
    def state(self) -> dict[str, Any]:
        """What the shop knows."""
        found = self.world.http.get(f"{self.world.origin}/merchant/state").json()["channel"]
        assert isinstance(found, dict)
        return found

    @property
    def count(self) -> int:
        """What the shop has charged."""
        return int(self.state["channels"].get(TAG, {}).get("count", 0))

    def served(self) -> int:
        return int(self.state["counts"].get("served", 0))

    @asynccontextmanager
    async def run(
        self,
        is_open: bool = True,
        is_killed: bool = False,
        **more: Any,
    ) -> AsyncIterator["ChannelRun"]:
        """A run of the agent, with a channel of 5 ADA unless it has one.

        `is_killed`: it ends without a clean stop.
        """
        own = MerchantChannelSettings(provider_keys=(self.provider,), **more)
        known = replace(self.world.terms.merchants[self.world.origin], channel=own)
        settings = ChannelSettings(enabled=True, scripts=(SCRIPT_HASH.hex(),))
        world = self.world
        signer = world.channel_signer = OwnChannels(world, self.provider)
        async with world.run(
            terms=lambda given: replace(given, merchants={world.origin: known}, channels=settings),
        ) as run:
            assert run.agent.channels is not None
            found = ChannelRun(self, run, signer, run.agent.channels.calls)
            if is_open and channels.live_channel(run.context.conn, world.origin) is None:
                await found.open_channel()
            await found.start()
            yield found
            if not is_killed:
                found.calls.stop()


@dataclass
class ChannelRun:
    """A run whose merchant sells by channel."""

    shop: Shop
    run: Run
    signer: OwnChannels
    calls: ChannelCalls

    @property
    def channel(self) -> Channel:
        return channels.channel(self.run.context.conn, TAG)

    async def start(self) -> None:
        merchants = self.run.topups._merchants
        await self.calls.start(merchants, CeilingFile(self.shop.world.folder / ceiling_file(0)))

    async def open_channel(self, lovelace: int = 5 * ADA) -> None:
        """Put a channel on the chain and into the ledger, as its opening would have left it."""
        world, provider, tag = self.shop.world, bytes.fromhex(self.shop.provider), bytes.fromhex(TAG)
        own = world.account.address.raw[1:29]
        asked = {"key": {"tag": TAG, "asset": "lovelace", "provider": self.shop.provider}}
        key = self.signer.answer(json.dumps(asked).encode())
        datum = ChannelDatum(SCRIPT_HASH, tag, "lovelace", key, own, provider, DELAY_S * 1000, OPENED)
        output = b"\xa3\x00" + cbor.byte_string(SCRIPT_ADDRESS) + b"\x01" + cbor.head(cbor.UINT, lovelace)
        output += b"\x02\x82\x01\xd8\x18" + cbor.byte_string(datum.encode())
        tx = decode_tx(b"\x84\xa3\x00\x80\x01\x81" + output + b"\x02\x00\xa0\xf5\xf6")

        def put(devnet: Any) -> None:
            devnet.chain.faucet_ids.add(tx.tx_id)
            devnet.chain._admit(tx)

        world.devnet.run(put)
        world.block()
        row = Channel(
            id=TAG,
            origin=world.origin,
            account=0,
            asset="lovelace",
            provider=self.shop.provider,
            script_hash=SCRIPT_HASH.hex(),
            iou_key=key.hex(),
            close_period_ms=DELAY_S * 1000,
            pay_to=world.address,
            created_at_ms=1,
            phase=ChannelPhase.OPEN,
            ref=f"{tx.tx_id}#0",
            deposited=lovelace,
            capacity=lovelace - 2 * ADA,
        )
        await self.run.context.write("channel", lambda unit: channels.put(unit, row))

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.shop.world.http.get(self.shop.world.origin + path, headers=headers)

    def ask(self, path: str = "/channel/a", **more: Any) -> PaymentRequest:
        answer = self.get(path)
        assert answer.status_code == 402, answer.text
        return PaymentRequest(
            app_id=APP,
            origin=self.shop.world.origin,
            response=parse_response(402, list(answer.headers.multi_items()), answer.content),
            received=json.dumps({"status": 402}),
            request=MerchantRequest("GET", path, hashlib.sha256(b"").hexdigest()),
            **more,
        )

    async def pay(self, path: str = "/channel/a", **more: Any) -> PaymentRow:
        row, _ = await self.run.agent.pay(self.ask(path, **more))
        return row

    def headers(self, row: PaymentRow) -> dict[str, str]:
        return retry_headers(row, None, self.shop.world.address)

    async def show(self, path: str, row: PaymentRow) -> tuple[httpx.Response, PaymentRow, Answered]:
        """Send the voucher, and let the agent read the answer, as the proxy does."""
        answer = await asyncio.to_thread(self.get, path, self.headers(row))
        response = parse_answer(answer.status_code, list(answer.headers.multi_items()), answer.content)
        deliveries = self.run.agent.deliveries_of(row.id)
        row, said = await deliveries.take_answer(row.id, response)
        return answer, await deliveries.record_delivery(row.id, response.status), said

    async def call(self, path: str = "/channel/a", **more: Any) -> tuple[httpx.Response, PaymentRow]:
        """A call from its 402 to its answer. A voucher that was corrected is presented again."""
        row = await self.pay(path, **more)
        answer, row, said = await self.show(path, row)
        while said.again_after_s == 0:
            answer, row, said = await self.show(path, row)
        return answer, row

    async def silence(self, row: PaymentRow) -> None:
        """No answer came, and none can come any more."""
        await self.run.agent.deliveries_of(row.id).record_unanswered(row.id, "test")
        self.wait_out()

    def wait_out(self) -> None:
        """The time in which an answer could come is over."""
        now_s = self.calls.now_s
        self.calls.now_s = lambda: now_s() + 60

    def spent(self) -> int:
        """What the books say was spent at the merchant."""
        return self.run.books().get(merchant_account(self.shop.world.origin), {}).get("lovelace", 0)


@contextmanager
def channel_shop(folder: Path) -> Iterator[Shop]:
    with world_with_clock(folder) as world:
        world.settings(dialect="x402-channel", price=str(PRICE), channel={})
        state = world.http.get(f"{world.origin}/merchant/state").json()["channel"]
        world.block()
        yield Shop(world, state["provider_key"])
