"""Replaces a lost attempt: the outputs and inputs of the next one, and the commit that decides it.

Replacing is safe at any time, because every attempt of a payment spends its nonce UTxO. It is due once
every paying attempt is past its TTL and in no block (exactly-once.md R7). Runs on the writer's thread; start at
`Replacement.replace`, for the same invoice, or at `Replacement.take_invoice`, for a new one.
Never: signs; pays more than the hold, or with another nonce UTxO.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.free_utxos import FreeUtxoIndex, row_of_utxo, utxo_of
from payagent.agent.base.requests import PaymentIntent
from payagent.agent.commits.rules import PaymentRules
from payagent.chain.provider import SubmitKind
from payagent.core.address import Address, parse_address
from payagent.core.aggregate import AttemptRow, LoadedPayment, PaymentRow, UtxoRow
from payagent.core.invoice import Invoice, Output, Proof, calls_of, is_batch
from payagent.core.merchant_rules import Moment
from payagent.core.money import format_amount
from payagent.core.network import Network
from payagent.core.payment.apply import apply
from payagent.core.payment.events import Replace
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.dialects import TIMED_BY_BLOCK
from payagent.store.db.unit import Connection, Unit
from payagent.store.executor import write
from payagent.store.load import load
from payagent.store.rows import approvals, attempts_and_utxos, pauses, payments
from payagent.store.rows.intents import InvoiceRow
from payagent.wallet.transaction import MAINNET_PARAMETERS, TxParameters, TxPlan, build, select
from payagent.wallet.utxo_index import Utxo, UtxoIndex

HEADER_TRANSACTION_MAX_BYTES = 7_168
"""The most bytes of a transaction that travels in a header, in hex or in base64 twice.

Node limits all headers together to 16 KiB, and it accepted a proof of 14,336 characters.
"""

NEXT_INVOICE_PATIENCE_S = 300
"""How long after its last TTL a payment whose invoice expired waits for a new invoice before it is cancelled.

A client that still wants to buy repeats the request at once, and the new invoice is paid with the same nonce UTxO.
After a cancel it would have to wait until that is deep in the chain.
"""

_HEADER_MAX_CHARS = 14_336
_PAYLOAD_CHARS = 300
"""Room in a PAYMENT-SIGNATURE for everything beside the transaction and the echo: keys, nonce, identifier."""


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """The outputs and bounds of the next attempt: of the payment's invoice, or a new one of the same intent."""

    kind: str
    outputs: tuple[Output, ...]
    invoice: int | None
    expires_at_ms: int | None
    commitment: str | None
    parameters: TxParameters


def same_again(row: PaymentRow, network: Network) -> NextAttempt:
    """The same outputs again, for the payment's current invoice."""
    outputs = tuple(
        Output(one.role, parse_address(one.address, network), one.asset, one.units) for one in row.outputs
    )
    parameters = parameters_of(row.invoice.proof, row.invoice.echo)
    return NextAttempt(
        row.kind, outputs, row.invoice.seq, row.invoice.expires_at_ms, row.invoice.commitment, parameters
    )


def next_invoice(invoice: Invoice, seq: int, expires_at_ms: int | None) -> NextAttempt:
    """The outputs of another invoice of the same intent."""
    parameters = parameters_of(invoice.proof, invoice.echo)
    return NextAttempt("invoice", invoice.outputs, seq, expires_at_ms, invoice.commitment, parameters)


def parameters_of(proof: Proof, echo: str | None) -> TxParameters:
    """The transaction's bounds. If it travels in a header, it has to leave room there for `echo`."""
    if proof == "tx_hash":
        return MAINNET_PARAMETERS
    room_bytes = HEADER_TRANSACTION_MAX_BYTES
    if echo is not None:
        chars = _HEADER_MAX_CHARS * 3 // 4 - _PAYLOAD_CHARS - len(echo)
        room_bytes = max(0, min(room_bytes, chars * 3 // 4))
    return replace(MAINNET_PARAMETERS, max_tx_size=room_bytes)


def is_hopeless(conn: Connection, payment_id: str, tx_id: str | None) -> bool:
    """Whether a provider said that the attempt can never be valid, and no provider accepted it."""
    kinds = SubmitKind.NEVER, SubmitKind.ACCEPTED
    is_never, is_accepted = (attempts_and_utxos.was_answered(conn, payment_id, tx_id, kind) for kind in kinds)
    return is_never and not is_accepted


def is_lost(conn: Connection, row: PaymentRow, slot: int) -> bool:
    """Whether the payment is in no block and no attempt that payagent submitted can land after `slot`, the tip's.

    Always False if the merchant submits.
    """
    if row.state not in (State.SIGNED, State.IN_FLIGHT) or row.invoice.merchant_submits:
        return False
    return last_ttl_slot(conn, row) <= slot


def last_ttl_slot(conn: Connection, row: PaymentRow) -> int:
    """The highest TTL of the attempts that pay: none of them can be in a block of this slot or later."""
    return max(one.ttl_slot for one in attempts_and_utxos.attempts(conn, row.id) if one.kind == "pay")


def rebuilt(
    inputs: Sequence[Utxo],
    nonce_utxo: Utxo,
    next_attempt: NextAttempt,
    ttl_slot: int,
    own: Address,
    network: Network,
) -> TxPlan:
    """The transaction with exactly these inputs. The same inputs give the same bytes."""
    outputs = next_attempt.outputs
    rest = outputs[0].address if next_attempt.kind == "sweep" else own
    return build(
        inputs,
        nonce_utxo,
        () if next_attempt.kind == "sweep" else outputs,
        change=rest,
        ttl_slot=ttl_slot,
        network_id=network.network_id,
        params=next_attempt.parameters,
        rest_role="change" if rest.raw == own.raw else "pay_to",
        commitment=None if next_attempt.commitment is None else bytes.fromhex(next_attempt.commitment),
    )


def _usable_utxos(unit: Unit, row: PaymentRow) -> list[UtxoRow]:
    """The payment's UTxOs that exist or may still exist, and its nonce UTxO in any case."""
    return [
        utxo
        for utxo in attempts_and_utxos.utxos_reserved_for(unit.conn, row.id)
        if utxo.ref == row.nonce_utxo or not (utxo.is_gone or _is_never(unit.conn, utxo))
    ]


def can_land(conn: Connection, attempt: AttemptRow) -> bool:
    """Whether the inputs of an attempt, except its nonce UTxO, can still exist.

    None is spent, and the transaction that makes each can land.
    """
    for ref in attempt.inputs:
        utxo = attempts_and_utxos.utxo(conn, ref)
        if ref != attempt.nonce_utxo and (utxo is None or utxo.state == "spent" or _is_never(conn, utxo)):
            return False
    return True


def _is_never(conn: Connection, utxo: UtxoRow) -> bool:
    """Whether a UTxO can never exist: the transaction that makes it lost to another one, or was rolled back."""
    is_orphan = utxo.state == "pending" and attempts_and_utxos.rival_of(conn, utxo.ref) is not None
    return is_orphan or attempts_and_utxos.is_rolled_back(conn, utxo.ref)


def require_nonce_utxo(conn: Connection, row: PaymentRow) -> None:
    """Refused: `deposit_rolled_back`. An attempt could not land, only delay the end."""
    if attempts_and_utxos.is_rolled_back(conn, row.nonce_utxo):
        raise Refused(
            "deposit_rolled_back",
            f"the deposit that {row.id} spends or descends from was rolled back",
            payment=row.id,
        )


def lacking_inputs(payment: LoadedPayment, plan: TxPlan, utxos: UtxoIndex) -> tuple[UtxoRow, ...]:
    """The plan's inputs that the payment has not reserved. Refused: `funds_pending` if one is no longer free."""
    reserved = {own.row.ref for own in payment.reserved}
    lacking = [utxo for utxo in plan.inputs if utxo.ref not in reserved]
    for utxo in lacking:
        if utxo.ref not in utxos:
            raise Refused("funds_pending", f"UTxO {utxo.ref} was used for another payment meanwhile")
    return tuple(map(row_of_utxo, lacking))


def earlier(first_ms: int | None, second_ms: int | None) -> int | None:
    """The earlier of two ends. A relative timeout counts from the first receipt of a 402, not from a copy."""
    ends_ms = [value for value in (first_ms, second_ms) if value is not None]
    return min(ends_ms, default=None)


def _is_alike(invoice: Invoice, first_read: Invoice | InvoiceRow, row: PaymentRow) -> bool:
    """Whether an invoice, as first read, is paid like the payment's own and buys at least as many calls."""
    return (
        invoice.asset == row.outputs[0].asset
        and first_read.proof == row.invoice.proof
        and first_read.merchant_submits == row.invoice.merchant_submits
        and is_batch(invoice.batch_target) == is_batch(row.invoice.batch_target)
        and invoice.calls >= calls_of(row.invoice.batch_target)
    )


@dataclass(frozen=True, slots=True)
class Replacement:
    """Moves a lost payment to `replacing`."""

    rules: PaymentRules
    chain: ChainView
    utxos: UtxoIndex
    own: Address

    def replace(self, unit: Unit, payment_id: str, min_window_s: int, now_ms: int) -> Refused | None:
        """Replace a lost attempt that payagent submitted, for the same invoice.

        Returns why the payment has to be cancelled instead; None if it was replaced or is not lost. Refused:
        `paused`; as `ChainView.require_ready`.
        """
        row, tip = payments.payment(unit.conn, payment_id), self.chain.tip
        pauses.require_running(unit.conn)
        self.chain.require_ready(now_ms)
        if row is None or tip is None or not is_lost(unit.conn, row, tip.slot):
            return None
        if (stopped := self.rules.why_stopped(unit.conn, row, now_ms)) is not None:
            return stopped
        if is_hopeless(unit.conn, row.id, row.attempt.tx_id):
            return Refused("payment_void/expired", "a provider said that the transaction can never be valid")
        try:
            self.start(unit, row, same_again(row, self.chain.network), min_window_s, now_ms)
        except Refused as refusal:
            return Refused("payment_void/expired", f"the transaction expired in no block: {refusal.detail}")
        return None

    def take_invoice(
        self,
        unit: Unit,
        row: PaymentRow,
        intent: PaymentIntent,
        seq: int,
        recorded: InvoiceRow | None,
        now_ms: int,
    ) -> bool:
        """Move a lost payment whose invoice has expired to a new invoice of its intent. Returns whether it did.

        An invoice that came before counts as it was read then, even if the config changed since.
        """
        invoice, tip = intent.invoice, self.chain.tip
        if tip is None or not is_lost(unit.conn, row, tip.slot):
            return False
        if not _is_alike(invoice, recorded or invoice, row):
            return False
        most = intent.most_units(invoice.asset)
        if most is not None and payments.hold(unit.conn, row.id).get(invoice.asset, 0) > most:
            return False
        next_attempt = next_invoice(
            invoice, seq, earlier(invoice.expires_at_ms, recorded.expires_at_ms if recorded else None)
        )
        try:
            pauses.require_running(unit.conn)
            slot = self.chain.require_ready(now_ms)
            by_block = row.invoice.dialect in TIMED_BY_BLOCK
            if self.chain.has_time(slot, row.invoice.expires_at_ms, intent.min_window_s, from_block=by_block):
                return False
            if approvals.of_payment(unit.conn, row.id) is not None:  # the approval was for other terms
                return False
            if self.rules.check(unit.conn, intent, invoice, Moment.NEXT_INVOICE):
                return False
            self.start(unit, row, next_attempt, intent.min_window_s, now_ms)
        except Refused:
            return False
        return True

    def start(
        self, unit: Unit, row: PaymentRow, next_attempt: NextAttempt, min_window_s: int, now_ms: int
    ) -> TxPlan:
        """Plan the next attempt, reserve its inputs and move the payment to `replacing`.

        Refused, with nothing changed: `deposit_rolled_back`; `invoice_expired`; `limit_exceeded` if it costs more
        than the hold; as `select` if inputs are gone and the available UTxOs do not suffice.
        """
        require_nonce_utxo(unit.conn, row)
        slot = self.chain.require_ready(now_ms)
        window_s = min_window_s if next_attempt.kind == "invoice" else 0
        from_block = row.invoice.dialect in TIMED_BY_BLOCK
        ttl_slot = self.chain.ttl_slot(slot, next_attempt.expires_at_ms, window_s, from_block=from_block)
        plan = self._plan(unit, row, next_attempt, ttl_slot)
        hold = payments.hold(unit.conn, row.id)
        for asset, units in plan.spend.items():
            if units > hold.get(asset, 0):
                need, held = format_amount(asset, units), format_amount(asset, hold.get(asset, 0))
                raise Refused("limit_exceeded", f"{need} are needed, {held} are held")
        payment = load(unit.conn, row.id)
        planned = tuple(utxo.ref for utxo in plan.inputs)
        inputs = lacking_inputs(payment, plan, self.utxos)
        replaced = Replace(ttl_slot, next_attempt.invoice, planned, inputs)
        write(unit, apply(payment, replaced), now_ms, FreeUtxoIndex(self.utxos))
        return plan

    def _plan(self, unit: Unit, row: PaymentRow, next_attempt: NextAttempt, ttl_slot: int) -> TxPlan:
        """Reuse the last attempt's inputs.

        If one is gone or they do not suffice, select from the payment's UTxOs and the available ones.
        """
        network = self.chain.network
        usable = _usable_utxos(unit, row)
        last = [one for one in attempts_and_utxos.attempts(unit.conn, row.id) if one.kind == "pay"][-1]
        nonce_utxo = next(utxo_of(utxo) for utxo in usable if utxo.ref == last.nonce_utxo)
        same = [utxo_of(utxo) for utxo in usable if utxo.ref in last.inputs]
        try:
            if len(same) == len(last.inputs):
                return rebuilt(same, nonce_utxo, next_attempt, ttl_slot, self.own, network)
        except Refused:
            if next_attempt.invoice == row.invoice.seq:
                raise
        if next_attempt.kind == "sweep":
            raise Refused("not_enough_funds", "a UTxO that it was to send is gone")
        return select(
            UtxoIndex([*self.utxos, *(utxo_of(utxo) for utxo in usable)]),
            next_attempt.outputs,
            change=self.own,
            ttl_slot=ttl_slot,
            network_id=network.network_id,
            params=next_attempt.parameters,
            nonce_utxo=nonce_utxo,
            commitment=None if next_attempt.commitment is None else bytes.fromhex(next_attempt.commitment),
        )
