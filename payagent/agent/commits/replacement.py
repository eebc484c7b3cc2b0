"""A lost attempt is replaced: what the next one pays, of which coins, and the commit that decides it.

Safe at any time, because every attempt of a payment spends its anchor; due when no attempt can land before its
TTL any more, so that it helps (docs/exactly-once.md R7). On the writer's thread.
May import: core, dialects, chain.provider, wallet, store, agent.base. Never: signs; pays above the hold or on
another anchor.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.free_utxos import make_unavailable, utxo_of
from payagent.chain.provider import SubmitKind
from payagent.core.address import Address, parse_address
from payagent.core.invoice import Invoice, Output, Proof
from payagent.core.money import format_amount
from payagent.core.network import Network
from payagent.core.payment import Event, State
from payagent.core.problems import Refused
from payagent.dialects import TIMED_BY_BLOCK
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import payments
from payagent.store.rows import writes as records
from payagent.store.rows.attempts_and_utxos import AttemptRow, UtxoRow
from payagent.store.rows.payments import PaymentRow
from payagent.wallet.transaction import MAINNET_PARAMETERS, TxParameters, TxPlan, build, select
from payagent.wallet.utxo_index import Utxo, UtxoIndex

HEADER_TRANSACTION_MAX_BYTES = 7_168
"""A transaction that travels in a header: in hex, or in base64 twice, it stays within what servers take.

Node's limit for all headers together is 16 KiB, and 14,336 characters for the proof were seen to pass.
"""

NEXT_INVOICE_PATIENCE_S = 300
"""How long after its last TTL a purchase whose invoice is over waits for the next one before it is taken back.

Who still wants it asks again at once, and is paid for on the same anchor; after a cancel it would have to wait
until that is deep in the chain.
"""

_HEADER_MAX_CHARS = 14_336
_PAYLOAD_CHARS = 300
"""What stands in a PAYMENT-SIGNATURE beside the transaction and the echo: keys, nonce, identifier."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the next attempt of a payment is for: its invoice as it is, or a new one for the same intent."""

    kind: str
    outputs: tuple[Output, ...]
    invoice: int | None
    expires_at_ms: int | None
    commitment: str | None
    parameters: TxParameters


def same_again(row: PaymentRow, network: Network) -> Wanted:
    """What the payment's current invoice asks for."""
    outputs = tuple(
        Output(one.role, parse_address(one.address, network), one.asset, one.units) for one in row.outputs
    )
    parameters = parameters_of(row.proof, row.echo)
    return Wanted(row.kind, outputs, row.invoice, row.expires_at_ms, row.commitment, parameters)


def next_invoice(invoice: Invoice, seq: int, expires_at_ms: int | None) -> Wanted:
    """What another invoice for the same intent asks for."""
    parameters = parameters_of(invoice.proof, invoice.echo)
    return Wanted("invoice", invoice.outputs, seq, expires_at_ms, invoice.commitment, parameters)


def parameters_of(proof: Proof, echo: str | None) -> TxParameters:
    """Bounds of the transaction; one that travels in a header leaves room there for what is repeated beside it."""
    if proof == "tx_hash":
        return MAINNET_PARAMETERS
    room_bytes = HEADER_TRANSACTION_MAX_BYTES
    if echo is not None:
        chars = _HEADER_MAX_CHARS * 3 // 4 - _PAYLOAD_CHARS - len(echo)
        room_bytes = max(0, min(room_bytes, chars * 3 // 4))
    return replace(MAINNET_PARAMETERS, max_tx_size=room_bytes)


def is_hopeless(conn: Connection, payment_id: str, tx_id: str | None) -> bool:
    """Whether a provider said that an attempt can never be valid, and none ever took it."""
    kinds = SubmitKind.NEVER, SubmitKind.ACCEPTED
    is_never, is_taken = (queries.was_told(conn, payment_id, tx_id, kind) for kind in kinds)
    return is_never and not is_taken


def is_lost(conn: Connection, row: PaymentRow, slot: int) -> bool:
    """Whether no attempt that payagent sent is in a block or could come into one after this slot of the tip."""
    if row.state not in (State.SIGNED, State.IN_FLIGHT) or row.handed_over:
        return False
    return last_ttl_slot(conn, row) <= slot


def last_ttl_slot(conn: Connection, row: PaymentRow) -> int:
    """The first slot that no attempt of a payment to pay could be in a block of."""
    return max(one.ttl_slot for one in queries.attempts(conn, row.id) if one.kind == "pay")


def rebuilt(
    inputs: Sequence[Utxo], nonce_utxo: Utxo, wanted: Wanted, ttl_slot: int, own: Address, network: Network
) -> TxPlan:
    """The transaction of exactly these coins; the same coins give the same bytes."""
    outputs = wanted.outputs
    rest = outputs[0].address if wanted.kind == "sweep" else own
    return build(
        inputs,
        nonce_utxo,
        () if wanted.kind == "sweep" else outputs,
        change=rest,
        ttl_slot=ttl_slot,
        network_id=network.network_id,
        params=wanted.parameters,
        rest_role="change" if rest.raw == own.raw else "pay_to",
        commitment=None if wanted.commitment is None else bytes.fromhex(wanted.commitment),
    )


def utxos_there(unit: Unit, row: PaymentRow) -> list[UtxoRow]:
    """The coins of a payment that are there or may yet be; its anchor in any case."""
    return [
        utxo
        for utxo in queries.utxos_reserved_for(unit.conn, row.id)
        if utxo.ref == row.nonce_utxo or not (utxo.is_gone or _is_never(unit.conn, utxo))
    ]


def can_land(conn: Connection, attempt: AttemptRow) -> bool:
    """Whether what an attempt spends beside its anchor may be there in its time: not spent elsewhere, not without
    what was to make it."""
    for ref in attempt.inputs:
        utxo = queries.utxo(conn, ref)
        if ref != attempt.nonce_utxo and (utxo is None or utxo.state == "spent" or _is_never(conn, utxo)):
            return False
    return True


def _is_never(conn: Connection, utxo: UtxoRow) -> bool:
    """Whether a coin will not be there: what was to make it lost to another transaction, or is on no chain."""
    is_orphan = utxo.state == "pending" and queries.rival_of(conn, utxo.ref) is not None
    return is_orphan or queries.is_rolled_back(conn, utxo.ref)


def require_nonce_utxo(conn: Connection, row: PaymentRow) -> None:
    """Refused, `anchor_gone`: nothing is signed that could not land, and would put off the end of the payment."""
    if queries.is_rolled_back(conn, row.nonce_utxo):
        raise Refused(
            "anchor_gone", f"the deposit that {row.id} spends or descends from is on no chain", payment=row.id
        )


def reserve_more(unit: Unit, utxos: UtxoIndex, payment_id: str, plan: TxPlan) -> None:
    """Reserve what a later attempt of a payment spends that it does not have yet. Refused when that is gone."""
    had = {utxo.ref for utxo in queries.utxos_reserved_for(unit.conn, payment_id)}
    for utxo in plan.inputs:
        if utxo.ref not in had:
            if utxo.ref not in utxos:
                raise Refused("funds_in_flight", f"coin {utxo.ref} was taken for something else meanwhile")
            make_unavailable(unit, utxos, utxo.ref)
            records.reserve(unit, (utxo.ref,), payment_id)


@dataclass(frozen=True, slots=True)
class Replacement:
    """The commit that takes a payment to `replacing`, with what it decides by."""

    utxos: UtxoIndex
    chain: ChainView
    own: Address

    def start(self, unit: Unit, row: PaymentRow, wanted: Wanted, min_window_s: int, now_ms: int) -> TxPlan:
        """The next attempt's transaction, its coins reserved; the payment is `replacing`, for what is wanted.

        Refused, with nothing changed: `invoice_expired`; `limit_exceeded` above the hold; as `select` does
        where coins are gone and others do not suffice; `anchor_gone`.
        """
        require_nonce_utxo(unit.conn, row)
        slot = self.chain.require_ready(now_ms)
        window_s = min_window_s if wanted.kind == "invoice" else 0
        from_block = row.dialect in TIMED_BY_BLOCK
        ttl_slot = self.chain.ttl_slot(slot, wanted.expires_at_ms, window_s, from_block=from_block)
        plan = self._plan(unit, row, wanted, ttl_slot)
        hold = payments.hold(unit.conn, row.id)
        for asset, units in plan.spend.items():
            if units > hold.get(asset, 0):
                need, held = format_amount(asset, units), format_amount(asset, hold.get(asset, 0))
                raise Refused("limit_exceeded", f"{need} are needed, {held} are held")
        reserve_more(unit, self.utxos, row.id, plan)
        records.move_payment(
            unit,
            row.id,
            Event.REPLACE,
            now_ms,
            {"inputs": " ".join(utxo.ref for utxo in plan.inputs)},
            tx_id=None,
            ttl_slot=ttl_slot,
            **({} if wanted.invoice == row.invoice else {"invoice": wanted.invoice}),
        )
        return plan

    def _plan(self, unit: Unit, row: PaymentRow, wanted: Wanted, ttl_slot: int) -> TxPlan:
        """A transaction of the last attempt's coins; of those and the free ones where one is gone, or they do not
        fit.
        """
        network = self.chain.network
        there = utxos_there(unit, row)
        last = [one for one in queries.attempts(unit.conn, row.id) if one.kind == "pay"][-1]
        nonce_utxo = next(utxo_of(utxo) for utxo in there if utxo.ref == last.nonce_utxo)
        same = [utxo_of(utxo) for utxo in there if utxo.ref in last.inputs]
        try:
            if len(same) == len(last.inputs):
                return rebuilt(same, nonce_utxo, wanted, ttl_slot, self.own, network)
        except Refused:
            if wanted.invoice == row.invoice:
                raise
        if wanted.kind == "sweep":
            raise Refused("not_enough_funds", "a coin that it was to send is not there any more")
        return select(
            UtxoIndex([*self.utxos, *(utxo_of(utxo) for utxo in there)]),
            wanted.outputs,
            change=self.own,
            ttl_slot=ttl_slot,
            network_id=network.network_id,
            params=wanted.parameters,
            nonce_utxo=nonce_utxo,
            commitment=None if wanted.commitment is None else bytes.fromhex(wanted.commitment),
        )
