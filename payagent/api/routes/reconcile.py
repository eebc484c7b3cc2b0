"""/v1/ledger/reconcile: compares the ledger with the wallet's addresses, as a provider shows them now.

Never: writes, but for the alert after the comparison; treats a missing answer as agreement.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.responses import StreamingResponse

from payagent.agent.base.chain_view import SKEW_MAX_S
from payagent.agent.context import AgentContext
from payagent.agent.operator.alerts import note_check
from payagent.api.http.problems import to_json
from payagent.api.models.ledger import ReconcileDifference, Reconciliation
from payagent.api.models.openapi import gives
from payagent.api.models.prepaid import PrepaidPool
from payagent.api.routes.auth import Caller, Reader
from payagent.api.routes.ledger import FINDINGS_MAX
from payagent.api.routes.params import QueryParams
from payagent.api.routes.prepaid import all_pools
from payagent.audit.finding import Progress
from payagent.audit.reconcile import AssetReconciliation, Difference, Doubt, InFlight, Told, reconcile
from payagent.chain.address_history import History, read_history
from payagent.chain.provider import BlockSeen, ChainReader, Found, NotFound, Read, denies
from payagent.core.aggregate import TxSeen
from payagent.core.network import SlotClock
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection
from payagent.store.rows.about import account_addresses
from payagent.store.rows.onchain import Claim, under_way_since_ms, unlisted

T = TypeVar("T")

HEARTBEAT_S = 10.0
"""After this long without a result, an empty line keeps the client from timing out."""

_TX_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])


SINCE = "Blocks from this slot on; 0: all. Unbooked payments are looked up in older blocks too."


class Period(QueryParams):
    """The part of the chain to compare."""

    since_slot: Annotated[int, Field(ge=0, lt=2**53, description=SINCE)] = 0


@dataclass(frozen=True, slots=True)
class _Bounds:
    """Where the comparison starts, as a slot and as a time. `read_tip`: the tip that payagent had read by then.
    `booked_tip`: the tip up to which it had booked all deposits.
    """

    since_slot: int
    since_s: int
    read_tip: BlockSeen
    booked_tip: BlockSeen | None


@dataclass(slots=True)
class _Answer:
    """The results so far by their kind, without the differences, which were already sent."""

    found: int = 0
    provider: str | None = None
    tip: BlockSeen | None = None
    told: dict[type[Told], list[Any]] = field(default_factory=lambda: defaultdict(list))

    def take(self, result: Told) -> str:
        """Take a result, and return the text to send at once."""
        if isinstance(result, Difference):
            self.found += 1
            if self.found > FINDINGS_MAX:
                return ""
            return ("," if self.found > 1 else "") + to_json(ReconcileDifference.model_validate(result))
        self.told[type(result)].append(result)
        return "\n"

    def result(self, since_slot: int, prepaid: list[PrepaidPool]) -> Reconciliation:
        """Everything but the differences, which were sent as they were found."""
        doubts = [one.what for one in self.told[Doubt]]
        return Reconciliation.model_validate(
            {
                "findings": [],
                "clean": not self.found and not doubts,
                "complete": not doubts,
                "found": self.found,
                "could_not_tell": doubts[:FINDINGS_MAX],
                "in_flight": self.told[InFlight][:FINDINGS_MAX],
                "balances": self.told[AssetReconciliation],
                "checked": {one.table: one.rows for one in self.told[Progress]},
                "since_slot": since_slot,
                "provider": self.provider,
                "tip": self.tip,
                "prepaid": prepaid,
            }
        )


@router.get(
    "/reconcile",
    summary="Compare the ledger with the chain",
    responses=gives(Reconciliation, 200),
    response_class=StreamingResponse,
)
async def reconciled(caller: Reader, query: Annotated[Period, Query()]) -> StreamingResponse:
    """Asks a provider for each transaction, which can take minutes. Differences are sent as they are found."""
    chain = caller.context.chain
    if chain.slots is None or chain.tip is None:
        raise Refused("chain_not_ready", chain.why_unseen)
    since_slot = min(query.since_slot, _unbooked_slot(caller.context.conn, chain.slots, chain.tip))
    since_s = max(chain.slots.time_ms(since_slot) // 1000, 0) if since_slot else 0
    bounds = _Bounds(since_slot, since_s, chain.tip, chain.booked)
    return StreamingResponse(_reconciled(caller, bounds), media_type="application/json")


def _unbooked_slot(conn: Connection, slots: SlotClock, tip: BlockSeen) -> int:
    """The slot since which something may be in a block but not in the ledger. All unspent outputs are compared."""
    began_ms = under_way_since_ms(conn)
    return tip.slot if began_ms is None else min(tip.slot, max(slots.slot_at(began_ms - SKEW_MAX_S * 1000), 0))


async def _reconciled(caller: Caller, bounds: _Bounds) -> AsyncIterator[str]:
    """One JSON object in pieces, while the token is valid."""
    context, answer = caller.context, _Answer()
    yield '{"findings":['
    async for result in _with_heartbeats(_results(context, bounds, answer)):
        caller.require_token_still_valid()
        yield "\n" if result is None else answer.take(result)
    if answer.found or not (answer.told[Doubt] or bounds.since_slot):
        await note_check(context, "payagent ledger reconcile", answer.found)
    report = answer.result(bounds.since_slot, all_pools(context.conn, context.config))
    yield to_json(report).removeprefix('{"findings":[')


async def _results(context: AgentContext, bounds: _Bounds, answer: _Answer) -> AsyncIterator[Told]:
    """All results, from the first provider that has the complete history."""
    doubts = []
    addresses = list(account_addresses(context.conn).values()) or [context.config.own.text]
    for provider in context.submit_providers:
        history = await read_history(provider, addresses, bounds.since_s)
        if isinstance(history, History):
            answer.provider, answer.tip = provider.name, history.tip
            async for result in _compare(context, provider, history, bounds):
                yield result
            return
        doubts.append(Doubt(f"{provider.name}: {history.reason}"))
    for doubt in doubts:
        yield doubt


async def _compare(
    context: AgentContext, provider: ChainReader, history: History, bounds: _Bounds
) -> AsyncIterator[Told]:
    """Compare the ledger with a history. Transactions that only the ledger has are looked up: it may be ahead."""
    is_forked = await _is_gone(provider, bounds.read_tip)
    if is_forked:
        yield Doubt(
            "the newest block that payagent read is no longer on the chain: repeat this after its next pass"
        )
    booked_height = 0 if is_forked else await _booked_height(provider, bounds)
    with ExitStack() as stack:
        conn = await _in_thread(partial(stack.enter_context, context.readers.snapshot()))
        since_ms = (bounds.since_s - SKEW_MAX_S) * 1000
        lacking = unlisted(conn, history.movements.keys(), bounds.since_slot, since_ms)
        claims: list[Claim] = await _in_thread(partial(list, lacking))
        looked_up = [(claim, await _look_up(provider, claim.tx_id)) for claim in claims]
        steps = reconcile(conn, history, looked_up, booked_height, bounds.since_slot, is_forked=is_forked)
        while (result := await _in_thread(partial(next, steps, None))) is not None:
            yield result
        if context.config.channels is not None:
            async for result in _channels(provider, conn):
                yield result


async def _channels(provider: ChainReader, conn: Connection) -> AsyncIterator[Told]:
    """Compare what each channel holds with the ledger: its account, and what is promised and not claimed."""
    from payagent.agent.channels.positions import address_of  # only where channels are on
    from payagent.store.rows.channels import channels_at_rest

    for channel in await _in_thread(partial(channels_at_rest, conn)):
        read = await provider.script_utxos(address_of(channel.script_hash).text)
        units = {utxo.ref: utxo.lovelace for utxo in read.value} if isinstance(read, Found) else {}
        has, booked = units.get(channel.ref or ""), channel.deposited - channel.claimed
        if has is None:
            yield Doubt(f"what channel {channel.id} holds: the provider does not show its output {channel.ref}")
        elif has != booked:
            what = f"the chain shows {has} lovelace in it, the ledger has {booked}"
            yield Difference("differing", "channels", channel.id, (channel.ref or "").partition("#")[0], what)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in another thread, and wait for it even if cancelled.

    Closing a connection while a thread reads from it would end the process.
    """
    working = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(working)
    finally:
        while not working.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((working,))


async def _booked_height(provider: ChainReader, bounds: _Bounds) -> int:
    """The height up to which all deposits are booked; 0 if a fork may have brought others."""
    booked_tip = bounds.booked_tip
    if booked_tip is None or (booked_tip != bounds.read_tip and await _is_gone(provider, booked_tip)):
        return 0
    return booked_tip.height


async def _is_gone(provider: ChainReader, tip: BlockSeen) -> bool:
    """Whether this block is no longer on the chain."""
    return denies(await provider.block(tip.hash, tip.slot), tip.height)


async def _look_up(provider: ChainReader, tx_id: str) -> Read[TxSeen]:
    """Look up a transaction. A text that cannot be a transaction id is not found."""
    return await provider.tx(tx_id) if _TX_ID.fullmatch(tx_id) else NotFound()


async def _with_heartbeats(steps: AsyncIterator[T]) -> AsyncIterator[T | None]:
    """Each step as it comes, and None after each `HEARTBEAT_S` without one."""
    results: asyncio.Queue[T | None] = asyncio.Queue()

    async def take() -> None:
        try:
            async for step in steps:
                results.put_nowait(step)
        finally:
            results.put_nowait(None)

    task = asyncio.create_task(take(), name="reconcile")
    try:
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    step = await results.get()
            except TimeoutError:
                yield None
                continue
            if step is None:
                break
            yield step
        await task
    finally:
        task.cancel()
