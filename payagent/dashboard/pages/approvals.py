"""Payments that wait for a person, and what was decided lately.

Never: SQL; decides (the API does, on the terms that were shown).
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup
from starlette.responses import Response

from payagent.core.payment.machine import STATES_IN_WORDS, State
from payagent.core.problems import STILL_ASKED, Refused
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.text import paid, visible
from payagent.dashboard.visit import MenuEntry, Visit, form, page

WAITING, LATELY = 20, 8
MARKED = 8
"""How many characters of a differing part are marked at each of its ends."""


async def show(
    visit: Visit, refused: ApiRefusedError | None = None, first: Mapping[str, Any] | None = None
) -> Response:
    """`first`: the payment that somebody else has decided before."""
    awaiting = await visit.api.get("/v1/payments", state="awaiting_approval", limit=WAITING)
    decided = (await visit.api.get("/v1/payments", decided="true", limit=LATELY))["payments"]
    return await visit.page(
        "approvals.html",
        refused,
        asks=[ask(one) for one in awaiting["payments"]],
        rest=awaiting["awaiting_approval"] - len(awaiting["payments"]),
        decided=sorted(decided, key=lambda one: str(one["approval"]["decided_at"]), reverse=True),
        first=first,
        may_decide=visit.may("operate", "approve"),
        may_read=visit.may("read", "operate"),
    )


async def decide(visit: Visit) -> Response:
    path = f"/v1/payments/{visit.request.path_params['payment_id']}"
    way = "deny" if visit.form.get("way") == "deny" else "approve"
    payment = await visit.api.get(path)
    if way == "approve":
        require_checked(payment, visit.form)
    decided = await visit.api.post(f"{path}/{way}", {"terms_hash": visit.form.get("terms_hash")})
    words = STATES_IN_WORDS[State(decided["state"])]
    return visit.done("/ui/approvals", f"{'Denied' if way == 'deny' else 'Approved'}: {words}.")


async def _not_decided(visit: Visit, refused: ApiRefusedError) -> Response:
    payment = await visit.api.get(f"/v1/payments/{visit.request.path_params['payment_id']}")
    return await show(visit, refused, payment if payment.get("approval", {}).get("decision") else None)


def require_checked(payment: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Refuse to approve a new address without the tick that it was checked. Refused: `address_not_pinned`."""
    if given.get("checked") == "yes" or "address_not_pinned" not in _codes(payment.get("approval", {})):
        return
    detail = "the box was not ticked that says that somebody checked the new address"
    raise Refused("address_not_pinned", detail).with_money(STILL_ASKED)


def ask(payment: dict[str, Any]) -> dict[str, Any]:
    """A payment that waits, as its card shows it: what was agreed and known before, and what is asked now."""
    approval = payment["approval"]
    ((units, asset), *_) = paid(payment)
    is_new = "address_not_pinned" in _codes(approval)
    ends_at = datetime.fromisoformat(approval["ends_at"])
    return {
        **payment,
        "name": payment["merchant"] or payment["origin"],
        "units": units,
        "asset": asset,
        "is_new_address": is_new,
        "addresses": list(_new_addresses(payment)) if is_new else [],
        "known": {one["address"] for one in approval["pinned"]},
        "before": _before(approval, units, asset),
        "is_price_changed": "price_changed" in _codes(approval),
        "limits": sorted(
            (one for one in approval["limits"] if one["limit"] != "per_payment"), key=lambda one: int(one["left"])
        ),
        "minutes": max(int((ends_at - datetime.now(UTC)).total_seconds()) // 60, 0),
    }


def _codes(approval: Mapping[str, Any]) -> list[str]:
    return [one["code"] for one in approval.get("reasons", [])]


def _before(approval: Mapping[str, Any], units: int, asset: str) -> dict[str, Any] | None:
    """The agreed price that is compared with: for as many calls, if there is one. `rise`: of a call, in words."""
    agreed = [one for one in approval["agreed"] if one["asset"] == asset]
    if not agreed:
        return None
    price = min(agreed, key=lambda one: (one["calls"] != approval["calls"], one["calls"]))
    now, then = units * price["calls"], int(price["units"]) * approval["calls"]
    percent = (now - then) * 100 // then
    rise = f"{percent}% more" if percent else "less than 1% more"
    return {**price, "is_same": now == then, "rise": rise if now > then else ""}


def _new_addresses(payment: Mapping[str, Any]) -> Iterator[tuple[str, Markup, Markup]]:
    """(role, known address, new address) of each output to an address that is not known, differences marked."""
    pinned = payment["approval"]["pinned"]
    for output in payment["outputs"]:
        known = [one["address"] for one in pinned if one["role"] == output["role"]]
        if output["address"] not in known:
            yield output["role"], *marked(known[0] if known else "", output["address"])


def marked(known: str, new: str) -> tuple[Markup, Markup]:
    """Two addresses with the ends of what differs marked."""
    head = _same(known, new)
    tail = min(_same(known[::-1], new[::-1]), len(known) - head, len(new) - head)
    return _marked(known, head, tail, Markup(' class="known"')), _marked(new, head, tail, Markup(""))


def _same(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _marked(text: str, head: int, tail: int, look: Markup) -> Markup:
    text = str(visible(text))
    start, differing, end = text[:head], text[head : len(text) - tail], text[len(text) - tail :]
    mark = Markup("<mark{}>{}</mark>")
    if len(differing) <= 3 * MARKED:
        return Markup("{}{}{}").format(start, mark.format(look, differing) if differing else "", end)
    ends = mark.format(look, differing[:MARKED]), differing[MARKED:-MARKED], mark.format(look, differing[-MARKED:])
    return Markup("{}{}{}{}{}").format(start, *ends, end)


ENTRY = MenuEntry(
    "Approvals",
    (1, 3),
    '<path d="M8 2.2c3 0 5.6 2.3 5.6 5.3S11 12.8 8 12.8c-.7 0-1.4-.1-2-.3l-3 1.2.8-2.6A5 5 0 0 1 2.4 '
    '7.5c0-3 2.6-5.3 5.6-5.3zM5.8 7.6l1.6 1.6 2.9-3"/>',
)
PAGES = [
    page("/ui/approvals", show, "read", "operate", "approve", entry=ENTRY),
    form("/ui/approvals/{payment_id}", decide, "operate", "approve", refused_on=_not_decided),
]
