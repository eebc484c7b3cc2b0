"""Finds external spends of our UTxOs and books them, and brings a ledger that is behind up to the chain.

A ledger is behind if it is older than the signer's own record, or empty although the wallet is not: it does not
know all that was signed. Then nothing is signed until all of that has landed or expired and was read from the
chain. The wait is `QUIET_MS`. It begins when, after this was noticed, our clock first agrees with the chain's.
Start with `Recovery.run_once`.

Never: books a UTxO as spent that no transaction in a block spends.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from payagent.agent.base.chain_view import HISTORY, QUIET_MS
from payagent.agent.base.free_utxos import FreeUtxoIndex
from payagent.agent.base.log import log
from payagent.agent.chain_sync.repeated_reads import RepeatedReads
from payagent.agent.context import AgentContext
from payagent.chain.provider import AddressTx, BlockSeen, Found, Movement, Read, Unknown
from payagent.chain.provider_state import AHEAD_MAX_S
from payagent.chain.quorum_view import QuorumView
from payagent.core import ledger
from payagent.core.aggregate import ExternalSpendRow, TxSeen
from payagent.core.changes import AddExternalSpend, Book, Change, Note
from payagent.core.money import LOVELACE
from payagent.core.network import ROLLBACK_S
from payagent.core.payment.apply import move_utxo, new_utxo
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.core.utxo import UtxoEvent
from payagent.store.db.signer_record import SignerRecord, is_forgotten, last_signed
from payagent.store.db.unit import Unit
from payagent.store.executor import raise_alert, write
from payagent.store.rows import attempts_and_utxos, onchain, writes
from payagent.wallet.utxo_index import UtxoIndex

LAG_S = 3600
"""Seconds that a search begins before what is known: providers' indexes lag, and clocks disagree."""

REMEMBERED_MAX = 1000
"""Transactions of others kept after a finished search; the next one begins at about the same time."""

ROWS_AT_ONCE = 500
"""Transactions of a long list looked up in the ledger before progress is reported and the event loop may run other
tasks.
"""

T = TypeVar("T")

Progress = Callable[[int, int], None]
"""Progress callback: how many transactions are read, of how many in total."""

_OLDER = "the ledger is older than what was signed with this wallet, or was lost"

ALERT = "external_spend"
"""The kind of the alert, and its subject. Alerts are sealed, so an older one may have another subject."""

Why = Literal["external_spend", "forgotten_spend"]
"""The event: a spend by another wallet with our words, or one of ours that a restored ledger has forgotten."""


@dataclass(frozen=True, slots=True)
class ExternalSpend:
    """A transaction in a block that spends UTxOs at our address and is no attempt of ours."""

    seen: TxSeen
    moved: Movement
    provider: str


class ExternalSpendSearch:
    """Searches the transactions of our address for external spends.

    A transaction's movement never changes, so it is read once. A wallet's history can be long. A search therefore
    resumes where it stopped, with the blocks that no rollback reaches. After it only the newest movements stay in
    memory. `why`: why the last search could not be completed.
    """

    def __init__(self, context: AgentContext) -> None:
        self._context = context
        self._moved: dict[str, Movement] = {}
        self._placed: dict[str, TxSeen] = {}
        self._listed: tuple[AddressTx, ...] = ()
        self._listed_from_s = 0
        self._repeats = RepeatedReads()
        self._is_lonely = False
        self.why: str | None = None

    async def find(
        self, view: QuorumView, since_s: int, report: Progress = lambda _count, _total: None
    ) -> list[ExternalSpend] | None:
        """The external spends in blocks since `since_s`, oldest first; None if they could not be read in full.

        A view shows what its providers agree on; one that is only late does not count. If all but one of several
        providers cannot answer, that one must show the same three times, a minute apart.
        """
        self.why = None
        if not view.is_current:
            self.why = "a provider's newest block is old, or lower than one before"
            return None
        address, self._is_lonely = self._context.config.own.text, False
        if (listed := await self._list(view, address, max(since_s, 0))) is None:
            return None
        spends: list[ExternalSpend] = []
        for number, tx_id in enumerate(tx.tx_id for tx in sorted(listed, key=lambda tx: tx.block_height)):
            if number % ROWS_AT_ONCE == 0:
                report(number, len(listed))
                await asyncio.sleep(0)
            if onchain.is_ours(self._context.conn, tx_id):
                continue
            if (moved := await self._read(view, tx_id, address)) is None:
                return None
            if moved.spent:
                if (seen := await self._place(view, tx_id, next(iter(moved.spent)))) is None:
                    return None
                spends.append(ExternalSpend(seen, moved, view.name))
        for tx_id in list(self._moved)[:-REMEMBERED_MAX]:
            del self._moved[tx_id]
        self._placed.clear()
        self._listed = ()
        if self._is_lonely:
            shown = tuple((spend.seen.tx_id, spend.seen.block_hash) for spend in spends)
            now_ms = self._context.ports.clock.now_ms()
            if not self._repeats.is_enough(address, shown, view.tip.hash, now_ms):
                self.why = "only one provider shows it, and must show the same three times, a minute apart"
                return None
            return spends
        self._repeats.forget(address)
        return spends

    async def _list(self, view: QuorumView, address: str, since_s: int) -> Sequence[AddressTx] | None:
        """The transactions since `since_s`. What no rollback reaches is listed once in a search."""
        earlier = self._listed if since_s == self._listed_from_s else ()
        from_s = max(since_s, earlier[-1].time_s - LAG_S) if earlier else since_s
        if (newer := self._found(await view.transactions(address, from_s))) is None:
            return None
        listed = tuple({tx.tx_id: tx for tx in (*earlier, *newer)}.values())
        if not self._note(view, "transactions"):
            deep = view.tip.height - self._context.config.settle_depth
            self._listed_from_s = since_s
            self._listed = tuple(tx for tx in listed if tx.block_height <= deep)
        return listed

    async def _read(self, view: QuorumView, tx_id: str, address: str) -> Movement | None:
        if tx_id not in self._moved:
            moved = self._found(await view.movement(tx_id, address))
            if moved is None or self._note(view, "movement"):
                return moved  # the other providers may correct it
            self._moved[tx_id] = moved
        return self._moved[tx_id]

    def _found(self, read: Read[T]) -> T | None:
        """What was read; None if it could not be read, and then `why` says why."""
        if isinstance(read, Found):
            return read.value
        self.why = read.reason if isinstance(read, Unknown) else "a transaction that is listed is not found"
        return None

    def _note(self, view: QuorumView, kind: str) -> bool:
        """Whether only one of several providers showed what was just read; remembered for the whole search."""
        is_lonely = view.is_lonely(kind)
        self._is_lonely |= is_lonely
        return is_lonely

    async def _place(self, view: QuorumView, tx_id: str, spends: str) -> TxSeen | None:
        """The block that a transaction is in; None if it is unreadable or far above the tip."""
        if (placed := self._placed.get(tx_id)) is not None:
            return placed
        if (seen := self._found(await view.tx(tx_id, spends))) is None:
            return None
        depth = view.tip.height - seen.block_height + 1
        if depth < -AHEAD_MAX_S:  # a slot holds one block at most
            self.why = f"transaction {tx_id} is shown in a block far above the newest"
            return None
        if not self._note(view, "tx") and depth >= self._context.config.settle_depth:
            self._placed[tx_id] = seen
        return seen


def take_in(
    unit: Unit, spend: ExternalSpend, why: Why, utxos: UtxoIndex, now_ms: int, account: int = 0
) -> str | None:
    """Book an external spend of an account. UTxOs that no pass saw arrive are booked as deposits first.

    Returns the event; None if the spend is already booked. A transaction that lost its block and is in another one
    was reported before, and so was one that another account booked: neither freezes the wallet again.
    """
    seen = spend.seen
    if onchain.is_external_spend_on_chain(unit.conn, seen.tx_id, account):
        return None
    rows = [(ref, attempts_and_utxos.utxo(unit.conn, ref)) for ref in sorted(spend.moved.spent)]
    if any(row is not None and row.state == "spent" for _, row in rows):
        return None  # the transaction that was seen to spend it must be seen lost first
    event = "external_spend_again" if onchain.was_external_spend(unit.conn, seen.tx_id) else why
    changes: list[Change] = []
    values: list[Mapping[str, int]] = []
    for ref, row in rows:
        if row is None:  # it came and went between two passes, and was a deposit all the same
            changes += new_utxo(ref, spend.moved.spent[ref], UtxoEvent.SPENT_BY_OTHER, seen.tx_id, account)
            values.append(spend.moved.spent[ref])
        else:
            changes += move_utxo(row, UtxoEvent.SPENT_BY_OTHER, spent_by=seen.tx_id)
            values.append({LOVELACE: row.lovelace, **row.assets})
    inputs = tuple(ref for ref, _ in rows)
    spent = ledger.add(values)
    block = seen.block_hash, seen.block_height, seen.block_slot
    taken = ExternalSpendRow(seen.tx_id, True, inputs, spent, *block, account)
    entry = ledger.external_spend(spent, account)
    changes += [AddExternalSpend(taken, spend.provider), Book(entry, ref=seen.tx_id)]
    event_detail = {
        **seen._asdict(),
        "utxos": list(inputs),
        "spent": {asset: str(units) for asset, units in spent.items()},
        "returned": {asset: str(units) for asset, units in ledger.add(spend.moved.made.values()).items()},
    }
    write(unit, [*changes, Note(None, event, None, event_detail)], now_ms, FreeUtxoIndex(utxos))
    if event == "external_spend":
        detail = (
            f"transaction {seen.tx_id} spent UTxOs of this wallet, and the ledger does not know it: another "
            "program has the wallet's words, or the data folder was rolled back"
        )
        raise_alert(unit, ALERT, ALERT, {"detail": detail, "tx": seen.tx_id}, now_ms, again=True)
    return event


def note_behind(unit: Unit, signed: str | None, now_ms: int) -> None:
    """Record that the ledger does not know all that was signed, so a restart does not start over.

    That holds for all accounts, since what another one signed may be lost too. `signed`: the last attempt in the
    signer's record that is ahead, if one is.
    """
    detail = {"signed": signed, "since_s": onchain.last_event_ms(unit.conn) // 1000 - LAG_S}
    writes.note(unit, None, "ledger_behind", None, now_ms, detail)


def settle(unit: Unit, height: int, now_ms: int, account: int = 0) -> None:
    """Record that all external spends of an account up to this block height are final."""
    detail = {"height": height} | onchain.about_account(account)
    writes.note(unit, None, "external_spend_settled", None, now_ms, detail)


class Recovery:
    """Notices that the ledger is behind, and brings it up to the chain. One `run_once` at a time."""

    def __init__(self, context: AgentContext, record: SignerRecord) -> None:
        self._context = context
        self._account = context.config.account
        self._search = ExternalSpendSearch(context)
        self._signed = record.read()
        self._since_s = 0
        self._is_noticed = False
        self._quiet_from_ms: int | None = None

    async def begin(self) -> None:
        """Compare the ledger with the signer's record, before anything is signed."""
        conn, account = self._context.conn, self._account
        is_open = onchain.is_behind(conn, account)
        if not is_open and is_forgotten(conn, self._signed, account):
            await self._record_behind()
        elif is_open:
            self._load_status()
        elif last_signed(conn, account) is None and onchain.last_of_wallet(conn, "caught_up", account)[0] == 0:
            self._context.chain.behind = "this wallet's past was not read from the chain yet"

    async def run_once(self, view: QuorumView | None) -> None:
        """Read the wallet's history through the last pass's view, once all unknown attempts landed or expired."""
        context = self._context
        if view is None:
            return
        chain, now_ms = context.chain, context.ports.clock.now_ms()
        if chain.behind is None or chain.tip is None or chain.problem is not None:
            return
        if self._is_noticed and not await self._is_quiet_over(chain.tip, now_ms):
            return
        spends = await self._search.find(view, self._from_s(), self._show_progress)
        chain.note_unread(HISTORY, self._search.why)
        if spends is None:
            return
        if spends and not self._is_noticed:
            await self._record_behind()
            return
        tip = chain.tip
        await context.write("scan", lambda unit: self._catch_up(unit, spends, tip, view.is_for_good, now_ms))
        chain.behind, chain.is_compared = None, True
        log.warning("ledger.caught_up", transactions=len(spends))

    async def _is_quiet_over(self, tip: BlockSeen, now_ms: int) -> bool:
        """Whether the quiet time is over. It begins when our clock agrees with the chain's.

        A wrong clock would end it early, or never.
        """
        if self._quiet_from_ms is not None:
            return min(now_ms, tip.time_s * 1000) >= self._quiet_from_ms + QUIET_MS
        try:
            self._context.chain.require_in_step(now_ms)
        except Refused:
            return False
        await self._context.write(
            "scan",
            lambda unit: writes.note(
                unit, None, "quiet_begun", None, now_ms, onchain.about_account(self._account)
            ),
        )
        self._load_status()
        return False

    def _show_progress(self, count: int, total: int) -> None:
        """Show the progress. Each transaction takes one or two requests: with a daily quota this may take days."""
        if self._is_noticed:
            self._context.chain.behind = (
                f"{_OLDER}. The chain is being read: {count} of the wallet's {total} transactions so far"
            )

    def _from_s(self) -> int:
        """Early enough for any rollback of the newest known block, because our clock may have been ahead."""
        slots, slot = self._context.chain.slots, onchain.last_slot(self._context.conn, self._account)
        if slots is None or slot is None:
            return self._since_s
        return min(self._since_s, slots.time_ms(slot) // 1000 - ROLLBACK_S)

    @property
    def _signed_tx_id(self) -> str | None:
        """The last attempt in the signer's record."""
        return None if self._signed is None else self._signed.tx_id

    async def _record_behind(self) -> None:
        await self._context.write_at("scan", lambda unit, now_ms: note_behind(unit, self._signed_tx_id, now_ms))
        log.warning("ledger.behind", signed=self._signed_tx_id)
        self._load_status()

    def _load_status(self) -> None:
        conn = self._context.conn
        noticed, detail, _ = onchain.last_of_wallet(conn, "ledger_behind")
        begun, _, at_ms = onchain.last_of_wallet(conn, "quiet_begun", self._account)
        self._is_noticed = True
        self._quiet_from_ms = at_ms if begun > noticed else None
        is_new = last_signed(conn, self._account) is None  # what the ledger forgot may be its whole past
        self._since_s = -LAG_S if is_new else int(json.loads(detail)["since_s"])
        when = (
            f"{QUIET_MS // 60_000} minutes after our clock agrees with the chain's"
            if self._quiet_from_ms is None
            else f"at {iso_time(self._quiet_from_ms + QUIET_MS)}"
        )
        self._context.chain.behind = f"{_OLDER}. The chain is read {when}, when all that has landed or expired"

    def _catch_up(
        self, unit: Unit, spends: Sequence[ExternalSpend], tip: BlockSeen, is_for_good: bool, now_ms: int
    ) -> None:
        """Book what was found up to this tip. Deep spends are final, and are not read again."""
        account, utxos = self._account, self._context.utxos
        deep = tip.height - self._context.config.settle_depth
        was_empty = not onchain.external_spends_on_chain(unit.conn, account=account)
        booked = [spend for spend in spends if take_in(unit, spend, "forgotten_spend", utxos, now_ms, account)]
        last = last_signed(unit.conn, account)
        detail = {
            "signed": self._signed_tx_id,
            "attempts": 0 if last is None else last.attempts,
            "slot": tip.slot,
            "transactions": [spend.seen.tx_id for spend in booked],
            **onchain.about_account(account),
        }
        writes.note(unit, None, "caught_up", None, now_ms, detail)
        if was_empty and is_for_good and any(spend.seen.block_height <= deep for spend in booked):
            settle(unit, deep, now_ms, account)
