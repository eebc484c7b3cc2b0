"""One payment against its own bytes and its own history: pure, from its rows to what is wrong with them.

The events, which are chained by their hashes, say what happened; what the other rows must be then follows:
the state, the attempts, the sightings, and each entry of the journal to the unit. The bytes say what was signed.
May import: core, store's rows, audit. Never: I/O; changes how it judges by what a row claims of itself.
"""

import json
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass

from payagent.audit.finding import Finding
from payagent.audit.signed import Owner, Reading, foreign_value, misread, read
from payagent.core import ledger
from payagent.core.invoice import hash_of_terms
from payagent.core.ledger import Entry
from payagent.core.money import LOVELACE
from payagent.core.payment import NEVER_SIGNED, POSTED, TRANSITIONS, Delivery, Event, State
from payagent.store.books import Case, EventRow, SightingRow

_EVENTS = {str(event): event for event in Event}
_STATES = {str(state): state for state in State}
_SERVED = "delivery_accept"


@dataclass(frozen=True, slots=True)
class Step:
    """One move of the payment: from which state, and with which transaction standing for it afterwards."""

    event: Event
    row: EventRow
    before: State
    tx_id: str | None


def check_payment(case: Case, owner: Owner) -> Iterator[Finding]:
    """Everything that is wrong with one payment."""
    steps = yield from _replay(case)
    readings = yield from _read_attempts(case, owner, steps)
    yield from _check_terms(case, owner)
    yield from _check_row(case)
    yield from _check_sightings(case, steps)
    yield from _check_submissions(case, steps)
    yield from _check_holds(case, steps, readings, owner)
    yield from _check_entries(case, steps)
    yield from _check_coins(case, readings, owner)


def _detail(row: EventRow) -> dict[str, object]:
    try:
        told = json.loads(row.detail)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _replay(case: Case) -> Generator[Finding, None, list[Step]]:
    """The events through the table of transitions; what they must lead to is the payment's state."""
    state, tx_id = State.RECEIVED, None
    seen = iter(case.sightings)
    steps: list[Step] = []
    for row in case.events:
        event = _EVENTS.get(row.event)
        after = state if event is None else TRANSITIONS.get((state, event))
        if after is None or row.state != after:
            yield Finding("events", str(row.seq), f"{row.event} leads from {state} to {after}, not to {row.state}")
        if event in (Event.SIGN, Event.CANCEL):
            tx_id = str(_detail(row).get("tx_id"))
        elif event in (Event.SEEN_IN_BLOCK, Event.VOID) and (sighting := next(seen, None)):
            tx_id = sighting.tx_id
        if event is not None:
            steps.append(Step(event, row, state, tx_id))
        state = _STATES.get(row.state, after or state)
    if case.state != state:
        yield Finding("payments", case.id, f"its state is {case.state}, its events lead to {state}")
    if case.tx_id != tx_id:
        yield Finding("payments", case.id, f"it stands for transaction {case.tx_id}, its events for {tx_id}")
    return steps


def _read_attempts(case: Case, owner: Owner, steps: list[Step]) -> Generator[Finding, None, dict[str, Reading]]:
    """Each attempt's bytes against its row, its event and what the payment is to pay."""
    signed = [step for step in steps if step.event in (Event.SIGN, Event.CANCEL)]
    readings: dict[str, Reading] = {}
    for place, attempt in enumerate(case.attempts):
        step = signed[place] if place < len(signed) else None
        kind = "cancel" if step and step.event is Event.CANCEL else "pay"
        if step is None or (step.tx_id, step.row.at_ms, kind) != (
            attempt.tx_id,
            attempt.signed_at_ms,
            attempt.kind,
        ):
            yield Finding("attempts", attempt.tx_id, "no event says that this was signed then, for this")
        if attempt.anchor != case.anchor or attempt.invoice != (case.invoice.seq if case.invoice else None):
            yield Finding("attempts", attempt.tx_id, "its anchor or invoice is not its payment's")
        reading = read(attempt.cbor)
        if isinstance(reading, str):
            yield Finding("attempts", attempt.tx_id, f"its bytes are no payment of ours: {reading}")
            continue
        readings[attempt.tx_id] = reading
        commitment = case.invoice.commitment if case.invoice and attempt.kind == "pay" else None
        for what in misread(reading, attempt, case.outputs, case.kind, commitment, owner):
            yield Finding("attempts", attempt.tx_id, what)
    for step in signed[len(case.attempts) :]:
        yield Finding(
            "attempts", str(step.tx_id), f"event {step.row.seq} says that it was signed; there is no row"
        )
    return readings


def _check_terms(case: Case, owner: Owner) -> Iterator[Finding]:
    """The payment is of its intent's app and pays what its invoice says, which is what its terms hash is of."""
    invoice = case.invoice
    origin = "" if invoice is None else invoice.origin
    if case.intent is None or case.intent != (case.app_id, origin):
        yield Finding("payments", case.id, f"its intent is not one of app {case.app_id} at {origin!r}")
    if invoice is None:
        return
    terms = [(o.role, o.address, o.asset, o.units) for o in invoice.outputs]
    made = hash_of_terms(invoice.dialect, invoice.origin, invoice.invoice_id, owner.network.name, terms)
    if made != invoice.terms_hash:
        yield Finding("invoices", str(invoice.seq), "its terms are not those that its hash is of")
    if invoice.outputs != case.outputs:
        yield Finding("payments", case.id, "its outputs are not those of its invoice")


def _check_row(case: Case) -> Iterator[Finding]:
    if case.events and case.created_at_ms != case.events[0].at_ms:
        yield Finding("payments", case.id, "it was made at another time than its first event")
    if not case.events:
        yield Finding("payments", case.id, "nothing is recorded of it")
    names = [row.event for row in case.events]
    is_served = _SERVED in names
    is_shown = any(name.startswith("delivery_") or name == "merchant_answered" for name in names)
    if (case.delivery == Delivery.ACCEPTED) != is_served or (case.delivery == Delivery.NOT_PRESENTED) == is_shown:
        yield Finding("payments", case.id, f"its delivery is {case.delivery}, and its events say otherwise")


def _check_sightings(case: Case, steps: list[Step]) -> Iterator[Finding]:
    """Each time that it came into a block there is a sighting, and the last of them is in the payment's row."""
    shown = [step.row for step in steps if step.event in (Event.SEEN_IN_BLOCK, Event.VOID)]
    for event, sighting in zip(shown, case.sightings, strict=False):
        told = _detail(event)
        if (sighting.block_hash, sighting.block_height, sighting.at_ms) != (
            told.get("block"),
            told.get("height"),
            event.at_ms,
        ):
            yield Finding("sightings", str(sighting.seq), f"event {event.seq} tells of another block or time")
    if len(shown) > len(case.sightings):
        yield Finding("sightings", "-", f"event {shown[len(case.sightings)].seq} has no sighting")
    for sighting in case.sightings[len(shown) :]:
        yield Finding("sightings", str(sighting.seq), "no event tells of it")
    if _block(case.sightings) != case.block:
        yield Finding("payments", case.id, "its block is not the one that it was last seen in")


def _block(sightings: tuple[SightingRow, ...]) -> tuple[str | None, int | None, int | None]:
    if not sightings:
        return None, None, None
    return sightings[-1].block_hash, sightings[-1].block_height, sightings[-1].block_slot


def _check_submissions(case: Case, steps: list[Step]) -> Iterator[Finding]:
    """What left the process left when its event says so, and who answered had been sent something."""
    times = {at_ms for _, _, at_ms in case.submissions}
    for step in steps:
        if step.event is Event.LEAVE and not _detail(step.row).get("to") and step.row.at_ms not in times:
            yield Finding(
                "submissions", "-", f"event {step.row.seq} says that the bytes left; no row says where to"
            )
    signed_at_ms = min((attempt.signed_at_ms for attempt in case.attempts), default=0)
    for seq, _, at_ms in case.submissions:
        if at_ms < signed_at_ms:
            yield Finding("submissions", str(seq), "it is older than the signature")
    answered: dict[str, int] = {}
    for row in case.events:
        if row.event in ("provider_accepted", "provider_answered"):
            provider = str(_detail(row).get("provider"))
            answered[provider] = answered.get(provider, 0) + 1
    for provider, count in answered.items():
        sent = sum(name == provider for _, name, _ in case.submissions)
        if sent < count:
            yield Finding(
                "submissions", "-", f"{provider} answered {count} times for {case.id}, and was sent {sent}"
            )


def _check_holds(
    case: Case, steps: list[Step], readings: Mapping[str, Reading], owner: Owner
) -> Iterator[Finding]:
    """What is held is what the signed bytes take from the wallet, from the decision on until it is given back."""
    held = next((step for step in steps if step.event is Event.HOLD), None)
    if (held is None) != (not case.holds):
        yield Finding("holds", case.id, "there is a hold without a decision, or a decision without a hold")
    given_back = [s for s in steps if s.event is Event.VOID or (s.event is Event.REJECT and held is not None)]
    released_at_ms = given_back[-1].row.at_ms if given_back and case.state in (State.VOID, *NEVER_SIGNED) else None
    for asset, _, at_ms, until_ms in case.holds:
        if held is not None and at_ms != held.row.at_ms:
            yield Finding("holds", f"{case.id} {asset}", "it is of another time than the decision")
        if until_ms != released_at_ms:
            yield Finding(
                "holds", f"{case.id} {asset}", f"it ended at {until_ms}, by the events at {released_at_ms}"
            )
    hold = {asset: units for asset, units, *_ in case.holds}
    for attempt in case.attempts:
        if attempt.kind == "pay" and (reading := readings.get(attempt.tx_id)):
            spend = ledger.add((foreign_value(reading, owner), {LOVELACE: reading.fee_lovelace}))
            if hold != spend:
                yield Finding("holds", case.id, f"{hold} is held, the bytes of {attempt.tx_id} take {spend}")


def _check_entries(case: Case, steps: list[Step]) -> Iterator[Finding]:
    """The journal has, of this payment, what its events book: each entry, to the unit, and no other."""
    wanted = list(_booked(case, steps)) if case.holds else []
    for entry, (step, expected, ref) in zip(case.entries, wanted, strict=False):
        lines = sorted(entry.postings)
        same = lines == sorted((p.account, p.asset, p.units) for p in expected.postings)
        if (entry.kind, entry.ref, entry.at_ms) != (expected.kind, ref, step.row.at_ms) or not same:
            yield Finding("journal", str(entry.id), f"it is not what event {step.row.seq} ({step.event}) books")
    for step, expected, _ in wanted[len(case.entries) :]:
        what = f"event {step.row.seq} of {case.id} books a {expected.kind}, and there is no entry"
        yield Finding("journal", "-", what)
    for entry in case.entries[len(wanted) :]:
        yield Finding("journal", str(entry.id), f"no event of {case.id} books it")


def _booked(case: Case, steps: list[Step]) -> Iterator[tuple[Step, Entry, str | None]]:
    """What each event books, with the transaction that the entry names."""
    hold = {asset: units for asset, units, *_ in case.holds}
    fees = {attempt.tx_id: attempt.fee_lovelace for attempt in case.attempts}
    invoice = case.invoice
    account = ledger.EXTERNAL if invoice is None else ledger.spending_account(invoice.origin, invoice.batch_target)
    last: Entry | None = None
    for step in steps:
        fee_lovelace = fees.get(step.tx_id or "", 0)
        if step.event is Event.HOLD:
            yield step, ledger.reserve(hold), None
        elif step.event is Event.REJECT and step.before is State.RESERVED:
            yield step, ledger.release(hold), None
        elif step.event is Event.CONFIRM:
            spent = ledger.add((hold, {LOVELACE: -fee_lovelace}))
            last = ledger.post(hold, {a: n for a, n in spent.items() if n}, fee_lovelace, account)
            yield step, last, step.tx_id
        elif step.event is Event.VOID:
            last = ledger.release(hold, fee_lovelace)
            yield step, last, step.tx_id
        elif step.event is Event.BLOCK_LOST and step.before in POSTED | {State.VOID} and last is not None:
            yield step, ledger.reverse(last), None
            last = None


def _check_coins(case: Case, readings: Mapping[str, Reading], owner: Owner) -> Iterator[Finding]:
    """The coins that an attempt makes for us are those that its bytes make. Of what can never be, none need be."""
    made: dict[str, Mapping[str, int]] = {}
    for tx_id, reading in readings.items():
        for index, output in enumerate(reading.outputs):
            if output.address == owner.address.raw:
                made[f"{tx_id}#{index}"] = {LOVELACE: output.lovelace, **output.assets}
    for ref, value in case.coins.items():
        if made.get(ref) != value and ref.partition("#")[0] in readings:
            yield Finding("coins", ref, f"it holds {dict(value)}, the bytes that made it say {made.get(ref)}")
    for ref in made.keys() - case.coins.keys():
        if ref.partition("#")[0] == case.tx_id or case.state not in (State.SETTLED, State.VOID):
            yield Finding("coins", ref, "the bytes make it for us, and it is not there")
