"""A payment's proof, shown to the merchant until it has answered for good or patience is over.

May import: httpx's values, core, client.merchant_answers, cli.call, cli.errors, cli.steps. Never: I/O but through
a step; makes a payment.
"""

import base64
import time
from contextlib import suppress
from dataclasses import dataclass

import httpx

from payagent.client.effects import (
    AskDaemon,
    DaemonReply,
    FinalAnswer,
    Json,
    ReadAnswer,
    SendRequest,
    Sleep,
    Steps,
)
from payagent.client.errors import PayAgentError, own_error
from payagent.client.merchant_answers import decoded, plain, readable, told
from payagent.client.request import ClientRequest
from payagent.core import strict_json
from payagent.core.invoice import is_batch
from payagent.core.payment import ENDED_WITHOUT_PAYING, WITHOUT_PROOF, State
from payagent.core.problems import Refused
from payagent.core.retry_schedule import again_after_s, cost_text

WAIT_S = 25
_STATUS_MAX = 599
"""What is above it is no status, and is taken for a server's failure (RFC 9110 15)."""

_RECEIPTS = ("payment-response", "x-payment-response")

PAID_MARK = "payagent_paid"
"""In `extensions`: (payment, address) of a request whose payment was redirected."""


@dataclass(slots=True)
class ProofPresenter:
    """A payment's proof, shown until the merchant has answered for good or patience is over."""

    call: ClientRequest
    payment: Json
    deadline_s: float
    lost_count: int = 0
    query: str | None = None
    last: httpx.Response | None = None
    last_raw: bytes | None = None
    reason: str = ""

    def run(self) -> Steps[FinalAnswer | PayAgentError]:
        """The answer. If the proof has bought another call: the error to raise unless the call is paid anew."""
        while True:
            try:
                self.payment = yield from until_ready(self.payment, self.deadline_s)
            except PayAgentError as error:
                if error.code == "not_served_yet" and self.last is not None:
                    return self._ended(self.last)
                raise
            try:
                paid = self.call.paid(
                    self.payment["headers"], self.query, is_batch=is_batch(self.payment["batch_target"])
                )
                answer = plain((yield SendRequest(paid)))
                if answer.is_success and not self._may_be_pending(answer):
                    return FinalAnswer(self._marked(answer), self.payment["id"])
                answer, is_used_up, wanted_s = yield from self._tell(answer)
            except httpx.TransportError as error:
                yield from self._tell_silence(error)
                self.lost_count += 1
                after_s = again_after_s(self.lost_count)
            else:
                if is_used_up:
                    return self._unserved(answer)
                if wanted_s is None:
                    return self._ended(answer)
                after_s = wanted_s
            if after_s >= self.deadline_s - time.monotonic():
                if self.last is None:
                    raise _not_served(self.payment)
                return self._ended(self.last)
            yield Sleep(after_s)

    def _tell_silence(self, error: httpx.TransportError) -> Steps[None]:
        """Tell the daemon, once, that the proof was shown: what is never served counts against its merchant."""
        is_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        if is_sent and self.payment["delivery"] == "not_presented":
            with suppress(PayAgentError):  # it is told again with the next one that is lost
                yield from self._report({"status": 504, "unanswered": type(error).__name__})

    def _report(self, got: Json) -> Steps[None]:
        """Say what the retry got; the payment is as the daemon has it then."""
        payment_id = self.payment["id"]
        ask = AskDaemon("POST", delivery_path(payment_id), got)
        self.payment = yield from _ask_about(payment_id, ask, self.deadline_s)

    def _may_be_pending(self, answer: httpx.Response) -> bool:
        """The one success that may only mean "later": by its body in the examples of x402's version 1, by its
        receipt in version 2."""
        is_told = self.payment["dialect"] == "x402-v1" and "json" in answer.headers.get("content-type", "")
        return answer.status_code == 202 and (is_told or _is_unsettled(answer))

    def _tell(self, answer: httpx.Response) -> Steps[tuple[httpx.Response, bool, float | None]]:
        """Tell the daemon what the retry got, and hear what that means: (the answer anew, whether another call
        has used the proof up, in how many seconds it is shown again)."""
        raw, answer = yield ReadAnswer(answer)
        self.last, self.last_raw = None if raw is None else answer, raw
        body = b"" if raw is None else decoded(answer, raw) or b""
        depth = {"depth": self.payment["depth"] or 0} if "depth" in self.payment else {}
        yield from self._report({"status": min(answer.status_code, _STATUS_MAX), **depth, **told(answer, body)})
        said, query = self.payment["answer"], self.query
        self.reason = said["reason"]
        self.query = said.get("poll_query")
        if 300 <= answer.status_code < 400:
            self.call.request.extensions[PAID_MARK] = (self.payment["id"], str(self.call.request.url))
        # if no call was ever served with it, it is no reason to pay again
        was_served = self.payment["delivery"] == "accepted"
        says_so = said["said"] in ("used_up", "invoiced") and query is None
        is_used_up = raw is not None and was_served and says_so
        return answer, is_used_up, said["again_after_s"]

    def _marked(self, answer: httpx.Response) -> httpx.Response:
        """The answer with what was paid for it."""
        paid = [(output["asset"], int(output["units"])) for output in self.payment["outputs"]]
        answer.headers["X-Payagent-Payment"] = self.payment["id"]
        answer.headers["X-Payagent-Cost"] = cost_text(paid, int(self.payment["fee"] or 0))
        answer.headers["X-Payagent-State"] = self.payment["state"]
        return answer

    def _ended(self, answer: httpx.Response) -> FinalAnswer:
        """What the merchant said last is more than we could say, unless it asks for money again."""
        if answer.status_code == 402:
            raise self._unserved(answer)
        return FinalAnswer(self._marked(answer))

    def _unserved(self, answer: httpx.Response) -> PayAgentError:
        """The merchant's 402 is attached, where no wallet takes it for a demand."""
        told = readable(answer, self.last_raw)
        if self.payment["state"] in WITHOUT_PROOF:
            return _without_proof(self.payment, merchant_answer=told)
        return own_error(
            "paid_not_served",
            f"{self.payment['id']} is {self.payment['state']}; the merchant says to its proof: {self.reason}",
            payment=self.payment["id"],
            merchant_answer=told,
        )


def _is_unsettled(answer: httpx.Response) -> bool:
    """Whether a receipt says in so many words that the settlement is no success, or none yet."""
    for text in (text for name in _RECEIPTS for text in answer.headers.get_list(name)):
        with suppress(ValueError, Refused):
            receipt = strict_json.loads(base64.b64decode(text, validate=True))
            if isinstance(receipt, dict) and receipt.get("success") in (False, "false"):
                return True
    return False


def delivery_path(payment_id: str) -> str:
    """Where the daemon is told what the retry got."""
    return f"/v1/payments/{payment_id}/delivery"


def until_ready(payment: Json, deadline_s: float) -> Steps[Json]:
    """Wait until the merchant can be expected to take the payment's proof."""
    payment_id = payment["id"]
    while not payment["ready"]:
        if payment["state"] in WITHOUT_PROOF:
            raise _without_proof(payment)
        if payment["state"] == State.AWAITING_APPROVAL:
            raise own_error("awaiting_approval", f"{payment_id} waits for a person's decision", payment=payment_id)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise _not_served(payment)
        ask = AskDaemon("GET", f"/v1/payments/{payment_id}", wait_s=max(1, min(WAIT_S, int(left_s))))
        payment = yield from _ask_about(payment_id, ask, deadline_s)
    return payment


def asked(ask: AskDaemon, deadline_s: float) -> Steps[DaemonReply]:
    """What the daemon answers about something that is paid: that the app asks too often just now is no answer."""
    while True:
        reply: DaemonReply = yield ask
        after_s = max(reply.after_s, 1)
        if reply.body.get("code") != "rate_limited" or after_s >= deadline_s - time.monotonic():
            return reply
        yield Sleep(after_s)


def _ask_about(payment_id: str, ask: AskDaemon, deadline_s: float) -> Steps[Json]:
    """What the daemon says of a payment. An error names the payment also where nobody answered."""
    try:
        reply = yield from asked(ask, deadline_s)
    except PayAgentError as error:
        raise PayAgentError({**error.problem, "payment": payment_id}) from None
    return reply.value(payment=payment_id)


def _without_proof(payment: Json, **context: object) -> PayAgentError:
    reason = payment.get("reason") or {}
    return own_error(
        "payment_ended" if payment["state"] in ENDED_WITHOUT_PAYING else "merchant_refused",
        f"{payment['id']} is {payment['state']}: {reason.get('code')}, {reason.get('detail')}",
        payment=payment["id"],
        **context,
    )


def _not_served(payment: Json) -> PayAgentError:
    return own_error(
        "not_served_yet",
        f"{payment['id']} is {payment['state']}, and the merchant has not served the call",
        payment=payment["id"],
    )
