"""What a daemon asks of another that holds the account: a row in `admission_requests`, with JSON in it.

The holder carries it out and ends the row with the outcome. Both daemons see the row by polling the ledger. Start
at `HolderRequests.do`.

Never: carries out anything for an account that is not held here; carries a request's headers but those that
name the owner of a prepaid balance.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import TypeAdapter

from payagent.agent.base.config import TopupSource
from payagent.agent.base.requests import AdmittedPayment, Approver, MerchantRequest, PaymentRequest
from payagent.agent.context import AgentContext
from payagent.agent.fleet.fleet import Fleet, HeldAccount
from payagent.agent.topups.orders import TopupGoal
from payagent.core import strict_json
from payagent.core.address import parse_address
from payagent.core.aggregate import PaymentRow
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import fleet
from payagent.store.rows.fleet import AdmissionRequest, RequestKind

POLL_S = 0.1
"""How often a daemon looks whether anything was committed."""

ASK_MS = 30_000
"""How long the holder of an account may take to begin what it is asked. A takeover fits into it."""

_PAYMENT_REQUEST = TypeAdapter(PaymentRequest)
_BODY_MAX_BYTES = 1 << 30
"""The body was accepted before, with the API's or the proxy's own bound."""

_OWNERS = ("x-partner", "x-wallet-address")

Outcome = Mapping[str, Any]


class HolderRequests:
    """The requests of one daemon to other holders, and of others to it.

    `held`: the accounts that run here. `asked`: the ids of its own requests that wait for an outcome. `serving`:
    the requests of others that are carried out here, by id.
    """

    def __init__(self, context: AgentContext, daemon_id: str, held: Mapping[int, HeldAccount]) -> None:
        self.asked: set[str] = set()
        self.serving: dict[str, asyncio.Task[None]] = {}
        self._context = context
        self._daemon_id = daemon_id
        self._held = held

    async def do(self, kind: RequestKind, asked: Mapping[str, object], account: int) -> Outcome:
        """Carry out what is asked of an account, here or at its holder."""
        if (held := self._held.get(account)) is not None:
            return await _carry_out(kind, asked, held)
        return await self.ask(account, kind, json.dumps(asked))

    async def ask(self, account: int, kind: RequestKind, request: str) -> Outcome:
        """Ask the account's holder, and wait for the outcome. Refused: as the holder refuses; `daemon_timeout`."""
        context = self._context
        request_id, now_ms = context.ports.new_id("ask"), context.ports.clock.now_ms()

        def job(unit: Unit) -> None:
            ends_at_ms = fleet.database_ms(unit.conn, now_ms) + ASK_MS
            fleet.add_request(
                unit, AdmissionRequest(request_id, account, kind, self._daemon_id, request, ends_at_ms)
            )

        self.asked.add(request_id)
        try:
            await context.write("ask", job)
            async with asyncio.timeout(ASK_MS / 1000):
                while (row := fleet.request_of(context.conn, request_id)) is None or row.outcome is None:
                    await context.changes.wait(request_id, POLL_S)
        except TimeoutError:
            raise _not_taken(account) from None
        finally:
            self.asked.discard(request_id)
        return _read_outcome(row.outcome)

    def serve_open(self) -> None:
        """Begin what other daemons ask of the accounts held here."""
        now_ms = fleet.database_ms(self._context.conn, self._context.ports.clock.now_ms())
        # an account that was just taken has to read the chain first
        ready = [number for number, held in self._held.items() if held.agent.context.chain.tip is not None]
        for one in fleet.open_requests(self._context.conn, sorted(ready)):
            if one.id not in self.serving:
                task = asyncio.ensure_future(self.serve(one, is_late=one.ends_at_ms < now_ms))
                self.serving[one.id] = task
                task.add_done_callback(partial(self._served, one.id))

    def _served(self, request_id: str, _task: asyncio.Task[None]) -> None:
        del self.serving[request_id]

    async def serve(self, one: AdmissionRequest, *, is_late: bool) -> None:
        """Do what another daemon asks, and end its request."""
        try:
            if is_late:
                raise _not_taken(one.account)
            held = self._held[one.account]
            outcome = json.dumps(
                await self._pay(one, held)
                if one.kind == "pay"
                else await _carry_out(one.kind, json.loads(one.request), held)
            )
        except Refused as refusal:
            if refusal.code == "lease_lost":
                return  # its next holder finds it open
            outcome = _dump_refusal(refusal)
        now_ms = self._context.ports.clock.now_ms()
        await self._context.write("request", lambda unit: fleet.end_request(unit, one.id, outcome, now_ms))

    async def _pay(self, one: AdmissionRequest, held: HeldAccount) -> Outcome:
        now_ms = self._context.ports.clock.now_ms()

        def end(unit: Unit, admitted: AdmittedPayment) -> None:
            refusal, found = admitted.refusal, json.dumps(_found(admitted.payment_id, admitted.is_new))
            fleet.end_request(unit, one.id, found if refusal is None else _dump_refusal(refusal), now_ms)

        row, is_new = await held.agent.pay(load_payment_request(one.request), end)
        return _found(row.id, is_new)


async def _carry_out(kind: RequestKind, asked: Mapping[str, Any], held: HeldAccount) -> Outcome:
    """Do for an account held here what was asked of this daemon or of another."""
    if kind == "transfer" and "step" in asked:
        return {"channels": await Fleet(held).order_channel(**asked)}
    if kind == "transfer":
        row, is_new = await _transfer(held, **asked)
        return _found(row.id, is_new)
    if kind == "topup" and "goal" in asked:
        goal = asked["goal"]
        source = None if goal["request"] is None else TopupSource(**goal["request"])
        goal = TopupGoal(**goal | {"request": source})
        topup, is_new = await held.topups.order(asked["app_id"], asked["key"], goal)
        return {"topup": topup.id, "is_new": is_new}
    if kind == "topup":
        return {"topup": (await held.topups.cancel(asked["topup_id"], asked["app_id"])).id}
    if kind == "cancel":
        return {"payment": (await held.agent.lifecycle.resolve(asked["payment_id"], asked["app_id"])).id}
    decide = held.agent.decisions.approve if kind == "approve" else held.agent.decisions.deny
    return {"payment": (await decide(asked["payment_id"], Approver(**asked["by"]))).id}


async def _transfer(
    held: HeldAccount,
    app_id: str,
    key: str | None,
    to: str | None = None,
    asset: str | None = None,
    units: int = 0,
    count: int = 0,
) -> tuple[PaymentRow, bool]:
    transfers = held.agent.transfers
    if to is None:
        return await transfers.split(app_id, count, units, key)
    address = parse_address(to, held.agent.context.config.network)
    if asset is None:
        return await transfers.send_all(app_id, address, key)
    return await transfers.send(app_id, address, asset, units, key)


def _found(payment_id: str, is_new: bool) -> Outcome:
    return {"payment": payment_id, "is_new": is_new}


def _not_taken(account: int) -> Refused:
    return Refused(
        "daemon_timeout",
        f"the holder of account {account} has not answered in {ASK_MS // 1000} s, and may still carry this out. "
        "Send the same request again with its key. Without a key, look at the payments first",
    )


def dump_payment_request(asked: PaymentRequest) -> str:
    """A `PaymentRequest` as JSON. The numbers of its 402 keep their text."""
    response = replace(asked.response, body=strict_json.dumps(asked.response.body))
    request = None if asked.request is None else _with_owner(asked.request)
    return _PAYMENT_REQUEST.dump_json(replace(asked, response=response, request=request)).decode()


def load_payment_request(text: str) -> PaymentRequest:
    asked = _PAYMENT_REQUEST.validate_json(text)
    body = strict_json.loads(str(asked.response.body), max_bytes=_BODY_MAX_BYTES, any_text=True)
    return replace(asked, response=replace(asked.response, body=body))


def _with_owner(request: MerchantRequest) -> MerchantRequest:
    return replace(request, headers={name: text for name, text in request.headers.items() if name in _OWNERS})


def _dump_refusal(refusal: Refused) -> str:
    context = {key: value for key, value in refusal.context.items() if isinstance(value, (str, int, bool))}
    return json.dumps({"refused": refusal.name, "detail": refusal.detail, "context": context})


def _read_outcome(text: str) -> Outcome:
    """The outcome of a request that has ended. Raises the refusal if it was refused."""
    outcome: Outcome = json.loads(text)
    if "refused" in outcome:
        raise Refused(outcome["refused"], outcome["detail"], **outcome["context"])
    return outcome
