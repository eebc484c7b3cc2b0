"""The changes of a payment's events: what stays whole, each column by an example, and each row of the table."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from enum import Enum
from itertools import pairwise
from typing import TypeVar

import pytest

from payagent.core.aggregate import (
    AgreedPriceRow,
    AttemptPart,
    AttemptRow,
    BlockPart,
    ExternalSpendRow,
    Hold,
    IntentPart,
    InvoicePart,
    LoadedPayment,
    Maker,
    OutputRow,
    OwnUtxo,
    PaymentRow,
    PrepaidPart,
    ProblemPart,
    TxSeen,
    UtxoRow,
)
from payagent.core.changes import (
    AddApproval,
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
    PinAddress,
    PlaceHold,
    Raise,
    Reserve,
    SetHold,
    SetUtxo,
    TakeBackUses,
    Unreserve,
)
from payagent.core.history import SENTENCES, event_in_words, happened
from payagent.core.merchant_rules import Pin
from payagent.core.payment.apply import apply, lose_external_spend, move_utxo, new_utxo, release_approval_hold
from payagent.core.payment.events import (
    Approve,
    BlockLost,
    Cancel,
    CancelBlockLost,
    Confirm,
    Deny,
    ExternalSpendBlockLost,
    MoneyEvent,
    Reject,
    Replace,
    RequestApproval,
    ReserveFunds,
    RivalBlockLost,
    SeenInBlock,
    Settle,
    Sign,
    SignHandedOver,
    Submit,
    VoidByCancel,
    VoidByExternalSpend,
    VoidByRival,
    VoidByTime,
)
from payagent.core.payment.machine import (
    EFFECTS,
    AlertEffect,
    Delivery,
    Effect,
    Event,
    HoldMove,
    Inputs,
    Journal,
    MerchantEffect,
    Outputs,
    PrepaidEffect,
    RecordEffect,
    State,
)
from payagent.core.prepaid_balance import Cost, PrepaidBalance
from payagent.core.problems import Refused
from payagent.core.utxo import FreeSet, UtxoEvent

C = TypeVar("C")

ORIGIN = "https://merchant.example"
HELD = 2_170_000
FEE = 170_000
BLOCK = TxSeen("t1", "b1", 7, 70)
EXTERNAL = ExternalSpendRow("x1", True, ("d0#0", "e0#0"), {"lovelace": 20_000_000}, "b0", 5, 50)
WHY = Refused("deposit_rolled_back", "why")
EMPTY = PrepaidBalance()


def utxo(
    ref: str, lovelace: int, state: str, *, source: str = "deposit", reserved_for: str | None = "pay"
) -> UtxoRow:
    tx_id, _, index = ref.partition("#")
    return UtxoRow(ref, tx_id, int(index), lovelace, {}, source, state, reserved_for)


INPUT = OwnUtxo(utxo("d0#0", 20_000_000, "available"), None, None)
CHANGE = OwnUtxo(
    utxo("t1#1", 17_830_000, "pending", source="change", reserved_for=None),
    None,
    Maker("pay", State.IN_FLIGHT, "t1", is_settled=False),
)
ATTEMPT = AttemptRow("t1", "pay", "pay", "d0#0", 1, ("d0#0",), b"", FEE, 900)
ROW = PaymentRow(
    seq=1,
    id="pay",
    kind="invoice",
    app_id="app",
    outputs=(OutputRow("pay_to", "addr", "lovelace", 2_000_000),),
    state=State.IN_FLIGHT,
    delivery=Delivery.NOT_PRESENTED,
    nonce_utxo="d0#0",
    void_tx_id=None,
    merchant_status=None,
    refused=False,
    created_at_ms=1,
    updated_at_ms=1,
    account=0,
    intent=IntentPart("int", "req", True, ""),
    invoice=InvoicePart(1, ORIGIN, "flux", "inv", "t", None, None, "tx_hash", False, None, None),
    attempt=AttemptPart(1, "t1", 900, FEE, b"", False, False),
    block=BlockPart(None, None, None),
    problem=ProblemPart(None, None, None),
    prepaid=PrepaidPart(None, None, None, None),
)
PAYMENT = LoadedPayment(
    ROW, (ATTEMPT,), (Hold("payment", "lovelace", HELD, HELD, None, False),), {"d0#0": INPUT, "t1#1": CHANGE}
)
POSTED = (("held", "lovelace", -HELD), (f"merchant:{ORIGIN}", "lovelace", 2_000_000), ("fees", "lovelace", FEE))


def at(state: State, payment: LoadedPayment = PAYMENT, **more: object) -> LoadedPayment:
    return replace(payment, row=replace(payment.row, state=state), **more)  # type: ignore[arg-type]


def of_pool(payment: LoadedPayment, batch: int | None = None) -> LoadedPayment:
    row = payment.row
    prepaid, invoice = PrepaidPart(3, "p", "w", None), replace(row.invoice, batch_target=batch)
    return replace(payment, row=replace(row, prepaid=prepaid, invoice=invoice))


def only(changes: Iterable[Change], kind: type[C]) -> C:
    (found,) = every(changes, kind)
    return found


def every(changes: Iterable[Change], kind: type[C]) -> list[C]:
    return [change for change in changes if isinstance(change, kind)]


def seen(payment: LoadedPayment) -> Changes:
    return apply(payment, SeenInBlock(BLOCK, "p"))


def confirm(balance: PrepaidBalance = EMPTY, agree: AgreedPriceRow | None = None) -> Confirm:
    return Confirm(3, 1000, balance, agree)


def reserve(kind: type[ReserveFunds], *learnt: PinAddress | AgreePrice) -> MoneyEvent:
    return kind("d0#0", 900, (INPUT.row,), {"lovelace": HELD}, 9, True, learnt, {"limits": []})


def test_the_journal_and_the_hold_move_together() -> None:
    """A hold that ends in one ends in the other: wallet + held is what the chain shows."""
    pairs = {
        None: {None, HoldMove.PLACE_APPROVAL, HoldMove.RELEASE_APPROVAL},
        Journal.RESERVE: {HoldMove.PLACE},
        Journal.POST: {HoldMove.COUNT_FROM_BLOCK},
        Journal.RELEASE: {HoldMove.RELEASE},
        Journal.RELEASE_LESS_FEE: {HoldMove.RELEASE_LESS_FEE},
        Journal.REVERSE: {HoldMove.RENEW},
    }
    for pair, effect in EFFECTS.items():
        assert effect.hold in pairs[effect.journal], pair


@pytest.mark.parametrize("event", [Sign(ATTEMPT, ()), BlockLost(None, EMPTY)])
def test_an_event_that_the_state_does_not_take_is_refused(event: MoneyEvent) -> None:
    with pytest.raises(Refused) as caught:
        apply(at(State.SETTLED), event)
    assert caught.value.code == "wrong_state"


def test_reserving_holds_the_units_and_takes_the_inputs() -> None:
    changes = apply(at(State.RECEIVED), reserve(ReserveFunds))
    moved = only(changes, MovePayment)
    assert (moved.before, moved.after, moved.event) == (State.RECEIVED, State.RESERVED, "reserve")
    assert (moved.columns, moved.detail) == ({"nonce_utxo": "d0#0", "ttl_slot": 900}, {"limits": []})
    placed = only(changes, PlaceHold)
    assert (placed.stage, placed.units, placed.clock_ms, placed.is_counted) == (
        "payment",
        {"lovelace": HELD},
        9,
        True,
    )
    assert only(changes, Book).entry.kind == "reserve"
    assert (only(changes, Free).what, only(changes, Reserve).refs) == (FreeSet.TAKE, ("d0#0",))


def test_asking_places_a_hold_of_its_own_that_a_decision_releases() -> None:
    approval = AddApproval("pay", "t", (), {}, None, 60_000)
    changes = apply(at(State.RECEIVED), RequestApproval(approval, {"lovelace": 3}, 9))
    assert only(changes, PlaceHold).stage == "approval"
    asked = at(State.AWAITING_APPROVAL, holds=(Hold("approval", "lovelace", 3, 3, None, False),))
    for released in (release_approval_hold(asked), apply(asked, Deny(WHY, {}))):
        ended = only(released, SetHold)
        assert (ended.hold.stage, ended.hold.counted_units, ended.units, ended.is_released) == (
            "approval",
            3,
            0,
            True,
        )


def test_signing_stores_the_attempt_before_the_payment_names_it() -> None:
    made = utxo("t2#1", 5, "pending", source="change", reserved_for=None)
    attempt = replace(ATTEMPT, tx_id="t2")
    changes = apply(at(State.RESERVED), Sign(attempt, (made,)))
    assert [type(change) for change in changes] == [AddAttempt, MovePayment, AddUtxo, Clear]
    again = apply(at(State.CANCELLING), Cancel(ATTEMPT, (made,), (), WHY, None))
    assert every(again, AddAttempt) == every(again, AddUtxo) == [], "the cancel is stored already"


def test_a_handover_is_signed_and_then_submitted_by_the_merchant() -> None:
    moves = every(apply(at(State.REPLACING), SignHandedOver(replace(ATTEMPT, tx_id="t2"), ())), MovePayment)
    assert [(one.before, one.event, one.after, one.detail) for one in moves] == [
        (State.REPLACING, "sign", State.SIGNED, {}),
        (State.SIGNED, "submit", State.IN_FLIGHT, {"to": "merchant"}),
    ]


def test_a_submission_moves_the_state_only_the_first_time() -> None:
    assert [type(one) for one in apply(at(State.SIGNED), Submit("t1", "p"))] == [AddSubmission, MovePayment]
    assert [type(one) for one in apply(at(State.IN_FLIGHT), Submit("t1", "p"))] == [AddSubmission]


def test_a_block_spends_the_inputs_and_lands_the_change() -> None:
    changes = seen(at(State.IN_FLIGHT))
    assert only(changes, AddObservation).block.block_height == 7
    assert {one.ref: (one.state, one.spent_by) for one in every(changes, SetUtxo)} == {
        "d0#0": ("spent", "t1"),
        "t1#1": ("available", None),
    }
    assert only(changes, Free).what is FreeSet.PUT
    taken = replace(CHANGE, row=replace(CHANGE.row, reserved_for="other"))
    kept = seen(at(State.IN_FLIGHT, utxos={"d0#0": INPUT, "t1#1": taken}))
    assert every(kept, Free) == [], "another payment has reserved the change"
    gone = seen(at(State.IN_FLIGHT, utxos={}))
    assert every(gone, SetUtxo) == []


def test_an_external_spend_of_the_inputs_is_lost_first() -> None:
    """Both cannot be on the same chain."""
    spent = replace(INPUT, row=replace(INPUT.row, state="spent"), spent_by="x1")
    changes = seen(at(State.IN_FLIGHT, utxos={"d0#0": spent, "t1#1": CHANGE}, external_spends=(EXTERNAL,)))
    lost = only(changes, AddExternalSpend)
    assert lost.spend.is_on_chain is False
    assert [book.entry.kind for book in every(changes, Book)] == ["external_spend_reversed"]
    states = [(one.ref, one.state) for one in every(changes, SetUtxo)]
    assert states == [("d0#0", "missing"), ("d0#0", "spent"), ("t1#1", "available")]


@pytest.mark.parametrize(("is_made", "state"), [(True, "missing"), (False, "pending")])
def test_what_an_external_spend_took_is_ours_again(is_made: bool, state: str) -> None:
    maker = Maker("other", State.IN_BLOCK if is_made else State.IN_FLIGHT, "t9", is_settled=False)
    own = OwnUtxo(utxo("t9#0", 5, "spent", source="change"), "x1", maker)
    row = ExternalSpendRow("x1", False, ("t9#0",), {"lovelace": 5}, "b0", 5, 50)
    changes = tuple(lose_external_spend({"t9#0": own}, AddExternalSpend(row, "p"), {"t9#0": "spent"}))
    assert only(changes, SetUtxo).state == state


def test_confirming_posts_the_spend_and_a_rollback_takes_all_of_it_back() -> None:
    """The two entries cancel out on every account, and the hold counts as before."""
    agree = AgreedPriceRow("POST", "/chat", "lovelace", 1, 2_000_000)
    confirmed = apply(at(State.IN_BLOCK), confirm(agree=agree))
    posted = only(confirmed, Book).entry
    lines = {(line.account, line.units) for line in posted.postings}
    assert lines == {("held", -HELD), (f"merchant:{ORIGIN}", 2_000_000), ("fees", FEE)}
    holds = (
        *PAYMENT.holds,
        Hold("payment", "token", 5, None, None, False),
        Hold("approval", "a", 1, 1, None, True),
    )
    uncounted = apply(at(State.IN_BLOCK, holds=holds, utxos={}), confirm())
    assert [one.hold.counted_units for one in every(uncounted, SetHold)] == [HELD, None], "the approval is over"
    counted = only(confirmed, SetHold)
    assert (counted.hold.counted_from_ms, counted.units, counted.from_ms, counted.is_released) == (
        None,
        HELD,
        1000,
        None,
    )
    assert only(confirmed, AgreePrice).why == {"payment": "pay"}

    holds = (Hold("payment", "lovelace", HELD, HELD, 1000, False), Hold("approval", "lovelace", 9, 0, None, True))
    after_block = at(
        State.CONFIRMED,
        holds=holds,
        posted=tuple((line.account, line.asset, line.units) for line in posted.postings),
        utxos={
            "d0#0": replace(INPUT, row=replace(INPUT.row, state="spent"), spent_by="t1"),
            "t1#1": replace(CHANGE, row=replace(CHANGE.row, state="available")),
        },
    )
    lost = apply(after_block, BlockLost(None, EMPTY))
    reversed_ = only(lost, Book).entry
    sums: Counter[tuple[str, str]] = Counter()
    for line in (*posted.postings, *reversed_.postings):
        sums[line.account, line.asset] += line.units
    assert not any(sums.values())
    renewed = only(lost, SetHold)
    assert (renewed.hold.counted_from_ms, renewed.units, renewed.from_ms, renewed.is_released) == (
        1000,
        HELD,
        None,
        False,
    )
    assert {one.ref: one.state for one in every(lost, SetUtxo)} == {"d0#0": "available", "t1#1": "pending"}
    assert only(lost, Free).what is FreeSet.TAKE


def test_what_a_step_of_a_channel_takes_is_posted_to_the_channel() -> None:
    nothing = InvoicePart(None, None, None, None, None, None, None, "tx_hash", False, None, None)
    row = replace(ROW, kind="send", intent=IntentPart("int", "req", True, ORIGIN), invoice=nothing)
    book = only(apply(at(State.IN_BLOCK, replace(PAYMENT, row=row)), confirm()), Book)
    accounts = {posting.account: posting.units for posting in book.entry.postings}
    assert accounts[f"channel:{ORIGIN}"] == 2_000_000


def test_a_block_lost_before_anything_was_posted_touches_no_books() -> None:
    unmade = replace(INPUT, row=replace(INPUT.row, source="change", state="spent"))
    ours = at(State.IN_BLOCK, utxos={"d0#0": unmade, "t1#0": OwnUtxo(utxo("t1#0", 1, "available"), None, None)})
    changes = apply(ours, BlockLost(None, EMPTY))
    assert every(changes, Book) == every(changes, SetHold) == []
    assert only(changes, SetUtxo).state == "pending", "the input's maker is in no block; a deposit is not change"
    assert every(apply(replace(ours, utxos={}), BlockLost(None, EMPTY)), SetUtxo) == []


def test_settling_ends_the_reservations_and_forgets_what_cannot_exist() -> None:
    rival = Maker("other", State.SETTLED, "t8", is_settled=True)
    orphan = OwnUtxo(utxo("t7#0", 5, "pending", source="change"), None, rival)
    never = OwnUtxo(
        utxo("t6#0", 5, "pending", source="change"),
        None,
        Maker("third", State.VOID, None, is_settled=True),
    )
    first = replace(ATTEMPT, tx_id="t0")
    unused = OwnUtxo(utxo("t0#1", 5, "pending", source="change", reserved_for=None), None, None)
    reserved = OwnUtxo(utxo("t0#2", 5, "pending", source="change", reserved_for="other"), None, None)
    utxos = {one.row.ref: one for one in (INPUT, orphan, never, unused, reserved)}
    changes = apply(at(State.CONFIRMED, attempts=(first, ATTEMPT), utxos=utxos), Settle(9))
    assert only(changes, Unreserve).payment_id == "pay"
    assert sorted(one.ref for one in every(changes, ForgetUtxo)) == ["t0#1", "t6#0", "t7#0"]
    assert only(changes, Free).utxo.ref == "d0#0"
    void = apply(at(State.VOID, attempts=(ATTEMPT,), utxos=utxos), Settle(9))
    assert every(void, MovePayment) == [], "a void payment stays void"


@pytest.mark.parametrize("state", [State.IN_BLOCK, State.CONFIRMED, State.VOID])
def test_settling_keeps_an_input_whose_rival_could_still_lose_its_block(state: State) -> None:
    """Its maker, an earlier attempt of another payment, could land after all, and then it needs the change."""
    rival = Maker("other", state, "t8", is_settled=False)
    pending = OwnUtxo(utxo("t7#0", 5, "pending", source="change"), None, rival)
    void = apply(at(State.VOID, utxos={"t7#0": pending}), Settle(9))
    assert only(void, Unreserve).payment_id == "pay"
    assert every(void, ForgetUtxo) == every(void, Free) == []


VOIDS = (
    VoidByCancel(BLOCK, 2, 50, "p"),
    VoidByRival(BLOCK, 2, 50),
    VoidByExternalSpend(TxSeen("x1", "b0", 5, 50), 2, WHY),
    VoidByTime(BLOCK, 2),
)


@pytest.mark.parametrize("event", VOIDS)
def test_a_void_payment_releases_its_hold_less_the_fee_of_its_own_cancel(event: MoneyEvent) -> None:
    changes = apply(of_pool(at(State.CANCELLING)), event)
    kept = FEE if isinstance(event, VoidByCancel) else 0
    ended = only(changes, SetHold)
    assert (ended.units, ended.from_ms, ended.is_released) == (kept, 50 if kept else None, True)
    booked = only(changes, Book)
    assert {line.account: line.units for line in booked.entry.postings} == {
        "held": -HELD,
        "wallet": HELD - kept,
        **({"fees": FEE} if kept else {}),
    }
    assert booked.ref == {Event.VOID_BY_TIME: None, Event.VOID_BY_EXTERNAL_SPEND: "x1"}.get(event.event, "t1")
    assert only(changes, TakeBackUses).count == 2
    assert bool(every(changes, Unreserve)) == (event.event is Event.VOID_BY_TIME)


@pytest.mark.parametrize("event", [RivalBlockLost(None), ExternalSpendBlockLost(None)])
def test_a_payment_that_another_transaction_made_void_has_its_last_attempt_again(event: MoneyEvent) -> None:
    posted = (("held", "lovelace", -HELD), ("wallet", "lovelace", HELD))
    row = replace(ROW, state=State.VOID, attempt=replace(ROW.attempt, tx_id=None), void_tx_id="t9")
    moved = only(apply(replace(PAYMENT, row=row, posted=posted), event), MovePayment)
    assert (moved.after, moved.columns) == (State.CANCELLING, {"tx_id": "t1", "void_tx_id": None})


def test_an_unsigned_payment_that_is_rejected_gives_everything_back() -> None:
    token = Hold("payment", "token", 5, None, None, False)
    payment = at(
        State.RESERVED, attempts=(), holds=(*PAYMENT.holds, token, Hold("approval", "lovelace", 9, 0, None, True))
    )
    changes = apply(payment, Reject(WHY, {"by": "app"}))
    assert {one.hold.asset: (one.hold.counted_units, one.units) for one in every(changes, SetHold)} == {
        "lovelace": (HELD, 0),
        "token": (None, 0),
    }
    assert only(changes, Free).what is FreeSet.PUT
    assert every(apply(at(State.RECEIVED), Reject(WHY, {})), SetHold) == []
    assert every(apply(at(State.SIGNED), VoidByTime(BLOCK, 0)), TakeBackUses) == []


def test_a_prepaid_balance_grows_when_confirmed_and_shrinks_when_the_block_is_lost() -> None:
    before = PrepaidBalance(5, 5, 0, {"lovelace": Cost(10, 10)})
    bought = only(apply(of_pool(at(State.IN_BLOCK), batch=4), confirm(before)), MovePrepaid)
    assert (bought.kind, bought.unit, bought.after.bought) == ("buy", "calls", 9)
    posted = (("held", "lovelace", -HELD), (f"prepaid:{ORIGIN}", "lovelace", 2_000_000), ("fees", "lovelace", FEE))
    confirmed = of_pool(at(State.CONFIRMED, posted=posted), batch=4)
    taken = only(apply(confirmed, BlockLost(None, bought.after)), MovePrepaid)
    assert (taken.kind, taken.after.bought) == ("take_back", 5)
    in_ada = only(apply(of_pool(at(State.IN_BLOCK)), confirm(before)), MovePrepaid)
    assert (in_ada.unit, in_ada.after.bought) == ("lovelace", 2_000_005)
    assert every(apply(at(State.CONFIRMED, posted=POSTED), BlockLost(None, before)), MovePrepaid) == []


def test_a_deposit_that_the_ledger_did_not_know_is_booked_as_it_is_found() -> None:
    listed = new_utxo("d9#1", {"lovelace": 5, "token": 2}, UtxoEvent.LISTED)
    assert [type(one) for one in listed] == [AddUtxo, Book, Free]
    spent = new_utxo("d9#1", {"lovelace": 5}, UtxoEvent.SPENT_BY_OTHER, "x1")
    assert (only(spent, AddUtxo).utxo.state, only(spent, AddUtxo).spent_by) == ("spent", "x1")
    assert every(spent, Free) == []


def test_a_rolled_back_deposit_is_reversed_and_booked_again_when_it_returns() -> None:
    missing = utxo("d0#0", 5, "missing", reserved_for=None)
    gone = tuple(move_utxo(missing, UtxoEvent.DENIED, is_reserved=False))
    assert [type(one) for one in gone] == [Book, ForgetUtxo]
    kept = tuple(move_utxo(missing, UtxoEvent.DENIED_RESERVED))
    assert (only(kept, Book).entry.kind, only(kept, SetUtxo).state) == ("deposit_reversed", "rolled_back")
    back = tuple(move_utxo(utxo("d0#0", 5, "rolled_back"), UtxoEvent.LISTED))
    assert (only(back, Book).entry.kind, only(back, SetUtxo).state) == ("deposit", "available")
    assert every(back, Free) == [], "it is reserved"


def test_a_payment_knows_its_parts() -> None:
    assert PAYMENT.held == {"lovelace": HELD}
    assert PAYMENT.attempt("t9") is None
    with pytest.raises(KeyError):
        PAYMENT.require_attempt("t9")
    assert [one.row.ref for one in PAYMENT.reserved] == ["d0#0"]
    assert INPUT.is_made
    assert not CHANGE.is_made
    assert not OwnUtxo(CHANGE.row, None, None).is_never_made
    assert (ROW.shown_by, ROW.problem.name, INPUT.row.is_gone) == ("t1", None, False)


PRICE = AgreedPriceRow("POST", "/chat", "lovelace", 1, 2_000_000)
PINNED = PinAddress(ORIGIN, Pin("pay_to", "addr"), {})
NEW = replace(ATTEMPT, tx_id="t2")
MADE = utxo("t2#0", 5, "pending", source="change", reserved_for=None)
MORE = utxo("d1#0", 5, "available", reserved_for=None)
FACTS: tuple[MoneyEvent, ...] = (
    reserve(ReserveFunds, PINNED),
    reserve(Approve, PINNED, AgreePrice(ORIGIN, PRICE, {})),
    RequestApproval(AddApproval("pay", "t", (), {}, None, 60_000), {"lovelace": HELD}, 9),
    Reject(WHY, {}),
    Deny(WHY, {}),
    Sign(NEW, (MADE,)),
    SignHandedOver(NEW, (MADE,)),
    Submit("t1", "p"),
    SeenInBlock(BLOCK, "p"),
    confirm(agree=PRICE),
    Settle(9),
    Replace(900, 1, ("d0#0",), (MORE,)),
    Cancel(NEW, (MADE,), (MORE,), WHY, None),
    *VOIDS,
    BlockLost("p", EMPTY),
    CancelBlockLost("p"),
    RivalBlockLost("p"),
    ExternalSpendBlockLost("p"),
)
"""One event of each kind, with everything that it can bring."""

PLACES = {"d0#0": "input", "d1#0": "input", "t1#1": "change", "t0#1": "older change"}
KINDS: dict[str, dict[Enum, set[str]]] = {
    "record": {
        RecordEffect.APPROVAL: {"AddApproval"},
        RecordEffect.ATTEMPT: {"AddAttempt"},
        RecordEffect.SUBMISSION: {"AddSubmission"},
        RecordEffect.BLOCK: {"AddObservation"},
    },
    "journal": {
        Journal.RESERVE: {"Book reserve"},
        Journal.POST: {"Book post"},
        Journal.RELEASE: {"Book release"},
        Journal.RELEASE_LESS_FEE: {"Book release with fee"},
        Journal.REVERSE: {"Book post_reversed"},
    },
    "hold": {
        HoldMove.PLACE: {"PlaceHold payment"},
        HoldMove.PLACE_APPROVAL: {"PlaceHold approval"},
        HoldMove.COUNT_FROM_BLOCK: {"SetHold payment counted"},
        HoldMove.RELEASE: {"SetHold payment released"},
        HoldMove.RELEASE_LESS_FEE: {"SetHold payment released, fee counted"},
        HoldMove.RELEASE_APPROVAL: {"SetHold approval released"},
        HoldMove.RENEW: {"SetHold payment opened"},
    },
    "inputs": {
        Inputs.RESERVE: {"Free input take", "Reserve"},
        Inputs.SPEND: {
            *("AddExternalSpend", "Book external_spend_reversed", "Note external_spend_lost"),
            *("SetUtxo input missing", "SetUtxo input spent"),
        },
        Inputs.UNSPEND: {"SetUtxo input available"},
        Inputs.RELEASE: {"Unreserve", "Free input put"},
    },
    "outputs": {
        Outputs.MAKE: {"AddUtxo"},
        Outputs.LAND: {"SetUtxo change available", "Free change put"},
        Outputs.UNMAKE: {"SetUtxo change pending", "Free change take"},
        Outputs.FORGET_OTHERS: {"ForgetUtxo older change"},
        Outputs.FORGET_ALL: {"ForgetUtxo older change", "ForgetUtxo change"},
    },
    "prepaid": {
        PrepaidEffect.BUY: {"MovePrepaid buy"},
        PrepaidEffect.TAKE_BACK: {"MovePrepaid take_back"},
        PrepaidEffect.NOT_BOUGHT: {"TakeBackUses"},
    },
    "merchant": {
        MerchantEffect.PIN: {"PinAddress"},
        MerchantEffect.ALLOW: {"PinAddress", "AgreePrice"},
        MerchantEffect.AGREE: {"AgreePrice"},
    },
    "alert": {
        AlertEffect.RAISE_APPROVAL: {"Raise approval_needed"},
        AlertEffect.CLEAR_APPROVAL: {"Clear approval:pay"},
        AlertEffect.CLEAR_SIGNER: {"Clear signer"},
        AlertEffect.RAISE_REOPENED: {"Raise payment_reopened"},
        AlertEffect.CLEAR_UNSERVED: {"Clear unserved:pay"},
        AlertEffect.RAISE_UNSERVED: {"Raise paid_not_served"},
    },
}
"""The kinds of changes that each cell of the table stands for. Cells that are not here do nothing."""


def kind(change: Change) -> str:
    """A change by its type and by what tells apart two cells of a column."""
    name = type(change).__name__
    match change:
        case Book():
            fee = any(line.account == "fees" for line in change.entry.postings) and change.entry.kind == "release"
            return f"{name} {change.entry.kind}{' with fee' if fee else ''}"
        case PlaceHold():
            return f"{name} {change.stage}"
        case SetHold():
            moved = {None: "counted", True: "released", False: "opened"}[change.is_released]
            fee = ", fee counted" if change.is_released and change.units else ""
            return f"{name} {change.hold.stage} {moved}{fee}"
        case SetUtxo():
            return f"{name} {PLACES[change.ref]} {change.state}"
        case ForgetUtxo():
            return f"{name} {PLACES[change.ref]}"
        case Free():
            return f"{name} {PLACES[change.utxo.ref]} {change.what}"
        case MovePrepaid() | Raise():
            return f"{name} {change.kind}"
        case Clear():
            return f"{name} {change.subject}"
        case Note():
            return f"{name} {change.event}"
    return name


def with_everything(state: State, event: Event) -> LoadedPayment:
    """A payment of a pool with both holds, two attempts with change, an external spend, and its last entry posted.

    Its UTxOs are as before the event: the input is taken by somebody else, spent by the attempt, or reserved.
    """
    effect = EFFECTS[state, event]
    stage = "approval" if state in (State.RECEIVED, State.AWAITING_APPROVAL) else "payment"
    spent_by = {Inputs.SPEND: "x1", Inputs.UNSPEND: "t1"}.get(effect.inputs)
    own = OwnUtxo(replace(INPUT.row, state="spent" if spent_by else "available"), spent_by, None)
    is_landed = effect.outputs is Outputs.UNMAKE
    change = replace(CHANGE, row=replace(CHANGE.row, state="available" if is_landed else "pending"))
    other = OwnUtxo(utxo("t0#1", 5, "pending", source="change", reserved_for=None), None, None)
    row = of_pool(at(state)).row
    return LoadedPayment(
        replace(row, block=BlockPart("b1", 7, 70), delivery=Delivery.PAID_NOT_SERVED),
        (replace(ATTEMPT, tx_id="t0"), ATTEMPT),
        (Hold(stage, "lovelace", HELD, HELD, None, False),),
        {"d0#0": own, "t1#1": change, "t0#1": other},
        (("held", "lovelace", -HELD), (f"prepaid:{ORIGIN}", "lovelace", 2_000_000), ("fees", "lovelace", FEE)),
        (EXTERNAL,),
    )


def test_each_event_has_one_class() -> None:
    assert [one.event for one in sorted(FACTS, key=lambda one: [*Event].index(one.event))] == [*Event]


@pytest.mark.parametrize(("state", "event"), EFFECTS)
def test_what_an_event_changes_is_what_its_row_says(state: State, event: Event) -> None:
    """The page of the machine is made of these rows, so it leaves out nothing that an event does."""
    facts = next(one for one in FACTS if one.event is event)
    effect = EFFECTS[state, event]
    expected = set[str]().union(*(kinds.get(getattr(effect, column), set()) for column, kinds in KINDS.items()))
    changes = apply(with_everything(state, event), facts)
    moves = [(one.before, one.after) for one in every(changes, MovePayment)]
    path = [one for one in (state, effect.through, effect.next) if one is not None]
    assert moves == list(pairwise(path)) if effect.next is not None else moves == []
    assert {kind(one) for one in changes if not isinstance(one, MovePayment)} == expected


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: type(facts).__name__)
def test_each_event_has_its_sentence(facts: MoneyEvent) -> None:
    """One of its own, told apart by what is stored, or that of the event whose name it shares in the ledger."""
    states = [state for (state, event), effect in EFFECTS.items() if event is facts.event and effect.next]
    if isinstance(facts, Approve):
        facts = replace(facts, detail={"by": "app_1", "via": "link"})
    for state in states:
        payment = with_everything(state, facts.event)
        if facts.event is Event.RIVAL_BLOCK_LOST:
            payment = replace(payment, row=replace(payment.row, void_tx_id="r1"))
        stored = [
            {"event": move.event, "state": move.after, "detail": {**move.columns, **move.detail}}
            for move in every(apply(payment, facts), MovePayment)
        ]
        told = [happened(one) for one in stored]
        assert told == [facts.event] if facts.event in SENTENCES else SENTENCES.keys() >= set(told)
        for one in stored:
            assert event_in_words(one, {})[0].isupper()
    assert states


def test_each_cell_of_the_table_stands_for_changes() -> None:
    assert {"next", "through", *KINDS} == set(Effect.__dataclass_fields__)
    assert all([*kinds] == [*type(next(iter(kinds)))] for kinds in KINDS.values())
