"""The transactions of channels, each of which is a payment: to open, add to, close and end a channel.

Start with `ChannelSteps.open`. A step is built in a child process and read again. One commit then admits it, with
its hold, its UTxOs, and its row in `channel_steps`. Then it is signed, durable (C3), and submitted as any payment.
It is never built again: if it is lost, its payment is cancelled.

Never: signs a step that no commit has admitted; pays a call; follows a step.
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import islice

from payagent.agent.base.chain_view import TTL_CAP_S
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.ports import Signatures
from payagent.agent.base.requests import TransferRequest, digest
from payagent.agent.channels.moves import move
from payagent.agent.channels.positions import COINS_PER_UTXO_BYTE, ChannelUtxo, address_of, alike, terms_of
from payagent.agent.context import AgentContext
from payagent.agent.pay.lookup import find_payment
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.payments.submit import TxSubmitter
from payagent.chain.provider import Found, Read, ScriptTerms, T
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core.aggregate import PaymentRow
from payagent.core.channel import Channel, ChannelPhase, Close
from payagent.core.hard_caps import FEE_CAP_LOVELACE
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.dialects.x402_batch import ChannelOffer
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import apps
from payagent.store.rows import channels as rows
from payagent.store.rows.channels import ChannelStepRow
from payagent.store.rows.upkeep import UPKEEP_APP
from payagent.wallet import channel_tx
from payagent.wallet.channel_build import ScriptParameters, StepOrder, build_step
from payagent.wallet.transaction import MAINNET_PARAMETERS, PlannedOutput, TxPlan
from payagent.wallet.tx_plan import Frame
from payagent.wallet.utxo_index import Utxo, UtxoIndex

Made = tuple[Channel, PaymentRow]
"""A channel, and the payment that changes it."""

CLOSE_TTL_S = 300
"""The longest life of a Close. The withdraw delay begins when it is over."""

_BESIDE_LOVELACE = 2_000_000
"""What the UTxOs of a step hold beside what it locks: its fee, its collateral, and min-ADA of what returns."""

_DAY_MS = 86_400_000
_LOCKING = ("open", "add")
_NOTHING = "Nothing was signed, and nothing more is locked."


def why_untrusted(config: AgentConfig, merchant: MerchantConfig, offer: ChannelOffer) -> str | None:
    """Why no money may be locked on an offer's terms; None if it may."""
    if config.channels is None or merchant.channel is None:
        return "channels are off, or its table has no channel.provider_keys"
    script, key, delay_s = offer.script_hash.hex(), offer.provider.hex(), offer.withdraw_delay_s
    reasons = {
        "it sells for a token, and channels hold ADA": offer.asset == LOVELACE,
        f"channels.scripts does not have its script {script}": script in config.channels.scripts,
        f"channel.provider_keys does not have its key {key}": key in merchant.channel.provider_keys,
        f"its withdraw delay of {delay_s} s is above channel.withdraw_delay_max": delay_s
        <= merchant.channel.withdraw_delay_max,
    }
    return next((why for why, is_met in reasons.items() if not is_met), None)


def is_under_way(step: ChannelStepRow) -> bool:
    """Whether a step may still change its channel."""
    return not (step.is_over or step.is_posted or step.state is State.CANCELLING)


class ChannelSteps:
    """Makes the steps of one account's channels. `offers`: the latest of each merchant."""

    def __init__(
        self,
        context: AgentContext,
        signing: PaymentSigner,
        submitter: TxSubmitter,
        signer: Signatures,
        offers: dict[str, ChannelOffer],
    ) -> None:
        self._context, self._signing, self._submitter = context, signing, submitter
        self._signer, self._offers = signer, offers

    async def open(self, app_id: str, origin: str, units: int | None = None, key: str | None = None) -> Made:
        """Open a channel at a merchant, on the terms of its latest offer. `units`: to lock, else its `deposit`.

        Refused: `channel_unoffered`; `channel_full` if nothing would be left for calls; `limit_exceeded`;
        `wrong_state` if the merchant has a channel; `not_enough_funds`; as `ChainView.require_ready`.
        """
        if (made := self._made(app_id, key, "open")) is not None:
            return made
        context, config, offer = self._context, self._context.config, self._offers.get(origin)
        merchant, now_ms = config.merchant(origin), context.ports.clock.now_ms()
        why = "it sent no offer yet" if offer is None else why_untrusted(config, merchant, offer)
        if offer is None or merchant.channel is None or why is not None:
            raise Refused("channel_unoffered", f"{merchant.name}: {why}")
        units, slot = units or merchant.channel.deposit_lovelace, context.chain.require_ready(now_ms)
        utxos = await self._choose(units, 3)
        tag = channel_tx.channel_tag(bytes.fromhex(utxos[0].tx_id), utxos[0].index).hex()
        iou_key = await self._signer.channel("key", tag=tag, asset=LOVELACE, provider=offer.provider.hex())
        channel = Channel(
            *(tag, origin, config.account, LOVELACE, offer.provider.hex(), offer.script_hash.hex(), iou_key.hex()),
            *(offer.withdraw_delay_s * 1000, offer.pay_to.text, now_ms, ChannelPhase.OPENING),
            deposited=units,
            updated_at_ms=now_ms,
        )
        self._require_room(context.conn, channel, units, now_ms)
        output = channel_tx.opened(terms_of(channel, config.own.payment_key_hash), units, COINS_PER_UTXO_BYTE)
        if not channel_tx.capacity(output, COINS_PER_UTXO_BYTE):
            raise Refused("channel_full", "a channel keeps more than that until it ends", money=_NOTHING)
        await self._script(channel)  # without it, the channel could not be closed
        order = StepOrder("open", config.own.raw, utxos, slot + TTL_CAP_S, output=output)
        return await self._make(app_id, key, channel, order, units)

    async def add(self, app_id: str, channel_id: str, units: int, key: str | None = None) -> Made:
        """Lock more in an open channel. Refused: as `open`; `chain_not_ready` if its output is not shown now."""
        return await self._order(app_id, channel_id, "add", units, key)

    async def close(self, app_id: str, channel_id: str, key: str | None = None) -> Made:
        """Close an open channel. What is left returns by itself after the withdraw delay. No limit refuses it."""
        return await self._order(app_id, channel_id, "close", 0, key, Close(None))

    async def _order(
        self, app_id: str, channel_id: str, step: str, units: int, key: str | None, by: Close | None = None
    ) -> Made:
        if (made := self._made(app_id, key, step)) is not None:
            return made
        channel = rows.channel(self._context.conn, channel_id)
        if channel.phase is not ChannelPhase.OPEN:
            raise Refused("wrong_state", f"the channel is {channel.phase}, not open")
        address = address_of(channel.script_hash).text
        listed = await self._first(lambda provider: provider.script_utxos(address))
        found = alike(channel, self._context.config.own.payment_key_hash, listed)
        if len(found) != 1:
            raise Refused("chain_not_ready", f"the provider shows {len(found)} outputs of the channel, not one")
        return await self.spend(app_id, channel, step, found[0], units, key, by)

    async def spend(
        self,
        app_id: str,
        channel: Channel,
        step: str,
        at: ChannelUtxo,
        units: int = 0,
        key: str | None = None,
        by: Close | None = None,
    ) -> Made:
        """Make a step that spends the channel's output. `units`: what it adds. `by`: the event of its commit."""
        chain, own, slots = self._context.chain, self._context.config.own, self._context.chain.slots
        slot = chain.require_ready(self._context.ports.clock.now_ms())
        ttl_slot = slot + (CLOSE_TTL_S if step == "close" else TTL_CAP_S)
        ttl_ms, first_slot = (
            (slots.time_ms(ttl_slot), slots.slot_at((at.elapse_at_ms or 0) - 1) + 1) if slots else (0, 0)
        )
        outputs = {"add": channel_tx.added(at.output, units), "close": channel_tx.closed(at.output, ttl_ms)}
        script = await self._script(channel)
        order = StepOrder(
            *(step, own.raw, await self._choose(units, 2), ttl_slot, (at.tx_ref, at.output), outputs.get(step)),
            start_slot=first_slot if step == "elapse" else None,
            script=script.script,
            scripts=ScriptParameters(
                *(script.cost_model, script.price_memory, script.price_cpu),
                *(script.price_reference_byte, script.collateral_percent),
            ),
        )
        return await self._make(app_id, key, channel, order, units or at.output.lovelace, by)

    async def _make(
        self, app_id: str, key: str | None, channel: Channel, order: StepOrder, units: int, by: Close | None = None
    ) -> Made:
        """Build a step, admit it, sign it, make it durable, and submit it. `units`: it locks, or holds."""
        context, ids, step = self._context, self._context.new_ids(), order.step
        raw, built = await asyncio.to_thread(build_step, order)
        plan = self._plan_of(order, built, raw, units)
        sent = digest(["send", plan.asked[0].address.text, LOVELACE, str(units)])
        request = TransferRequest(
            ids=ids,
            app_id=app_id,
            key=f"order:{ids.intent}" if key is None else f"key:{key}",
            derived=key is None,
            fingerprint=ids.intent if app_id == UPKEEP_APP else sent,
            kind="send",
            origin=channel.origin,
        )

        def planned(utxos: UtxoIndex, _ttl_slot: int, nonce_utxo: Utxo | None) -> TxPlan:
            if nonce_utxo is not None or not all(utxo.ref in utxos for utxo in plan.inputs):
                raise Refused("funds_pending", "its UTxOs were used meanwhile, or its key was: take another key")
            return plan

        def admit(unit: Unit, now_ms: int) -> None:
            if step in _LOCKING:
                self._require_room(unit.conn, channel, units, now_ms)
            if step == "open":
                rows.add_channel(unit, channel)
            if any(map(is_under_way, rows.steps_of(unit.conn, channel.id))):
                raise Refused("wrong_state", "another transaction of the channel is under way")
            apps.ensure_own(unit, app_id, "coin upkeep", now_ms)
            context.admission.admit_transfer(unit, request, planned, now_ms)
            rows.add_step(unit, ids.payment, channel.id, step, units)
            if by is not None:
                move(unit, rows.channel(unit.conn, channel.id), by, now_ms)

        async def sign() -> bytes:
            place = {"tag": channel.id, "asset": channel.asset, "provider": channel.provider}
            signature = await self._signer.channel("step", **place, transaction=raw.hex())
            return channel_tx.signed_step(raw, self._signer.public_key, signature)

        with self._signing.claim(ids.payment):
            await context.write_at("admit", admit, ids.payment)
            await self._signing.sign(ids.payment, plan, sign)
        self._submitter.submit(ids.payment)
        return rows.channel(context.conn, channel.id), context.payment(ids.payment)

    def _plan_of(self, order: StepOrder, step: channel_tx.ChannelStep, raw: bytes, units: int) -> TxPlan:
        """The step in the form of a transfer. Its inputs are ours alone, so what leaves them is what it locks."""
        own, kept = self._context.config.own, step.output
        outputs = [PlannedOutput("change", one[0], one[1], tuple(one[2].items())) for one in step.others]
        asked = Output("change", own, LOVELACE, units)
        if kept is not None:
            place = address_of(kept.terms.script_hash.hex())
            locked = units if order.step in _LOCKING else 0
            outputs.insert(0, PlannedOutput("pay_to", place.raw, locked))
            asked = Output("pay_to", place, LOVELACE, units) if locked else asked
        frame = Frame(
            own, step.ttl_slot, self._context.config.network.network_id, MAINNET_PARAMETERS, FEE_CAP_LOVELACE
        )
        return TxPlan(
            *(order.utxos[0], order.utxos, (asked,), tuple(outputs), step.fee, frame),
            *(raw, step.tx_id.hex(), len(raw)),
        )

    def _made(self, app_id: str, key: str | None, step: str) -> Made | None:
        """The step that a repeated key has made. Refused: `idempotency_key_reused`."""
        payment = find_payment(self._context.conn, app_id, None if key is None else f"key:{key}").payment
        if payment is None:
            return None
        made = rows.step_of(self._context.conn, payment.id)
        if made is None or made.step != step:
            raise Refused("idempotency_key_reused", f"the key {key!r} was used for something else")
        return rows.channel(self._context.conn, made.channel_id), payment

    def _require_room(self, conn: Connection, channel: Channel, units: int, now_ms: int) -> None:
        """Check that the merchant has no other channel, and the caps. Refused: `wrong_state`, `limit_exceeded`."""
        live, config = rows.live_channel(conn, channel.origin), self._context.config
        merchant = config.merchant(channel.origin)
        if config.channels is None or merchant.channel is None:
            raise Refused("channel_unoffered", f"{merchant.name} is paid by no channel any more")
        if live is not None and live.id != channel.id:
            raise Refused("wrong_state", f"{merchant.name} has the channel {live.id} already: it is {live.phase}")
        locked = [(one.origin, _locked(conn, one)) for one in rows.locked_channels(conn, channel.account)]
        there = sum(held for origin, held in locked if origin == channel.origin)
        today = rows.locked_since(conn, now_ms - _DAY_MS)
        for name, most, taken in (
            (f"merchants.{merchant.name}.channel.locked_max", merchant.channel.locked_max_lovelace, there),
            ("channels.locked_max", config.channels.locked_max_lovelace, sum(held for _, held in locked)),
            ("channels.locked_per_day", config.channels.locked_per_day_lovelace, today),
        ):
            if taken + units > most:
                cap, has, asked = (format_amount(LOVELACE, amount) for amount in (most, taken, units))
                raise Refused(
                    "limit_exceeded",
                    f"{name} is {cap}, {has} counts in it already, and this locks {asked}",
                    fix=f"Lock less, or raise {name} in the config file and start the daemon again.",
                    money=_NOTHING,
                    limit=name,
                    asset=LOVELACE,
                    left=str(max(most - taken, 0)),
                    asked=str(units),
                )

    async def _choose(self, units: int, count: int) -> tuple[Utxo, ...]:
        """UTxOs of ADA alone for a step that locks `units`: the smallest that suffices, else the largest."""

        def job(_unit: Unit) -> tuple[Utxo, ...]:
            utxos, needed = self._context.utxos, units + _BESIDE_LOVELACE
            chosen = (*islice(utxos.pure_from(needed), 1),) or (*islice(utxos.pure_largest(), count),)
            if (has := sum(utxo.lovelace for utxo in chosen)) < needed:
                have, need = format_amount(LOVELACE, has), format_amount(LOVELACE, needed)
                detail = f"{need} are needed in {count} UTxOs of ADA alone, and the largest hold {have}"
                raise Refused("not_enough_funds", detail, asset=LOVELACE)
            return chosen

        return await self._context.write("plan", job)

    async def _script(self, channel: Channel) -> ScriptTerms:
        return await self._first(lambda provider: provider.script(channel.script_hash))

    async def _first(self, ask: Callable[[ThrottledProvider], Awaitable[Read[T]]]) -> T:
        """What the first provider answers that shows scripts. Refused: `chain_not_ready` if none does."""
        for provider in self._context.submit_providers:
            if isinstance(read := await ask(provider), Found):
                return read.value
        raise Refused("chain_not_ready", "no provider shows scripts now: a channel needs one of kind blockfrost")


def _locked(conn: Connection, channel: Channel) -> int:
    """What a channel holds, or will hold once the steps under way are confirmed."""
    steps = rows.steps_of(conn, channel.id)
    return max(channel.deposited, sum(one.units for one in steps if one.step in _LOCKING and not one.is_over))
