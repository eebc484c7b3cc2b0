"""What a call goes through until its client has an answer: a generator of steps, carried out by a transport.

The daemon decides. This asks the merchant, has the daemon pay the 402, repeats the call with the headers that it
gave, tells it what came back, and shows the same proof again when it says so. While another call buys the batch
that would serve this one too, it waits and makes the call anew.

May import: httpx's values, core, the rest of client. Never: I/O but through a step; pays for a call whose payment
was redirected; sends a header that begins with X-Payagent- to a merchant, or takes one from it.
"""

import base64
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx

from payagent.client.bodies import Replay
from payagent.client.errors import PayAgentError, own_error
from payagent.core.money import LOVELACE, parse_bound
from payagent.core.payment import ENDED_WITHOUT_PAYING, WITHOUT_PROOF, State
from payagent.core.prepaid import WALLET_WANTED
from payagent.core.problem import Refused

T = TypeVar("T")
Json = Mapping[str, Any]
Headers = Sequence[tuple[bytes, bytes]]

ANSWER_MAX_BYTES = 128 * 1024
"""What is read of an answer that may say something about paying."""

_UNPACKED_AT_ONCE = 256
"""Bytes of a packed answer in one step."""

PAID_READ_TIMEOUT_S = 180.0
"""A merchant that settles before it serves may wait for blocks."""

WAIT_S = 25
_LOST_FIRST_S, _LOST_MAX_S = 0.5, 10.0
_STATUS_MAX = 599
"""What is above it is no status, and is taken for a server's failure (RFC 9110 15)."""

_BATCH_FIRST_S, _BATCH_MAX_S = 1.0, 5.0
_OWN_PREFIX = b"x-payagent-"
_MAX_COST, _DRY_RUN = b"x-payagent-max-cost", b"x-payagent-dry-run"
_RECEIPTS = ("payment-response", "x-payment-response")
_SWITCHES = {None: False, "false": False, "true": True}
_WALLET = b"x-wallet-address"
_BUYER = frozenset((b"x-partner", _WALLET))
_NO_INVOICE = frozenset(("merchant_not_allowed", "not_an_invoice", "body_not_understood", "json_not_understood"))

PAID_MARK, REFUSAL_MARK, QUOTE_MARK = "payagent_paid", "payagent_refusal", "payagent_quote"
"""Names in `extensions`: of a request whose payment was redirected; of a 402 that was not paid, the daemon's
reason; of the answer to a dry run, the quote."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the daemon; gives a `Reply`. Raises `PayAgentError` when there is none."""

    method: str
    path: str
    body: Json | None = None
    key: str | None = None
    wait_s: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """What the daemon said: an object, or a problem (RFC 9457); `after_s` is its Retry-After."""

    status: int
    body: Json
    after_s: int = 0

    def value(self, **context: object) -> Json:
        """The object; a problem is raised."""
        if self.status >= 400:
            raise PayAgentError({**self.body, **context})
        return self.body


@dataclass(frozen=True, slots=True)
class Send:
    """Send a call to the merchant; gives its answer, whose body is not read yet. Raises `httpx.TransportError`."""

    request: httpx.Request


@dataclass(frozen=True, slots=True)
class Peek:
    """Read an answer's body; gives (the raw bytes, or None if they are too many, and the answer anew)."""

    answer: httpx.Response


@dataclass(frozen=True, slots=True)
class Keep:
    """Read what is left of the call's body."""

    body: Replay


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Step = Ask | Send | Peek | Keep | Pause
Steps = Generator[Step, Any, T]


@dataclass(frozen=True, slots=True)
class Bought:
    """The answer for the client. `payment_id` is there when its last byte means that the payment is delivered."""

    answer: httpx.Response
    payment_id: str | None = None


@dataclass(slots=True)
class Call:
    """A call of the client's: what goes to the merchant, and how far it may go in paying."""

    request: httpx.Request
    body: Replay
    headers: list[tuple[bytes, bytes]]
    key: str | None
    max_cost_units: int | None
    max_cost_asset: str | None
    dry_run: bool

    def first(self, buyer: Mapping[str, str]) -> httpx.Request:
        """The call without a proof. An invoice is bound to who buys, so the first call says that already."""
        names = {name.lower() for name, _ in self.headers}
        added = [(name.encode(), value.encode()) for name, value in buyer.items()]
        self.headers += [pair for pair in added if pair[0].lower() not in names]
        return self._request(self.headers, self.request.url, self.request.extensions)

    def paid(self, proof: Mapping[str, str], query: str | None) -> httpx.Request:
        """The call with a proof. Who buys is said as in the first call; `query` asks for the outcome instead."""
        url, headers = self.request.url, self.headers
        if query is not None:
            mark = b"&" if url.query else b"?"
            url = url.copy_with(raw_path=url.raw_path + mark + query.encode())
        else:
            new = [(name.encode(), value.encode()) for name, value in proof.items()]
            new = [pair for pair in new if pair[0].lower() not in _BUYER]
            names = {name.lower() for name, _ in new}
            headers = [pair for pair in headers if pair[0].lower() not in names] + new
        limits = dict(self.request.extensions.get("timeout") or {})
        if limits.get("read") is not None:
            limits["read"] = max(limits["read"], PAID_READ_TIMEOUT_S)
        return self._request(headers, url, self.request.extensions | {"timeout": limits})

    def buyer(self) -> Headers:
        """What the call says of who buys."""
        return [pair for pair in self.headers if pair[0].lower() in _BUYER]

    def _request(self, headers: Headers, url: httpx.URL, extensions: Mapping[str, Any]) -> httpx.Request:
        return httpx.Request(
            self.request.method, url, headers=list(headers), stream=self.body, extensions=dict(extensions)
        )

    def ask(self, demand: httpx.Response, body: bytes) -> Json:
        """The 402 as the daemon takes it."""
        url = self.request.url
        asked: dict[str, Any] = {
            "origin": f"{url.scheme}://{url.netloc.decode('ascii')}",
            "request": {
                "method": self.request.method,
                "path": url.raw_path.decode("ascii"),
                "body_sha256": self.body.sha256,
                "headers": [[name.decode(), value.decode("latin-1")] for name, value in self.buyer()],
            },
            "response": {"status": demand.status_code, **_told(demand, body)},
        }
        if self.max_cost_units is not None:
            asked["max_total"] = str(self.max_cost_units)
        if self.max_cost_asset is not None:
            asked["max_total_asset"] = self.max_cost_asset
        return asked


@dataclass(slots=True)
class Purchases:
    """How one transport buys. `buyers` are what calls to a merchant say of who buys, by origin, once known.

    `untold` are deliveries that the daemon was not there for.
    """

    max_cost_units: int | None
    max_cost_asset: str | None
    patience_s: float
    spool_bytes: int
    untold: list[Ask] = field(default_factory=list)
    _buyers: Mapping[str, Mapping[str, str]] | None = field(default=None)

    def run(self, request: httpx.Request) -> Steps[Bought]:
        """From a client's call to its answer."""
        call = read_call(request, self.max_cost_units, self.max_cost_asset, self.spool_bytes)
        try:
            mark = request.extensions.get(PAID_MARK)
            if mark is not None and mark != str(request.url):
                return Bought(_plain((yield Send(call.first({})))))
            return (yield from self._buy(call))
        finally:
            call.body.end()

    def _buy(self, call: Call) -> Steps[Bought]:
        """Anew as long as another call of the same kind has used the payment up, or buys a batch for both."""
        shown: Bought | None = None
        used_up: str | None = None
        wait = BatchWait(self.patience_s)
        while True:
            demand, body = yield from self._ask_merchant(call)
            if body is None:
                return Bought(demand)
            if call.dry_run:
                return Bought((yield from self._quote(call, demand, body)))
            yield from self._tell_late()
            reply: Reply = yield Ask("POST", "/v1/payments", call.ask(demand, body), call.key)
            if _is_no_invoice(reply, demand):
                return Bought(demand)
            if (after_s := wait.after_s(reply)) is not None:
                yield Pause(after_s)
                continue
            payment = reply.value()
            if shown is not None and payment["id"] == used_up:
                return shown
            shown, is_used_up = yield from Showing(call, payment, time.monotonic() + self.patience_s).run()
            if not is_used_up:
                return shown
            used_up = payment["id"]

    def _tell_late(self) -> Steps[None]:
        """Say what was served, before it is bought again: else the daemon takes the call for the one before."""
        untold, self.untold = self.untold, []
        try:
            while untold:
                yield untold[-1]
                untold.pop()
        finally:
            self.untold += untold

    def _ask_merchant(self, call: Call) -> Steps[tuple[httpx.Response, bytes | None]]:
        """(what the call without a proof gets, the body of a 402 that can be read).

        It is repeated if it costs before we could learn what it has to say, or if it has to name the wallet.
        """
        origin = f"{call.request.url.scheme}://{call.request.url.netloc.decode('ascii')}"
        if self._buyers is None:
            yield from self._introduce()
        while True:
            buyers = self._buyers or {}
            answer = _plain((yield Send(call.first(buyers.get(origin, {})))))
            if not 400 <= answer.status_code < 500:
                return answer, None
            raw, answer = yield Peek(answer)
            body = None if raw is None else _decoded(answer, raw)
            wants_wallet = WALLET_WANTED.encode() in (body or b"")
            if origin not in buyers and (answer.status_code == 402 or wants_wallet):
                yield from self._introduce()
            wants_wallet = wants_wallet and origin in (self._buyers or {})
            if answer.status_code != 402 and not wants_wallet:
                return answer, None
            yield Keep(call.body)
            if not call.body.is_whole:
                if self._buyers is not None and origin not in self._buyers:
                    foreign = own_error("merchant_not_allowed", f"{origin} is not configured")
                    answer.extensions[REFUSAL_MARK] = foreign.problem
                    return answer, None
                raise own_error(
                    "request_too_big_to_replay",
                    f"the call has to be made again, and only {self.spool_bytes} bytes of a body are kept",
                )
            is_news = origin not in buyers and bool((self._buyers or {}).get(origin))
            if wants_wallet and not is_news:
                yield from self._name_wallet(call, origin)
            elif not is_news:
                return answer, body

    def _introduce(self) -> Steps[None]:
        """Learn what calls to each merchant carry: at first, and when one that is not known yet wants something.

        Without the daemon, calls that cost nothing still work.
        """
        try:
            reply: Reply = yield Ask("GET", "/v1/merchants")
            told = {row["origin"]: row["call_headers"] for row in reply.value()["merchants"]}
            self._buyers = {**told, **(self._buyers or {})}
        except PayAgentError:
            return

    def _name_wallet(self, call: Call, origin: str) -> Steps[None]:
        """From now on, calls to this merchant say whose the calls of a batch are."""
        if any(name.lower() == _WALLET for name, _ in call.headers):
            raise own_error("wallet_address_required", "the call has it, and the merchant asks for it again")
        reply: Reply = yield Ask("GET", "/v1/wallet")
        buyers = self._buyers or {}
        self._buyers = {**buyers, origin: {**buyers.get(origin, {}), _WALLET.decode(): reply.value()["address"]}}

    def _quote(self, call: Call, demand: httpx.Response, body: bytes) -> Steps[httpx.Response]:
        reply: Reply = yield Ask("POST", "/v1/quotes", call.ask(demand, body))
        if _is_no_invoice(reply, demand):
            return demand
        quote = reply.value()
        return httpx.Response(200, json=quote, extensions={QUOTE_MARK: quote})


@dataclass(slots=True)
class BatchWait:
    """How long a call waits for a batch that another call buys; `deadline_s` is set when it first has to."""

    patience_s: float
    deadline_s: float | None = None
    pause_s: float = _BATCH_FIRST_S

    def after_s(self, reply: Reply) -> float | None:
        """In how many seconds the call is made anew; None when there is no batch to wait for, or no time left."""
        if reply.body.get("code") != "batch_under_way":
            return None
        if self.deadline_s is None:
            self.deadline_s = time.monotonic() + self.patience_s
        after_s = max(self.pause_s, reply.after_s)
        self.pause_s = min(self.pause_s * 2, _BATCH_MAX_S)
        return after_s if after_s < self.deadline_s - time.monotonic() else None


@dataclass(slots=True)
class Showing:
    """A payment's proof, shown until the merchant has answered for good or patience is over."""

    call: Call
    payment: Json
    deadline_s: float
    lost_count: int = 0
    query: str | None = None
    last: httpx.Response | None = None

    def run(self) -> Steps[tuple[Bought, bool]]:
        """(the answer, whether it says that the proof has bought another call)."""
        self.payment = yield from until_ready(self.payment, self.deadline_s)
        while True:
            try:
                answer = _plain((yield Send(self.call.paid(self.payment["headers"], self.query))))
                if answer.is_success and not self._may_be_pending(answer):
                    return Bought(self._marked(answer), self.payment["id"]), False
                answer, is_used_up, again_after_s = yield from self._tell(answer)
            except httpx.TransportError as error:
                yield from self._tell_silence(error)
                after_s = min(_LOST_FIRST_S * 2 ** min(self.lost_count, 10), _LOST_MAX_S)
                self.lost_count += 1
            else:
                if again_after_s is None or is_used_up:
                    return Bought(self._marked(answer)), is_used_up
                after_s = again_after_s
            if after_s >= self.deadline_s - time.monotonic():
                return Bought(self._given_up()), False
            yield Pause(after_s)

    def _tell_silence(self, error: httpx.TransportError) -> Steps[None]:
        """Tell the daemon, once, that the proof was shown: what is never served counts against its merchant."""
        is_sent = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        if is_sent and self.payment["delivery"] == "not_presented":
            told = {"status": 504, "unanswered": type(error).__name__}
            path = f"/v1/payments/{self.payment['id']}/delivery"
            with suppress(PayAgentError):  # it is told again with the next one that is lost
                self.payment = yield from _ask_about(self.payment["id"], Ask("POST", path, told))

    def _may_be_pending(self, answer: httpx.Response) -> bool:
        """The one success that may only mean "later": by its body in the examples of x402's version 1, by its
        receipt in version 2."""
        is_told = self.payment["dialect"] == "x402-v1" or any(name in answer.headers for name in _RECEIPTS)
        return answer.status_code == 202 and is_told and "json" in answer.headers.get("content-type", "")

    def _tell(self, answer: httpx.Response) -> Steps[tuple[httpx.Response, bool, float | None]]:
        """Tell the daemon what the retry got, and hear what that means: (the answer anew, whether another call
        has used the proof up, in how many seconds it is shown again)."""
        raw, answer = yield Peek(answer)
        self.last = None if raw is None else answer
        body = b"" if raw is None else _decoded(answer, raw) or b""
        told = {"status": min(answer.status_code, _STATUS_MAX), **_told(answer, body)}
        self.payment = yield from _ask_about(
            self.payment["id"], Ask("POST", f"/v1/payments/{self.payment['id']}/delivery", told)
        )
        said, query = self.payment["answer"], self.query
        self.query = said.get("poll_query")
        if 300 <= answer.status_code < 400:
            self.call.request.extensions[PAID_MARK] = str(self.call.request.url)
        # if no call was ever served with it, it is no reason to pay again
        was_served = self.payment["delivery"] == "accepted"
        says_so = said["said"] in ("used_up", "invoiced") and query is None
        is_used_up = raw is not None and was_served and says_so
        return answer, is_used_up, said["again_after_s"]

    def _marked(self, answer: httpx.Response) -> httpx.Response:
        """The answer with what was paid for it."""
        asset = self.payment["outputs"][0]["asset"]
        units = sum(int(output["units"]) for output in self.payment["outputs"] if output["asset"] == asset)
        if asset == LOVELACE:
            units += int(self.payment["fee"] or 0)
        answer.headers["X-Payagent-Payment"] = self.payment["id"]
        answer.headers["X-Payagent-Cost"] = f"{units} {asset}"
        answer.headers["X-Payagent-State"] = self.payment["state"]
        return answer

    def _given_up(self) -> httpx.Response:
        """Time is over. What the merchant said last is more than we could say."""
        if self.last is None:
            raise _not_served(self.payment)
        return self._marked(self.last)


def until_ready(payment: Json, deadline_s: float) -> Steps[Json]:
    """Wait until the merchant can be expected to take the payment's proof."""
    payment_id = payment["id"]
    while not payment["ready"]:
        if payment["state"] in WITHOUT_PROOF:
            reason = payment.get("reason") or {}
            raise own_error(
                "payment_ended" if payment["state"] in ENDED_WITHOUT_PAYING else "merchant_refused",
                f"{payment_id} is {payment['state']}: {reason.get('code')}, {reason.get('detail')}",
                payment=payment_id,
            )
        if payment["state"] == State.AWAITING_APPROVAL:
            raise own_error("awaiting_approval", f"{payment_id} waits for a person's decision", payment=payment_id)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise _not_served(payment)
        ask = Ask("GET", f"/v1/payments/{payment_id}", wait_s=max(1, min(WAIT_S, int(left_s))))
        payment = yield from _ask_about(payment_id, ask)
    return payment


def _ask_about(payment_id: str, ask: Ask) -> Steps[Json]:
    """What the daemon says of a payment. An error names the payment also where nobody answered."""
    try:
        reply: Reply = yield ask
    except PayAgentError as error:
        raise PayAgentError({**error.problem, "payment": payment_id}) from None
    return reply.value(payment=payment_id)


def _not_served(payment: Json) -> PayAgentError:
    return own_error(
        "not_served_yet",
        f"{payment['id']} is {payment['state']}, and the merchant has not served the call",
        payment=payment["id"],
    )


def read_call(
    request: httpx.Request, max_cost_units: int | None, max_cost_asset: str | None, spool_bytes: int
) -> Call:
    """A client's request without what it says to us. Its bound holds beside the transport's."""
    headers = request.headers.raw
    own = [(name.lower(), value.decode("ascii", "replace")) for name, value in headers if _is_own(name)]
    ours = dict(own)
    for name in ours.keys() - {_MAX_COST, _DRY_RUN}:
        raise own_error("bad_request", f"the header {name.decode('latin-1')[:60]!a} is not known")
    if len(ours) < len(own):
        raise own_error("bad_request", "a header that begins with X-Payagent- is given twice")
    said = ours.get(_DRY_RUN)
    if said not in _SWITCHES:
        raise own_error("bad_request", "X-Payagent-Dry-Run is true or false")
    if (text := ours.get(_MAX_COST)) is not None:
        try:
            asked, asset = parse_bound(text, "X-Payagent-Max-Cost")
        except Refused as refused:
            raise own_error("bad_request", refused.detail) from None
        if None not in (asset, max_cost_asset) and asset != max_cost_asset:
            raise own_error("bad_request", "X-Payagent-Max-Cost is of another asset than the transport's bound")
        max_cost_units = asked if max_cost_units is None else min(asked, max_cost_units)
        max_cost_asset = asset or max_cost_asset
    return Call(
        request=request,
        body=Replay(request.stream, spool_bytes),
        headers=[pair for pair in headers if not _is_own(pair[0])],
        key=request.headers.get("idempotency-key"),
        max_cost_units=max_cost_units,
        max_cost_asset=max_cost_asset,
        dry_run=_SWITCHES[said],
    )


def _is_own(name: bytes) -> bool:
    return name.lower().startswith(_OWN_PREFIX)


def _plain(answer: httpx.Response) -> httpx.Response:
    """An answer without headers that only we may give: a merchant cannot claim a payment."""
    for name in {name for name, _ in answer.headers.raw if _is_own(name)}:
        del answer.headers[name.decode("latin-1")]
    return answer


def _told(answer: httpx.Response, body: bytes) -> Json:
    """An answer's headers and body as the daemon takes them."""
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in answer.headers.raw]
    return {"headers": headers, "body_base64": base64.b64encode(body).decode("ascii")}


def _decoded(answer: httpx.Response, raw: bytes) -> bytes | None:
    """The body without its content coding; None when it cannot be read, or is too much.

    It is unpacked in small steps, since a few bytes can become millions; through several codings they multiply.
    """
    if "," in answer.headers.get("content-encoding", ""):
        return None
    parts = (raw[at : at + _UNPACKED_AT_ONCE] for at in range(0, len(raw), _UNPACKED_AT_ONCE))
    body = bytearray()
    try:
        for part in httpx.Response(answer.status_code, headers=answer.headers, content=parts).iter_bytes():
            body += part
            if len(body) > ANSWER_MAX_BYTES:
                return None
    except httpx.DecodingError:
        return None
    return bytes(body)


def _is_no_invoice(reply: Reply, demand: httpx.Response) -> bool:
    """Whether a 402 is somebody else's affair; why it was not paid is noted on it."""
    if reply.status < 400 or reply.body.get("code") not in _NO_INVOICE:
        return False
    demand.extensions[REFUSAL_MARK] = dict(reply.body)
    return True
