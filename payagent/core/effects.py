"""What each event of a payment does to the books, its hold, its UTxOs, its prepaid balance and alerts: one table.

`EFFECTS` has a row for each transition of `core.payment.TRANSITIONS`. `apply` looks the row up, and calls one
function for each column. It has no other branch on the state. A payment becomes void by one of four causes with
different effects (`VoidBy`), and the settling of a void payment moves no state; they have rows of their own.

May import: the standard library, core.
Never: SQL; reads anything but its arguments.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from payagent.core import ledger
from payagent.core.aggregate import AgreedPriceRow, AttemptRow, LoadedPayment, OwnUtxo, Stage, UtxoRow
from payagent.core.changes import (
    AddAttempt,
    AddExternalSpend,
    AddObservation,
    AddSubmission,
    AddUtxo,
    AgreePrice,
    Book,
    Change,
    Changes,
    Clear,
    EndHold,
    ForgetUtxo,
    Free,
    MovePayment,
    MovePrepaid,
    Note,
    PlaceHold,
    Raise,
    Reserve,
    SetUtxo,
    TakeBackUses,
    Unreserve,
    Whose,
)
from payagent.core.invoice import is_batch
from payagent.core.ledger import Entry, Posting
from payagent.core.money import LOVELACE
from payagent.core.payment import TRANSITIONS, Event, State, move
from payagent.core.prepaid_balance import CALLS, PrepaidBalance, buy, take_back
from payagent.core.utxo import Books, FreeSet, UtxoEvent, UtxoState, after


class VoidBy(StrEnum):
    """Why a payment is void."""

    CANCEL = "void by cancel"  # its own cancel is deep enough in the chain
    RIVAL = "void by rival"  # another payment's transaction keeps its nonce UTxO from ever existing
    EXTERNAL = "void by external spend"  # a transaction outside payagent spent its nonce UTxO
    TIME = "void by time"  # its nonce UTxO was rolled back, and no rollback reaches a block past every TTL


class Journal(StrEnum):
    """The entry for the hold."""

    NONE = "none"
    RESERVE = "reserve"  # what the transaction takes
    POST = "post"  # spent and fee to their accounts, the rest back to the wallet
    RELEASE = "release"  # all of it back to the wallet
    RELEASE_LESS_FEE = "release less fee"  # all but the cancel's fee
    REVERSE = "reverse"  # the last entry, if it posted or released


class HoldMove(StrEnum):
    """The hold, and what it counts against limits."""

    KEEP = "keep"
    PLACE = "place"  # counts in every window
    PLACE_APPROVAL = "place the approval's"  # counts in every window
    COUNT_FROM_BLOCK = "count from the block's time"
    RELEASE = "release"
    RELEASE_LESS_FEE = "release less fee"
    RELEASE_APPROVAL = "release the approval's"
    RENEW = "renew"  # counts in every window again


class Inputs(StrEnum):
    """The UTxOs that the payment's transaction spends, and its reservations."""

    KEEP = "keep"
    RESERVE = "reserved"
    SPEND = "spent"
    UNSPEND = "unspent"
    RELEASE = "released"


class Outputs(StrEnum):
    """The change that the payment's transactions make."""

    KEEP = "keep"
    MAKE = "made"
    LAND = "landed"
    UNMAKE = "unmade"
    FORGET_OTHERS = "others' forgotten"
    FORGET_ALL = "forgotten"


class PrepaidEffect(StrEnum):
    """The prepaid balance that the payment raises."""

    KEEP = "keep"
    BUY = "bought"
    TAKE_BACK = "taken back"
    NOT_BOUGHT = "not bought"


@dataclass(frozen=True, slots=True)
class Effect:
    """One row: what a transition does. `attempt`: whether it stores a signed attempt.

    `observed`: whether a provider's observation of the block is stored. Alerts come with the facts.
    """

    journal: Journal = Journal.NONE
    hold: HoldMove = HoldMove.KEEP
    inputs: Inputs = Inputs.KEEP
    outputs: Outputs = Outputs.KEEP
    prepaid: PrepaidEffect = PrepaidEffect.KEEP
    attempt: bool = False
    observed: bool = False


_SIGN = Effect(outputs=Outputs.MAKE, attempt=True)
_CANCEL = Effect(inputs=Inputs.RESERVE, outputs=Outputs.MAKE, attempt=True)
_SEEN = Effect(inputs=Inputs.SPEND, outputs=Outputs.LAND, observed=True)
_BLOCK_LOST = Effect(inputs=Inputs.UNSPEND, outputs=Outputs.UNMAKE)
_BLOCK_LOST_AFTER_BOOKS = Effect(
    journal=Journal.REVERSE,
    hold=HoldMove.RENEW,
    inputs=Inputs.UNSPEND,
    outputs=Outputs.UNMAKE,
    prepaid=PrepaidEffect.TAKE_BACK,
)
_SETTLE = Effect(inputs=Inputs.RELEASE, outputs=Outputs.FORGET_OTHERS)

_RESERVE = Effect(journal=Journal.RESERVE, hold=HoldMove.PLACE, inputs=Inputs.RESERVE)
_REPLACE = Effect(inputs=Inputs.RESERVE)

EFFECTS: dict[tuple[State, Event | VoidBy], Effect] = {
    (State.RECEIVED, Event.RESERVE): _RESERVE,
    (State.RECEIVED, Event.REQUEST_APPROVAL): Effect(hold=HoldMove.PLACE_APPROVAL),
    (State.RECEIVED, Event.REJECT): Effect(),
    (State.AWAITING_APPROVAL, Event.RESERVE): _RESERVE,
    (State.AWAITING_APPROVAL, Event.DENY): Effect(hold=HoldMove.RELEASE_APPROVAL),
    (State.RESERVED, Event.SIGN): _SIGN,
    (State.REPLACING, Event.SIGN): _SIGN,
    (State.RESERVED, Event.REJECT): Effect(journal=Journal.RELEASE, hold=HoldMove.RELEASE, inputs=Inputs.RELEASE),
    (State.SIGNED, Event.SUBMIT): Effect(),
    **{
        (state, Event.SEEN_IN_BLOCK): _SEEN
        for state in (State.SIGNED, State.IN_FLIGHT, State.REPLACING, State.CANCELLING)
    },
    (State.IN_BLOCK, Event.CONFIRM): Effect(
        journal=Journal.POST, hold=HoldMove.COUNT_FROM_BLOCK, prepaid=PrepaidEffect.BUY
    ),
    (State.CONFIRMED, Event.SETTLE): _SETTLE,
    (State.VOID, Event.SETTLE): _SETTLE,
    (State.IN_BLOCK, Event.BLOCK_LOST): _BLOCK_LOST,
    (State.CONFIRMED, Event.BLOCK_LOST): _BLOCK_LOST_AFTER_BOOKS,
    (State.VOID, Event.BLOCK_LOST): _BLOCK_LOST_AFTER_BOOKS,
    (State.SIGNED, Event.REPLACE): _REPLACE,
    (State.IN_FLIGHT, Event.REPLACE): _REPLACE,
    **{
        (state, Event.CANCEL): _CANCEL
        for state in (State.SIGNED, State.IN_FLIGHT, State.REPLACING, State.CANCELLING)
    },
    **{
        (state, cause): effect
        for state in (State.SIGNED, State.IN_FLIGHT, State.REPLACING, State.CANCELLING)
        for cause, effect in (
            (
                VoidBy.CANCEL,
                Effect(
                    journal=Journal.RELEASE_LESS_FEE,
                    hold=HoldMove.RELEASE_LESS_FEE,
                    inputs=Inputs.SPEND,
                    outputs=Outputs.LAND,
                    prepaid=PrepaidEffect.NOT_BOUGHT,
                    observed=True,
                ),
            ),
            (
                VoidBy.RIVAL,
                Effect(journal=Journal.RELEASE, hold=HoldMove.RELEASE, prepaid=PrepaidEffect.NOT_BOUGHT),
            ),
            (
                VoidBy.EXTERNAL,
                Effect(journal=Journal.RELEASE, hold=HoldMove.RELEASE, prepaid=PrepaidEffect.NOT_BOUGHT),
            ),
            (
                VoidBy.TIME,
                Effect(
                    journal=Journal.RELEASE,
                    hold=HoldMove.RELEASE,
                    inputs=Inputs.RELEASE,
                    outputs=Outputs.FORGET_ALL,
                    prepaid=PrepaidEffect.NOT_BOUGHT,
                ),
            ),
        )
    },
}
"""What each transition does, by the state before it and the event.

An approved payment releases the approval's hold before the limits are asked again (`release_approval_hold`), so
its RESERVE is the same as that of a payment that needed no approval."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a step knows beside the payment. Each step fills in what its columns need, and no more.

    `columns` and `detail`: the columns that change with the state, and what its event says besides.
    `from_ms`: since when the hold counts, by the limits' clock. `tx_id`: the transaction in the block, if it is
    not the payment's current one. `attempt`: the one that was signed; `own`: the UTxOs that it makes for us.
    `inputs`: the UTxOs to reserve. `spend`: the units to hold, from `clock_ms` of the limits' clock on; the
    operator's own transfers count nowhere. `balance`: the prepaid balance that the payment raises.
    `owed`: uses of it that nothing covers any more. `agree`: the price that becomes the agreed one. `provider`:
    who showed the block. `alerts`: raised and cleared last.
    """

    columns: Mapping[str, object] = field(default_factory=dict)
    detail: Mapping[str, object] = field(default_factory=dict)
    from_ms: int | None = None
    tx_id: str | None = None
    attempt: AttemptRow | None = None
    own: tuple[UtxoRow, ...] = ()
    inputs: tuple[UtxoRow, ...] = ()
    spend: Mapping[str, int] = field(default_factory=dict)
    clock_ms: int = 0
    is_counted: bool = True
    balance: PrepaidBalance | None = None
    owed: int = 0
    agree: AgreedPriceRow | None = None
    provider: str = ""
    alerts: tuple[Raise | Clear, ...] = ()


def apply(payment: LoadedPayment, event: Event, facts: Facts, void_by: VoidBy | None = None) -> Changes:
    """All changes of one event, in order. Refused: `wrong_state`, if the state does not take the event."""
    row = payment.row
    moves_state = (row.state, event) in TRANSITIONS
    if not moves_state and (row.state, event) != (State.VOID, Event.SETTLE):
        move(row.state, event)  # refuses
    effect = EFFECTS[row.state, void_by or event]
    step = _Step(payment, facts, effect)
    return (
        *step.attempt(),
        *((_move(payment, event, facts),) if moves_state else ()),
        *(_not_bought(step) if effect.prepaid is PrepaidEffect.NOT_BOUGHT else ()),
        *_HOLD[effect.hold](step),
        *_JOURNAL[effect.journal](step),
        *_PREPAID[effect.prepaid](step),
        *_INPUTS[effect.inputs](step),
        *_OUTPUTS[effect.outputs](step),
        *((AgreePrice(row.invoice.origin or "", facts.agree, {"payment": row.id}),) if facts.agree else ()),
        *facts.alerts,
    )


def submit(payment: LoadedPayment, tx_id: str, provider: str) -> Changes:
    """The bytes are about to be sent: the submission, and the state's move if it is the first one."""
    added = AddSubmission(tx_id, provider)
    if payment.row.state is not State.SIGNED:
        return (added,)
    return (added, *apply(payment, Event.SUBMIT, Facts()))


def lose_external_spend(
    payment_utxos: Mapping[str, OwnUtxo], spend: "AddExternalSpend", states: Mapping[str, str]
) -> Iterator[Change]:
    """An external spend lost its block: the UTxOs that it spent are ours again, available once listed.

    `states`: those of its inputs that it still counts as spent by, by ref.
    """
    lost = spend.spend
    yield spend
    yield Book(ledger.external_spend_reversed(lost.spent, lost.account), ref=lost.tx_id)
    for ref in lost.inputs:
        if ref in states:
            own = payment_utxos[ref]
            event = UtxoEvent.OTHER_LOST if own.is_made else UtxoEvent.OTHER_LOST_UNMADE
            yield from move_utxo(own.row, event, state=states[ref])
    detail = {"tx_id": lost.tx_id, "block_hash": lost.block_hash}
    yield Note(None, "external_spend_lost", None, detail)


def move_utxo(
    row: UtxoRow,
    event: UtxoEvent,
    *,
    state: str | None = None,
    spent_by: str | None = None,
    is_reserved: bool = True,
) -> Iterator[Change]:
    """One cell of the UTxO table, as changes. `state`: the state before, if this step changed it already."""
    before = UtxoState(state or row.state)
    cell = after(before, event)
    if cell.books is not Books.NOTHING:
        value = {LOVELACE: row.lovelace, **row.assets}
        book = ledger.deposit if cell.books is Books.DEPOSIT else ledger.deposit_reversed
        yield Book(book(value, row.account), ref=row.ref)
    if cell.to is None:
        yield ForgetUtxo(row.ref)
    elif cell.to is not before or spent_by is not None:
        yield SetUtxo(row.ref, cell.to, spent_by)
    if cell.free is FreeSet.TAKE or (cell.free is FreeSet.PUT and not is_reserved):
        yield Free(cell.free, row)


def new_utxo(
    ref: str, value: Mapping[str, int], event: UtxoEvent, spent_by: str | None = None, account: int = 0
) -> Changes:
    """A UTxO that the ledger did not know, by the table's cell for it: a deposit."""
    cell = after(None, event)
    tx_id, _, index = ref.partition("#")
    tokens = {asset: units for asset, units in value.items() if asset != LOVELACE}
    row = UtxoRow(ref, tx_id, int(index), value[LOVELACE], tokens, "deposit", str(cell.to), None, account)
    booked = (Book(ledger.deposit(value, account), ref=ref),) if cell.books is Books.DEPOSIT else ()
    put = () if cell.free is FreeSet.KEEP else (Free(cell.free, row),)
    return (AddUtxo(row, spent_by), *booked, *put)


def prepaid_size(payment: LoadedPayment) -> tuple[str, int]:
    """(unit, count) that a payment buys: the calls of its batch, or else what it pays in its asset."""
    row = payment.row
    if is_batch(row.invoice.batch_target):
        return CALLS, row.invoice.batch_target or 0
    asset = row.outputs[0].asset
    return asset, sum(output.units for output in row.outputs)


def _move(payment: LoadedPayment, event: Event, facts: Facts) -> MovePayment:
    row = payment.row
    return MovePayment(row.id, row.state, move(row.state, event), event, facts.columns, facts.detail)


@dataclass(frozen=True, slots=True)
class _Step:
    payment: LoadedPayment
    facts: Facts
    effect: Effect

    @property
    def whose(self) -> Whose:
        row = self.payment.row
        return Whose(row.app_id, row.invoice.origin or "", row.prepaid.pool_id)

    @property
    def landed(self) -> str:
        """The transaction in the block."""
        return self.facts.tx_id or self.payment.row.attempt.tx_id or ""

    def attempt(self) -> Iterator[Change]:
        """The signed attempt, before the payment names it; or the block that a provider showed."""
        facts = self.facts
        if self.effect.attempt and facts.attempt is not None:
            yield AddAttempt(facts.attempt)
        if self.effect.observed:
            columns = facts.columns
            yield AddObservation(
                self.landed,
                str(columns["block_hash"]),
                _number(columns["block_height"]),
                _number(columns["block_slot"]),
                facts.provider,
            )


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(value)
    return value


def _nothing(_step: _Step) -> Iterator[Change]:
    return iter(())


def _cancel_fee(step: _Step) -> int:
    attempt = step.payment.attempt(step.landed)
    return 0 if attempt is None else attempt.fee_lovelace


def spent_by(payment: LoadedPayment, attempt: AttemptRow) -> dict[str, int]:
    """The units that an attempt takes from the wallet, without the fee: inputs less change."""
    spent = {LOVELACE: -attempt.fee_lovelace}
    for ref in attempt.inputs:
        if (one := payment.utxos.get(ref)) is not None:
            spent = ledger.add((spent, {LOVELACE: one.row.lovelace, **one.row.assets}))
    for one in payment.made_by(attempt.tx_id):
        for asset, units in ((LOVELACE, one.row.lovelace), *one.row.assets.items()):
            spent[asset] = spent.get(asset, 0) - units
    return {asset: units for asset, units in spent.items() if units}


def _reserve(step: _Step) -> Iterator[Change]:
    row = step.payment.row
    yield Book(ledger.reserve(step.facts.spend, row.account), row.id)


def _post(step: _Step) -> Iterator[Change]:
    row = step.payment.row
    attempt = step.payment.require_attempt(row.attempt.tx_id)
    account = ledger.spending_account(row.invoice.origin, row.prepaid.pool_id is not None)
    spent, fee_lovelace = spent_by(step.payment, attempt), row.attempt.fee_lovelace or 0
    entry = ledger.post(step.payment.held, spent, fee_lovelace, account, row.account)
    yield Book(entry, row.id, row.attempt.tx_id)


def _release(step: _Step) -> Iterator[Change]:
    ref = step.facts.columns.get("void_tx_id") or step.facts.columns.get("tx_id")
    row = step.payment.row
    yield Book(ledger.release(step.payment.held, of=row.account), row.id, None if ref is None else str(ref))


def _release_less_fee(step: _Step) -> Iterator[Change]:
    row = step.payment.row
    yield Book(ledger.release(step.payment.held, _cancel_fee(step), row.account), row.id, step.landed)


def _reverse(step: _Step) -> Iterator[Change]:
    if step.payment.posted:
        lines = tuple(Posting(*line) for line in step.payment.posted)
        yield Book(ledger.post_reversed(Entry("post", lines)), step.payment.row.id)


_JOURNAL: dict[Journal, Callable[[_Step], Iterator[Change]]] = {
    Journal.NONE: _nothing,
    Journal.RESERVE: _reserve,
    Journal.POST: _post,
    Journal.RELEASE: _release,
    Journal.RELEASE_LESS_FEE: _release_less_fee,
    Journal.REVERSE: _reverse,
}


def release_approval_hold(payment: LoadedPayment) -> Changes:
    """The approval's hold ends before everything is decided anew."""
    return tuple(_end(_Step(payment, Facts(), Effect()), "approval", 0, None))


def _place(step: _Step, stage: Stage) -> Iterator[Change]:
    facts = step.facts
    yield PlaceHold(step.payment.row.id, stage, facts.spend, facts.clock_ms, facts.is_counted, step.whose)


def _count_from_block(step: _Step) -> Iterator[Change]:
    for hold in step.payment.holds:
        if hold.stage == "payment" and hold.counted_units is not None:
            yield EndHold(
                *(step.payment.row.id, hold.stage, hold.asset, step.whose),
                *(hold.counted_units, hold.counted_from_ms, hold.units, step.facts.from_ms),
            )


def _end(step: _Step, stage: Stage, kept_lovelace: int, from_ms: int | None) -> Iterator[Change]:
    for hold in step.payment.holds:
        if hold.stage == stage and not hold.is_released:
            kept = kept_lovelace if hold.asset == LOVELACE else 0
            yield EndHold(
                *(step.payment.row.id, hold.stage, hold.asset, step.whose),
                *(hold.counted_units, hold.counted_from_ms, kept, from_ms if kept else None),
                is_released=True,
            )


def _renew(step: _Step) -> Iterator[Change]:
    if not step.payment.posted:
        return
    for hold in step.payment.holds:
        if hold.stage == "payment":
            yield EndHold(
                *(step.payment.row.id, hold.stage, hold.asset, step.whose),
                *(hold.counted_units, hold.counted_from_ms, hold.units, None),
                is_released=False,
            )


_HOLD: dict[HoldMove, Callable[[_Step], Iterator[Change]]] = {
    HoldMove.KEEP: _nothing,
    HoldMove.PLACE: lambda step: _place(step, "payment"),
    HoldMove.PLACE_APPROVAL: lambda step: _place(step, "approval"),
    HoldMove.COUNT_FROM_BLOCK: _count_from_block,
    HoldMove.RELEASE: lambda step: _end(step, "payment", 0, step.facts.from_ms),
    HoldMove.RELEASE_LESS_FEE: lambda step: _end(step, "payment", _cancel_fee(step), step.facts.from_ms),
    HoldMove.RELEASE_APPROVAL: lambda step: _end(step, "approval", 0, None),
    HoldMove.RENEW: _renew,
}


def _reserve_inputs(step: _Step) -> Iterator[Change]:
    for utxo in step.facts.inputs:
        yield Free(FreeSet.TAKE, utxo)
    if step.facts.inputs:
        yield Reserve(step.payment.row.id, tuple(utxo.ref for utxo in step.facts.inputs))


def _spend(step: _Step) -> Iterator[Change]:
    """An attempt is in a block. An external spend of its inputs cannot be on the same chain."""
    attempt = step.payment.require_attempt(step.landed)
    states = {ref: one.row.state for ref, one in step.payment.utxos.items()}
    for spend in step.payment.external_spends:
        lost = AddExternalSpend(replace(spend, is_on_chain=False), step.facts.provider)
        spent = {
            ref: states[ref]
            for ref in spend.inputs
            if (own := step.payment.utxos.get(ref)) is not None and own.spent_by == spend.tx_id
        }
        for change in lose_external_spend(step.payment.utxos, lost, spent):
            if isinstance(change, SetUtxo):
                states[change.ref] = change.state
            yield change
    for ref in attempt.inputs:
        if (own := step.payment.utxos.get(ref)) is not None:
            yield from move_utxo(own.row, UtxoEvent.SPENT, state=states[ref], spent_by=attempt.tx_id)


def _unspend(step: _Step) -> Iterator[Change]:
    attempt = step.payment.attempt(step.payment.row.attempt.tx_id)
    for ref in () if attempt is None else attempt.inputs:
        if (own := step.payment.utxos.get(ref)) is None:
            continue
        yield from move_utxo(own.row, UtxoEvent.UNSPENT if own.is_made else UtxoEvent.UNSPENT_UNMADE)


def _released(step: _Step) -> Iterator[Change]:
    """The reservations end. What can never exist is deleted."""
    reserved = step.payment.reserved
    yield Unreserve(step.payment.row.id)
    for own in reserved:
        is_never = own.row.state == UtxoState.PENDING and own.is_never_made
        event = UtxoEvent.RELEASED_NEVER if is_never else UtxoEvent.RELEASED
        yield from move_utxo(own.row, event, is_reserved=False)


_INPUTS: dict[Inputs, Callable[[_Step], Iterator[Change]]] = {
    Inputs.KEEP: _nothing,
    Inputs.RESERVE: _reserve_inputs,
    Inputs.SPEND: _spend,
    Inputs.UNSPEND: _unspend,
    Inputs.RELEASE: _released,
}


def _make(step: _Step) -> Iterator[Change]:
    return (AddUtxo(utxo) for utxo in step.facts.own)


def _land(step: _Step) -> Iterator[Change]:
    for own in step.payment.made_by(step.landed):
        yield from move_utxo(own.row, UtxoEvent.LANDED, is_reserved=own.row.reserved_for is not None)


def _unmake(step: _Step) -> Iterator[Change]:
    for own in step.payment.made_by(step.payment.row.attempt.tx_id):
        if own.row.source == "change":
            yield from move_utxo(own.row, UtxoEvent.UNMADE)


def _forget(step: _Step, but: str | None) -> Iterator[Change]:
    for attempt in step.payment.attempts:
        if attempt.tx_id != but:
            for own in step.payment.made_by(attempt.tx_id):
                if own.row.reserved_for is None:
                    yield from move_utxo(own.row, UtxoEvent.ORPHANED)


_OUTPUTS: dict[Outputs, Callable[[_Step], Iterator[Change]]] = {
    Outputs.KEEP: _nothing,
    Outputs.MAKE: _make,
    Outputs.LAND: _land,
    Outputs.UNMAKE: _unmake,
    Outputs.FORGET_OTHERS: lambda step: _forget(step, step.payment.row.attempt.tx_id),
    Outputs.FORGET_ALL: lambda step: _forget(step, None),
}


def _move_prepaid(
    step: _Step, kind: str, balance: Callable[[PrepaidBalance, int], PrepaidBalance]
) -> Iterator[Change]:
    row, facts = step.payment.row, step.facts
    if row.prepaid.pool_id is not None and facts.balance is not None:
        name, count = prepaid_size(step.payment)
        yield MovePrepaid(
            row.prepaid.pool_id,
            row.invoice.origin or "",
            name,
            kind,
            facts.balance,
            balance(facts.balance, count),
            payment_id=row.id,
        )


def _buy(step: _Step) -> Iterator[Change]:
    attempt = step.payment.attempt(step.payment.row.attempt.tx_id)
    paid = {} if attempt is None else spent_by(step.payment, attempt)
    return _move_prepaid(step, "buy", lambda balance, count: buy(balance, count, paid))


def _take_back(step: _Step) -> Iterator[Change]:
    account = ledger.prepaid_account(step.payment.row.invoice.origin or "")
    paid = {asset: units for name, asset, units in step.payment.posted if name == account}
    if paid:
        yield from _move_prepaid(step, "take_back", lambda balance, count: take_back(balance, count, paid))


def _not_bought(step: _Step) -> Iterator[Change]:
    pool_id = step.payment.row.prepaid.pool_id
    if pool_id is not None:
        name, _ = prepaid_size(step.payment)
        yield TakeBackUses(pool_id, name, step.facts.owed)


_PREPAID: dict[PrepaidEffect, Callable[[_Step], Iterator[Change]]] = {
    PrepaidEffect.KEEP: _nothing,
    PrepaidEffect.BUY: _buy,
    PrepaidEffect.TAKE_BACK: _take_back,
    PrepaidEffect.NOT_BOUGHT: _nothing,  # before the hold is released: `apply`
}
