"""The transactions of channels, each of which is a payment: to open, add to, close and end a channel.

Start with `ChannelSteps.open`. A step is built in a child process and read again. One commit then admits it, with
its hold, its UTxOs, and its row in `channel_steps`. Then it is signed, durable (C3), and submitted as any payment.
It is never built again: if it is lost, its payment is cancelled.

Never: signs a step that no commit has admitted; pays a call; follows a step.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import islice

from payagent.agent.base.chain_view import TTL_CAP_S
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.ports import Signatures
from payagent.agent.base.requests import AdmittedPayment, TransferRequest, digest
from payagent.agent.channels.moves import move
from payagent.agent.channels.positions import (
    LOVELACE_PER_BYTE,
    ChannelUtxo,
    address_of,
    alike,
    read_channels,
    terms_of,
)
from payagent.agent.commits.payment_transitions import row_of
from payagent.agent.context import AgentContext
from payagent.agent.pay.lookup import find_payment
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.chain.provider import ChainUtxo, Found, Read, T
from payagent.chain.throttled_provider import ThrottledProvider
from payagent.core.aggregate import PaymentRow
from payagent.core.channel import Channel, ChannelPhase, Close
from payagent.core.money import LOVELACE, format_amount
from payagent.core.problems import Refused
from payagent.dialects.x402_batch import ChannelOffer
from payagent.settings.schema import MerchantChannelSettings
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import apps, writes
from payagent.store.rows import channels as rows
from payagent.wallet import channel_tx
from payagent.wallet.channel_build import ScriptParameters, StepOrder, build_step, language_views, plan_of
from payagent.wallet.transaction import TxPlan
from payagent.wallet.utxo_index import Utxo, UtxoIndex

Made = tuple[Channel, PaymentRow]
"""A channel, and the payment that changes it."""

CLOSE_TTL_S = 300
"""The longest life of a Close. The withdraw delay begins when it is over."""

_BESIDE_LOVELACE = 2_000_000
"""What the UTxOs of a step hold beside what it locks: its fee, its collateral, and min-ADA of what returns."""

_DAY_MS = 86_400_000


def why_untrusted(config: AgentConfig, merchant: MerchantConfig, offer: ChannelOffer) -> str | None:
    """Why no money may be locked on an offer's terms; None if it may."""
    scripts = () if config.channels is None else config.channels.scripts
    at, script, key = merchant.channel or MerchantChannelSettings(), offer.script_hash.hex(), offer.provider.hex()
    reasons = {
        "it sells for a token, and channels hold ADA": offer.asset == LOVELACE,
        f"channels.scripts does not have its script {script}": script in scripts,
        f"channel.provider_keys does not have its key {key}": key in at.provider_keys,
        "its withdraw delay is above channel.withdraw_delay_max": offer.withdraw_delay_s <= at.withdraw_delay_max,
    }
    return next((why for why, is_met in reasons.items() if not is_met), None)


class ChannelSteps:
    """Makes the steps of one account's channels. `offers`: the latest of each merchant, by its origin."""

    def __init__(
        self, context: AgentContext, signing: PaymentSigner, lifecycle: PaymentLifecycle, signer: Signatures
    ) -> None:
        self._context, self._signing, self._lifecycle, self._signer = context, signing, lifecycle, signer
        self.offers: dict[str, ChannelOffer] = {} if context.calls is None else context.calls.offers

    async def open(self, app_id: str, origin: str, units: int | None = None, key: str | None = None) -> Made:
        """Open a channel at a merchant, on the terms of its latest offer. `units`: to lock, else its `deposit`.

        Refused: `channel_unoffered`; `channel_full` if nothing would be left for calls; `limit_exceeded`;
        `wrong_state` if the merchant has a channel; `not_enough_funds`; as `ChainView.require_ready`.
        """
        if (made := self._made(app_id, key, "open", origin, units)) is not None:
            return made
        context, config, offer = self._context, self._context.config, self.offers.get(origin)
        merchant, now_ms = config.merchant(origin), context.ports.clock.now_ms()
        why = (
            "it sent no offer since the daemon started"
            if offer is None
            else why_untrusted(config, merchant, offer)
        )
        if merchant.channel is None:
            why = "its table has no channel.provider_keys"
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
        output = channel_tx.opened(terms_of(channel, config.own.payment_key_hash), units, LOVELACE_PER_BYTE)
        if not channel_tx.capacity(output, LOVELACE_PER_BYTE):
            raise Refused(
                "channel_full",
                "a channel keeps more than that as a reserve until it ends",
                fix="Lock more: the reserve is about 1.73 ADA.",
            )
        # without a provider that shows the script, the channel could not be closed
        await self._first(lambda one: one.script(channel.script_hash))
        order = StepOrder("open", config.own.raw, utxos, slot + TTL_CAP_S, output=output)
        return await self._make(app_id, key, channel, order, units)

    async def add(self, app_id: str, channel_id: str, units: int, key: str | None = None) -> Made:
        """Lock more in an open channel. Refused: as `open`; `chain_not_ready` if its output is not shown now."""
        return await self._order(app_id, channel_id, "add", units, key)

    async def close(self, app_id: str, channel_id: str, key: str | None = None) -> Made:
        """Close an open channel. What is left returns by itself after the withdraw delay. No limit refuses it."""
        return await self._order(app_id, channel_id, "close", 0, key, Close(None))

    async def recover(self, app_id: str) -> list[Channel]:
        """Take in our channels that the ledger lacks, as closing: the next passes get back what is left of them.

        What they promised is not known, so all of it counts as signed. Returns them. Refused: `chain_not_ready`;
        `ledger_behind` while what an older ledger has forgotten may still change them.
        """
        context, config, taken = self._context, self._context.config, []
        context.chain.require_ready(context.ports.clock.now_ms())
        channels = (one for _, one in rows.channels_page(context.conn, None, 2**31))
        known = {one.id for one in channels if one.phase is not ChannelPhase.VOID}
        merchants = config.merchants.items()
        origins = {key: at for at, one in merchants if one.channel for key in one.channel.provider_keys}
        scripts = () if config.channels is None else config.channels.scripts
        for utxo in [utxo for script in scripts for utxo in read_channels(await self._listed(script))]:
            terms, held = utxo.output.terms, utxo.output.stage.subbed + utxo.output.lovelace
            is_new = terms.consumer == config.own.payment_key_hash and terms.tag.hex() not in known
            if is_new and terms.provider.hex() in origins and await self._is_opened_by_us(utxo):
                channel = Channel(
                    *(terms.tag.hex(), origins[terms.provider.hex()], config.account, terms.asset),
                    *(terms.provider.hex(), terms.script_hash.hex(), terms.iou_key.hex(), terms.close_period_ms),
                    *("", context.ports.clock.now_ms(), ChannelPhase.CLOSING),
                    ref=utxo.ref,
                    deposited=held,
                    signed=held,
                    problem="the ledger did not have it",
                )
                await context.write("recover", partial(_take_in, channel, app_id))
                taken.append(channel)
        return taken

    async def _is_opened_by_us(self, utxo: ChannelUtxo) -> bool:
        """Whether a channel descends from an opening of this wallet: anybody can copy its constants.

        The opening spent the input that the tag is made of, and only our key could spend that.
        """
        terms, tx_ids = utxo.output.terms, [utxo.ref.partition("#")[0]]
        for tx_id in tx_ids:
            spent = [ref.split("#") for ref in await self._spent(tx_id, self._context.config.own.text)]
            if terms.tag in {
                channel_tx.channel_tag(bytes.fromhex(made_by), int(index)) for made_by, index in spent
            }:
                return True
            before = await self._spent(tx_id, address_of(terms.script_hash.hex()).text)
            tx_ids += {ref.partition("#")[0] for ref in before} - {*tx_ids}
        return False

    async def _spent(self, tx_id: str, address: str) -> Iterable[str]:
        return (await self._first(lambda one: one.movement(tx_id, address))).spent

    async def _order(
        self, app_id: str, channel_id: str, step: str, units: int, key: str | None, by: Close | None = None
    ) -> Made:
        if (made := self._made(app_id, key, step, channel_id, units or None)) is not None:
            return made
        channel = rows.channel(self._context.conn, channel_id)
        if channel.phase is not ChannelPhase.OPEN:
            known = f"See `payagent channels show {channel.id}`."
            raise Refused("wrong_state", f"the channel is {channel.phase}, not open", fix=known)
        listed = await self._listed(channel.script_hash)
        alikes = alike(channel, self._context.config.own.payment_key_hash, listed)
        found = [utxo for utxo in alikes if utxo.ref == channel.ref]  # any other one may be a stranger's
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
        after_ms = at.output.stage.elapse_at_ms or 0
        ttl_ms, first_slot = (slots.time_ms(ttl_slot), slots.slot_at(after_ms - 1) + 1) if slots else (0, 0)
        outputs = {"add": channel_tx.added(at.output, units), "close": channel_tx.closed(at.output, ttl_ms)}
        code = await self._first(lambda one: one.script(channel.script_hash))
        order = StepOrder(
            *(
                step,
                own.raw,
                await self._choose(units, 2 if step == "add" else 1),
                ttl_slot,
                (at.tx_ref, at.output),
                outputs.get(step),
            ),
            start_slot=first_slot if step == "elapse" else None,
            script=code.script,
            scripts=ScriptParameters(code.cost_model),
        )
        return await self._make(app_id, key, channel, order, units if step == "add" else at.output.lovelace, by)

    async def _make(
        self, app_id: str, key: str | None, channel: Channel, order: StepOrder, units: int, by: Close | None = None
    ) -> Made:
        """Build a step, admit it, sign it, make it durable, and submit it. `units`: it locks, or holds."""
        context, ids, step = self._context, self._context.new_ids(), order.step
        raw, built = await asyncio.to_thread(build_step, order)
        plan = plan_of(order, built, raw, units, context.config.own)
        request = TransferRequest(
            ids=ids,
            app_id=app_id,
            key=f"order:{ids.intent}" if key is None else f"key:{key}",
            derived=key is None,
            fingerprint=digest(["send", plan.asked[0].address.text, LOVELACE, str(units)]),
            kind="send",
            origin=channel.origin,
        )

        def planned(utxos: UtxoIndex, _ttl_slot: int, nonce_utxo: Utxo | None) -> TxPlan:
            if nonce_utxo is not None or not all(utxo.ref in utxos for utxo in plan.inputs):
                raise Refused("funds_pending", "its UTxOs were used meanwhile, or its key was: take another key")
            return plan

        def admit(unit: Unit, now_ms: int) -> AdmittedPayment:
            apps.ensure_own(unit, app_id, "channel exits", now_ms)
            admitted = context.admission.admit_transfer(unit, request, planned, now_ms)
            if not admitted.is_new:  # its key was used at the same time
                return admitted
            if step in ("open", "add"):
                self._require_room(unit.conn, channel, units, now_ms)
            if row_of(unit, ids.payment).intent.origin != channel.origin:
                raise Refused("idempotency_key_reused", f"the key {key!r} was used at another merchant")
            if step == "open":  # there is one already if an opening was never signed
                rows.put(unit, channel)
            if any(one.is_under_way for one in rows.steps_of(unit.conn, channel.id)):
                raise Refused("wrong_state", "another transaction of the channel is under way")
            rows.add_step(unit, ids.payment, channel.id, step, units)
            writes.note(
                unit,
                None,
                "channel_ordered",
                None,
                now_ms,
                {
                    "by": app_id,
                    "merchant": channel.origin,
                    "channel": channel.id,
                    "step": step,
                    "units": str(units),
                },
            )
            if by is not None:
                move(unit, rows.channel(unit.conn, channel.id), by, now_ms)
            return admitted

        async def signed() -> bytes:
            place = {"tag": channel.id, "asset": channel.asset, "provider": channel.provider}
            views = language_views(order.scripts.cost_model).hex()
            signature = await self._signer.channel("step", **place, transaction=raw.hex(), views=views)
            return channel_tx.signed_step(raw, self._signer.public_key, signature)

        with self._signing.claim(ids.payment):
            row, _ = await self._lifecycle.carry_out(await context.write_at("admit", admit), signed)
        made = rows.step_of(context.conn, row.id)
        return rows.channel(context.conn, channel.id if made is None else made.channel_id), row

    def _made(self, app_id: str, key: str | None, step: str, at: str, units: int | None) -> Made | None:
        """The step that a repeated key has made. `at`: its channel, or its merchant's origin.

        Refused: `idempotency_key_reused` if the key made another.
        """
        conn = self._context.conn
        row = find_payment(conn, app_id, None if key is None else f"key:{key}").payment
        if row is None:
            return None
        made = rows.step_of(conn, row.id)
        channel = None if made is None else rows.channel(conn, made.channel_id)
        is_same = made is not None and made.step == step and units in (None, made.units)
        if channel is None or not is_same or at not in (channel.id, channel.origin):
            raise Refused("idempotency_key_reused", f"the key {key!r} was used for another request")
        return channel, row

    def _require_room(self, conn: Connection, channel: Channel, units: int, now_ms: int) -> None:
        """Check that the merchant has no other channel, and the caps. Refused: `wrong_state`, `limit_exceeded`."""
        live, config = rows.live_channel(conn, channel.origin), self._context.config
        merchant = config.merchant(channel.origin)
        if config.channels is None or merchant.channel is None or (live is not None and live.id != channel.id):
            raise Refused(
                "wrong_state",
                f"{merchant.name} has another channel already, or may have none",
                fix="See `payagent channels list`. To lock more, use `payagent channels add ID`.",
            )
        locked = [(one.origin, _locked(conn, one)) for one in rows.locked_channels(conn)]
        there = sum(held for origin, held in locked if origin == channel.origin)
        for name, most, taken in (
            (f"merchants.{merchant.name}.channel.locked_max", merchant.channel.locked_max_lovelace, there),
            ("channels.locked_max", config.channels.locked_max_lovelace, sum(held for _, held in locked)),
            (
                "channels.locked_per_day",
                config.channels.locked_per_day_lovelace,
                rows.locked_since(conn, now_ms - _DAY_MS),
            ),
        ):
            if taken + units > most:
                raise Refused(
                    "limit_exceeded",
                    f"{name} is {format_amount(LOVELACE, most)}, {format_amount(LOVELACE, taken)} counts in it "
                    f"already, and this locks {format_amount(LOVELACE, units)}",
                    fix=f"Lock less, or raise {name} in the config file and start the daemon again.",
                    money="Nothing was signed, and nothing more is locked.",
                    limit=name,
                    asset=LOVELACE,
                    left=str(max(most - taken, 0)),
                    asked=str(units),
                )

    async def _choose(self, units: int, count: int) -> tuple[Utxo, ...]:
        """UTxOs of ADA alone for a step that locks `units`: the smallest that suffices, else the largest."""
        utxos, needed = self._context.utxos, units + _BESIDE_LOVELACE
        chosen = await self._context.write(
            "plan", lambda _: (*islice(utxos.pure_from(needed), 1),) or (*islice(utxos.pure_largest(), count),)
        )
        if (has := sum(utxo.lovelace for utxo in chosen)) < needed:
            need, have = format_amount(LOVELACE, needed), format_amount(LOVELACE, has)
            detail = f"{need} are needed in at most {count} UTxOs of ADA alone, and the largest hold {have}"
            raise Refused("not_enough_funds", detail, asset=LOVELACE)
        return chosen

    async def _listed(self, script_hash: str) -> tuple[ChainUtxo, ...]:
        return await self._first(lambda one: one.script_utxos(address_of(script_hash).text))

    async def _first(self, ask: Callable[[ThrottledProvider], Awaitable[Read[T]]]) -> T:
        """What the first provider answers that shows scripts. Refused: `chain_not_ready` if none does."""
        for provider in self._context.submit_providers:
            if isinstance(read := await ask(provider), Found):
                return read.value
        raise Refused(
            "chain_not_ready",
            "no provider shows scripts now",
            fix="Add a chain provider of kind blockfrost; if there is one, wait until it answers.",
        )


def _take_in(channel: Channel, app_id: str, unit: Unit) -> None:
    rows.put(unit, channel)
    rows.forget_steps(unit, channel.id)  # an older ledger may have an opening of it that is void
    detail = {"channel": channel.id, "merchant": channel.origin, "signed": str(channel.signed), "by": app_id}
    writes.note(unit, None, "channel_recover", None, channel.created_at_ms, detail)


def _locked(conn: Connection, channel: Channel) -> int:
    """What a channel holds, and what an addition that it does not show yet will lock."""
    adding = (one for one in rows.steps_of(conn, channel.id) if one.step == "add" and not one.is_booked)
    return channel.deposited + sum(one.units for one in adding if not one.is_over)
