"""The sweeps: look at the chain, move what it shows, send again what it does not show.

Idempotent by construction: each reads everything anew, and a step that is not due is not taken. What is sent
again are the very bytes of the attempt (docs/exactly-once.md R5); an error in reply to them is expected.

May import: core, chain.source, merchants, store, agent. Never: builds a transaction; takes silence for an answer.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from payagent.agent import deposits, steps
from payagent.agent.agent import Agent
from payagent.chain.source import ChainSource, Found, NotFound, Tip, TxSeen, Unknown
from payagent.core.payment import Delivery, State
from payagent.core.problem import Refused
from payagent.merchants.client import MerchantClient
from payagent.store import queries, records
from payagent.store.queries import CoinRow, PaymentRow
from payagent.store.writer import Unit

RESUBMIT_FIRST_MS = 5_000
RESUBMIT_MAX_MS = 200_000
PARAMETERS_EVERY_MS = 3_600_000
MERCHANT_PATIENCE_MS = 3_600_000
AT_ONCE_MAX = 8
ABSENT_READS = 3
ABSENT_EVERY_MS = 60_000
"""Not found three times, a minute apart, stands in for a second provider's word (R6)."""

_LOOKING = (State.IN_FLIGHT, State.REPLACING, State.CANCELLING)
_OPEN_DELIVERY = (Delivery.NOT_PRESENTED, Delivery.PRESENTED)


def resubmit_due_ms(sent_count: int, last_sent_ms: int) -> int:
    """When the same bytes are sent again: after 5, 10, 20, ... and then every 200 s (ten expected blocks)."""
    return last_sent_ms + min(RESUBMIT_FIRST_MS << max(sent_count - 1, 0), RESUBMIT_MAX_MS)


class Watch:
    """The agent's eyes. One `tick` at a time; a second one that is asked for meanwhile is the same look."""

    def __init__(self, agent: Agent, merchants: MerchantClient) -> None:
        self._agent = agent
        self._merchants = merchants
        self._lock = asyncio.Lock()
        self._last: Tip | None = None
        self._incomplete = True
        self._urgent: set[str] = set()
        self._checked_until_ms: dict[str, int] = {}
        self._distrusted = False
        self._absent: dict[str, tuple[int, int]] = {}

    async def tick(self) -> None:
        """One look: tip, payments, coins; then what is to be signed or sent (again)."""
        async with self._lock:
            if found := await self._find_tip():
                source, tip = found
                if self._incomplete or self._last is None or tip.hash != self._last.hash:
                    await self._look(source, tip)
            await self._carry_on()

    async def poll_merchants(self) -> None:
        """Ask merchants how our open invoices stand. Advice only: it is recorded and shown, and moves nothing."""
        agent = self._agent
        now_ms = agent.ports.clock.now_ms()
        rows = queries.payments_in(agent.conn, (State.IN_FLIGHT, State.IN_BLOCK, State.CONFIRMED))
        open_rows = [
            row
            for row in rows
            if row.invoice_id
            and row.delivery in _OPEN_DELIVERY
            and now_ms - row.created_at_ms < MERCHANT_PATIENCE_MS
        ]
        await _each(open_rows, self._ask_merchant)

    async def _ask_merchant(self, row: PaymentRow) -> None:
        agent = self._agent
        merchant = agent.terms.merchants.get(row.origin or "")
        if merchant is None or row.invoice_id is None:
            return
        headers = merchant.call_headers(row, agent.terms.own.text)
        said = await self._merchants.status(
            merchant.origin, row.invoice_id, headers=headers, timeout_s=merchant.timeout_s
        )
        if said is None or said.status == row.merchant_status:
            return
        now_ms = agent.ports.clock.now_ms()

        def job(unit: Unit) -> None:
            records.set_merchant_status(unit, row.id, said.status, now_ms)
            records.note(unit, row.id, "merchant_said", row.state, now_ms, {"status": said.status})

        await agent.write("merchant", job, row.id)

    async def _find_tip(self) -> tuple[ChainSource, Tip] | None:
        """The first provider that answers and is to be believed; it serves the whole look, so its views agree."""
        reasons = []
        for source in self._agent.sources:
            read = await source.tip()
            reason = await self._distrust(source) if isinstance(read, Found) else f"its tip is {read}"
            if reason is None and isinstance(read, Found):
                self._agent.chain.problem = None
                return source, read.value
            reasons.append(f"{source.name}: {reason}")
        if self._agent.chain.tip is None or self._distrusted:
            self._agent.chain.problem = "; ".join(reasons)
        return None

    async def _distrust(self, source: ChainSource) -> str | None:
        """Why the provider's network or parameters are not to be believed; asked at first and every hour."""
        now_ms = self._agent.ports.clock.now_ms()
        if now_ms < self._checked_until_ms.get(source.name, 0):
            return None
        genesis, parameters = await source.genesis(), await source.parameters()
        if not isinstance(genesis, Found) or not isinstance(parameters, Found):
            return f"its genesis is {genesis}, its parameters are {parameters}"
        try:
            self._agent.chain.learn_genesis(genesis.value)
            self._agent.chain.learn_parameters(parameters.value)
        except Refused as refusal:
            self._distrusted = True
            return refusal.detail
        self._checked_until_ms[source.name] = now_ms + PARAMETERS_EVERY_MS
        self._distrusted = False
        return None

    async def _look(self, source: ChainSource, tip: Tip) -> None:
        self._incomplete = False
        conn = self._agent.conn
        if await self._may_have_forked(source, tip):
            await _each(
                queries.payments_in(conn, (State.IN_BLOCK, State.CONFIRMED)), partial(self._recheck, source, tip)
            )
        await _each(queries.payments_in(conn, _LOOKING), partial(self._look_for, source))
        await _each(queries.payments_in(conn, (State.IN_BLOCK,)), partial(self._confirm, source, tip))
        await _each(self._settling(tip), partial(self._settle, source, tip))
        await self._look_at_coins(source)
        if self._last is None:
            # what was about to leave when the last process ended may never have left
            self._urgent.update(row.id for row in queries.payments_in(conn, (State.IN_FLIGHT,)))
        self._last = self._agent.chain.tip = tip

    async def _may_have_forked(self, source: ChainSource, tip: Tip) -> bool:
        """Whether the block that was the tip at the last look may be off the chain; at the first look: yes."""
        if self._last is None or tip.height <= self._last.height:
            return True
        return not isinstance(await source.block(self._last.hash), Found)

    async def _look_for(self, source: ChainSource, row: PaymentRow) -> None:
        """Is an attempt that is in flight in a block?"""
        for attempt in queries.attempts(self._agent.conn, row.id):
            read = await source.tx(attempt.tx_id)
            if isinstance(read, Found):
                await self._see(source, row, read.value)
                return
            self._incomplete |= isinstance(read, Unknown)

    async def _recheck(self, source: ChainSource, tip: Tip, row: PaymentRow) -> None:
        """Is a payment's block still on the chain? Gone is only what the provider, past its height, denies."""
        read = await source.tx(row.tx_id or "")
        if isinstance(read, Found):
            if read.value.block_hash != row.block_hash:
                await self._lose(row)
                await self._see(source, row, read.value)
        elif isinstance(read, NotFound) and tip.height >= (row.block_height or 0):
            await self._lose(row)
        else:
            self._incomplete = True

    async def _confirm(self, source: ChainSource, tip: Tip, row: PaymentRow) -> None:
        depth = _depth(row, tip)
        if depth < self._agent.terms.confirm_depth:
            return
        read = await source.tx(row.tx_id or "")
        if isinstance(read, Found) and read.value.block_hash == row.block_hash:
            now_ms = self._agent.ports.clock.now_ms()
            await self._agent.write(
                "confirm", lambda unit: steps.record_confirmed(unit, row.id, depth, now_ms), row.id
            )
        else:
            await self._recheck(source, tip, row)

    def _settling(self, tip: Tip) -> list[PaymentRow]:
        deep = tip.height + 1 - self._agent.terms.settle_depth
        rows = queries.payments_in(self._agent.conn, (State.CONFIRMED,))
        return [row for row in rows if row.block_height is not None and row.block_height <= deep]

    async def _settle(self, source: ChainSource, tip: Tip, row: PaymentRow) -> None:
        read = await source.tx(row.tx_id or "")
        if isinstance(read, Found) and read.value.block_hash == row.block_hash:
            now_ms, depth = self._agent.ports.clock.now_ms(), _depth(row, tip)
            await self._agent.write(
                "settle", lambda unit: steps.record_settled(unit, row.id, depth, now_ms), row.id
            )

    async def _see(self, source: ChainSource, row: PaymentRow, seen: TxSeen) -> None:
        agent = self._agent
        now_ms = agent.ports.clock.now_ms()
        await agent.write(
            "observe",
            lambda unit: steps.record_seen(unit, row.id, seen, agent.coins, source.name, now_ms),
            row.id,
        )

    async def _lose(self, row: PaymentRow) -> None:
        agent = self._agent
        now_ms = agent.ports.clock.now_ms()
        await agent.write(
            "observe", lambda unit: steps.record_block_lost(unit, row.id, agent.coins, now_ms), row.id
        )
        self._urgent.add(row.id)

    async def _look_at_coins(self, source: ChainSource) -> None:
        agent = self._agent
        read = await source.utxos(agent.terms.own.text)
        if not isinstance(read, Found):
            self._incomplete = True
        elif deposits.is_stale(read.value, {row.ref: row for row in queries.coins(agent.conn)}):
            listed, now_ms = read.value, agent.ports.clock.now_ms()
            await agent.write("deposit", lambda unit: deposits.sync(unit, listed, agent.coins, now_ms))
        for coin in queries.coins(agent.conn):
            if coin.state == "missing" and coin.source == "deposit":
                await self._doubt(source, coin)

    async def _doubt(self, source: ChainSource, coin: CoinRow) -> None:
        """Is the transaction that a missing deposit came in on no chain any more? Then it is taken back."""
        agent = self._agent
        now_ms = agent.ports.clock.now_ms()
        count, last_ms = self._absent.get(coin.ref, (0, 0))
        if now_ms < last_ms + ABSENT_EVERY_MS:
            return
        read = await source.tx(coin.tx_id)
        if isinstance(read, Found):
            self._absent.pop(coin.ref, None)
        elif isinstance(read, NotFound):
            self._absent[coin.ref] = (count + 1, now_ms)
            if count + 1 >= ABSENT_READS:
                del self._absent[coin.ref]
                await agent.write("deposit", lambda unit: deposits.take_back(unit, coin.ref, now_ms))

    async def _carry_on(self) -> None:
        """Sign what was admitted and not signed, send what was signed and not sent, send again what is due."""
        agent = self._agent
        now_ms = agent.ports.clock.now_ms()
        await _each(queries.payments_in(agent.conn, (State.RESERVED,)), agent.resume)
        due = queries.payments_in(agent.conn, (State.SIGNED,))
        for row in queries.payments_in(agent.conn, (State.IN_FLIGHT,)):
            count, last_ms = queries.submissions(agent.conn, row.tx_id or "")
            if row.id in self._urgent or now_ms >= resubmit_due_ms(count, last_ms):
                due.append(row)
        self._urgent.clear()
        for row in due:
            agent.send_off(row.id)


def _depth(row: PaymentRow, tip: Tip) -> int:
    """How deep a payment's block is; the block itself counts 1."""
    return tip.height - (row.block_height or 0) + 1


async def _each(rows: Iterable[PaymentRow], act: Callable[[PaymentRow], Awaitable[None]]) -> None:
    """Act on every row, a few at once; one that raises does not keep the others from their turn."""
    gate = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(row: PaymentRow) -> None:
        async with gate:
            await act(row)

    results = await asyncio.gather(*(one(row) for row in rows), return_exceptions=True)
    errors = [result for result in results if isinstance(result, Exception)]
    if errors:
        raise ExceptionGroup("some payments could not be looked at", errors)
