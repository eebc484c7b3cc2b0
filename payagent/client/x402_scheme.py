"""The scheme `exact` on Cardano for clients of the official x402 SDK: the daemon signs, the SDK sends.

    http = ExactCardanoScheme(token=...).connect(x402Client())     # then x402HttpxClient(http)

Never: holds a key; makes a second payment for a request whose first payment has no answer.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urljoin, urlsplit

from payagent.client.daemon_client import DEFAULT, DaemonAddress, DaemonClient
from payagent.client.errors import PayAgentError, own_error
from payagent.client.retry import answered, ask_until_answered, delivery_path, not_served, until_ready
from payagent.client.steps import AskDaemon, DaemonReply, Json, Sleep, Steps, T
from payagent.core.origin import DEFAULT_PORTS, is_called, parse_origin
from payagent.core.pay_and_retry import Answered, End, RetryVerdict, Wait, present_proof
from payagent.core.payment.machine import WITHOUT_PROOF

PATIENCE_S = 120.0
PATIENCE_BY_HAND_S = 2.0
"""How long a scheme registered by hand waits for a settlement, since it may block an event loop."""

PATTERNS = ("cardano:*", "cip34:*")
_USDM = "c48cbb3d5e57ed56e276bc45f99ab39abe94e6cd7ac39fb402da47ad.0014df105553444d"
_TUSDM = "e675b46e4d2242c991a8932a99db3044e80515ae14b4c4ccf6b3f4c9.0014df10745553444d"
_DOLLARS = {
    **dict.fromkeys(("cardano:mainnet", "cip34:1-764824073"), (_USDM, "USDM")),
    **dict.fromkeys(("cardano:preprod", "cip34:0-1"), (_TUSDM, "tUSDM")),
}


log = logging.getLogger("payagent.client")


@dataclass(slots=True)
class _Purchase:
    """A request that is being paid. The hook makes it; the payload's step fills it, maybe in another thread."""

    scheme: object
    url: str
    requirements: Any
    required: str
    """The 402 with the chosen offer, as its header."""
    payment_id: str = ""
    transaction: str = ""
    is_answered: bool = False


# State that the SDK's hooks for one request share: they run in one task or thread.
_request_url: ContextVar[tuple[Any, str]] = ContextVar("payagent_request_url", default=(None, ""))
_status: ContextVar[tuple[Any, int]] = ContextVar("payagent_status", default=(None, 0))
_purchase: ContextVar[_Purchase | None] = ContextVar("payagent_purchase", default=None)


class ExactCardanoScheme:
    """Signs for an SDK client through the daemon.

    `connect` registers the scheme and returns an HTTP client for the SDK that tells the scheme the URL of each
    request. If you register it by hand (`client.register("cardano:*", scheme)`), it has to believe the URL in the
    merchant's 402. A merchant can then name another server's URL and is paid under that name, within your limits.
    It also does not see redirects: a redirect is paid again if its receipt says that the first payment is settled.

    The daemon learns that a redirect serves nothing, so its target may cost again. If a merchant serves only at
    the redirect's target, the payment ends as paid and not served.

    Requests with the same URL and terms share one payment until it is delivered, so a repeated request sends the
    same proof. The SDK tells a scheme neither method nor body, so different requests to one URL share it too.
    While a payment has no answer, another URL that wants money in the same task or thread is refused once: a
    redirect after paying looks like that. A pending settlement is waited for, up to `patience_s`.
    """

    scheme = "exact"

    def __init__(
        self, *, daemon: str | Path = DEFAULT, token: str | None = None, patience_s: float = PATIENCE_S
    ) -> None:
        self._daemon = DaemonClient(DaemonAddress.read(daemon, token))
        self._patience_s = patience_s
        self.scheme_hooks = self._hooks(partial(self._on_response, patience_s=PATIENCE_BY_HAND_S))

    def connect(self, client: Any) -> Any:
        """Register for Cardano's networks. Returns the HTTP client to use, blocking or async like `client`."""
        from x402 import x402ClientSync
        from x402.http import x402HTTPClient, x402HTTPClientSync

        is_sync = isinstance(client, x402ClientSync)
        answered = partial(self._on_response, patience_s=self._patience_s)
        by_hand = self.scheme_hooks
        self.scheme_hooks = self._hooks(answered if is_sync else partial(asyncio.to_thread, answered))
        for pattern in PATTERNS:
            client.register(pattern, self)
        self.scheme_hooks = by_hand
        http_type = x402HTTPClientSync if is_sync else x402HTTPClient
        http: Any = http_type(client).on_payment_required(self._on_required)
        http.process_payment_result = partial(_process, http.process_payment_result)
        return http

    def close(self) -> None:
        self._daemon.close()

    def find_default_asset(self, asset: str, network: str) -> dict[str, object] | None:
        """Return the network's dollar stablecoin for the SDK's spend controls."""
        unit, symbol = _DOLLARS.get(network, ("", ""))
        return {"asset": unit, "decimals": 6, "symbol": symbol} if unit and asset == unit else None

    def create_payment_payload(self, requirements: Any) -> dict[str, Any]:
        """Return the inner payload. Blocks while the daemon signs, usually for milliseconds."""
        purchase = _purchase.get()
        if purchase is None or purchase.requirements is not requirements or purchase.payment_id:
            raise own_error("bad_request", "the SDK did not call the scheme's hook before it creates a payload")
        payment = self._pay(purchase.url, purchase.required)
        proof = json.loads(base64.b64decode(payment["headers"]["PAYMENT-SIGNATURE"]))
        purchase.payment_id, purchase.transaction = payment["id"], proof["payload"]["transaction"]
        payload: dict[str, Any] = dict(proof["payload"])
        if proof.get("extensions"):
            payload["__extensions"] = proof["extensions"]
        return payload

    def _pay(self, url: str, required: str) -> Json:
        parts = urlsplit(url)
        body = {
            "origin": f"{parts.scheme}://{parts.netloc}",
            "response": {"status": 402, "headers": {"PAYMENT-REQUIRED": required}, "body_base64": ""},
        }
        payment = self._daemon.ask(AskDaemon("POST", "/v1/payments", body)).value()
        payment = self._execute(until_ready(payment, time.monotonic() + self._patience_s))
        if not payment["ready"]:
            raise not_served(payment)
        return payment

    def _execute(self, steps: Steps[T]) -> T:
        """Execute steps that involve only the daemon."""
        reply: DaemonReply | None = None
        try:
            while True:
                step = steps.send(reply)
                reply = self._daemon.ask(step) if isinstance(step, AskDaemon) else None
                if isinstance(step, Sleep):
                    time.sleep(step.seconds)
        except StopIteration as end:
            return cast("T", end.value)

    def _refuse_redirect(self, url: str) -> None:
        last = _purchase.get()
        if last is None or last.scheme is not self or last.is_answered or last.url == url or not last.payment_id:
            return
        last.is_answered = True
        raise own_error(
            "not_served_yet",
            f"{last.payment_id} for {last.url} has no answer, and {url} wants money now: a redirect after paying "
            "is not paid again. If it is another request, repeat it",
            payment=last.payment_id,
        )

    def _hooks(self, on_response: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
        """Return the hooks that the SDK takes at registration."""
        return {"on_before_payment_creation": self._before_creation, "on_payment_response": on_response}

    def _on_required(self, context: Any) -> None:
        _request_url.set((context.payment_required, context.request_url))

    def _before_creation(self, context: Any) -> None:
        required = context.payment_required.model_dump(by_alias=True, exclude_none=True)
        chosen = context.selected_requirements
        required["accepts"] = [chosen.model_dump(by_alias=True, exclude_none=True)]
        answered, called = _request_url.get()
        sold = (required.get("resource") or {}).get("url")
        # the same 402 comes again when the request is repeated with a new payload
        url = called if answered is context.payment_required else sold
        if not url or urlsplit(url).scheme not in DEFAULT_PORTS:
            raise own_error("resource_mismatch", "the 402 does not name the URL that it sells; use `connect`")
        if sold and not self._is_the_calls(urljoin(url, sold), url):
            raise own_error("resource_mismatch", f"the 402 sells {sold[:300]!a}, the request was to {url[:300]!a}")
        self._refuse_redirect(url)
        header = base64.b64encode(json.dumps(required).encode()).decode("ascii")
        _purchase.set(_Purchase(self, url, chosen, header))

    def _is_the_calls(self, sold: str, called: str) -> bool:
        """Whether a resource is the requested one, or would be with one of the merchant's `resource_origins`."""
        if _is_same(sold, called):
            return True
        origin, at = _origin(called), urlsplit(called)
        rows = self._daemon.ask(AskDaemon("GET", "/v1/merchants")).value()["merchants"]
        resource_origins = next((row.get("resource_origins", ()) for row in rows if row["origin"] == origin), ())
        here = urlsplit(sold)._replace(scheme=at.scheme, netloc=at.netloc).geturl()
        return _origin(sold) in resource_origins and _is_same(here, called)

    def _on_response(self, context: Any, *, patience_s: float) -> Any:
        """Report the answer. A returned value makes the SDK repeat the request, once."""
        last = _purchase.get()
        if last is None or context.payment_payload.payload.get("transaction") != last.transaction:
            return None
        # a redirect serves nothing, even if its receipt says that the payment is settled
        payload, status = _status.get()
        is_redirect = payload is context.payment_payload and 300 <= status < 400
        last.is_answered = not is_redirect
        report = {"status": status} if is_redirect else _answer_json(context)
        try:
            ask = AskDaemon("POST", delivery_path(last.payment_id), report)
            payment = self._execute(ask_until_answered(ask, time.monotonic() + patience_s)).value()
            if is_redirect:
                return None
            answer, depth = answered(payment, report["status"]), _depth_required(context.requirements)
            return _recovered() if self._is_worth_repeating(last, answer, depth, patience_s) else None
        except PayAgentError as error:
            log.warning("the answer to a payment could not be reported: %s", error)
            return None

    def _is_worth_repeating(self, last: _Purchase, answer: Answered, depth: int, patience_s: float) -> bool:
        """Ask `core.pay_and_retry` whether to repeat: with the same proof, or anew after it was used up.

        The SDK repeats a request only once, so a pending proof waits until it is deep enough.
        """
        deadline_s, steps = time.monotonic() + patience_s, present_proof()
        next(steps)
        steps.send(last.transaction)  # the SDK has presented it
        step = steps.send(answer)
        pause_s = step.seconds if isinstance(step, Wait) else None
        while pause_s is not None and time.monotonic() + pause_s <= deadline_s:
            time.sleep(pause_s)
            if answer.verdict != RetryVerdict.PENDING:
                return True
            ask = AskDaemon("GET", f"/v1/payments/{last.payment_id}")
            payment = self._execute(ask_until_answered(ask, deadline_s)).value()
            if (payment["depth"] or 0) >= depth:
                return True
            pause_s = None if payment["state"] in WITHOUT_PROOF else min(pause_s, 1.0)
        return step is End.USED_UP


def _process(process: Callable[..., Any], payload: Any, get_header: Any, status: int) -> Any:
    """Record the status, which the SDK does not give its hooks. A redirect's receipt looks like a served one."""
    _status.set((payload, status))
    return process(payload, get_header, status)


def _origin(url: str) -> str | None:
    parts = urlsplit(url)
    try:
        return parse_origin(f"{parts.scheme}://{parts.netloc}")
    except ValueError:
        return None


def _is_same(sold: str, called: str) -> bool:
    """Whether a resource is the requested one. A server behind a TLS proxy says http."""
    one, other = urlsplit(sold), urlsplit(called)
    default = {None, *DEFAULT_PORTS.values()}
    same_port = one.port == other.port or {one.port, other.port} <= default
    return one.hostname == other.hostname and same_port and is_called(one, other)


def _answer_json(context: Any) -> Json:
    """Return the merchant's answer, as far as the SDK knows it, in the form of the daemon's API."""
    if context.settle_response is not None and context.settle_response.success:
        return {"status": 200}
    name, answer = "PAYMENT-RESPONSE", context.settle_response
    if answer is None:
        name, answer = "PAYMENT-REQUIRED", context.payment_required
    raw = answer.model_dump_json(by_alias=True, exclude_none=True).encode()
    return {"status": 402, "headers": {name: base64.b64encode(raw).decode("ascii")}}


def _depth_required(requirements: Any) -> int:
    """Return the depth the merchant wants. It counts the transaction's own block, `l1Confirmations` does not."""
    policy = (requirements.extra or {}).get("confirmationPolicy") or {}
    return int(policy.get("l1Confirmations", 1)) + 1


def _recovered() -> Any:
    from x402.schemas import RecoveredResponseResult

    return RecoveredResponseResult()
