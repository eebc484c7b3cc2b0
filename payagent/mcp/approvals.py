"""Sends a person to the page where they decide on a payment, by the agent's client: elicitation in URL mode.

What is sent names the payment and carries no authority. What the client answers is ignored: the page's signed-in
person decides.
Never: asks in form mode, which an agent may answer itself; sends a signed approval link.
"""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp.server.mcpserver import Context
from mcp_types import ClientCapabilities, ElicitRequest, ElicitRequestURLParams, InputRequiredResult
from mcp_types.version import is_version_at_least

from payagent.mcp.calls import RunningCall
from payagent.mcp.results import approval_page

_IN_RESULT = "2026-07-28"
"""From this version on, a server asks the client by a result, and the client repeats its call."""


class ToolWait(AbstractAsyncContextManager["ToolWait", None]):
    """The wait of one tool call: reports its progress, and sends the person to the payment's page once.

    `request` is the result to return instead of the tool's, if the client is asked by a result.
    """

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._asking: asyncio.Task[Any] | None = None
        self.request: InputRequiredResult | None = None

    async def __aexit__(self, *_error: object) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait({self._asking})  # a client's error says as little as its answer

    async def tell(self, passed_s: float, running: RunningCall) -> bool:
        """Report progress. Returns whether to stop waiting, because the client must be asked first."""
        await self._ctx.report_progress(passed_s, message=running.state)
        payment = running.payer.payment
        if payment is not None and payment["state"] == "awaiting_approval":
            self._ask(payment["id"], approval_page(payment))
        return self.request is not None

    def _ask(self, payment_id: str, url: str | None) -> None:
        is_asked = self._asking is not None or payment_id in (self._ctx.input_responses or {})
        if url is None or is_asked or not _opens_pages(self._ctx.client_capabilities):
            return
        message = f"Payment {payment_id} waits for your decision."
        if is_version_at_least(self._ctx.protocol_version or "", _IN_RESULT):
            params = ElicitRequestURLParams(message=message, url=url)
            self.request = InputRequiredResult(input_requests={payment_id: ElicitRequest(params=params)})
        else:
            self._asking = asyncio.create_task(self._ctx.elicit_url(message, url, payment_id))


def _opens_pages(client: ClientCapabilities | None) -> bool:
    """Whether a client has elicitation in URL mode."""
    return client is not None and client.elicitation is not None and client.elicitation.url is not None
