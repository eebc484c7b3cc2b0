"""Calls that a channel pays, seen as payments of kind `channel_call`, so that all who show payments show them.

Never: writes; signs.
"""

from payagent.core.aggregate import (
    CHANNEL_CALL,
    AttemptPart,
    BlockPart,
    IntentPart,
    InvoicePart,
    OutputRow,
    PaymentRow,
    PrepaidPart,
    ProblemPart,
)
from payagent.core.channel import CallState, ChannelCall
from payagent.core.payment.machine import Delivery, State
from payagent.dialects.x402_batch import ChannelOffer, Voucher
from payagent.store.db.unit import Connection
from payagent.store.rows import channels, intents

CALL_DIALECT = "x402-batch"

_SEEN_AS = {
    CallState.PROMISED: (State.SIGNED, Delivery.NOT_PRESENTED),
    CallState.SERVED: (State.CONFIRMED, Delivery.ACCEPTED),
    CallState.PAID_NOT_SERVED: (State.CONFIRMED, Delivery.PAID_NOT_SERVED),
    CallState.VOID: (State.VOID, Delivery.NOT_PRESENTED),
}


class CallViews:
    """One per daemon. `signed`: by channel, its newest signed call, the voucher, and the headers as JSON.

    `offers`: the latest of each merchant, by its origin.
    """

    def __init__(self) -> None:
        self.signed: dict[str, tuple[str, Voucher, str]] = {}
        self.offers: dict[str, ChannelOffer] = {}

    def find(self, conn: Connection, call_id: str) -> PaymentRow | None:
        """The call as a payment. It is ready as soon as its voucher is signed."""
        call = channels.call(conn, call_id)
        return None if call is None else self._row(conn, call)

    def _row(self, conn: Connection, call: ChannelCall) -> PaymentRow:
        channel, (state, delivery) = channels.channel(conn, call.channel), _SEEN_AS[call.state]
        call_id, _, signed = self.signed.get(call.channel, ("", None, ""))
        headers = signed if call_id == call.id else None
        cost = call.price if call.charged is None else call.charged
        return PaymentRow(
            seq=call.seq,
            id=call.id,
            kind=CHANNEL_CALL,
            app_id=call.app_id,
            outputs=(OutputRow("pay_to", channel.pay_to, channel.asset, cost),),
            state=state,
            delivery=delivery,
            nonce_utxo=None,
            void_tx_id=None,
            merchant_status=None,
            refused=False,
            created_at_ms=call.created_at_ms,
            updated_at_ms=call.updated_at_ms,
            account=channel.account,
            intent=IntentPart(
                call.intent_id, intents.request_id_of(conn, call.intent_id), is_first=True, origin=channel.origin
            ),
            invoice=InvoicePart(
                *(None, channel.origin, CALL_DIALECT, call.channel, None, None, None),
                proof="tx_hash",
                merchant_submits=True,
                echo=headers,
                commitment=None,
            ),
            attempt=AttemptPart(None, f"{call.channel}:{call.amount}", None, 0, None, False, False),
            block=BlockPart(None, None, None),
            problem=ProblemPart(None, None, None),
            prepaid=PrepaidPart(None, None, None, None),
            is_noted=headers is not None,
        )
