"""Checks one payment against its own bytes and events: a pure function from its rows to findings.

The events, which are chained by their hashes, record what happened. All other rows must follow from them: the
payment's changeable columns, the attempts, block observations, reservations, and each entry to the unit. The bytes
show what was signed.
Never: I/O; lets a row's own claims change how it is judged.
"""

import json
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import CHANNEL_STEP, Owner, Reading, differences, external_value, read, taken
from payagent.core import ledger
from payagent.core.invoice import calls_of, hash_of_terms
from payagent.core.ledger import Entry, Units
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import (
    ENDED_WITHOUT_PAYING,
    NEVER_SIGNED,
    ON_CHAIN,
    POSTED,
    Delivery,
    DeliveryEvent,
    Event,
    State,
    deliver,
    next_state,
)
from payagent.store.audit.payment_records import STANDING, Case
from payagent.store.rows.events import EventRow

_decode_json = json.JSONDecoder().raw_decode
_EVENTS = frozenset(event.stored for event in Event)
_STATES = {str(state): state for state in State}
_DELIVERIES = {f"delivery_{event}": event for event in DeliveryEvent}
_MOVED = frozenset(STANDING) - {"state", "delivery", "merchant_status", "updated_at_ms"}
"""Columns that change with a state transition; its event records them."""

_NEW_PAYMENT = dict.fromkeys(STANDING)

# the events as the ledger names them
_RESERVE, _REJECT, _CANCEL, _SUBMIT, _REPLACE = "reserve", "reject", "cancel", "submit", "replace"
_CONFIRM, _VOID, _BLOCK_LOST = "confirm", "void", "block_lost"
_SIGNED = frozenset({"sign", _CANCEL})
_BOOKED = frozenset({_RESERVE, _REJECT, _CONFIRM, _VOID, _BLOCK_LOST})
"""Events that may write an entry."""

_KIND_IN_BLOCK = {"seen_in_block": "pay", _VOID: "cancel"}
"""The kind of attempt that came into a block, by the event that records it."""

_DEEPER = frozenset({_CONFIRM, "settle"})
"""Events about the block in which the attempt was seen; they change no other column, whatever their detail."""

_IN_BLOCK = (*ON_CHAIN, State.VOID)
_SPENT = (*POSTED, State.VOID)
_NEED_NO_UTXOS = frozenset({State.SETTLED, State.VOID})
_WITHOUT_UTXOS = (*NEVER_SIGNED, State.RECEIVED, State.AWAITING_APPROVAL, State.SETTLED)


class Step(NamedTuple):
    """One transition of the payment: the state before, the event's detail, and the current attempt and invoice
    after.
    """

    event: str
    row: EventRow
    before: State
    detail: Mapping[str, object]
    tx_id: str | None
    invoice: object


def check_payment(case: Case, owner: Owner) -> Iterator[AuditFinding]:
    """All findings about one payment."""
    owner = owner.of(case.account)
    steps, readings = yield from check_record(case, owner)
    yield from _check_intent(case)
    yield from _check_submissions(case, steps)
    yield from _check_utxos(case, readings, owner)
    yield from _check_reservations(case, steps)


def check_record(case: Case, owner: Owner) -> Generator[AuditFinding, None, tuple[list[Step], dict[str, Reading]]]:
    """Check the part of a payment that a receipt contains: events, bytes, terms, blocks, holds and entries."""
    steps = yield from _replay(case)
    readings = yield from _read_attempts(case, owner, steps)
    yield from _check_terms(case, owner)
    yield from _check_block_observations(case, steps)
    yield from _check_time_over(case, steps)
    paid: Mapping[str, Units] = {
        tx_id: external_value(reading, owner) if case.spent is None else taken(reading, case.spent, owner)
        for tx_id, reading in readings.items()
        if case.spent is None or all(f"{made_by}#{index}" in case.spent for made_by, index in reading.inputs)
    }
    yield from _check_holds(case, steps, readings, paid)
    yield from _check_entries(case, steps, paid)
    return steps, readings


@lru_cache(maxsize=1000)
def _detail(text: str) -> Mapping[str, object]:
    """The detail of an event, parsed; cached, because many are equal."""
    try:
        detail, end = _decode_json(text)
    except (ValueError, RecursionError):
        return {}
    return detail if isinstance(detail, dict) and end == len(text) else {}


def _replay(case: Case) -> Generator[AuditFinding, None, list[Step]]:
    """Run the events through the transition tables and compare the result with the payment's row."""
    state, delivery = State.RECEIVED, Delivery.NOT_PRESENTED
    standing: dict[str, object] = {
        **_NEW_PAYMENT,
        "updated_at_ms": case.created_at_ms,
        "invoice_seq": case.first_invoice_seq,
    }
    steps: list[Step] = []
    for row in case.events:
        detail = _detail(row.detail)
        is_step = row.event in _EVENTS
        after = next_state(state, row.event) if is_step else state
        if after is None or row.state != after:
            yield AuditFinding(
                "events", str(row.seq), f"{row.event} leads from {state} to {after}, not to {row.state}"
            )
        if is_step:
            standing["updated_at_ms"] = row.at_ms
            if row.event not in _DEEPER:
                standing |= {name: value for name, value in detail.items() if name in _MOVED}
            steps.append(Step(row.event, row, state, detail, _text(standing["tx_id"]), standing["invoice_seq"]))
        elif (delivery_event := _delivery_event(row.event, detail)) is not None:
            delivery = deliver(delivery, delivery_event)
            standing["updated_at_ms"] = row.at_ms
        elif row.event == "retry_answered":
            standing |= {"merchant_status": detail.get("status"), "updated_at_ms": row.at_ms}
        state = _STATES.get(row.state or "", after or state)
    standing["state"], standing["delivery"] = str(state), str(delivery)
    if case.standing != standing:
        for name in STANDING:
            if case.standing[name] != standing[name]:
                message = f"its {name} is {case.standing[name]!r}, its events lead to {standing[name]!r}"
                yield AuditFinding("payments", case.id, message)
    if not case.events or case.created_at_ms != case.events[0].at_ms:
        yield AuditFinding("payments", case.id, "it was not created at the time of its first event")
    return steps


def _delivery_event(name: str, detail: Mapping[str, object]) -> DeliveryEvent | None:
    if name == "merchant_answered":
        name = f"delivery_{detail.get('delivery')}"
    return _DELIVERIES.get(name)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _read_attempts(
    case: Case, owner: Owner, steps: list[Step]
) -> Generator[AuditFinding, None, dict[str, Reading]]:
    """Check each attempt's bytes against its row, its event, and the outputs that the payment must pay."""
    signed = [step for step in steps if step.event in _SIGNED]
    readings: dict[str, Reading] = {}
    for place, attempt in enumerate(case.attempts):
        step = signed[place] if place < len(signed) else None
        kind = "cancel" if step and step.event == _CANCEL else "pay"
        if step is None or (step.tx_id, step.row.at_ms, kind) != (
            attempt.tx_id,
            attempt.signed_at_ms,
            attempt.kind,
        ):
            yield AuditFinding("attempts", attempt.tx_id, "no event records this signature with its time and kind")
        if attempt.nonce_utxo != case.standing["nonce_utxo"] or (
            step is not None and attempt.invoice_seq != step.invoice
        ):
            yield AuditFinding("attempts", attempt.tx_id, "its nonce UTxO or invoice is not its payment's")
        terms = None if attempt.invoice_seq is None else case.invoices.get(attempt.invoice_seq)
        if (terms is not None) != (case.kind == "invoice"):
            yield AuditFinding(
                "attempts", attempt.tx_id, "its invoice is missing, or it is a transfer and has an invoice"
            )
        reading = read(attempt.cbor, case.spent is not None and attempt.kind == "pay")
        if isinstance(reading, str):
            yield AuditFinding("attempts", attempt.tx_id, f"its bytes are not a payment of ours: {reading}")
            continue
        readings[attempt.tx_id] = reading
        commitment = terms.commitment if terms and attempt.kind == "pay" else None
        outputs = terms.outputs if terms else case.outputs
        for message in differences(
            reading, attempt, outputs, case.kind if case.spent is None else CHANNEL_STEP, commitment, owner
        ):
            yield AuditFinding("attempts", attempt.tx_id, message)
    for step in signed[len(case.attempts) :]:
        yield AuditFinding(
            "attempts", str(step.tx_id), f"event {step.row.seq} records its signature; there is no row"
        )
    return readings


def _check_terms(case: Case, owner: Owner) -> Iterator[AuditFinding]:
    """Check that the payment belongs to its intent's app, and that its invoices' terms match their hashes."""
    for origin in sorted({invoice.origin for invoice in case.invoices.values()}) or [_channel_origin(case)]:
        if case.intent is None or (case.intent.app_id, case.intent.origin) != (case.app_id, origin):
            yield AuditFinding(
                "payments", case.id, f"its intent does not belong to app {case.app_id} at {origin!r}"
            )
    for invoice in case.invoices.values():
        terms = ((o.role, o.address, o.asset, o.units) for o in invoice.outputs)
        terms_hash = hash_of_terms(
            invoice.dialect,
            invoice.origin,
            invoice.invoice_id,
            owner.network.name,
            terms,
            calls_of(invoice.batch_target),
        )
        if terms_hash != invoice.terms_hash:
            yield AuditFinding("invoices", str(invoice.seq), "its terms hash does not match its terms")
    first = None if case.first_invoice_seq is None else case.invoices.get(case.first_invoice_seq)
    if case.kind == "invoice" and (first is None or first.outputs != case.outputs):
        yield AuditFinding("payments", case.id, "its outputs are not those of its invoice")


def _channel_origin(case: Case) -> str:
    """The merchant whose channel a transfer changes; empty if it changes none."""
    return case.intent.origin if case.intent is not None and case.spent is not None else ""


def _check_intent(case: Case) -> Iterator[AuditFinding]:
    """A derived intent ends when its request is first served; other intents never end."""
    intent = case.intent
    if intent is not None and intent.ended_at_ms != (intent.served_at_ms if intent.is_key_derived else None):
        message = f"it ended at {intent.ended_at_ms}, its request was first served at {intent.served_at_ms}"
        yield AuditFinding("intents", str(intent.number), message)


def _check_block_observations(case: Case, steps: list[Step]) -> Iterator[AuditFinding]:
    """Check that each event of entering a block has a matching block observation of an attempt of the right kind.

    Unless it is void, the payment's current transaction must be one of its attempts.
    """
    in_block_steps = [step for step in steps if step.event in _KIND_IN_BLOCK and not _is_void_from_outside(step)]
    kinds = {attempt.tx_id: attempt.kind for attempt in case.attempts}
    state, current_tx_id = case.standing["state"], case.standing["tx_id"]
    if current_tx_id is not None and current_tx_id not in kinds and state != State.VOID:
        yield AuditFinding(
            "payments", case.id, f"its transaction is {current_tx_id}, which is none of its attempts"
        )
    for step in in_block_steps:
        if kinds.get(step.tx_id or "") != _KIND_IN_BLOCK[step.event]:
            message = f"{step.event} of {step.tx_id}, which is not an attempt to {_KIND_IN_BLOCK[step.event]}"
            yield AuditFinding("events", str(step.row.seq), message)
    for step, block_observation in zip(in_block_steps, case.block_observations, strict=False):
        fact = step.detail.get
        expected = fact("tx_id"), fact("block_hash"), fact("block_height"), fact("block_slot"), step.row.at_ms
        if block_observation[1:] != expected:
            yield AuditFinding(
                "block_observations",
                str(block_observation.seq),
                f"event {step.row.seq} records another block or time",
            )
    if len(in_block_steps) > len(case.block_observations):
        yield AuditFinding(
            "block_observations",
            "-",
            f"event {in_block_steps[len(case.block_observations)].row.seq} has no block observation",
        )
    for block_observation in case.block_observations[len(in_block_steps) :]:
        yield AuditFinding("block_observations", str(block_observation.seq), "no event records it")


def _is_void_from_outside(step: Step) -> bool:
    """Whether an external transaction or another payment's (observed separately, see audit.verify) or time limits
    made the payment void.
    """
    return step.event == _VOID and (
        step.detail.get("code") == "external_spend"
        or any(step.detail.get(name) for name in ("void_tx_id", "time_over"))
    )


def _check_time_over(case: Case, steps: list[Step]) -> Iterator[AuditFinding]:
    """Check that a payment void by time limits has a block past all its TTLs, and no later step."""
    last_slot = max((attempt.ttl_slot for attempt in case.attempts), default=0)
    for step in steps:
        slot = step.detail.get("block_slot")
        if step.detail.get("time_over") and not (
            step is steps[-1] and step.event == _VOID and isinstance(slot, int) and slot >= last_slot
        ):
            yield AuditFinding(
                "events", str(step.row.seq), f"its block's slot is {slot}; the last limit is {last_slot}"
            )


def _check_submissions(case: Case, steps: list[Step]) -> Iterator[AuditFinding]:
    """Check that each submit event has a submission, and that every provider that answered was sent something."""
    times = {at_ms for _, _, at_ms in case.submissions}
    for step in steps:
        if step.event == _SUBMIT and not step.detail.get("to") and step.row.at_ms not in times:
            yield AuditFinding(
                "submissions", "-", f"event {step.row.seq} records a submit; no row names the provider"
            )
    answered = Counter(
        str(_detail(row.detail).get("provider"))
        for row in case.events
        if row.event in ("provider_accepted", "provider_answered")
    )
    providers = [provider for _, provider, _ in case.submissions]
    for provider, count in answered.items():
        sent = providers.count(provider)
        if sent < count:
            yield AuditFinding(
                "submissions", "-", f"{provider} answered {count} times for {case.id} and got {sent} submissions"
            )


def _check_holds(
    case: Case, steps: list[Step], readings: Mapping[str, Reading], paid: Mapping[str, Units]
) -> Iterator[AuditFinding]:
    """Check that the hold equals the cost of the first attempt, from the decision until its release.

    No later attempt may cost more than the hold.
    """
    reserve_step = next((step for step in steps if step.event == _RESERVE), None)
    if (reserve_step is None) != (not case.holds):
        yield AuditFinding("holds", case.id, "there is a hold without a decision, or a decision without a hold")
    releases = [s for s in steps if s.event == _VOID or (s.event == _REJECT and reserve_step is not None)]
    is_over = case.standing["state"] in ENDED_WITHOUT_PAYING
    released_at_ms = releases[-1].row.at_ms if releases and is_over else None
    for asset, _, at_ms, until_ms in case.holds:
        if reserve_step is not None and at_ms != reserve_step.row.at_ms:
            yield AuditFinding("holds", f"{case.id} {asset}", "it was not placed at the time of the decision")
        if until_ms != released_at_ms:
            yield AuditFinding(
                "holds", f"{case.id} {asset}", f"it ended at {until_ms}, by the events at {released_at_ms}"
            )
    hold = {asset: units for asset, units, *_ in case.holds}
    if len(hold) < len(case.holds):
        yield AuditFinding("holds", case.id, "an asset is held twice")
    is_first = True
    for attempt in case.attempts:
        if attempt.kind == "pay" and attempt.tx_id in paid and (reading := readings.get(attempt.tx_id)):
            spend = ledger.add((paid[attempt.tx_id], {LOVELACE: reading.fee_lovelace}))
            is_within = all(units <= hold.get(asset, 0) for asset, units in spend.items())
            if (hold != spend) if is_first and case.spent is None else not is_within:
                yield AuditFinding("holds", case.id, f"{hold} is held; the bytes of {attempt.tx_id} take {spend}")
            is_first = False


def _check_entries(case: Case, steps: list[Step], paid: Mapping[str, Units]) -> Iterator[AuditFinding]:
    """Check that the payment's entries are exactly those that its events book, to the unit."""
    bookings = list(_booked(case, steps, paid)) if case.holds else []
    for entry, (step, expected, ref) in zip(case.entries, bookings, strict=False):
        lines = sorted(entry.postings)
        are_postings_same = lines == sorted(expected.postings)
        if (entry.kind, entry.ref, entry.at_ms) != (expected.kind, ref, step.row.at_ms) or not are_postings_same:
            yield AuditFinding(
                "entries", str(entry.id), f"it is not what event {step.row.seq} ({step.event}) books"
            )
    for step, expected, _ in bookings[len(case.entries) :]:
        message = f"event {step.row.seq} of {case.id} books a {expected.kind}, and there is no entry"
        yield AuditFinding("entries", "-", message)
    for entry in case.entries[len(bookings) :]:
        yield AuditFinding("entries", str(entry.id), f"no event of {case.id} books it")


@lru_cache(maxsize=1000)
def _reserved(hold: tuple[tuple[str, int], ...], of: int) -> Entry:
    """The entry for a hold; cached, because many payments cost the same."""
    return ledger.reserve(dict(hold), of)


@lru_cache(maxsize=1000)
def _posted(
    hold: tuple[tuple[str, int], ...], spent: tuple[tuple[str, int], ...], fee_lovelace: int, account: str, of: int
) -> Entry:
    return ledger.post(dict(hold), {asset: units for asset, units in spent if units}, fee_lovelace, account, of)


def _booked(case: Case, steps: list[Step], paid: Mapping[str, Units]) -> Iterator[tuple[Step, Entry, str | None]]:
    """The entry that each event books, with the transaction that the entry names."""
    hold = {asset: units for asset, units, *_ in case.holds}
    fees = {attempt.tx_id: attempt.fee_lovelace for attempt in case.attempts}
    origin = next((invoice.origin for invoice in case.invoices.values()), None)
    account = (
        ledger.spending_account(origin, case.is_prepaid)
        if case.spent is None
        else ledger.channel_account(_channel_origin(case))
    )
    last: Entry | None = None
    for step in steps:
        if step.event not in _BOOKED:
            continue
        fee_lovelace = fees.get(step.tx_id or "", 0)
        if step.event == _RESERVE:
            yield step, _reserved(tuple(hold.items()), case.account), None
        elif step.event == _REJECT and step.before is State.RESERVED:
            yield step, ledger.release(hold, of=case.account), None
        elif step.event == _CONFIRM:
            spent = paid.get(step.tx_id or "")
            if spent is None and case.spent is not None:
                # a rollback took one of its inputs, so only the entry tells what it moved
                booked = ("post", step.tx_id, step.row.at_ms)
                posted = (one.postings for one in case.entries if (one.kind, one.ref, one.at_ms) == booked)
                spent = {LOVELACE: sum(units for name, _, units in chain.from_iterable(posted) if name == account)}
            elif spent is None:
                spent = ledger.add((hold, {LOVELACE: -fee_lovelace}))
            last = _posted(tuple(hold.items()), tuple(spent.items()), fee_lovelace, account, case.account)
            yield step, last, step.tx_id
        elif step.event == _VOID:
            last = ledger.release(hold, fee_lovelace, case.account)
            yield step, last, step.tx_id or _text(step.detail.get("void_tx_id"))
        elif step.event == _BLOCK_LOST and step.before in _SPENT and last is not None:
            yield step, ledger.post_reversed(last), None
            last = None


def _check_utxos(case: Case, readings: Mapping[str, Reading], owner: Owner) -> Iterator[AuditFinding]:
    """Check that the UTxOs that an attempt makes for us match its bytes. An attempt that can never land needs
    none.
    """
    paid_to_us: dict[str, Mapping[str, int]] = {}
    for tx_id, reading in readings.items():
        for index, output in enumerate(reading.outputs):
            if output.address == owner.address.raw:
                paid_to_us[f"{tx_id}#{index}"] = {LOVELACE: output.lovelace, **output.assets}
    state, current_tx_id = case.standing["state"], case.standing["tx_id"]
    is_there = state in _IN_BLOCK
    for utxo in case.utxos:
        maker = utxo.ref.partition("#")[0]
        if paid_to_us.pop(utxo.ref, None) != utxo.value and maker in readings:
            yield AuditFinding("utxos", utxo.ref, f"it holds {dict(utxo.value)}; the bytes that made it differ")
        if (utxo.state == "pending") is (is_there and maker == current_tx_id) and utxo.state != "spent":
            yield AuditFinding("utxos", utxo.ref, f"it is {utxo.state}, and its payment is {state}")
    for ref in paid_to_us:
        if ref.partition("#")[0] == current_tx_id or state not in _NEED_NO_UTXOS:
            yield AuditFinding("utxos", ref, "the bytes pay it to us, and it is missing")


def _chosen(steps: list[Step]) -> frozenset[str]:
    """UTxOs chosen for later attempts, signed or not."""
    chosen = (str(step.detail.get("inputs")) for step in steps if step.event == _REPLACE)
    return frozenset(ref for refs in chosen for ref in refs.split(" "))


def _check_reservations(case: Case, steps: list[Step]) -> Iterator[AuditFinding]:
    """Check that a payment reserves the UTxOs that its attempts spend, until no rollback can reach it."""
    state = case.standing["state"]
    spent = frozenset(ref for attempt in case.attempts for ref in attempt.inputs) | _chosen(steps)
    if state in _WITHOUT_UTXOS:
        is_sound = not case.reserved
    elif state == State.VOID:
        is_sound = not case.reserved or case.reserved == spent
    else:
        is_sound = case.reserved == spent if spent else case.standing["nonce_utxo"] in case.reserved
    if not is_sound:
        yield AuditFinding(
            "reservations", case.id, f"{sorted(case.reserved)} are reserved; the payment is {state}"
        )
