"""Asks the daemon with an app's token, and tells the call that asks what its payment does.

Never: decides whether to pay; shows the token.
"""

import os
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from payagent.client.daemon_client import DEFAULT, AsyncDaemonClient, DaemonAddress
from payagent.client.steps import AskDaemon, DaemonReply
from payagent.core.payment.machine import State

URL_VARIABLE = "PAYAGENT_URL"
_WAIT_S = 5


@dataclass(slots=True)
class Payer:
    """One call that may pay. `reason` is why; `payment` is its payment as the daemon last showed it."""

    reason: str | None = None
    payment: Mapping[str, Any] | None = None


paying: ContextVar[Payer] = ContextVar("paying")
"""The call that the current task makes."""


class AppClient(AsyncDaemonClient):
    """Asks the daemon. It waits while a person decides on a payment, so that a transport does not give up."""

    def __init__(self, token: str | None, environ: Mapping[str, str] = os.environ) -> None:
        super().__init__(DaemonAddress.read(environ.get(URL_VARIABLE, DEFAULT), token))

    async def get(self, path: str, **query: object) -> Mapping[str, Any]:
        """GET an object. Query values that are None are left out. Raises `PayAgentError`."""
        given = {name: value for name, value in query.items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        return (await super().ask(AskDaemon("GET", target))).value()

    async def ask(self, ask: AskDaemon) -> DaemonReply:
        payer = paying.get(Payer())
        if ask.path == "/v1/payments" and ask.body is not None and payer.reason:
            ask = replace(ask, body={**ask.body, "purpose": payer.reason})
        ask = replace(ask, wait_s=min(ask.wait_s, _WAIT_S))
        reply, is_decided = await super().ask(ask), False
        while _is_payment(reply):
            payer.payment = reply.body
            if reply.body["state"] == State.AWAITING_APPROVAL:
                is_decided = True
                path = f"/v1/payments/{reply.body['id']}"
                reply = await super().ask(AskDaemon("GET", path, wait_s=_WAIT_S))
            elif is_decided and reply.body["state"] == State.RESERVED:
                is_decided = False  # if the merchant submits it, the daemon signs it when it is asked again
                reply = await super().ask(ask)
            else:
                break
        return reply


def _is_payment(reply: DaemonReply) -> bool:
    return reply.status < 400 and "delivery" in reply.body
