"""The world of a wallet that pays calls through channels. Its seeds are its own (`scripts/sim --channels`).

Merchants sell by channel in changing moods, an operator opens, adds and closes, and several apps make calls. All
faults of `World` go on meanwhile: deaths, forks, lost answers, full disks, an older ledger.
Start at `ChannelWorld.run`.
"""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from random import Random

from payagent.agent.base.config import AgentConfig
from payagent.audit.signed_bytes import Owner
from payagent.core.channel import Channel, ChannelPhase
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.devnet.channel_script import OPENED, SCRIPT_ADDRESS, SCRIPT_HASH, read_datum
from payagent.devnet.decode import decode_tx
from payagent.devnet.merchant import Terms as ShopTerms
from payagent.devnet.x402_terms import X402
from payagent.outbound.merchant_client import MerchantClient
from payagent.settings.schema import ChannelSettings, MerchantChannelSettings
from payagent.signer.channels import Channels, Windows
from payagent.signer.policy import Clocks, Policy
from payagent.store.rows import channels as rows
from payagent.wallet.keys import SoftwareSigner
from sim.channel_judge import Caps, ChannelJudge
from sim.channel_merchants import ChannelSimShop, ProbingTransport, draw_habits
from sim.clients import BuyerTask, ClientGoal
from sim.fixtures import ADA, NETWORK, account
from sim.judge import Judge
from sim.process import DeadError, SimProcess
from sim.seed_plan import SeedPlan
from sim.world import World

LOOSE = 10_000 * ADA
DELAY_S = 900
SETTLES_MAX = 3
"""A channel that was recovered late still has its withdraw delay before it."""


class CallTask(BuyerTask):
    """A client of a merchant that sells by channel. Its answer names the path it is for."""

    def _delivered(self, body: bytes) -> None:
        world, goal = self._world, self._goal
        if goal.path.startswith("/channel/"):
            if not goal.shop.has_remembered:  # type: ignore[attr-defined]
                world.judge.got(goal.text, goal.path, json.loads(body).get("path", ""))  # type: ignore[attr-defined]
            world.story.reach("a call by channel is served")


class ToldChannels(Channels):
    """Tells the judge of each voucher before it is signed."""

    judge: ChannelJudge

    def answer(self, request: bytes) -> bytes:
        ((kind, fields),) = json.loads(request).items()
        if kind == "voucher":
            self.judge.asked_to_sign(fields["tag"], fields["amount"])
        return super().answer(request)


class ChannelProcess(SimProcess):
    """A daemon with channels."""

    async def begin(self) -> None:
        await super().begin()
        self._host.judge.started(self.conn)  # type: ignore[attr-defined]


class ChannelWorld(World):
    """One run. Use it once."""

    judge: ChannelJudge
    shops: dict[str, ChannelSimShop]  # type: ignore[assignment]
    make_process = ChannelProcess

    def __init__(self, seed: int, folder: Path, template: Path, *, keep_story: bool = False) -> None:
        self.own = own = Random(f"{seed} channels")  # noqa: S311  a seed gives the same run again
        self.deposit = own.choice((3, 5, 8)) * ADA
        self.locked_max = self.deposit * own.choice((1, 2, 3))
        self.opens = "auto" if own.random() < 0.4 else "by_hand"
        self.is_copied_by = own.random() < 0.3
        """Whether strangers copy the constants of channels."""
        self._is_put_aside = own.random() < 0.15
        self._copies = 0
        super().__init__(seed, folder, template, keep_story=keep_story)

    def _draw_plan(self, seed: int) -> SeedPlan:
        own, plan = self.own, super()._draw_plan(seed)
        copied_s = own.uniform(300, 1200) if self._is_put_aside else None
        return replace(
            plan,
            providers=tuple(replace(habits, lie=None, kind="plain") for habits in plan.providers),
            asset=LOVELACE,
            shops=tuple(replace(shop, asset=LOVELACE) for shop in plan.shops),
            per_day_units=own.choice((2, 20, 60)) * ADA,
            wants=own.choice((0, 1)),
            topup=False,
            calm_from_s=max(plan.calm_from_s, own.choice((1200.0, 2000.0, 2400.0))),
            utxos=tuple(own.randint(8, 40) * ADA for _ in range(own.choice((2, 3, 5)))),
            drought_s=plan.drought_s if own.random() < 0.3 else (0.0, 0.0),
            copied_s=copied_s,
            put_back_s=0.0 if copied_s is None else copied_s + own.uniform(60, 600),
            upkeep_fees_per_day_lovelace=0,
        )

    def _shop(self, number: int, terms: ShopTerms) -> ChannelSimShop:
        name, rng = f"shop{number}", self.rng
        shop = ChannelSimShop(
            name,
            terms,
            X402(2),
            self.net,
            rng,
            self.story,
            self.mix,
            self._released,
            self.plan.refused_below[number],
        )
        shop.sell_by_channel(
            draw_habits(self.own), self.net.node, lambda tag, units: self.judge.presented(tag, units)
        )
        return shop

    def _make_judge(self, rng: Random) -> Judge:
        owner = Owner(account().address, NETWORK)
        return ChannelJudge(self.net, self.story, owner, self, self.plan.per_day_units, rng, self._caps)

    def _caps(self) -> Caps:
        providers = {origin: shop.channels.provider.hex() for origin, shop in self.shops.items()}
        return Caps(self._settings(), providers, self.locked_max, self.deposit)

    def _settings(self) -> ChannelSettings:
        most = f"{3 * self.deposit} lovelace"
        return ChannelSettings.model_validate(
            {"enabled": True, "scripts": (SCRIPT_HASH.hex(),), "locked_max": most}
        )

    def _terms(self) -> AgentConfig:
        terms = super()._terms()
        merchants = {
            origin: replace(
                merchant,
                channel=MerchantChannelSettings(
                    provider_keys=(self.shops[origin].channels.provider.hex(),),
                    deposit=f"{self.deposit} lovelace",  # type: ignore[arg-type]
                    locked_max=f"{self.locked_max} lovelace",  # type: ignore[arg-type]
                    open=self.opens,  # type: ignore[arg-type]
                ),
            )
            for origin, merchant in terms.merchants.items()
        }
        return replace(terms, merchants=merchants, channels=self._settings())

    # --- ports

    def merchants(self) -> MerchantClient:
        return MerchantClient(ProbingTransport(self.shops))  # type: ignore[arg-type]

    def channel_signer(self) -> Channels | None:
        signer = account().signer
        if not isinstance(signer, SoftwareSigner):
            raise TypeError("its key is not in this process")
        rules = {
            "network": f"cardano:{NETWORK.name}",
            "scripts": (SCRIPT_HASH.hex(),),
            "providers": dict.fromkeys(self._caps().providers.values(), (self.locked_max, DELAY_S * 1000)),
            "locked_per_day": 1000 * ADA,
            "signed_per_day": 1000 * ADA,
        }
        loose = {LOVELACE: LOOSE}
        policy = Policy(account().address.raw, loose, loose, Clocks(self.loop.time, lambda: None))
        told = ToldChannels(rules, signer, policy, Windows(rules))
        told.judge = self.judge
        return told

    # --- the run

    async def _run(self) -> None:
        self._do(self._change_moods())
        self._do(self._claim())
        self._do(self._order_steps())
        if self.is_copied_by:
            self._do(self._copy_constants())
        await super()._run()

    def _buyer(self, goal: ClientGoal) -> BuyerTask:
        return CallTask(self, goal)  # type: ignore[arg-type]

    def _wants(self) -> list[ClientGoal]:
        own, shops = self.own, list(self.shops.values())
        apps = own.choice((1, 2, 4))
        calls = [
            ClientGoal(
                app_id="app_test",
                shop=own.choice(shops),
                path=f"/channel/call-{number}",
                text=f"call {number}",
                key=f"call-{number}" if own.random() < 0.7 else None,
                by_proxy=own.random() < 0.4,
                starts_at_s=30.0 + own.random() * own.choice((300, 1500)),
                pause_s=own.choice((20.0, 60.0, 200.0)),
                tries=own.choice((4, 10, 20)),
            )
            for number in range(apps * own.choice((3, 6, 10)))
        ]
        self._keyed = {call.path for call in calls if call.key is not None}
        twice = [call for call in calls if call.key is not None and own.random() < 0.15]
        return super()._wants() + calls + twice

    async def _change_moods(self) -> None:
        while not self.is_calm:
            await asyncio.sleep(self.own.uniform(30, 300))
            for shop in self.shops.values():
                is_moody = not self.is_calm and self.own.random() < shop.habits.is_moody
                shop.be(self.own.choice(shop.habits.moods) if is_moody else None)
        for shop in self.shops.values():
            shop.be(None)

    async def _claim(self) -> None:
        while True:
            await asyncio.sleep(60)
            for shop in self.shops.values():
                if self.own.random() < shop.habits.claims:
                    shop.channels.claim(self.own.choice(("sub", "sub", "settle")))

    async def _order_steps(self) -> None:
        """The operator opens, adds and closes, and in the end closes all."""
        number = 0
        while True:
            await asyncio.sleep(self.own.uniform(20, 90))
            origin = self.own.choice(list(self.shops))
            act, is_repeated = self.own.random(), self.own.random() < 0.3
            number += not is_repeated
            life = await self.life()
            if self.is_calm and self._is_put_aside:
                await self._recover(life)
            if self.is_calm:
                live = [one for one in rows.locked_channels(life.conn) if one.phase is ChannelPhase.OPEN]
                if live:
                    await self._order(life, "close", live[0], live[0].origin, None)
                continue
            key = f"step-{number}" if self.own.random() < 0.5 else None
            channel = rows.live_channel(life.conn, origin)
            if channel is None or act > 0.85:  # one that knows of no channel, or does not look
                await self._order(life, "open", None, origin, key)
            elif act < 0.2:
                await self._order(life, "add", channel, origin, key)
            elif act < 0.25:
                await self._order(life, "close", channel, origin, key)

    async def _recover(self, life: SimProcess) -> None:
        """Look for channels that an older ledger has forgotten."""
        parts = life.agent.channels
        try:
            for _ in await life.call(parts.steps.recover("app_test")):  # type: ignore[union-attr]
                self.story.reach("a forgotten channel is recovered")
        except (DeadError, Refused):
            return

    async def _order(
        self, life: SimProcess, step: str, channel: Channel | None, origin: str, key: str | None
    ) -> None:
        parts = life.agent.channels
        if parts is None:
            raise TypeError("channels are off")
        try:
            if channel is None:
                await life.call(parts.steps.open("app_test", origin, None, key))
            elif step == "add":
                units = self.own.choice((1, 2)) * ADA
                await life.call(parts.steps.add("app_test", channel.id, units, key))
            else:
                await life.call(parts.steps.close("app_test", channel.id, key))
        except DeadError:
            return
        except Refused as refused:
            self.story.reach(f"{step} is refused: {refused.name}")
            self.story.tell(f"{step} is refused: {refused.name}: {refused.detail[:120]}")
            if refused.code == "paused" and self.is_calm:  # by an older ledger that was put back
                await self.operator.resume(self)
            return
        self.story.reach(f"an operator orders: {step}")
        self.story.tell(f"the operator orders: {step}")

    async def _copy_constants(self) -> None:
        """A stranger makes outputs at the script's address that look like a channel of ours."""
        while not self.is_calm:
            await asyncio.sleep(self.own.uniform(60, 400))
            chain, ours = self.net.chain, self.net.chain.utxos_at(SCRIPT_ADDRESS)
            if ours and not self.is_calm:
                ref, out = self.own.choice(ours)
                datum = read_datum(out.inline_datum).at(OPENED, self.own.choice((0, 5 * ADA)))
                self._copies += 1
                raw = _output_of_nobody(datum.encode(), 3 * ADA + self._copies)
                tx = decode_tx(raw)
                chain.faucet_ids.add(tx.tx_id)
                chain._admit(tx)
                self.story.reach("a stranger copies the constants of a channel")
                self.story.tell(f"a stranger copies {ref[0][:8]}")

    def _calm_down(self) -> None:
        """Somebody refills the wallet, so that it can pay for the exits."""
        super()._calm_down()
        for _ in range(3):
            self.net.node.faucet(self._deposited_to(), 15 * ADA, {})

    def _is_anything_open(self, life: SimProcess) -> bool:
        return super()._is_anything_open(life) or bool(rows.locked_channels(life.conn))

    async def _settle(self) -> None:
        for _ in range(SETTLES_MAX):
            await super()._settle()
            if not self._is_anything_open(await self.life()):
                break
        life = await self.life()
        self.judge.channels_at_rest(life.conn)
        self._check_charges(life)

    def _check_charges(self, life: SimProcess) -> None:
        """C4: a merchant whose records are whole charged each key once."""
        if self._is_put_aside:
            return
        for shop in self.shops.values():
            if shop.was_forgetful:
                continue
            for path, count in shop.channels.charged.items():
                if count > 1 and path in self._keyed:
                    self.story.violate("C4", f"{shop.name} charged {count} times for {path}")


def _output_of_nobody(datum: bytes, lovelace: int) -> bytes:
    """A faucet's transaction that makes one output at the script's address."""
    from payagent.devnet import cbor

    output = b"\xa3\x00" + cbor.byte_string(SCRIPT_ADDRESS) + b"\x01" + cbor.head(cbor.UINT, lovelace)
    output += b"\x02\x82\x01\xd8\x18" + cbor.byte_string(datum)
    return b"\x84\xa3\x00\x80\x01\x81" + output + b"\x02\x00\xa0\xf5\xf6"
