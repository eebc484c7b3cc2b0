"""What an event of a payment changes: `apply` looks up its row of `machine.EFFECTS`, column by column.

A column reads its facts from the event. What an event does to one UTxO is the table of `core.utxo`.

Never: SQL; reads anything but its arguments.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from typing import Any

from payagent.core import ledger
from payagent.core.aggregate import AttemptRow, LoadedPayment, OwnUtxo, PaymentRow, Stage, UtxoRow
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
    ForgetUtxo,
    Free,
    MovePayment,
    MovePrepaid,
    Note,
    PlaceHold,
    Raise,
    Reserve,
    SetHold,
    SetUtxo,
    TakeBackUses,
    Unreserve,
    Whose,
)
from payagent.core.invoice import is_batch
from payagent.core.ledger import Entry, Posting
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment.events import MoneyEvent
from payagent.core.payment.machine import (
    AlertEffect,
    Delivery,
    Event,
    HoldMove,
    Inputs,
    Journal,
    MerchantEffect,
    Outputs,
    PrepaidEffect,
    RecordEffect,
    effect_of,
)
from payagent.core.prepaid_balance import CALLS, PrepaidBalance, buy, take_back
from payagent.core.timestamps import iso_time
from payagent.core.utxo import Books, FreeSet, UtxoEvent, UtxoState, after

SIGNER_SUBJECT = "signer"
"""The alert subject of a signer that refuses."""


def apply(payment: LoadedPayment, event: MoneyEvent) -> Changes:
    """All changes of one event, in order. Refused: `wrong_state`, if the state does not take the event."""
    row = payment.row
    effect = effect_of(row.state, event.event)
    moves: list[MovePayment] = []
    if effect.next is not None:
        first = effect.through or effect.next
        moves = [MovePayment(row.id, row.state, first, event.event.stored, *event.stored(payment))]
        if effect.through is not None:
            moves.append(MovePayment(row.id, first, effect.next, Event.SUBMIT, {}, {"to": "merchant"}))
    # what is not bought changes which uses count, so it comes before the hold is released
    early, late = (effect.prepaid, None) if effect.prepaid is PrepaidEffect.NOT_BOUGHT else (None, effect.prepaid)
    rest = (effect.inputs, effect.outputs, effect.merchant, effect.alert)
    return (
        *_changes(payment, event, effect.record),
        *moves[:1],
        *_changes(payment, event, early, effect.hold, effect.journal, late, *rest),
        *moves[1:],
    )


def _changes(payment: LoadedPayment, event: MoneyEvent, *cells: Enum | None) -> Iterator[Change]:
    for cell in cells:
        if cell is not None:
            yield from _CELLS[cell](payment, event)


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


def _is_new(payment: LoadedPayment, event: Any) -> bool:
    """Whether the attempt is not stored yet: the same cancel may be signed again after a fork."""
    return payment.attempt(event.attempt.tx_id) is None


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


def _post(payment: LoadedPayment, _event: Any) -> Iterator[Change]:
    row = payment.row
    attempt = payment.require_attempt(row.attempt.tx_id)
    account = ledger.spending_account(row.invoice.origin, row.prepaid.pool_id is not None)
    if row.is_channel_step:
        account = ledger.channel_account(row.intent.origin)
    spent, fee_lovelace = spent_by(payment, attempt), row.attempt.fee_lovelace or 0
    entry = ledger.post(payment.held, spent, fee_lovelace, account, row.account)
    yield Book(entry, row.id, row.attempt.tx_id)


def _release(payment: LoadedPayment, event: Any, fee_lovelace: int = 0) -> Iterator[Change]:
    columns, _ = event.stored(payment)
    entry = ledger.release(payment.held, fee_lovelace, payment.row.account)
    yield Book(entry, payment.row.id, columns.get("void_tx_id") or columns.get("tx_id"))


def _cancel_fee(payment: LoadedPayment, event: Any) -> int:
    return payment.require_attempt(event.block.tx_id).fee_lovelace


def _reverse(payment: LoadedPayment, _event: Any) -> Iterator[Change]:
    lines = tuple(Posting(*line) for line in payment.posted)
    yield Book(ledger.post_reversed(Entry("post", lines)), payment.row.id)


def release_approval_hold(payment: LoadedPayment) -> Changes:
    """The approval's hold ends before everything is decided anew."""
    return tuple(_set_holds(payment, "approval", 0, is_released=True))


def _whose(payment: LoadedPayment) -> Whose:
    row = payment.row
    return Whose(row.app_id, row.invoice.origin or "", row.prepaid.pool_id)


def _place(payment: LoadedPayment, event: Any, stage: Stage) -> PlaceHold:
    return PlaceHold(payment.row.id, stage, event.spend, event.clock_ms, event.is_counted, _whose(payment))


def _set_holds(
    payment: LoadedPayment,
    stage: Stage,
    kept_lovelace: int | None = None,
    from_ms: int | None = None,
    is_released: bool | None = None,
) -> Iterator[Change]:
    """What the holds of a stage count from now on: all of them, or only some lovelace."""
    for hold in payment.holds:
        if hold.stage == stage:
            kept = hold.units if kept_lovelace is None else kept_lovelace if hold.asset == LOVELACE else 0
            counted_from_ms = from_ms if kept else None
            yield SetHold(payment.row.id, hold, _whose(payment), kept, counted_from_ms, is_released)


def _reserve_inputs(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    yield from (Free(FreeSet.TAKE, utxo) for utxo in event.inputs)
    if event.inputs:
        yield Reserve(payment.row.id, tuple(utxo.ref for utxo in event.inputs))


def _spend(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    """An attempt is in a block. An external spend of its inputs cannot be on the same chain."""
    attempt = payment.require_attempt(event.block.tx_id)
    states = {ref: one.row.state for ref, one in payment.utxos.items()}
    for spend in payment.external_spends:
        lost = AddExternalSpend(replace(spend, is_on_chain=False), event.provider)
        spent = {
            ref: states[ref]
            for ref in spend.inputs
            if (own := payment.utxos.get(ref)) is not None and own.spent_by == spend.tx_id
        }
        for change in lose_external_spend(payment.utxos, lost, spent):
            if isinstance(change, SetUtxo):
                states[change.ref] = change.state
            yield change
    for ref in attempt.inputs:
        if (own := payment.utxos.get(ref)) is not None:
            yield from move_utxo(own.row, UtxoEvent.SPENT, state=states[ref], spent_by=attempt.tx_id)


def _unspend(payment: LoadedPayment, _event: Any) -> Iterator[Change]:
    for ref in payment.require_attempt(payment.row.attempt.tx_id).inputs:
        if (own := payment.utxos.get(ref)) is not None:
            yield from move_utxo(own.row, UtxoEvent.UNSPENT if own.is_made else UtxoEvent.UNSPENT_UNMADE)


def _released(payment: LoadedPayment, _event: Any) -> Iterator[Change]:
    """The reservations end. What can never exist is deleted."""
    yield Unreserve(payment.row.id)
    for own in payment.reserved:
        is_never = own.row.state == UtxoState.PENDING and own.is_never_made
        event = UtxoEvent.RELEASED_NEVER if is_never else UtxoEvent.RELEASED
        yield from move_utxo(own.row, event, is_reserved=False)


def _land(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    for own in payment.made_by(event.block.tx_id):
        yield from move_utxo(own.row, UtxoEvent.LANDED, is_reserved=own.row.reserved_for is not None)


def _unmake(payment: LoadedPayment, _event: Any) -> Iterator[Change]:
    for own in payment.made_by(payment.row.attempt.tx_id):
        if own.row.source == "change":
            yield from move_utxo(own.row, UtxoEvent.UNMADE)


def _forget(payment: LoadedPayment, but: str | None) -> Iterator[Change]:
    for attempt in payment.attempts:
        if attempt.tx_id != but:
            for own in payment.made_by(attempt.tx_id):
                if own.row.reserved_for is None:
                    yield from move_utxo(own.row, UtxoEvent.ORPHANED)


def _move_prepaid(
    payment: LoadedPayment,
    kind: str,
    before: PrepaidBalance,
    after: Callable[[PrepaidBalance, int], PrepaidBalance],
) -> Iterator[Change]:
    row = payment.row
    if row.prepaid.pool_id is not None:
        name, count = prepaid_size(payment)
        yield MovePrepaid(
            *(row.prepaid.pool_id, row.invoice.origin or "", name, kind, before, after(before, count)),
            payment_id=row.id,
        )


def _buy(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    paid = spent_by(payment, payment.require_attempt(payment.row.attempt.tx_id))
    return _move_prepaid(payment, "buy", event.balance, lambda balance, count: buy(balance, count, paid))


def _take_back(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    account = ledger.prepaid_account(payment.row.invoice.origin or "")
    paid = {asset: units for name, asset, units in payment.posted if name == account}
    return _move_prepaid(
        payment, "take_back", event.balance, lambda balance, count: take_back(balance, count, paid)
    )


def _not_bought(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    pool_id = payment.row.prepaid.pool_id
    if pool_id is not None:
        name, _ = prepaid_size(payment)
        yield TakeBackUses(pool_id, name, event.owed)


def _agree(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    if event.agree is not None:
        yield AgreePrice(payment.row.invoice.origin or "", event.agree, {"payment": payment.row.id})


def approval_subject(payment_id: str) -> str:
    """The alert subject of a payment's approval."""
    return f"approval:{payment_id}"


def _raise_approval(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    row, why = payment.row, "; ".join(reason.detail for reason in event.approval.reasons)
    facts = {
        "detail": f"{row.id} to {row.invoice.origin} waits for a person: {why}",
        **{"payment": row.id, "app": row.app_id, "merchant": row.invoice.origin or ""},
        "ends_at": iso_time(event.approval.expires_at_ms),
    }
    yield Raise("approval_needed", approval_subject(row.id), facts)


def _clear_approval(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    yield Clear(approval_subject(payment.row.id), {"detail": event.decision, "payment": payment.row.id})


def unserved_subject(payment_id: str) -> str:
    """The alert subject of a payment that its merchant did not serve."""
    return f"unserved:{payment_id}"


def raise_unserved(row: PaymentRow, spend: ledger.Units, **more: str) -> Raise:
    """The alert of a payment that was not served: it needs a person. `spend`: what it took, with the fee.

    `more`: facts to add, such as `again` if it was recorded as not served before, and only now is confirmed again.
    """
    units = ledger.add((spend, {LOVELACE: -(row.attempt.fee_lovelace or 0)}))
    paid = " and ".join(format_amount(asset, n) for asset, n in units.items() if n)
    detail = f"{row.invoice.origin} was paid {paid} and did not serve"
    facts = {"detail": detail, "payment": row.id, "merchant": row.invoice.origin or "", **more}
    return Raise("paid_not_served", unserved_subject(row.id), facts)


def _clear_unserved(payment: LoadedPayment, _event: Any) -> Iterator[Change]:
    detail = f"{payment.row.id} is void: nothing was paid"
    yield Clear(unserved_subject(payment.row.id), {"detail": detail, "payment": payment.row.id})


def _raise_reopened(payment: LoadedPayment, event: Any) -> Iterator[Change]:
    row, denied_by = payment.row, event.denied_by
    if denied_by is not None:
        detail = (
            f"{row.id} was shown in block {row.block.hash}, and {denied_by} denies that it is there. Its money is "
            "held again and the same transaction is sent again"
        )
        facts = {"detail": detail, "payment": row.id, "tx_hash": row.shown_by, "provider": denied_by}
        yield Raise("payment_reopened", f"reopened:{row.id}", facts, again=True)


Cell = Callable[[LoadedPayment, Any], Iterable[Change]]
"""The changes of a cell. Its second argument is the event, which has the facts that the cell needs."""

_CELLS: dict[Enum, Cell] = {
    RecordEffect.APPROVAL: lambda _, event: (event.approval,),
    RecordEffect.ATTEMPT: lambda of, event: (AddAttempt(event.attempt),) if _is_new(of, event) else (),
    RecordEffect.SUBMISSION: lambda _, event: (AddSubmission(event.tx_id, event.provider),),
    RecordEffect.BLOCK: lambda _, event: (AddObservation(event.block, event.provider),),
    HoldMove.PLACE: lambda of, event: (_place(of, event, "payment"),),
    HoldMove.PLACE_APPROVAL: lambda of, event: (_place(of, event, "approval"),),
    HoldMove.COUNT_FROM_BLOCK: lambda of, event: _set_holds(of, "payment", from_ms=event.from_ms),
    HoldMove.RELEASE: lambda of, _: _set_holds(of, "payment", 0, is_released=True),
    HoldMove.RELEASE_LESS_FEE: lambda of, event: _set_holds(
        of, "payment", _cancel_fee(of, event), event.from_ms, is_released=True
    ),
    HoldMove.RELEASE_APPROVAL: lambda of, _: release_approval_hold(of),
    HoldMove.RENEW: lambda of, _: _set_holds(of, "payment", is_released=False),
    Journal.RESERVE: lambda of, event: (Book(ledger.reserve(event.spend, of.row.account), of.row.id),),
    Journal.POST: _post,
    Journal.RELEASE: _release,
    Journal.RELEASE_LESS_FEE: lambda of, event: _release(of, event, _cancel_fee(of, event)),
    Journal.REVERSE: _reverse,
    PrepaidEffect.BUY: _buy,
    PrepaidEffect.TAKE_BACK: _take_back,
    PrepaidEffect.NOT_BOUGHT: _not_bought,
    Inputs.RESERVE: _reserve_inputs,
    Inputs.SPEND: _spend,
    Inputs.UNSPEND: _unspend,
    Inputs.RELEASE: _released,
    Outputs.MAKE: lambda of, event: map(AddUtxo, event.made) if _is_new(of, event) else (),
    Outputs.LAND: _land,
    Outputs.UNMAKE: _unmake,
    Outputs.FORGET_OTHERS: lambda of, _: _forget(of, of.row.attempt.tx_id),
    Outputs.FORGET_ALL: lambda of, _: _forget(of, None),
    MerchantEffect.PIN: lambda _, event: event.learnt,
    MerchantEffect.ALLOW: lambda _, event: event.learnt,
    MerchantEffect.AGREE: _agree,
    AlertEffect.RAISE_APPROVAL: _raise_approval,
    AlertEffect.CLEAR_APPROVAL: _clear_approval,
    AlertEffect.CLEAR_SIGNER: lambda *_: (Clear(SIGNER_SUBJECT, {"detail": "the signer signs payments"}),),
    AlertEffect.CLEAR_UNSERVED: _clear_unserved,
    AlertEffect.RAISE_UNSERVED: lambda of, _: (
        (raise_unserved(of.row, of.held, again="true"),) if of.row.delivery is Delivery.PAID_NOT_SERVED else ()
    ),
    AlertEffect.RAISE_REOPENED: _raise_reopened,
}
