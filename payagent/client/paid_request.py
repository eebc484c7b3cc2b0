"""Runs one request until the client has its answer: a generator of steps that a transport executes.

The daemon decides. The generator sends the request to the merchant, has the daemon pay the 402, and retries with
the headers that the daemon gave. It reports the answer, and sends the same proof again if the daemon says so.
While another request buys a batch that would serve this one too, it waits and starts again.
Never: I/O except through a step; pays for a request that was redirected after its payment; accepts a header that
begins with X-Payagent- from a merchant.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from payagent.client.errors import PayAgentError, own_error
from payagent.client.merchant_answers import decoded, plain, readable
from payagent.client.request import WALLET, ClientRequest, read_call
from payagent.client.retry import PAID_MARK, ProofPresenter, ask_until_answered, delivery_path
from payagent.client.steps import (
    AskDaemon,
    BufferRequest,
    DaemonReply,
    FinalAnswer,
    ReadAnswer,
    SendRequest,
    Sleep,
    Steps,
)
from payagent.core.prepaid_balance import WALLET_WANTED
from payagent.core.problems import name_of
from payagent.core.retry_schedule import backoff

_BATCH_FIRST_S, _BATCH_MAX_S = 1, 5
_NO_INVOICE = frozenset(("merchant_not_allowed", "not_an_invoice", "invoice_invalid/body", "invoice_invalid/json"))

REFUSAL_MARK, QUOTE_MARK = "payagent_refusal", "payagent_quote"
"""Keys of `extensions`: on an unpaid 402 the daemon's reason, on a dry run's answer the quote."""

CALL_MARK = "payagent_call"
"""Key of a dry run's `extensions`: send the request even if a prepaid balance would serve it."""


@dataclass(slots=True)
class PaidRequests:
    """The payments of one transport.

    `unreported` holds, by path, deliveries that could not be reported to the daemon. `_reporting` are the paths
    that a request reports now. `_buyers` holds, by origin, the headers that name the buyer, once known.
    """

    max_cost_units: int | None
    max_cost_asset: str | None
    patience_s: float
    spool_bytes: int
    unreported: dict[str, AskDaemon] = field(default_factory=dict)
    _reporting: set[str] = field(default_factory=set)
    _buyers: Mapping[str, Mapping[str, str]] | None = field(default=None)

    def run(self, request: httpx.Request) -> Steps[FinalAnswer]:
        """Run a client's request to its answer."""
        call = read_call(request, self.max_cost_units, self.max_cost_asset, self.spool_bytes)
        try:
            payment_id, paid_url = request.extensions.get(PAID_MARK, (None, None))
            if payment_id is not None and paid_url != str(request.url):
                return (yield from self._follow(call, payment_id))
            return (yield from self._buy(call))
        finally:
            call.body.buffer.close()

    def _follow(self, call: ClientRequest, payment_id: str) -> Steps[FinalAnswer]:
        """Follow a redirect after a payment: the target gets no proof, and nothing is paid there."""
        answer = plain((yield SendRequest(call.first({}))))
        if answer.status_code != 402:
            return FinalAnswer(answer)
        raw, answer = yield ReadAnswer(answer)
        detail = f"the merchant took {payment_id} and redirects to {call.request.url}, which asks for money"
        raise own_error("paid_not_served", detail, payment=payment_id, merchant_answer=readable(answer, raw))

    def _buy(self, call: ClientRequest) -> Steps[FinalAnswer]:
        """Buy; start again while another request used the payment up or buys a batch for both."""
        is_asked_first = call.dry_run and CALL_MARK not in call.request.extensions
        if is_asked_first and (quote := (yield from self._quote_prepaid(call))) is not None:
            return FinalAnswer(quote)
        used_up: PayAgentError | None = None
        wait = BatchWait(self.patience_s)
        while True:
            answer, body = yield from self._ask_merchant(call)
            if body is None:
                return FinalAnswer(answer)
            if call.dry_run:
                return FinalAnswer((yield from self._quote(call, answer, body)))
            yield from self._report_late()
            reply: DaemonReply = yield AskDaemon("POST", "/v1/payments", call.ask(answer, body), call.key)
            if _is_no_invoice(reply, answer):
                return FinalAnswer(answer)
            if (after_s := wait.after_s(reply)) is not None:
                yield Sleep(after_s)
                continue
            payment = reply.value()
            if (late := self.unreported.get(delivery_path(payment["id"]))) is not None:
                yield from self._report(late)
                continue
            if used_up is not None and payment["id"] == used_up.payment:
                raise used_up
            outcome = yield from ProofPresenter(call, payment, time.monotonic() + self.patience_s).run()
            if isinstance(outcome, FinalAnswer):
                return outcome
            used_up = outcome

    def _report_late(self) -> Steps[None]:
        """Report late deliveries before buying again.

        Otherwise the daemon would find the earlier intent still open. One request reports all of them. A
        concurrent request also reports the delivery of a payment that the daemon gives it.
        """
        late_reports = [ask for ask in tuple(self.unreported.values()) if ask.path not in self._reporting]
        self._reporting.update(ask.path for ask in late_reports)
        try:
            for ask in late_reports:
                yield from self._report(ask)
        finally:
            self._reporting.difference_update(ask.path for ask in late_reports)

    def _report(self, ask: AskDaemon) -> Steps[None]:
        reply = yield from ask_until_answered(ask, time.monotonic() + self.patience_s)
        if reply.body.get("retryable") is True:
            reply.value()
        self.unreported.pop(ask.path, None)

    def _ask_merchant(self, call: ClientRequest) -> Steps[tuple[httpx.Response, bytes | None]]:
        """Send the request without a proof. Returns (answer, readable body of a 402 or None).

        It is repeated after a 402 from a merchant whose buyer headers were not known yet, or to name the wallet.
        """
        origin = f"{call.request.url.scheme}://{call.request.url.netloc.decode('ascii')}"
        if self._buyers is None:
            yield from self._learn_buyers()
        while True:
            buyers = self._buyers or {}
            answer = plain((yield SendRequest(call.first(buyers.get(origin, {})))))
            if not 400 <= answer.status_code < 500:
                return answer, None
            raw, answer = yield ReadAnswer(answer)
            body = None if raw is None else decoded(answer, raw)
            wants_wallet = WALLET_WANTED.encode() in (body or b"")
            if origin not in buyers and (answer.status_code == 402 or wants_wallet):
                yield from self._learn_buyers()
            wants_wallet = wants_wallet and origin in (self._buyers or {})
            if answer.status_code != 402 and not wants_wallet:
                return answer, None
            yield BufferRequest(call.body)
            if not call.body.buffer.is_whole:
                if self._buyers is not None and origin not in self._buyers:
                    answer.extensions[REFUSAL_MARK] = own_error(
                        "merchant_not_allowed", f"{origin} is not configured"
                    ).problem
                    return answer, None
                raise own_error(
                    "request_too_big_to_replay",
                    f"the request must be sent again, and only {self.spool_bytes} bytes of a body are kept",
                )
            is_newly_known = origin not in buyers and bool((self._buyers or {}).get(origin))
            if wants_wallet and not is_newly_known:
                yield from self._name_wallet(call, origin)
            elif not is_newly_known:
                return answer, body

    def _learn_buyers(self) -> Steps[None]:
        """Learn each merchant's buyer headers: at first, and again when an unknown merchant asks for something.

        Free requests still work without the daemon.
        """
        try:
            reply: DaemonReply = yield AskDaemon("GET", "/v1/merchants")
            call_headers = {row["origin"]: row["call_headers"] for row in reply.value()["merchants"]}
            self._buyers = {**call_headers, **(self._buyers or {})}
        except PayAgentError:
            return

    def _name_wallet(self, call: ClientRequest, origin: str) -> Steps[None]:
        """Name the wallet in further requests to this merchant, which keeps balances by address."""
        if any(name.lower() == WALLET for name, _ in call.headers):
            raise own_error("wallet_address_required", "the request names the wallet, and the merchant asks again")
        reply: DaemonReply = yield AskDaemon("GET", "/v1/wallet")
        buyers = self._buyers or {}
        self._buyers = {**buyers, origin: {**buyers.get(origin, {}), WALLET.decode(): reply.value()["address"]}}

    def _quote_prepaid(self, call: ClientRequest) -> Steps[httpx.Response | None]:
        """Quote what the request would use of a prepaid balance that would serve it; None if none would."""
        reply: DaemonReply = yield AskDaemon("POST", "/v1/prepaid/quotes", call.quote_request())
        if reply.body.get("code") == "merchant_not_allowed":  # then payagent does not handle its 402
            return None
        quote = reply.value()
        return httpx.Response(200, json=quote, extensions={QUOTE_MARK: quote}) if quote["prepaid"] else None

    def _quote(self, call: ClientRequest, response_402: httpx.Response, body: bytes) -> Steps[httpx.Response]:
        reply: DaemonReply = yield AskDaemon("POST", "/v1/quotes", call.ask(response_402, body))
        if _is_no_invoice(reply, response_402):
            return response_402
        quote = reply.value()
        return httpx.Response(200, json=quote, extensions={QUOTE_MARK: quote})


@dataclass(slots=True)
class BatchWait:
    """How long a request waits for a batch that another request buys. `deadline_s` is set at the first wait."""

    patience_s: float
    deadline_s: float | None = None
    tries: int = 0

    def after_s(self, reply: DaemonReply) -> float | None:
        """Seconds until the next try; None if there is no batch to wait for or no time left."""
        if reply.body.get("code") != "batch_in_progress":
            return None
        if self.deadline_s is None:
            self.deadline_s = time.monotonic() + self.patience_s
        self.tries += 1
        after_s = max(backoff(_BATCH_FIRST_S, _BATCH_MAX_S, self.tries), reply.after_s)
        return after_s if after_s < self.deadline_s - time.monotonic() else None


def _is_no_invoice(reply: DaemonReply, response_402: httpx.Response) -> bool:
    """Whether payagent does not handle this 402. The reason is attached to it."""
    if reply.status < 400 or name_of(reply.body.get("code"), reply.body.get("reason")) not in _NO_INVOICE:
        return False
    response_402.extensions[REFUSAL_MARK] = dict(reply.body)
    return True
