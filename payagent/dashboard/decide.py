"""The pages of signed approval links: a person reads the request and decides, without a session.

Opening a link only shows the page, so a mail scanner decides nothing. Only the page's own form decides.

Never: decides on any payment but the link's own; says what is wrong with a link.
"""

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from payagent.agent.base.requests import Approver
from payagent.agent.fleet.fleet import Fleet
from payagent.agent.operator.approval_links import PREFIX, ApprovalLinks
from payagent.agent.operator.limits import names_of
from payagent.api.http.problems import problem_of, to_json
from payagent.api.http.rate_limit import RateLimiter
from payagent.api.models.payments import NamedPayment
from payagent.api.routes.approvals import approval_of
from payagent.core.aggregate import PaymentRow
from payagent.core.history import decider
from payagent.core.payment.machine import STATES_IN_WORDS
from payagent.core.problems import PROBLEMS, Refused
from payagent.core.timestamps import iso_time
from payagent.dashboard.app import read_form
from payagent.dashboard.pages.approvals import ask, require_checked
from payagent.dashboard.render import Renderer
from payagent.store.rows import approvals
from payagent.store.rows.approvals import ApprovalRow, DecisionRow

_LINKS_APP = "links"
"""The rate limit counts all visitors of links as this one app."""

_TITLES = {
    "approved": "The payment was approved",
    "denied": "The payment was denied",
    "timed_out": PROBLEMS["approval_denied"].reasons["timeout"].title,
}


class LinkPages:
    """The handlers of the links' pages."""

    def __init__(self, fleet: Fleet, links: ApprovalLinks, rate_limiter: RateLimiter, renderer: Renderer) -> None:
        self._fleet = fleet
        self._context = fleet.context
        self._links = links
        self._rate_limiter = rate_limiter
        self._renderer = renderer

    @property
    def routes(self) -> list[Route]:
        path = PREFIX + "{payment_id}/{way}/{signature}"
        return [Route(path, self.show, methods=["GET"]), Route(path, self.decide, methods=["POST"])]

    async def show(self, request: Request) -> Response:
        """Show the request for approval and the button, or the decision."""
        linked = self._linked(request)
        return self._unknown() if linked is None else self._page(request, *linked)

    async def decide(self, request: Request) -> Response:
        """Take the form of that page, and redirect back to it, so that a reload does not send the form again.

        The page of a link that approves can also deny.
        """
        linked = self._linked(request)
        if linked is None:
            return self._unknown()
        row, approval = linked
        given = await read_form(request)
        way = "deny" if given.get("way") == "deny" else request.path_params["way"]
        by = Approver("link", terms_hash=approval.terms_hash)
        try:
            if way == "approve":
                require_checked(self._shown(row, approval), given)
            await (self._fleet.approve if way == "approve" else self._fleet.deny)(row.id, by)
        except Refused as refused:
            self._context.metrics.refusals[refused.code] += 1
            return self._page(request, self._context.payment(row.id), approval, refused)
        return RedirectResponse(request.url.path, 303)

    def _linked(self, request: Request) -> tuple[PaymentRow, ApprovalRow] | None:
        """The payment of a valid link. Refused: `rate_limited`, only for links that payagent made.

        A made-up link uses up no requests of others, and reads nothing from the ledger.
        """
        payment_id, way, signature = (request.path_params[name] for name in ("payment_id", "way", "signature"))
        if not self._links.is_ours(payment_id, way, signature):
            return None
        with self._rate_limiter.admit(_LINKS_APP):
            approval = approvals.of_payment(self._context.conn, payment_id)
            if approval is None or not self._links.is_good(approval, way, signature):
                return None
            return self._context.payment(payment_id), approval

    def _shown(self, row: PaymentRow, approval: ApprovalRow) -> dict[str, Any]:
        """The payment as the API gives it to who decides."""
        detail = approval_of(self._context, row, approval, sees_approvals=True)
        shown: dict[str, Any] = json.loads(to_json(NamedPayment.of(self._context, row, approval=detail)))
        return shown

    def _page(
        self, request: Request, row: PaymentRow, approval: ApprovalRow, refused: Refused | None = None
    ) -> HTMLResponse:
        decided, way = approvals.decided(self._context.conn, row.id), request.path_params["way"]
        html = self._renderer.html(
            "decide.html",
            title=f"{way.capitalize()} this payment?" if decided is None else _TITLES[decided.decision],
            problem=None if refused is None else problem_of(refused, "").model_dump(),
            way=way,
            one=None if decided else ask(self._shown(row, approval)),
            outcome=None if decided is None else self._outcome(row, approval, decided),
        )
        return HTMLResponse(html, 200 if refused is None else refused.problem.status)

    def _outcome(self, row: PaymentRow, approval: ApprovalRow, decided: DecisionRow) -> dict[str, Any]:
        """The decision, and the payment with its state."""
        by = dict(names_of(self._context)).get(decided.by_app or "", decided.by_app)
        return {
            "decision": decided.decision,
            "at": iso_time(decided.at_ms),
            "by": decider({"via": decided.via, "by": by}),
            "why": row.problem.detail,
            "money": STATES_IN_WORDS[row.state],
            "payment": self._shown(row, approval),
        }

    def _unknown(self) -> HTMLResponse:
        """The page does not say what is wrong with a link."""
        html = self._renderer.html(
            "decide.html", title="There is no such link", problem=None, one=None, outcome=None
        )
        return HTMLResponse(html, 404)
