"""The agent with channels on, at the devnet's channel shop."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from kit.agent import ADA, APP, DEVNET, Run, World, world_with_clock
from payagent.agent.channels.moves import move
from payagent.agent.channels.parts import ChannelParts
from payagent.core.channel import Channel, ChannelMove, ChannelPhase, Promise, Served
from payagent.core.money import LOVELACE
from payagent.devnet.channel_script import SCRIPT_ADDRESS, SCRIPT_HASH
from payagent.dialects import make_response
from payagent.dialects.http_wire import Reading
from payagent.dialects.x402_batch import Voucher, read_channel_offers, voucher_headers
from payagent.settings.schema import ChannelSettings, MerchantChannelSettings
from payagent.signer.channels import Channels, Windows
from payagent.signer.policy import Policy, clocks_of
from payagent.store.rows import channels as rows
from payagent.store.rows.channels import ChannelStepRow
from payagent.wallet.keys import SoftwareSigner

PRICE = 1_000
DEPOSIT = 5 * ADA
LOOSE = {LOVELACE: 10_000 * ADA}


class ChannelWorld:
    """A world whose merchant sells by channel, and which trusts it with one."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.settings(dialect="x402-channel", price=str(PRICE))
        world.block()
        self.provider = str(world.http.get(f"{world.origin}/merchant/state").json()["channel"]["provider_key"])
        self.caps(ChannelSettings(enabled=True, scripts=(SCRIPT_HASH.hex(),)))

    def caps(self, channels: ChannelSettings, **of_merchant: object) -> None:
        """Set the config of channels, which the signer has too."""
        at = MerchantChannelSettings(provider_keys=(self.provider,), **of_merchant)  # type: ignore[arg-type]
        world = self.world
        merchant = replace(world.terms.merchants[world.origin], channel=at)
        world.terms = replace(world.terms, channels=channels, merchants={world.origin: merchant})
        rules = {
            "network": "cardano:devnet",
            "scripts": channels.scripts,
            "providers": {self.provider: (at.locked_max_lovelace, at.withdraw_delay_max * 1000)},
            "locked_per_day": 1_000 * ADA,
            "signed_per_day": 1_000 * ADA,
        }
        signer = world.account.signer
        assert isinstance(signer, SoftwareSigner)
        policy = Policy(world.account.address.raw, LOOSE, LOOSE, clocks_of(None, lambda: 0.0, lambda: 0.0))
        world.channel_signer = Channels(rules, signer, policy, Windows(rules))

    def call(self, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.world.http.get(f"{self.world.origin}/channel/one", headers=headers or {})

    def mood(self, **settings: object) -> None:
        """Change the shop, or make it claim."""
        self.world.settings(channel=settings)

    def held(self) -> int:
        """Lovelace at the script's address on the devnet's ledger."""
        return self.world.devnet.run(
            lambda devnet: sum(out.lovelace for _, out in devnet.node.chain.utxos_at(SCRIPT_ADDRESS))
        )


@contextmanager
def channel_world(folder: Path) -> Iterator[ChannelWorld]:
    with world_with_clock(folder) as world:
        yield ChannelWorld(world)


def parts(run: Run) -> ChannelParts:
    assert run.agent.channels is not None
    return run.agent.channels


def hear(run: Run, at: ChannelWorld) -> None:
    """Take the merchant's offer from its 402."""
    answer = at.call()
    assert answer.status_code == 402
    response = make_response(402, dict(answer.headers), answer.text)
    reading = Reading(run.world.origin, DEVNET, None, 0)
    (parts(run).offers[run.world.origin],) = read_channel_offers(response, reading)


async def open_channel(run: Run, at: ChannelWorld, units: int | None = None) -> Channel:
    """Open a channel and confirm it."""
    hear(run, at)
    channel, _ = await parts(run).steps.open(APP, run.world.origin, units)
    await run.agent.submitter.drain(60)
    await run.settle_down()
    channel = rows.channel(run.context.conn, channel.id)
    assert channel.phase is ChannelPhase.OPEN
    return channel


def steps(run: Run, channel: Channel) -> list[ChannelStepRow]:
    return rows.steps_of(run.context.conn, channel.id)


async def buy(run: Run, at: ChannelWorld, channel: Channel, calls: int = 1) -> Channel:
    """Pay for calls by vouchers, each promised before it is sent and counted when it is answered."""
    offer, conn = parts(run).offers[run.world.origin], run.context.conn
    for _ in range(calls):
        channel = rows.channel(conn, channel.id)
        amount = channel.count + PRICE
        await _write(run, channel, Promise(amount))
        place = {"tag": channel.id, "asset": channel.asset, "provider": channel.provider}
        signature = await parts(run).steps._signer.channel("voucher", **place, amount=amount)
        voucher = Voucher(
            channel_id=bytes.fromhex(channel.id),
            channel_ref=channel.ref or "",
            payer=run.context.config.own.payment_key_hash,
            iou_key=bytes.fromhex(channel.iou_key),
            amount=amount,
            signature=signature,
        )
        answer = at.call(voucher_headers(offer.echo, voucher, "int_1"))
        assert answer.status_code == 200, answer.headers
        channel = await _write(run, channel, Served(PRICE, signature.hex(), amount))
    return channel


async def _write(run: Run, channel: Channel, by: ChannelMove) -> Channel:
    return await run.context.write_at(
        "call", lambda unit, now_ms: move(unit, rows.channel(unit.conn, channel.id), by, now_ms)
    )
