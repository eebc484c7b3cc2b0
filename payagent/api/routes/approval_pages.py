"""The pages behind signed links: a person reads what is asked and decides, without a token.

To open a link only shows: what scans links in mails decides nothing. The form of the page does, and only from this
page: a browser says that the call is of the same origin. No script, no cookie, and no style but the page's own.

May import: core, agent, store, the rest of api, FastAPI. Never: decides on anything but the link's own payment;
writes text of others into a page as it came.
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
from payagent.api.http.problems import Json
from payagent.api.models.render import approval_view
from payagent.api.routes.approvals import decider_view
from payagent.core.money import format_ada, format_amount
from payagent.core.payment import STATES_IN_WORDS
from payagent.core.policy import Window
from payagent.core.problems import PROBLEMS, Refused
from payagent.core.timestamps import iso_time
from payagent.store.rows import approvals, payments
from payagent.store.rows.approvals import ApprovalRow, DecisionRow
from payagent.store.rows.payments import PaymentRow

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:46rem;margin:1rem auto;padding:0 1rem}"
    ":root{color-scheme:light dark}table{border-collapse:collapse;width:100%}"
    "th,td{padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #8886}"
    "th{width:30%}td{overflow-wrap:anywhere}button{font:inherit;margin:1.5rem 0;padding:.7rem 2.5rem}"
)
"""For a phone too, where an address is wider than the screen."""

_STYLE_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_WHO = "links"
"""Whom all who come by links are counted as, for how much may be asked at once."""

_HEADINGS = {
    "approved": "The payment was approved",
    "denied": "The payment was denied",
    "timed_out": PROBLEMS["approval_denied"].reasons["timeout"].title,
}

Row = tuple[str, str]

router = APIRouter(include_in_schema=False)


@router.get(PREFIX + "{payment_id}/{way}/{signature}")
async def show(request: Request, payment_id: str, way: str, signature: str) -> HTMLResponse:
    """What is asked, and the button; once it is decided, how."""
    context: AgentContext = request.app.state.agent.context
    found = _found(request, payment_id, way, signature)
    if found is None:
        return _unknown()
    row, approval = found
    if (decided := approvals.decided(context.conn, row.id)) is not None:
        return _page(_HEADINGS[decided.decision], _outcome(context, row, decided))
    return _page(f"{way.capitalize()} this payment?", _asked(context, row, approval), way)


@router.post(PREFIX + "{payment_id}/{way}/{signature}")
async def decide(request: Request, payment_id: str, way: str, signature: str) -> Response:
    """The form of the page above, and no other. It leads back there: to load that again sends no form again."""
    agent: Agent = request.app.state.agent
    context = agent.context
    found = _found(request, payment_id, way, signature)
    if found is None:
        return _unknown()
    links: ApprovalLinks = request.app.state.links
    _require_own_page(request, links.origin)
    by = Approver("link", terms_hash=found[1].terms_hash)
    try:
        await (agent.decisions.approve if way == "approve" else agent.decisions.deny)(payment_id, by)
    except Refused as refused:
        context.refusals[refused.code] += 1
        return _page(refused.problem.title, _refused(context, refused, found[1]), status=refused.problem.status)
    return RedirectResponse(request.url.path, 303, _HEADERS)


def _refused(context: AgentContext, refused: Refused, approval: ApprovalRow) -> Iterable[Row]:
    """Why a decision was not carried out; what was decided, where that is why."""
    if (decided := approvals.decided(context.conn, approval.payment_id)) is not None:
        yield from _outcome(context, context.payment(approval.payment_id), decided)
        return
    yield "why", refused.detail
    yield "money", refused.money
    yield "what to do", refused.problem.fix
    yield "open until", f"{iso_time(approval.ends_at_ms)}: until then the link may be opened again"


def _outcome(context: AgentContext, row: PaymentRow, decided: DecisionRow) -> Iterable[Row]:
    """What was decided, and what has become of the payment."""
    by = {"link": ", by a link", "token": f", by {dict(names_of(context)).get(decided.by_app or '')}", "clock": ""}
    yield decided.decision.replace("_", " "), iso_time(decided.at_ms) + by[decided.via]
    if row.detail is not None:
        yield "why", row.detail
    yield "money", STATES_IN_WORDS[row.state]
    yield "payment", row.id


def _found(request: Request, payment_id: str, way: str, signature: str) -> tuple[PaymentRow, ApprovalRow] | None:
    """The payment of a link that is good. Refused: `rate_limited`, for links that we made and for nothing else.

    Who has none uses up nobody's calls, and nothing is read for it.
    """
    context: AgentContext = request.app.state.agent.context
    links: ApprovalLinks | None = request.app.state.links
    if links is None or not links.is_ours(payment_id, way, signature):
        return None
    request.state.inside.enter_context(request.app.state.turnstile.admit(_WHO))
    approval = approvals.of_payment(context.conn, payment_id)
    if approval is None or not links.is_good(approval, way, signature):
        return None
    return context.payment(payment_id), approval


def _require_own_page(request: Request, origin: str) -> None:
    """Refused: `browser_refused` unless it is the page's own form. A browser names where a call comes from, and of
    a page without a referrer it says "null" for the origin.
    """
    sites, origins = request.headers.getlist("sec-fetch-site"), request.headers.getlist("origin")
    if sites != ["same-origin"] or origins not in ([origin], ["null"]):
        raise Refused("browser_refused/web_page", "the decision was not sent by the approval page")


def _asked(context: AgentContext, row: PaymentRow, approval: ApprovalRow) -> list[Row]:
    at_most = payments.hold(context.conn, row.id, "ask")
    told = approval_view(approval, row, at_most, None) | decider_view(context, row)
    return [("network", context.terms.network.name), *_rows(row, told, approval)]


def _rows(row: PaymentRow, told: Json, approval: ApprovalRow) -> Iterable[Row]:
    """What is shown for people, in order."""
    yield from (("why it is asked", reason.detail) for reason in approval.reasons)
    yield "app", str(told["app"])
    yield "merchant", str(row.origin)
    yield "call", str(told["request"] or "not told")
    yield "calls that it buys", str(told["calls"])
    plan = approval.plan
    outputs = plan["outputs"]
    for output in outputs if isinstance(outputs, list) else []:
        tokens = "".join(f", {format_amount(asset, int(units))}" for asset, units in output["assets"].items())
        yield output["role"], f"{format_ada(int(output['lovelace']))}{tokens} to {output['address']}"
    yield "fee", format_ada(int(str(plan["fee"])))
    at_most = told["at_most"]
    for asset, units in at_most.items() if isinstance(at_most, dict) else ():
        yield "at most", format_amount(asset, int(units))
    limits = told["limits"]
    for limit in limits if isinstance(limits, list) else ():
        yield _limit_name(limit), format_amount(limit["asset"], int(limit["left"]))
    history = told["history"]
    if isinstance(history, dict):
        last_at = history["last_at"]
        yield "paid there before", "never" if last_at is None else f"{history['paid']} times, last {last_at}"
    yield "open until", str(told["ends_at"])
    yield "payment", row.id
    yield "terms", approval.terms_hash


def _limit_name(limit: Json) -> str:
    """What waits counts already in all that a limit leaves over a time."""
    of = " ".join(str(limit[part]) for part in ("app", "merchant") if limit[part])
    name = f"{str(limit['limit']).replace('_', ' ')}{' of ' + of if of else ''}"
    return f"most {name}" if limit["limit"] == Window.PAYMENT else f"left {name} once it is paid"


def _unknown() -> HTMLResponse:
    """Of no link of ours it is told what is wrong with it."""
    fix = "Open the whole link. What waits is shown by: payagent payments list --state awaiting_approval"
    rows = [("money", "Nothing was decided by it."), ("what to do", fix)]
    return _page("There is no such link", rows, status=404)


def _page(title: str, rows: Iterable[Row], button: str | None = None, status: int = 200) -> HTMLResponse:
    """All text is escaped; the form has no field, for its address says everything."""
    lines = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>\n" for name, value in rows)
    form = "" if button is None else f'<form method="post"><button>{escape(button.capitalize())}</button></form>\n'
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">'
        f"<title>payagent: {escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"<table>\n{lines}</table>\n{form}</body></html>\n"
    )
    return HTMLResponse(text, status, _HEADERS)
