"""The events of a payment, each with the facts that its row of `machine.EFFECTS` needs.

Never: SQL; a fact that may be left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from payagent.core.aggregate import AgreedPriceRow, AttemptRow, LoadedPayment, TxSeen, UtxoRow
from payagent.core.changes import AddApproval, AgreePrice, Detail, PinAddress
from payagent.core.payment.machine import Event
from payagent.core.prepaid_balance import PrepaidBalance
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time


class MoneyEvent:
    """An event of the payment machine, with its facts."""

    __slots__ = ()
    event: ClassVar[Event]

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        """The payment's columns that change with its state, and what the stored event says besides."""
        return {}, {}


@dataclass(frozen=True, slots=True)
class ReserveFunds(MoneyEvent):
    event = Event.RESERVE
    nonce_utxo: str
    ttl_slot: int
    inputs: tuple[UtxoRow, ...]
    spend: Mapping[str, int]  # the units to hold
    clock_ms: int  # from when they count, by the limits' clock
    is_counted: bool  # False for an operator's own transfer
    learnt: tuple[PinAddress | AgreePrice, ...]  # what the merchant rules learn
    detail: Detail  # for the stored event

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return {"nonce_utxo": self.nonce_utxo, "ttl_slot": self.ttl_slot}, self.detail


@dataclass(frozen=True, slots=True)
class Approve(ReserveFunds):
    event = Event.APPROVE
    decision = "it was approved"


@dataclass(frozen=True, slots=True)
class RequestApproval(MoneyEvent):
    event = Event.REQUEST_APPROVAL
    approval: AddApproval
    spend: Mapping[str, int]  # the most that it may cost once it is approved
    clock_ms: int  # from when that counts, by the limits' clock
    is_counted = True

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        reasons = [reason[:2] for reason in self.approval.reasons]
        return {}, {"reasons": reasons, "ends_at": iso_time(self.approval.expires_at_ms)}


@dataclass(frozen=True, slots=True)
class Reject(MoneyEvent):
    event = Event.REJECT
    why: Refused
    detail: Detail  # for the stored event

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return self.why.record, self.detail


@dataclass(frozen=True, slots=True)
class Deny(Reject):
    event = Event.DENY

    @property
    def decision(self) -> str:
        """The reason, for people."""
        return self.why.detail


@dataclass(frozen=True, slots=True)
class Sign(MoneyEvent):
    event = Event.SIGN
    attempt: AttemptRow
    made: tuple[UtxoRow, ...]  # the UTxOs that the attempt makes for us

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return {"tx_id": self.attempt.tx_id}, {}


@dataclass(frozen=True, slots=True)
class SignHandedOver(Sign):
    event = Event.SIGN_HANDED_OVER


@dataclass(frozen=True, slots=True)
class Submit(MoneyEvent):
    event = Event.SUBMIT
    tx_id: str
    provider: str


@dataclass(frozen=True, slots=True)
class SeenInBlock(MoneyEvent):
    event = Event.SEEN_IN_BLOCK
    block: TxSeen  # an attempt's, which becomes the current one, with the invoice it was signed for
    provider: str

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        invoice = _invoice(payment, payment.require_attempt(self.block.tx_id).invoice_seq)
        return {**self.block._asdict(), "code": None, "reason": None, "detail": None, **invoice}, {}


@dataclass(frozen=True, slots=True)
class Confirm(MoneyEvent):
    event = Event.CONFIRM
    depth: int
    from_ms: int  # when it starts to count, by the limits' clock
    balance: PrepaidBalance  # the prepaid balance that it raises
    agree: AgreedPriceRow | None  # the price that becomes the agreed one

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return {}, {"depth": self.depth, "counts_from_ms": self.from_ms}


@dataclass(frozen=True, slots=True)
class Settle(MoneyEvent):
    event = Event.SETTLE
    depth: int

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return {}, {"depth": self.depth}


@dataclass(frozen=True, slots=True)
class Replace(MoneyEvent):
    event = Event.REPLACE
    ttl_slot: int
    invoice_seq: int | None
    planned: tuple[str, ...]  # the UTxOs that the next attempt spends
    inputs: tuple[UtxoRow, ...]  # those of them that the payment has not reserved yet

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        columns = {"tx_id": None, "ttl_slot": self.ttl_slot, **_invoice(payment, self.invoice_seq)}
        return columns, {"inputs": " ".join(self.planned)}


@dataclass(frozen=True, slots=True)
class Cancel(MoneyEvent):
    event = Event.CANCEL
    attempt: AttemptRow  # the cancel; after a fork in the second of its cancel, the same one may be stored already
    made: tuple[UtxoRow, ...]
    inputs: tuple[UtxoRow, ...]  # the UTxOs that it spends and the payment has not reserved yet
    why: Refused
    by: str | None  # the app that ordered it

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        by = {} if self.by is None else {"by": self.by}
        return {"tx_id": self.attempt.tx_id, **self.why.record}, by


@dataclass(frozen=True, slots=True)
class VoidByTime(MoneyEvent):
    event = Event.VOID_BY_TIME
    block: TxSeen  # of the transaction that makes it void, or one past every time limit
    owed: int  # calls served that no purchase now covers

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        problem = {
            "code": "deposit_rolled_back",
            "reason": None,
            "detail": "a rollback took the deposit that it spends, and its transactions can no longer land",
        }
        return {**self.block._asdict(), "tx_id": None, **problem}, {"time_over": True}


@dataclass(frozen=True, slots=True)
class VoidByExternalSpend(VoidByTime):
    event = Event.VOID_BY_EXTERNAL_SPEND
    why: Refused

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return {**self.block._asdict(), **self.why.record}, {}


@dataclass(frozen=True, slots=True)
class VoidByRival(VoidByTime):
    event = Event.VOID_BY_RIVAL
    from_ms: int  # the time of the block, by the limits' clock

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        problem = {
            "tx_id": None,
            "code": "payment_void",
            "reason": "parent_replaced",
            "detail": "the payment whose change it spends was replaced by another transaction",
            "void_tx_id": self.block.tx_id,
        }
        return {**problem, **self.block._asdict(), "tx_id": None}, {"counts_from_ms": self.from_ms}


@dataclass(frozen=True, slots=True)
class VoidByCancel(VoidByRival):
    """Its fee counts from `from_ms` on."""

    event = Event.VOID_BY_CANCEL
    provider: str

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return self.block._asdict(), {"counts_from_ms": self.from_ms}


@dataclass(frozen=True, slots=True)
class CancelBlockLost(MoneyEvent):
    event = Event.CANCEL_BLOCK_LOST
    denied_by: str | None  # a provider that has the block but not the transaction in it; None: the block is gone

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        return {}, {"block": payment.row.block.hash}


@dataclass(frozen=True, slots=True)
class BlockLost(CancelBlockLost):
    event = Event.BLOCK_LOST
    balance: PrepaidBalance  # the prepaid balance that it raised


@dataclass(frozen=True, slots=True)
class ExternalSpendBlockLost(CancelBlockLost):
    """The last attempt becomes the payment's current one again."""

    event = Event.EXTERNAL_SPEND_BLOCK_LOST

    def stored(self, payment: LoadedPayment) -> tuple[Detail, Detail]:
        void_tx_id = {} if payment.row.void_tx_id is None else {"void_tx_id": None}
        return {"tx_id": payment.attempts[-1].tx_id, **void_tx_id}, {"block": payment.row.block.hash}


@dataclass(frozen=True, slots=True)
class RivalBlockLost(ExternalSpendBlockLost):
    event = Event.RIVAL_BLOCK_LOST


def _invoice(payment: LoadedPayment, seq: int | None) -> Detail:
    """The column of the current invoice, if it changes."""
    return {} if seq == payment.row.invoice.seq else {"invoice_seq": seq}
