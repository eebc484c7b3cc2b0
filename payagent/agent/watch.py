"""The sweeps: look at the chain, move what it shows, send again what it does not show.

Idempotent by construction: each reads everything anew, and a step that is not due is not taken. What is sent
again are the very bytes of the attempt (docs/exactly-once.md R5); an error in reply to them is expected.

May import: core, dialects, chain, merchants, store, agent. Never: builds a transaction; takes silence for an
answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence, Set
from dataclasses import replace
from functools import partial

import structlog

from payagent.agent import deposits, steps
from payagent.agent.agent import Agent
from payagent.agent.alarm import clear_alert, raise_alert
from payagent.agent.chainview import TIP_AGE_MAX_S, odd_parameters
from payagent.agent.foreign import Foreign
from payagent.agent.repeats import Repeats
from payagent.agent.replacement import is_lost
from payagent.agent.rows import LOOKED_FOR, SEEN, Rows
from payagent.agent.signing import NOT_SIGNED
from payagent.agent.terms import MerchantTerms
from payagent.agent.vanished import Vanished
from payagent.chain.agree import Listing
from payagent.chain.panel import Panel, View, at_once
from payagent.chain.source import (
    ChainUtxo,
    Found,
    NotFound,
    SubmitKind,
    Tip,
    TxSeen,
    Unknown,
    Why,
)
from payagent.core.payment import UNSIGNED, Delivery, State
from payagent.core.problem import Refused
from payagent.dialects import WITH_STATUS
from payagent.merchants.client import MerchantClient
from payagent.store import prepaid, queries, records, topups
from payagent.store.prepaid import Observation, Pool
from payagent.store.queries import OpenPayment, PaymentRow
from payagent.store.writer import DatabaseError, Unit

RESUBMIT_FIRST_MS = 5_000
RESUBMIT_MAX_MS = 200_000
MERCHANT_PATIENCE_MS = 3_600_000
MERCHANT_AGAIN_MS = 600_000
MERCHANT_FIRST_MS = 60_000
"""Until a block has a payment, its proof was shown, or it took so long, a merchant knows no more than we do."""

MERCHANT_CALLS_MAX = 50
"""In one beat; who waited longest goes first. A burst of payments is no burst of calls to who is paid."""

AT_ONCE_MAX = 8

SENT_AT_ONCE_MAX = 64
"""So many attempts at most are on their way to providers when others are sent again.

With a look every 5 s that is no less than Blockfrost bears for long, ten calls a second. Each takes memory and a
turn at a provider's few threads: behind hundreds of them reads and new payments would run out of time.
"""

PATIENCE_S = 4.0
"""So many seconds in all those who look at payments, a few at once, give way to payments that are being signed."""

TURN = 100
"""After so many steps in a row that waited for nothing, others have their turn."""

PREPAID_EVERY_MS = 600_000
OBSERVED_AGAIN_MS = 3_600_000
"""When a merchant's word on a prepaid balance is recorded again though it has not changed."""

RECHECK_DEPTHS = (16, 128, 1024)
"""Depths at which a block is looked up again though no fork was noticed: an index may have shown it too long."""

_SENDING = (State.SIGNED, State.IN_FLIGHT, State.CANCELLING)
_OPEN_DELIVERY = (Delivery.NOT_PRESENTED, Delivery.PRESENTED)

log = structlog.get_logger("payagent.watch")


def resubmit_due_ms(sent_count: int, last_sent_ms: int, *, is_hopeless: bool = False) -> int:
    """When the same bytes are sent again: after 5, 10, 20, ... and then every 200 s (ten expected blocks).

    What a provider says can never be valid is `is_hopeless`: no more often than that from the start.
    """
    if is_hopeless:
        return last_sent_ms + RESUBMIT_MAX_MS
    return last_sent_ms + min(RESUBMIT_FIRST_MS << max(sent_count - 1, 0), RESUBMIT_MAX_MS)


def is_asked_again(created_ms: int, asked_ms: int | None, now_ms: int) -> bool:
    """Whether a merchant is asked of an invoice again: when it is twice as old as it was at the last time.

    So a new one is asked of soon, an old one every ten minutes, and a burst of them costs little for long. Also
    when the clock was set back since.
    """
    return asked_ms is None or not 0 <= now_ms - asked_ms < min(asked_ms - created_ms, MERCHANT_AGAIN_MS)


class Watch:
    """The agent's eyes. One `tick` at a time.

    `_unverified` are payments on the chain whose block may be gone: they stay in it until a provider gave a
    verdict, however often it is asked and whatever the tip does meanwhile. `_waits` is when each attempt was sent
    last, and when it is to be sent again, as was read when that was due. `trouble` says why the last look was
    not whole; None when it was. `view` is what it saw the chain by; None when nobody was heard.
    """

    def __init__(self, agent: Agent, merchants: MerchantClient) -> None:
        self.trouble: str | None = None
        self.view: View | None = None
        self._agent = agent
        self._desk = desk = agent.desk
        self._merchants = merchants
        self._rows = Rows(desk)
        self._foreign = Foreign(desk, self._rows)
        self._vanished = Vanished(desk, self._rows)
        self._lock = asyncio.Lock()
        self._last: Tip | None = None
        self._unverified: set[str] = set()
        self._unanswered = True
        self._unread: set[str] = set()
        self._coins_due = True
        self._coins_read = False
        self._urgent: set[str] = set()
        self._waits: dict[int | None, tuple[int, int]] = {}
        clock, own = desk.ports.clock, desk.terms.own.text
        self._panel = Panel(
            desk.sources,
            clock,
            own,
            desk.chain.learn_genesis,
            odd_parameters,
            self._slot_at,
            TIP_AGE_MAX_S,
        )
        self._told_out: list[str] = []
        self._deep_seen = Repeats()
        self._unweighed = False
        self._new_coins = Repeats()
        self._there_since_ms: int | None = None
        self._merchants_asked_ms: dict[str, int | None] = {}
        self._prepaid_asked: dict[int, tuple[int, int]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing changes soon that somebody waits for: what is confirmed has hours until it settles.

        Who has no coin yet waits for one.
        """
        is_due = self._unverified or self._unanswered or self._unweighed or self._coins_due or self.trouble
        waited_for = self._rows.open((State.RESERVED, *LOOKED_FOR, State.IN_BLOCK))
        return not is_due and not waited_for and bool(self._rows.coins())

    async def tick(self) -> bool:
        """One look: tip, payments, coins; then what is to be sent or signed. False when it was not whole.

        What a look raises keeps nothing from being sent again; it is raised after that.
        """
        async with self._lock:
            try:
                found = await self._look_anew()
            except Exception:
                await self._carry_on()
                raise
            await self._carry_on()
            is_whole = found is not None and not self._unanswered and not self._coins_due
            if found is not None:
                why = "not every payment and coin could be read and recorded"
                self.trouble = None if is_whole else f"{found.name}: {why}"
            return is_whole

    async def _look_anew(self) -> View | None:
        """Look by what the providers show now, unless it was seen in full before; None when nobody was heard."""
        found = await self._find_view()
        if found is not None:
            is_new = self._last is None or found.tip.hash != self._last.hash
            if is_new or self._unverified or self._unanswered or self._unweighed or self._coins_due:
                await self._look(found, found.tip, is_new)
        return found

    async def poll_merchants(self) -> None:
        """Ask merchants how our open invoices stand. Advice only: it is recorded and shown, and moves nothing."""
        now_ms = self._desk.ports.clock.now_ms()
        young = [
            row
            for row in self._rows.open((State.IN_FLIGHT, *SEEN))
            if row.delivery in _OPEN_DELIVERY
            and now_ms < row.created_at_ms + MERCHANT_PATIENCE_MS
            and not row.created_at_ms <= now_ms < _asked_from_ms(row)
        ]
        asked_ms = {row.id: self._merchants_asked_ms.get(row.id) for row in young}
        due = [row for row in young if is_asked_again(row.created_at_ms, asked_ms[row.id], now_ms)]
        due = sorted(due, key=lambda row: asked_ms[row.id] or 0)[:MERCHANT_CALLS_MAX]
        self._merchants_asked_ms = {**asked_ms, **{row.id: now_ms for row in due}}
        await self._each(due, self._ask_merchant)

    async def _ask_merchant(self, row: PaymentRow) -> None:
        desk = self._desk
        merchant = desk.terms.merchants.get(row.origin or "")
        if merchant is None or row.invoice_id is None or row.dialect not in WITH_STATUS:
            return
        headers = merchant.call_headers(row, desk.terms.own.text)
        said = await self._merchants.status(
            merchant.origin, row.invoice_id, headers=headers, timeout_s=merchant.timeout_s
        )
        if said is None or said == row.merchant_status:
            return
        now_ms = desk.ports.clock.now_ms()

        def job(unit: Unit) -> None:
            state = steps.row_of(unit, row.id).state
            records.set_merchant_status(unit, row.id, said, now_ms)
            records.note(unit, row.id, "merchant_said", state, now_ms, {"status": said})

        await desk.write("merchant", job, row.id)

    async def give_up_unserved(self) -> None:
        """Note which merchants have not served what was confirmed long enough ago: nobody may ever ask again.

        This daemon must have been there for as long: while it was away, nobody could show them a proof.
        """
        desk = self._desk
        now_ms = desk.ports.clock.now_ms()
        clock_ms = desk.limits_clock_ms(desk.conn, now_ms)
        if self._there_since_ms is None and desk.chain.tip is not None:
            self._there_since_ms = clock_ms
        if self._there_since_ms is None or self._there_since_ms > steps.serving_ended_ms(clock_ms):
            return
        for payment_id in queries.unserved(desk.conn, steps.serving_ended_ms(clock_ms)):
            job = partial(
                steps.give_up_unserved,
                payment_id=payment_id,
                clock_ms=clock_ms,
                rules=desk.terms.rules,
                now_ms=now_ms,
            )
            await desk.write("delivery", job, payment_id)

    async def observe_prepaid(self) -> None:
        """Ask merchants what is left of prepaid balances: when one has moved, and now and then."""
        desk = self._desk
        now_ms = desk.ports.clock.now_ms()
        for pool in prepaid.all_pools(desk.conn):
            merchant = desk.terms.merchants.get(pool.origin)
            # what a top-up bought moved here when it was confirmed, and there when the proof was shown
            moved_ms = max(prepaid.last_move_ms(desk.conn, pool.id), topups.last_ended_ms(desk.conn, pool.id))
            asked_ms, seen_move_ms = self._prepaid_asked.get(pool.id, (0, -1))
            is_due = moved_ms != seen_move_ms or not 0 <= now_ms - asked_ms < PREPAID_EVERY_MS
            if merchant is not None and pool.partner and pool.partner == merchant.partner and is_due:
                self._prepaid_asked[pool.id] = (now_ms, moved_ms)
                await self._observe(pool, merchant)

    async def _observe(self, pool: Pool, merchant: MerchantTerms) -> None:
        """Record what a merchant says, unless it says the same as last time."""
        desk = self._desk
        headers = merchant.own_headers(pool.wallet) | {"X-Partner": pool.partner}
        told = await self._merchants.prepaid(
            pool.origin, pool.partner, pool.wallet, headers=headers, timeout_s=merchant.timeout_s
        )
        if told is None:
            return
        said, now_ms = told.said, desk.ports.clock.now_ms()
        seen = Observation(
            *(told.source, told.status, told.body, said.remaining, said.total, said.used, said.unit),
            *(said.expires_at_ms, None if said.understood else said.why, now_ms),
        )
        last = prepaid.last_observation(desk.conn, pool.id)
        is_same = last is not None and replace(last, at_ms=now_ms) == seen
        if last is None or not is_same or not 0 <= now_ms - last.at_ms < OBSERVED_AGAIN_MS:
            await desk.write("observe_prepaid", lambda unit: prepaid.add_observation(unit, pool.id, seen))

    async def _find_view(self) -> View | None:
        """What the providers show together that are to be believed; it serves the whole look."""
        desk, panel = self._desk, self._panel
        self.view = view = await panel.look()
        desk.senders = panel.senders()
        desk.providers = panel.troubles
        await self._tell_who_is_out()
        if view is None:
            self.trouble = "; ".join(f"{name}: {why}" for name, why in panel.troubles.items())
            if desk.chain.tip is None or panel.has_foreign:
                desk.chain.problem = self.trouble
            return None
        desk.chain.problem = view.odd
        return view

    async def _tell_who_is_out(self) -> None:
        """Tell once of a provider that is not heard and not waited for, and of a dispute that nothing settles."""
        out = self._panel.outs()
        subjects = sorted(out)
        if subjects == self._told_out:
            return
        now_ms = self._desk.ports.clock.now_ms()

        def job(unit: Unit) -> None:
            for subject, detail in out.items():
                raise_alert(unit, "provider_out", subject, {"detail": detail}, now_ms)
            for subject in self._panel.subjects():
                if subject not in out:
                    clear_alert(unit, subject, {"detail": f"over: {subject}"}, now_ms)

        await self._desk.write("alert", job)
        self._told_out = subjects

    def _slot_at(self, now_ms: int) -> int | None:
        slots = self._desk.chain.slots
        return slots.slot_at(now_ms) if slots else None

    async def _look(self, source: View, tip: Tip, is_new: bool) -> None:
        self._unanswered = False
        self._unverified |= await self._in_doubt(source, tip)
        on_chain = self._rows.on_chain()
        self._unverified &= {row.id for row in on_chain}
        await self._each(
            [row for row in on_chain if row.id in self._unverified], partial(self._recheck, source, tip)
        )
        self._unweighed = False
        self._unread.clear()
        await self._each(self._rows.open(LOOKED_FOR), partial(self._look_for, source, tip))
        await self._each(
            self._deep(State.IN_BLOCK, tip, self._desk.terms.confirm_depth), partial(self._confirm, source, tip)
        )
        settle_depth = self._desk.terms.settle_depth
        ending = [
            *self._deep(State.CONFIRMED, tip, settle_depth),
            *(row for row in self._rows.watched_voids() if _depth(row, tip) >= settle_depth),
        ]
        if source.is_for_good:
            await self._each(ending, partial(self._settle, source, tip))
        if is_new or self._coins_due:
            await self._look_at_coins(source, tip)
        if self._last is None:
            # what was about to leave when the last process ended may never have left
            self._urgent.update(row.id for row in self._rows.open((State.IN_FLIGHT,)))
        self._last = tip
        if self._coins_read:
            self._desk.chain.tip = tip

    async def _in_doubt(self, source: View, tip: Tip) -> set[str]:
        """Payments whose block may be off the chain: all after what may be a fork, else those due by depth."""
        rows = self._rows.on_chain()
        if self._last is None or await self._may_have_forked(source, tip, self._last):
            return {row.id for row in rows}
        grown = tip.height - self._last.height
        return {row.id for row in rows if any(0 <= _depth(row, tip) - depth < grown for depth in RECHECK_DEPTHS)}

    async def _may_have_forked(self, source: View, tip: Tip, last: Tip) -> bool:
        """Whether the block that was the tip at the last look may be off the chain."""
        if tip.hash == last.hash:
            return False
        return tip.height <= last.height or not isinstance(await source.block(last.hash), Found)

    async def _look_for(self, source: View, tip: Tip, row: PaymentRow) -> None:
        """Is an attempt that is in flight in a block? It counts as looked for once nothing of it is open."""
        self._unread.add(row.id)
        is_open = False
        for attempt in queries.attempts(self._desk.conn, row.id):
            read = await source.tx(attempt.tx_id)
            if isinstance(read, Found):
                if attempt.kind == "cancel":
                    await self._weigh_cancel(source, tip, row, read.value)
                else:
                    await self._see(source, row, read.value)
                return
            if isinstance(read, Unknown):
                self._unanswered |= read.why is not Why.NOT_YET
                is_open = True
        if not is_open:
            self._unread.discard(row.id)
        rival = None if row.anchor is None else queries.rival_of(self._desk.conn, row.anchor)
        read = NotFound() if rival is None else await source.tx(rival)
        if isinstance(read, Found):
            await self._weigh_cancel(source, tip, row, read.value)
        elif not source.stands_alone or not (is_open or isinstance(read, Unknown)):
            self._deep_seen.forget(row.id)  # what was read of it before was denied since, or not borne out

    async def _weigh_cancel(self, source: View, tip: Tip, row: PaymentRow, seen: TxSeen) -> None:
        """Void on positive evidence only (R8): the cancel is in a block, deep enough, in look after look.

        Or a transaction that keeps the anchor from ever being there.
        """
        desk = self._desk
        now_ms = desk.ports.clock.now_ms()
        landed_ms = desk.chain.landed_ms(seen.slot, now_ms)
        self._unweighed = True
        is_deep = tip.height - seen.block_height + 1 >= desk.terms.void_depth
        if not is_deep or not source.is_final:
            return
        if self._deep_seen.is_enough(row.id, seen.block_hash, tip.hash, now_ms) or not source.stands_alone:
            self._deep_seen.forget(row.id)
            await desk.write(
                "void",
                lambda unit: steps.record_void(unit, row.id, seen, landed_ms, desk.coins, source.name, now_ms),
                row.id,
            )

    async def _recheck(self, source: View, tip: Tip, row: PaymentRow) -> None:
        """Is a payment's block still on the chain? Without a verdict the payment stays unverified.

        It is gone when its transaction is in another block, or when a provider that is past its height denies
        both the transaction and the block.
        """
        read = await source.tx(row.shown_by)
        if isinstance(read, Found):
            if read.value.block_hash != row.block_hash:
                await self._lose(row)
                if row.state is not State.VOID:
                    await self._see(source, row, read.value)
            self._unverified.discard(row.id)
        elif isinstance(read, NotFound) and await self._is_denied(source, tip, row):
            await self._lose(row)
            self._unverified.discard(row.id)

    async def _is_denied(self, source: View, tip: Tip, row: PaymentRow) -> bool:
        is_past = source.is_current and tip.height >= (row.block_height or 0)
        return is_past and isinstance(await source.block(row.block_hash or ""), NotFound)

    def _deep(self, state: State, tip: Tip, depth: int) -> list[OpenPayment]:
        """Payments in a state whose block is at least so deep."""
        return [row for row in self._rows.on_chain() if row.state is state and _depth(row, tip) >= depth]

    async def _confirm(self, source: View, tip: Tip, row: PaymentRow) -> None:
        if await self._still_there(source, tip, row):
            now_ms, depth = self._desk.ports.clock.now_ms(), _depth(row, tip)
            rules = self._desk.terms.rules
            landed_ms = self._desk.chain.landed_ms(row.block_slot or 0, now_ms)
            await self._desk.write(
                "confirm",
                lambda unit: steps.record_confirmed(unit, row.id, depth, rules, landed_ms, now_ms),
                row.id,
            )

    async def _settle(self, source: View, tip: Tip, row: PaymentRow) -> None:
        if await self._still_there(source, tip, row):
            now_ms, depth = self._desk.ports.clock.now_ms(), _depth(row, tip)
            await self._desk.write(
                "settle", lambda unit: steps.record_settled(unit, row.id, depth, self._desk.coins, now_ms), row.id
            )

    async def _still_there(self, source: View, tip: Tip, row: PaymentRow) -> bool:
        """Whether a payment is in the very block that we know, asked now; if not, checked until it is clear."""
        read = await source.tx(row.shown_by)
        if isinstance(read, Found) and read.value.block_hash == row.block_hash:
            return True
        self._unverified.add(row.id)
        await self._recheck(source, tip, row)
        return False

    async def _see(self, source: View, row: PaymentRow, seen: TxSeen) -> None:
        desk = self._desk
        now_ms = desk.ports.clock.now_ms()
        await desk.write(
            "observe",
            lambda unit: steps.record_seen(unit, row.id, seen, desk.coins, source.name, now_ms),
            row.id,
        )

    async def _lose(self, row: PaymentRow) -> None:
        desk = self._desk
        now_ms = desk.ports.clock.now_ms()
        await desk.write("observe", lambda unit: steps.record_block_lost(unit, row.id, desk.coins, now_ms), row.id)
        self._urgent.add(row.id)

    async def _look_at_coins(self, source: View, tip: Tip) -> None:
        desk = self._desk
        read = await source.coins(desk.terms.own.text)
        self._coins_due = not isinstance(read, Found)
        if not isinstance(read, Found):
            # one list of several is enough to sign by the coins that are known; nothing is booked by it
            self._coins_read |= isinstance(read, Unknown) and read.why is Why.NOT_YET
            return
        known = self._rows.coins()
        now_ms = desk.ports.clock.now_ms()
        listing = self._believed(source, read.value, known.keys(), now_ms)
        if deposits.is_stale(listing, known):
            await desk.write("deposit", lambda unit: deposits.sync(unit, listing, desk.coins, now_ms))
        self._coins_read = True
        if not listing.doubtful:
            desk.chain.booked = tip
        await self._foreign.look(source, listing)
        if source.is_current:
            await self._vanished.look(source, tip)

    def _believed(self, source: View, listing: Listing, known: Set[str], now_ms: int) -> Listing:
        """Of several providers the last one that is heard makes no coin by one word: three reads, spaced (R8), and
        those that are missing were missing for long. Heard again they could not undo it, were it a lie.

        Where only one is configured it is taken at its word: a coin that it makes up pays nobody.
        """
        if not source.is_lonely:
            self._new_coins = Repeats()
            return listing
        is_new = {coin.ref: coin for coin in listing.agreed if coin.ref not in known}
        young = {
            ref
            for ref, coin in is_new.items()
            if not self._new_coins.is_enough(ref, _worth(coin), source.tip.hash, now_ms) or not source.may_add
        }
        self._new_coins.keep(is_new)
        agreed = tuple(coin for coin in listing.agreed if coin.ref not in young)
        return Listing(agreed, listing.doubtful | young)

    async def _carry_on(self) -> None:
        """Send what was signed, again what is due; then sign what was admitted and is not signed."""
        desk = self._desk
        now_ms = desk.ports.clock.now_ms()
        if desk.chain.slots is None:
            return
        slot = desk.chain.slots.slot_at(now_ms)
        self._send_what_is_due(slot, now_ms)
        if desk.chain.is_ready(now_ms) and desk.chain.tip is not None:
            await self._carry_on_what_is_over(desk.chain.tip)
            unsigned = [row for row in self._rows.open(UNSIGNED) if row.id not in self._vanished.stuck]
            await self._each(unsigned, self._agent.carrying.resume)

    async def _carry_on_what_is_over(self, tip: Tip) -> None:
        """By the tip's slot: what has left could be in any block before its TTL. What was not looked for waits."""
        desk = self._desk

        async def carry_on(row: PaymentRow) -> None:
            if steps.reason_to_cancel(desk.conn, row, tip.slot):
                await self._agent.carrying.cancel(row)
            elif row.id not in self._unread and is_lost(desk.conn, row, tip.slot):
                await self._agent.carrying.renew(row)

        over = [row for row in self._rows.open(_SENDING) if _may_be_over(row, tip.slot)]
        await self._each([row for row in over if row.id not in self._vanished.stuck], carry_on)

    def _send_what_is_due(self, slot: int, now_ms: int) -> None:
        """What waits longest first, and no more at once than `SENT_AT_ONCE_MAX`; the others at the next look."""
        sending = [row for row in self._rows.open(_SENDING) if (row.ttl_slot or 0) > slot and row.attempt]
        self._waits = {one.attempt: self._waits[one.attempt] for one in sending if one.attempt in self._waits}
        due = [row for row in sending if self._is_due(row, now_ms)]
        due.sort(key=lambda row: (self._waits.get(row.attempt, (0, 0)), row.seq))
        room, left = SENT_AT_ONCE_MAX - self._agent.sending.count, set()
        for row in due:
            if room <= 0:
                left.add(row.id)
                continue
            self._waits[row.attempt] = self._wait_of(row.id)  # it may have been sent since that was read
            if self._is_due(row, now_ms) and self._may_broadcast(row):
                self._agent.sending.send_off(row.id)
                room -= 1
        self._urgent &= left

    def _is_due(self, row: OpenPayment, now_ms: int) -> bool:
        """Also when it was sent last at a time that is still to come: the clock was set back since."""
        last_ms, due_ms = self._waits.get(row.attempt, (0, 0))
        return now_ms >= due_ms or now_ms < last_ms or row.id in self._urgent

    def _may_broadcast(self, row: OpenPayment) -> bool:
        if not row.handed_over:
            return True
        found = queries.payment(self._desk.conn, row.id)
        return found is not None and steps.may_broadcast(found)

    def _wait_of(self, payment_id: str) -> tuple[int, int]:
        """When a payment's attempt was sent last, and when it is to be sent again."""
        conn = self._desk.conn
        tx_id = queries.tx_of(conn, payment_id)
        count, last_ms = queries.submissions(conn, tx_id)
        is_hopeless = queries.was_told(conn, payment_id, tx_id, SubmitKind.NEVER)
        return last_ms, resubmit_due_ms(count, last_ms, is_hopeless=is_hopeless)

    async def _each(self, found: Sequence[OpenPayment], act: Callable[[PaymentRow], Awaitable[None]]) -> None:
        """Act on every payment, a few at once, each as it is when it has its turn.

        One that raises is logged and keeps nobody else from their turn. What could not be written down is looked
        at again, as what could not be read.
        """
        left, patience_s = iter(found), PATIENCE_S

        async def work() -> None:
            nonlocal patience_s
            for number, one in enumerate(left, 1):
                if patience_s > 0:
                    waited_s = await self._agent.signing.give_way()
                    patience_s -= waited_s
                try:
                    row = queries.payment(self._desk.conn, one.id)
                    if row is not None:
                        await act(row)
                except Exception as error:
                    code = error.code if isinstance(error, Refused) else None
                    self._unanswered |= code == "store_failed" or isinstance(error, DatabaseError)
                    if code not in NOT_SIGNED:  # these are told by an alert, each time the same
                        log.warning(
                            "payment.step_failed", payment=one.id, error=repr(error), exc_info=code is None
                        )
                if number % TURN == 0:
                    await asyncio.sleep(0)

        await at_once([work() for _ in range(min(len(found), AT_ONCE_MAX))])


def _may_be_over(row: OpenPayment, slot: int) -> bool:
    """Whether it is worth a closer look if an attempt's time has passed, or it is to be cancelled, by that slot.

    Not where payagent itself sent it, and it can still land.
    """
    can_land = row.attempt is not None and not row.is_cancel and (row.ttl_slot or 0) > slot
    return row.state is State.CANCELLING or row.handed_over or not can_land


def _asked_from_ms(row: OpenPayment) -> int:
    may_know = row.state in SEEN or row.delivery is Delivery.PRESENTED
    return row.created_at_ms + (0 if may_know else MERCHANT_FIRST_MS)


def _depth(row: PaymentRow | OpenPayment, tip: Tip) -> int:
    """How deep a payment's block is; the block itself counts 1."""
    return tip.height - (row.block_height or 0) + 1


def _worth(coin: ChainUtxo) -> Hashable:
    """All of a listed coin that is booked."""
    return coin.lovelace, frozenset(coin.assets.items()), coin.has_datum, coin.has_script, coin.unreadable
