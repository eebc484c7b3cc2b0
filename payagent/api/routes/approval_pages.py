"""The pages of signed approval links: a person reads the request and decides, without a token.

Opening a link only shows the page, so a mail scanner decides nothing. Only the page's own form decides: the
browser states that the request is of the same origin. The page has no script, no cookie, and only its own style.

May import: core, agent, store, the rest of api, FastAPI. Never: decides on any payment but the link's own;
writes foreign text into a page without escaping it.
"""

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from payagent.agent.agent import Agent
from payagent.agent.base.requests import Approver
from payagent.agent.context import AgentContext
from payagent.agent.operator.approval_links import PREFIX, ApprovalLinks
from payagent.agent.operator.limits import names_of
from payagent.api.models.apps import LimitStanding
from payagent.api.models.payments import Approval
from payagent.api.routes.approvals import approval_of
from payagent.core.aggregate import PaymentRow
from payagent.core.money import format_ada, format_amount
from payagent.core.payment import STATES_IN_WORDS
from payagent.core.policy import Window
from payagent.core.problems import PROBLEMS, Refused
from payagent.core.timestamps import iso_time
from payagent.store.rows import approvals, events
from payagent.store.rows.approvals import ApprovalRow, DecisionRow

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:1rem auto;padding:0 1rem}"
    ":root{color-scheme:light dark}table{border-collapse:collapse;width:100%}"
    "th,td{padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8886}"
    "th{width:30%}td{overflow-wrap:anywhere}button{font:inherit;margin:1.5rem 0;padding:.7rem 2.5rem}"
)
"""Also for phones, where an address is wider than the screen."""

_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LINKS_APP = "links"
"""The rate limit counts all visitors of links as this one app."""

_HEADINGS = {
    "approved": "The payment was approved",
    "denied": "The payment was denied",
    "timed_out": PROBLEMS["approval_denied"].reasons["timeout"].title,
}

Row = tuple[str, str]

router = APIRouter(include_in_schema=False)


@router.get(PREFIX + "{payment_id}/{way}/{signature}")
async def show(request: Request, payment_id: str, way: str, signature: str) -> HTMLResponse:
    """Show the request for approval and the button, or the decision."""
    context: AgentContext = request.app.state.agent.context
    linked = _linked(request, payment_id, way, signature)
    if linked is None:
        return _unknown()
    row, approval = linked
    if (decided := approvals.decided(context.conn, row.id)) is not None:
        return _page(_HEADINGS[decided.decision], _outcome(context, row, decided))
    return _page(f"{way.capitalize()} this payment?", _request_rows(context, row, approval), way)


@router.post(PREFIX + "{payment_id}/{way}/{signature}")
async def decide(request: Request, payment_id: str, way: str, signature: str) -> Response:
    """Take the form of that page, and redirect back to it, so that a reload does not send the form again."""
    agent: Agent = request.app.state.agent
    context = agent.context
    linked = _linked(request, payment_id, way, signature)
    if linked is None:
        return _unknown()
    links: ApprovalLinks = request.app.state.links
    _require_own_page(request, links.origin)
    by = Approver("link", terms_hash=linked[1].terms_hash)
    try:
        await (agent.decisions.approve if way == "approve" else agent.decisions.deny)(payment_id, by)
    except Refused as refused:
        context.refusals[refused.code] += 1
        return _page(refused.problem.title, _refused(context, refused, linked[1]), status=refused.problem.status)
    return RedirectResponse(request.url.path, 303, _HEADERS)


def _refused(context: AgentContext, refused: Refused, approval: ApprovalRow) -> Iterable[Row]:
    """Why a decision was not carried out, or what was decided before."""
    if (decided := approvals.decided(context.conn, approval.payment_id)) is not None:
        yield from _outcome(context, context.payment(approval.payment_id), decided)
        return
    yield "why", refused.detail
    yield "money", refused.money
    yield "what to do", refused.problem.fix
    yield "open until", f"{iso_time(approval.expires_at_ms)}: until then the link can be opened again"


def _outcome(context: AgentContext, row: PaymentRow, decided: DecisionRow) -> Iterable[Row]:
    """The decision, and the state of the payment."""
    who = decided.by_app or ""
    by = {"link": ", by a link", "token": f", by {dict(names_of(context)).get(who)}", "telegram": f", by {who}"}
    yield decided.decision.replace("_", " "), iso_time(decided.at_ms) + by.get(decided.via, "")
    if row.problem.detail is not None:
        yield "why", row.problem.detail
    yield "money", STATES_IN_WORDS[row.state]
    yield "payment", row.id


def _linked(request: Request, payment_id: str, way: str, signature: str) -> tuple[PaymentRow, ApprovalRow] | None:
    """The payment of a valid link. Refused: `rate_limited`, only for links that payagent made.

    A made-up link uses up no requests of others, and reads nothing from the ledger.
    """
    context: AgentContext = request.app.state.agent.context
    links: ApprovalLinks | None = request.app.state.links
    if links is None or not links.is_ours(payment_id, way, signature):
        return None
    request.state.inside.enter_context(request.app.state.rate_limiter.admit(_LINKS_APP))
    approval = approvals.of_payment(context.conn, payment_id)
    if approval is None or not links.is_good(approval, way, signature):
        return None
    return context.payment(payment_id), approval


def _require_own_page(request: Request, origin: str) -> None:
    """Refuse everything but the page's own form with `browser_refused`.

    A browser states where a request comes from. For a page without a referrer, it sends the origin "null".
    """
    sites, origins = request.headers.getlist("sec-fetch-site"), request.headers.getlist("origin")
    if sites != ["same-origin"] or origins not in ([origin], ["null"]):
        raise Refused("browser_refused/web_page", "the decision was not sent by the approval page")


def _request_rows(context: AgentContext, row: PaymentRow, approval: ApprovalRow) -> list[Row]:
    detail = approval_of(context, row, approval, sees_approvals=True)
    purpose = events.purpose_of(context.conn, row.id)
    stated = [] if purpose is None else [("the app's reason", purpose)]
    return [("network", context.config.network.name), *stated, *_rows(row, detail)]


def _rows(row: PaymentRow, detail: Approval) -> Iterable[Row]:
    """The rows of the page, in order."""
    yield from (("why it needs approval", str(reason.detail)) for reason in detail.reasons)
    yield "app", detail.app
    yield "merchant", str(row.invoice.origin)
    yield "request", detail.request or "unknown"
    yield "calls bought", str(detail.calls)
    for output in detail.transaction.outputs:
        tokens = "".join(f", {format_amount(asset, units)}" for asset, units in output.assets.items())
        yield output.role, f"{format_ada(output.lovelace)}{tokens} to {output.address}"
    yield "fee", format_ada(detail.transaction.fee)
    for asset, units in detail.at_most.items():
        yield "at most", format_amount(asset, units)
    for limit in detail.limits:
        yield _limit_name(limit), format_amount(limit.asset, limit.left or 0)
    paid, last_ms = detail.history.paid, detail.history.last_at
    yield "paid there before", "never" if last_ms is None else f"{paid} times, last {iso_time(last_ms)}"
    yield "open until", iso_time(detail.ends_at)
    yield "payment", row.id
    yield "terms", detail.terms_hash


def _limit_name(limit: LimitStanding) -> str:
    """Limits over a time already count the payment. The one per payment does not."""
    of = " ".join(part for part in (limit.app, limit.merchant) if part)
    name = f"{limit.limit.replace('_', ' ')}{' of ' + of if of else ''}"
    return f"most {name}" if limit.limit == Window.PAYMENT else f"left {name} once it is paid"


def _unknown() -> HTMLResponse:
    """The page does not say what is wrong with a link."""
    fix = "Open the whole link. To list open requests: payagent payments list --state awaiting_approval"
    rows = [("money", "Nothing was decided by it."), ("what to do", fix)]
    return _page("There is no such link", rows, status=404)


def _page(title: str, rows: Iterable[Row], button: str | None = None, status: int = 200) -> HTMLResponse:
    """Write the page. All text is escaped. The form has no fields, because its address says everything."""
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in rows)
    form = "" if button is None else f'<form method="post"><button>{escape(button.capitalize())}</button></form>\n'
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">'
        f"<title>payagent: {escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"<table>\n{lines}</table>\n{form}</body></html>\n"
    )
    return HTMLResponse(text, status, _HEADERS)
