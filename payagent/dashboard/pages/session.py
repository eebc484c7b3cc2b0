"""Signing out, the stream that keeps pages fresh, pausing, and orders that wait for the terminal.

Never: puts content into the stream.
"""

import json

from starlette.responses import RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.dashboard.app import COOKIE
from payagent.dashboard.visit import Visit, form, page

SIGNED_IN = ("read", "operate", "approve")


async def sign_out(visit: Visit) -> Response:
    visit.sessions.end(visit.session)
    await visit.note("dashboard_closed", {"via": "dashboard", "by": visit.app.id})
    response = RedirectResponse("/ui/sign-in", 303)
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
    return response


async def pause(visit: Visit) -> Response:
    await visit.api.post("/v1/pause", {"reason": visit.form.get("reason", "")})
    return visit.done("/ui/", "Signing is paused. What was signed before may still land.")


async def resume(visit: Visit) -> Response:
    facts = (("what", "payments are signed again"),)
    return visit.confirm_in_terminal("Resume signing", facts, "/ui/", "/v1/resume", None, None)


async def order(visit: Visit) -> Response:
    """An order that waits for the terminal, or what became of it."""
    kept = visit.sessions.order(visit.session, visit.request.path_params["order_id"])
    if kept is None:
        raise Refused("not_found", "the order was withdrawn, or its 10 minutes are over")
    refused = None if kept.answer is None or kept.answer[0] < 400 else kept.answer[1]
    return await visit.page("order.html", kept=kept, ends_at=iso_time(kept.ends_at_ms), refused=refused)


async def withdraw(visit: Visit) -> Response:
    kept = visit.sessions.order(visit.session, visit.request.path_params["order_id"])
    if kept is not None and kept.code is None:  # too late: the terminal has confirmed it
        return RedirectResponse(f"/ui/orders/{kept.id}", 303)
    back_to = "/ui/" if kept is None else kept.back_to
    if kept is not None:
        visit.sessions.withdraw(kept)
    return visit.done(back_to, "The order was withdrawn. Nothing was done.")


class ReducedStream(Response):
    """The event stream, reduced to what changed: the event's name and its payment."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self._visit = visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        last = self._visit.request.headers.get("last-event-id", "")
        query = f"after={last}" if last.isascii() and last.isdigit() else ""

        async def reduced(message: Message) -> None:
            if message["type"] == "http.response.body":
                events = message.get("body", b"").decode().split("\n\n")
                message["body"] = "\n\n".join(map(_reduced, events)).encode()
            await send(message)

        await self._visit.api.stream("/v1/events", query, receive, reduced)


def _reduced(event: str) -> str:
    """An event of the API's stream as a message with its name and its payment. A comment stays."""
    fields = dict(line.partition(": ")[::2] for line in event.split("\n"))
    if "data" not in fields:
        return event
    told = {"event": fields["event"], "payment": json.loads(fields["data"]).get("payment")}
    return f"id: {fields['id']}\ndata: {json.dumps(told)}"


async def changes(visit: Visit) -> Response:
    return ReducedStream(visit)


PAGES = [
    page("/ui/events", changes, *SIGNED_IN),
    page("/ui/orders/{order_id}", order, "operate"),
    form("/ui/orders/{order_id}/withdraw", withdraw, "operate"),
    form("/ui/sign-out", sign_out, *SIGNED_IN),
    form("/ui/pause", pause, "operate"),
    form("/ui/resume", resume, "operate"),
]
