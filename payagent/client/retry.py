"""Retries a request with its payment's proof until the merchant gives a final answer or time is up.

Never: I/O except through a step; makes a payment.
"""

import base64
import time
from contextlib import suppress
from dataclasses import dataclass

import httpx

from payagent.client.errors import PayAgentError, own_error
from payagent.client.merchant_answers import answer_json, decoded, plain, readable
from payagent.client.request import ClientRequest
from payagent.client.steps import (
    AskDaemon,
    DaemonReply,
    FinalAnswer,
    Json,
    ReadAnswer,
    SendRequest,
    Sleep,
    Steps,
)
from payagent.core import strict_json
from payagent.core.aggregate import CHANNEL_CALL
from payagent.core.cost_headers import paid_headers
from payagent.core.invoice import is_batch
from payagent.core.pay_and_retry import (
    Answered,
    AwaitReady,
    End,
    Present,
    ProofResult,
    RetryVerdict,
    Wait,
    present_proof,
)
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, WITHOUT_PROOF, State
from payagent.core.problems import Refused, name_of

WAIT_S = 25
_STATUS_MAX = 599
"""A higher number is no HTTP status and counts as a server error (RFC 9110 15)."""

_RECEIPTS = ("payment-response", "x-payment-response")

PAID_MARK = "payagent_paid"
"""Key of `extensions`: (payment, URL) of a request that was redirected after its payment."""


@dataclass(slots=True)
class ProofPresenter:
    """Drives `core.pay_and_retry`. `answer` is the merchant's last one; `raw` its body, None if it is too long."""

    call: ClientRequest
    payment: Json
    deadline_s: float
    answer: httpx.Response | None = None
    raw: bytes | None = None
    reason: str = ""
    lost: str = ""  # why the last request got no answer, if its voucher may pay another request meanwhile

    def run(self) -> Steps[FinalAnswer | PayAgentError]:
        """Run to the answer. If the proof is used up, return the error; the caller may pay again."""
        steps = present_proof()
        result: ProofResult = None
        while True:
            match steps.send(result):
                case AwaitReady():
                    if self.lost:
                        yield from self._report({"status": 504, "unanswered": self.lost})
                        self.lost = ""
                    self.payment = yield from until_ready(self.payment, self.deadline_s)
                    result = self.payment["tx_hash"] if self.payment["ready"] else None
                case Present(poll_query):
                    result = yield from self._present(poll_query)
                case Wait(seconds):
                    self.answer = None if self.raw is None else self.answer
                    result = seconds >= self.deadline_s - time.monotonic() or (yield Sleep(seconds))
                case end:
                    return self._ended(end)

    def _present(self, poll_query: str | None) -> Steps[Answered | None]:
        headers, target = self.payment["headers"], self.payment["batch_target"]
        try:
            answer = plain((yield SendRequest(self.call.paid(headers, poll_query, is_batch=is_batch(target)))))
            if not answer.is_success or self._may_be_pending(answer):
                return (yield from self._report_answer(answer))
        except httpx.TransportError as error:
            if self.payment["kind"] == CHANNEL_CALL:
                self.lost = type(error).__name__
            else:
                yield from self._report_silence(error)
            return None
        self.answer = answer
        return Answered(RetryVerdict.SERVED, "", answer.status_code)

    def _report_silence(self, error: httpx.TransportError) -> Steps[None]:
        """Report once that the proof got no answer: an unserved proof counts against the merchant."""
        is_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        if is_sent and self.payment["delivery"] == "not_presented":
            with suppress(PayAgentError):  # the next lost retry reports it again
                yield from self._report({"status": 504, "unanswered": type(error).__name__})

    def _report(self, outcome: Json) -> Steps[None]:
        """Report the retry's outcome, and take the daemon's new state of the payment."""
        payment_id = self.payment["id"]
        self.payment = yield from _ask_about(
            payment_id, AskDaemon("POST", delivery_path(payment_id), outcome), self.deadline_s
        )

    def _may_be_pending(self, answer: httpx.Response) -> bool:
        """Whether a 202 may only mean "later".

        Some dialects say so in the body, x402 version 2 in the receipt.
        """
        if answer.status_code != 202:
            return False
        from payagent.dialects import PENDING_IN_BODY

        is_json = "json" in answer.headers.get("content-type", "")
        return (is_json and self.payment["dialect"] in PENDING_IN_BODY) or _is_unsettled(answer)

    def _report_answer(self, answer: httpx.Response) -> Steps[Answered]:
        """Report the answer to the retry, and take the daemon's advice on it."""
        self.raw, self.answer = yield ReadAnswer(answer)
        body = b"" if self.raw is None else decoded(answer, self.raw) or b""
        status = min(answer.status_code, _STATUS_MAX)
        depth = {"depth": self.payment["depth"] or 0} if "depth" in self.payment else {}
        yield from self._report({"status": status, **depth, **answer_json(answer, body)})
        if 300 <= status < 400:
            self.call.request.extensions[PAID_MARK] = (self.payment["id"], str(self.call.request.url))
        result = answered(self.payment, status)
        self.reason = result.reason
        return result

    def _marked(self, answer: httpx.Response) -> httpx.Response:
        """Add the X-Payagent headers of the payment to an answer."""
        paid = [(output["asset"], int(output["units"])) for output in self.payment["outputs"]]
        fee = int(self.payment["fee"] or 0)
        answer.headers.update(paid_headers(self.payment["id"], paid, fee, self.payment["state"]))
        return answer

    def _ended(self, end: End) -> FinalAnswer | PayAgentError:
        """Return what the request ends with, or raise its error."""
        if self.answer is None:
            raise not_served(self.payment)
        if end is End.UNSERVED:
            raise self._unserved(self.answer)
        if end is End.USED_UP:
            return self._unserved(self.answer)
        told = [pair for pair in self.answer.headers.multi_items() if pair[0] == "payment-response"]
        receipt = {"headers": told} if self.payment["kind"] == CHANNEL_CALL else {}
        return FinalAnswer(self._marked(self.answer), self.payment["id"] if end is End.SERVED else None, receipt)

    def _unserved(self, answer: httpx.Response) -> PayAgentError:
        """Build the error for an unserved payment, with the merchant's 402 as a field that no wallet pays."""
        payment, merchant_answer = self.payment, readable(answer, self.raw)
        if payment["state"] in WITHOUT_PROOF:
            return _without_proof(payment, merchant_answer=merchant_answer)
        detail = f"{payment['id']} is {payment['state']}; the merchant says to its proof: {self.reason}"
        code = "channel_unserved" if payment["kind"] == CHANNEL_CALL else "paid_not_served"
        return own_error(code, detail, payment=payment["id"], merchant_answer=merchant_answer)


def answered(payment: Json, status: int) -> Answered:
    """Return the answer that the daemon has recorded for the payment."""
    told = payment["answer"]
    return Answered(
        told["said"],
        told["reason"],
        status,
        told["again_after_s"],
        told.get("poll_query"),
        has_served=payment["delivery"] == "accepted",
    )


def _is_unsettled(answer: httpx.Response) -> bool:
    """Whether a receipt says explicitly that the settlement failed or is not done yet."""
    for text in (text for name in _RECEIPTS for text in answer.headers.get_list(name)):
        with suppress(ValueError, Refused):
            receipt = strict_json.loads(base64.b64decode(text, validate=True))
            if isinstance(receipt, dict) and receipt.get("success") in (False, "false"):
                return True
    return False


def delivery_path(payment_id: str) -> str:
    """Return the API path for reporting a delivery."""
    return f"/v1/payments/{payment_id}/delivery"


def until_ready(payment: Json, deadline_s: float) -> Steps[Json]:
    """Wait until the merchant can be expected to accept the proof. The payment is not `ready` if time is up."""
    payment_id = payment["id"]
    while not payment["ready"]:
        if payment["state"] in WITHOUT_PROOF:
            raise _without_proof(payment)
        if payment["state"] == State.AWAITING_APPROVAL:
            raise own_error("awaiting_approval", f"{payment_id} waits for approval", payment=payment_id)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            break
        ask = AskDaemon("GET", f"/v1/payments/{payment_id}", wait_s=max(1, min(WAIT_S, int(left_s))))
        payment = yield from _ask_about(payment_id, ask, deadline_s)
    return payment


def ask_until_answered(ask: AskDaemon, deadline_s: float) -> Steps[DaemonReply]:
    """Ask the daemon about something paid. If it is rate limited, wait and ask again."""
    while True:
        reply: DaemonReply = yield ask
        after_s = max(reply.after_s, 1)
        if reply.body.get("code") != "rate_limited" or after_s >= deadline_s - time.monotonic():
            return reply
        yield Sleep(after_s)


def _ask_about(payment_id: str, ask: AskDaemon, deadline_s: float) -> Steps[Json]:
    """Ask the daemon about a payment. An error names the payment even if the daemon did not answer."""
    try:
        reply = yield from ask_until_answered(ask, deadline_s)
    except PayAgentError as error:
        raise PayAgentError({**error.problem, "payment": payment_id}) from None
    return reply.value(payment=payment_id)


def _without_proof(payment: Json, **context: object) -> PayAgentError:
    why = payment.get("reason") or {}
    name = name_of(why.get("code"), why.get("reason"))
    return own_error(
        "payment_ended" if payment["state"] in ENDED_WITHOUT_PAYING else "payment_void/merchant_refused",
        f"{payment['id']} is {payment['state']}: {name}, {why.get('detail')}",
        payment=payment["id"],
        **context,
    )


def not_served(payment: Json) -> PayAgentError:
    """Build the error for a payment that was not served in time."""
    return own_error(
        "channel_unserved" if payment["kind"] == CHANNEL_CALL else "not_served_yet",
        f"{payment['id']} is {payment['state']}, and the merchant has not served the call",
        payment=payment["id"],
    )
