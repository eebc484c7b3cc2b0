"""Lists payments, and shows one with its timeline.

Never: SQL; changes a payment, except that `resolve` and `acknowledge` are asked for.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from payagent.core.history import details_in_words, event_in_words, is_unserved
from payagent.core.money import Tokens, for_people
from payagent.core.payment.machine import (
    CANCELLABLE,
    DELIVERIES_IN_WORDS,
    ENDED_WITHOUT_PAYING,
    SIGNED_UNPOSTED,
    STATES_IN_WORDS,
    Delivery,
    State,
)
from payagent.core.problems import PROBLEMS, Problem
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.text import amount_text, paid
from payagent.dashboard.visit import MenuEntry, Visit, form, page

PAGE = 50
FILTERS = ("text", "merchant", "app", "state", "delivery")
PATH = (State.RESERVED, State.SIGNED, State.IN_FLIGHT, State.IN_BLOCK, State.CONFIRMED, State.SETTLED)
"""The states that a payment passes if nothing goes wrong."""

UNDER_WAY = ",".join((State.RECEIVED, State.RESERVED, *SIGNED_UNPOSTED))
NOT_PAID = ",".join(ENDED_WITHOUT_PAYING)
STATES = {UNDER_WAY: "under way", NOT_PAID: "not paid"} | {str(one): one.replace("_", " ") for one in State}
DELIVERIES = {str(one): one.replace("_", " ") for one in Delivery}
_HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{50}([0-9a-f]{6})\b")


async def show_list(visit: Visit) -> Response:
    asked = {name: text for name in FILTERS if (text := visit.request.query_params.get(name, "").strip())}
    cursor, newest = (visit.request.query_params.get(name) for name in ("cursor", "newest"))
    merchants = (await visit.api.get("/v1/merchants"))["merchants"]
    origins = {one["name"]: one["origin"] for one in merchants}
    query = {"origin" if name == "merchant" else name: text for name, text in asked.items()}
    if "merchant" in asked:
        query["origin"] = origins.get(asked["merchant"], asked["merchant"])
    refused = None
    try:
        found = await visit.api.get("/v1/payments", limit=PAGE, cursor=cursor, **query)
        fresh = await _newer_than(visit, query, newest) if cursor and newest else ""
    except ApiRefusedError as error:
        refused = error
        found, fresh = {"payments": [], "cursor": None}, ""
    rows = found["payments"]
    older = {"cursor": found["cursor"], "newest": newest or (rows[0]["created_at"] if rows else "")}
    return await visit.page(
        "payments.html",
        refused,
        asked=asked,
        rows=rows,
        is_first=cursor is None,
        newer=fresh,
        first="?" + urlencode(asked),
        older=None if found["cursor"] is None else "?" + urlencode(asked | older),
        tabs=_tabs(asked),
        unserved=sum(one["kind"] == "paid_not_served" for one in (await visit.api.get("/v1/alerts"))["alerts"]),
        choices=[
            ("merchant", "Merchant", {name: name for name in sorted(origins)}),
            ("app", "App", {one["name"]: one["name"] for one in (await visit.api.get("/v1/apps"))["apps"]}),
            ("state", "State", STATES),
            ("delivery", "Delivery", DELIVERIES),
        ],
        command=_command(asked, query.get("origin")),
    )


async def _newer_than(visit: Visit, query: Mapping[str, str], newest: str) -> str:
    """How many payments came since the first page was opened, whose newest payment was made then."""
    since = (await visit.api.get("/v1/payments", limit=PAGE, since=newest, **query))["payments"]
    count = sum(one["created_at"] > newest for one in since)
    return f"{PAGE} or more" if count == PAGE else str(count or "")


def _tabs(asked: Mapping[str, str]) -> list[tuple[str, str, bool]]:
    """Ready-made filters: title, address, and whether it is the one that is shown."""
    tabs: list[tuple[str, dict[str, str]]] = [
        ("All", {}),
        ("Under way", {"state": UNDER_WAY}),
        ("Paid, not served", {"delivery": Delivery.PAID_NOT_SERVED}),
        ("Not paid", {"state": NOT_PAID}),
    ]
    return [(title, "/ui/payments?" + urlencode(query), asked == query) for title, query in tabs]


def _command(asked: Mapping[str, str], origin: str | None) -> str:
    """The nearest command: it knows neither texts, deliveries nor groups of states."""
    options = {"state": asked.get("state") if asked.get("state") in list(State) else None}
    options |= {"origin": origin, "app": asked.get("app")}
    return "payagent payments list" + "".join(f" --{name} {value}" for name, value in options.items() if value)


async def show(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    payment = await visit.api.get(_path(visit))
    state = State(payment["state"])
    return await visit.page(
        "payment.html",
        refused,
        payment=payment,
        title=_title(payment, visit),
        meaning=STATES_IN_WORDS[state],
        why=_why(payment),
        delivery=DELIVERIES_IN_WORDS[Delivery(payment["delivery"])],
        is_unserved=is_unserved(payment),
        has_delivery=payment["kind"] == "invoice" and state not in ENDED_WITHOUT_PAYING,
        timeline=[
            _step(event, visit.renderer.facts["tokens"])
            for event in payment["history"]
            if event["event"] != "purpose"
        ],
        after=[(one.replace("_", " "), STATES_IN_WORDS[one]) for one in PATH[PATH.index(state) + 1 :]]
        if state in PATH
        else [],
        can_resolve=visit.may("operate") and state in CANCELLABLE,
        needs_you=visit.may("operate") and await _needs_you(visit, payment),
    )


async def _needs_you(visit: Visit, payment: Mapping[str, Any]) -> bool:
    """Whether it was paid, not served, and nobody dealt with that."""
    if not is_unserved(payment):
        return False
    subject = f"unserved:{payment['id']}"
    return any(one["subject"] == subject for one in (await visit.api.get("/v1/alerts"))["alerts"])


def _title(payment: dict[str, Any], visit: Visit) -> str:
    tokens = visit.renderer.facts["tokens"]
    units = " and ".join(amount_text(*one, tokens) for one in paid(payment))
    if payment["kind"] == "split":
        return "UTxOs split"
    return f"{units} to {payment['merchant'] or payment['origin'] or 'an address'}"


def _path(visit: Visit) -> str:
    return f"/v1/payments/{visit.request.path_params['payment_id']}"


def _why(payment: Mapping[str, Any]) -> tuple[Problem, str] | None:
    """The problem of a payment that was refused, is cancelled or is void: its texts, and what happened."""
    reason = payment.get("reason")
    return None if reason is None else (PROBLEMS[reason["code"]].of(reason["reason"]), reason["detail"])


def _step(event: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    """An event of the timeline. A retry is drawn in another shape than a step of the money."""
    is_retry = event["event"].startswith(("delivery_", "merchant_", "retry_", "provider_"))
    is_lost = event["event"] == "delivery_give_up" or event["detail"].get("delivery") == "give_up"
    return {
        "sentence": event_in_words(event, tokens),
        "at": event["at"],
        "details": _HASH.sub(r"\1…\2", for_people(details_in_words(event["detail"]), tokens)),
        "look": ("call lost" if is_lost else "call") if is_retry else "",
    }


async def receipt(visit: Visit) -> Response:
    found = await visit.api.get(f"{_path(visit)}/receipt")
    name = f"receipt-{visit.request.path_params['payment_id']}.json"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(json.dumps(found, indent=2) + "\n", 200, headers, "application/json")


async def resolve(visit: Visit) -> Response:
    payment = await visit.api.post(f"{_path(visit)}/resolve", {})
    return visit.done(f"/ui/payments/{payment['id']}", f"Now it is {STATES_IN_WORDS[State(payment['state'])]}.")


async def acknowledge(visit: Visit) -> Response:
    payment = await visit.api.post(f"{_path(visit)}/acknowledge", {})
    words = "It no longer needs you. It stays marked as paid and not served."
    return visit.done(f"/ui/payments/{payment['id']}", words)


PAGES = [
    page(
        "/ui/payments",
        show_list,
        entry=MenuEntry(
            "Payments",
            (1, 2),
            '<path d="M2 5.2h10.4M9.8 2.6l2.6 2.6-2.6 2.6M14 10.8H3.6M6.2 8.2l-2.6 2.6 2.6 2.6"/>',
        ),
    ),
    page("/ui/payments/{payment_id}", show),
    page("/ui/payments/{payment_id}/receipt", receipt),
    form("/ui/payments/{payment_id}/resolve", resolve, refused_on=show),
    form("/ui/payments/{payment_id}/acknowledge", acknowledge, refused_on=show),
]
