"""Who may be paid: prices, addresses, what was not served, and balances that are paid in advance.

Never: SQL; calls a merchant itself.
"""

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from payagent.api.models.merchants import CreateMerchant, CreatePin
from payagent.core.address import parse_address
from payagent.core.money import LOVELACE, counted
from payagent.core.network import NETWORKS
from payagent.core.origin import is_t_backend
from payagent.core.policy import Window
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused, own_order
from payagent.dashboard.fields import units_of
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.spent import Sum, spent
from payagent.dashboard.text import amount_text
from payagent.dashboard.visit import MenuEntry, Visit, form, page
from payagent.settings.loading import read_merchant

TOPUPS = 20


async def show(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    listed = (await visit.api.get("/v1/merchants"))["merchants"]
    merchants = [await visit.api.get(f"/v1/merchants/{one['name']}") for one in listed]
    topups = (await visit.api.get("/v1/prepaid/topups", limit=TOPUPS))["topups"]
    return await visit.page(
        "merchants.html",
        refused,
        merchants=merchants,
        spent=await _spent(visit),
        prepaid=(await visit.api.get("/v1/prepaid"))["prepaid"],
        topups=topups,
        calls=CALLS,
    )


async def _spent(visit: Visit) -> dict[str, list[dict[str, Any]]]:
    """What was spent in 30 days, by the merchant's origin, one row for each asset."""
    sums: dict[tuple[str, str], Sum] = {}
    for on, one in (await spent(visit)).items():
        if on.origin is not None:
            total, payments = sums.get((on.origin, on.asset), Sum(0, 0))
            sums[on.origin, on.asset] = Sum(total + one.total, payments + one.payments)
    rows: dict[str, list[dict[str, Any]]] = {}
    for (origin, asset), of_asset in sorted(sums.items()):
        rows.setdefault(origin, []).append({"asset": asset} | of_asset._asdict())
    return rows


async def show_one(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    merchant = await visit.api.get(_path(visit))
    rise = merchant["price_rise_percent_max"]
    prices = [
        {**one, "asks_above": None if rise is None else int(one["units"]) * (100 + rise) // 100}
        for one in merchant["prices"]
    ]
    changes = await visit.api.get("/v1/log", kind="merchants", merchant=merchant["origin"], limit=100)
    pinned = {
        (one["detail"]["role"], one["detail"]["address"]): (one["by"], one["at"])
        for one in reversed(changes["log"])
        if one["event"] == "address_pinned"
    }
    return await visit.page(
        "merchant.html",
        refused,
        merchant={**merchant, "prices": prices},
        pinned=pinned,
        spent=(await _spent(visit)).get(merchant["origin"], []),
    )


def _name(visit: Visit) -> str:
    return str(visit.request.path_params["name"])


def _path(visit: Visit) -> str:
    return f"/v1/merchants/{_name(visit)}"


async def add(visit: Visit) -> Response:
    typed = visit.form
    body = {name: typed[name] for name in ("name", "origin", "partner") if typed.get(name)}
    if is_t_backend(body.get("origin", "")):
        body["split_mode"] = "additional"  # as `payagent merchants add` does
    await _require_new(visit, body)
    facts = tuple((name.replace("_", " "), value) for name, value in body.items())
    title = f"Allow payments to {body.get('origin', 'no origin')}"
    return visit.confirm_in_terminal(title, facts, "/ui/merchants", "/v1/merchants", body, None)


async def _require_new(visit: Visit, body: Mapping[str, str]) -> None:
    """Check what can be checked before somebody goes to the terminal. Refused: `bad_request`, `already_exists`."""
    order = CreateMerchant.check(body)
    origin = read_merchant(order.name, order.settings, visit.renderer.facts["network"]).origin
    for one in (await visit.api.get("/v1/merchants"))["merchants"]:
        if order.name == one["name"] or origin == one["origin"]:
            raise Refused("already_exists/merchant", f"the merchant {one['name']} is {one['origin']}")


async def remove(visit: Visit) -> Response:
    await visit.api.post(f"{_path(visit)}/remove")
    return visit.done(
        "/ui/merchants", f"{_name(visit)} is removed. Nothing new is paid there; payments under way go on."
    )


async def resume(visit: Visit) -> Response:
    """Paying a merchant again that took money and served nothing lets money out, so the terminal confirms it."""
    merchant = await visit.api.get(_path(visit))
    facts = (
        ("merchant", merchant["name"]),
        ("origin", merchant["origin"]),
        ("not served", f"{counted(merchant['unserved_streak'], 'payment')} in a row"),
        ("then", "payments to it are made again, and the count starts at zero"),
    )
    title, back_to = f"Resume payments to {merchant['name']}", f"/ui/merchants/{merchant['name']}"
    return visit.confirm_in_terminal(title, facts, back_to, f"{_path(visit)}/resume", None, None)


async def pin(visit: Visit) -> Response:
    merchant, body = await visit.api.get(_path(visit)), _address(visit)
    network = (await visit.api.get("/v1/wallet"))["network"]
    CreatePin.check(body)
    with own_order(key="address"):
        parse_address(body["address"], NETWORKS[network])
    facts = (
        ("merchant", merchant["name"]),
        ("role", body["role"].replace("_", " ")),
        ("address", body["address"]),
        ("compare", "with the merchant, and not with its 402"),
    )
    title, back_to = f"Allow {merchant['name']} to be paid at an address", f"/ui/merchants/{merchant['name']}"
    return visit.confirm_in_terminal(title, facts, back_to, f"{_path(visit)}/pins", body, None)


async def unpin(visit: Visit) -> Response:
    await visit.api.post(f"{_path(visit)}/unpin", _address(visit))
    return visit.done(f"/ui/merchants/{_name(visit)}", "The address is removed. Nothing is paid there any more.")


def _address(visit: Visit) -> dict[str, str]:
    return {name: visit.form.get(name, "") for name in ("role", "address")}


async def topup(
    visit: Visit, refused: ApiRefusedError | None = None, plan: Mapping[str, Any] | None = None
) -> Response:
    merchant = await visit.api.get(_path(visit))
    pools = (await visit.api.get("/v1/prepaid"))["prepaid"]
    limits = [
        one
        for one in (await visit.api.get("/v1/limits"))["limits"]
        if one["asset"] == LOVELACE and one["limit"] != Window.PAYMENT
        if one["app"] in (None, visit.app.name) and one["merchant"] in (None, merchant["name"])
    ]
    return await visit.page(
        "topup.html",
        refused,
        merchant=merchant,
        pools=(own := [one for one in pools if one["origin"] == merchant["origin"]]),
        unit=visit.form.get("unit") or (CALLS if any(one["unit"] == CALLS for one in own) else LOVELACE),
        plan=plan,
        calls=CALLS,
        assets=(await visit.api.get("/v1/wallet"))["assets"],
        tightest=min(limits, key=lambda one: int(one["left"]), default=None),
    )


async def order_topup(visit: Visit) -> Response:
    """Ask what a top-up costs, and only then order it: the button to order stands beside its cost."""
    body = _topup(visit)
    if visit.form.get("act") != "order":
        plan = await visit.api.post("/v1/prepaid/topups", {**body, "dry_run": True})
        return await topup(visit, plan=plan)
    await visit.api.post("/v1/prepaid/topups", body, visit.order)
    goal = f"{amount_text(body['units'])} are paid"
    if body["asset"] == CALLS:
        goal = f"{counted(body['units'], 'call')} are bought"
    return visit.done("/ui/merchants#topups", f"Topping up {_name(visit)} until {goal}. All limits hold.")


def _topup(visit: Visit) -> dict[str, Any]:
    """The API's order. Without a path it makes the request of the config."""
    typed, unit = visit.form, CALLS if visit.form.get("unit") == CALLS else LOVELACE
    units = typed.get("amount") if unit == CALLS else units_of(typed, "amount")
    body: dict[str, Any] = {"merchant": _name(visit), "asset": unit, "units": units or ""}
    if typed.get("path"):
        body["request"] = {name: typed.get(name, "") for name in ("method", "path", "body")}
        body["only_sells"] = typed.get("only_sells") == "yes"
    return body


async def cancel_topup(visit: Visit) -> Response:
    ended = await visit.api.post(f"/v1/prepaid/topups/{visit.request.path_params['topup_id']}/cancel")
    notice = "The top-up is cancelled. What it bought stays."
    if ended["state"] == "stopping":
        notice = "It buys nothing more. It stops when the merchant has accepted the proof of its open payment."
    return visit.done("/ui/merchants#topups", notice)


PAGES = [
    page(
        "/ui/merchants",
        show,
        entry=MenuEntry(
            "Merchants",
            (2, 2),
            '<path d="M2.5 6.2 3.6 2.7h8.8l1.1 3.5M2.5 6.2a1.8 1.8 0 0 0 3.7 0 1.8 1.8 0 0 0 3.6 0 1.8 1.8 0 0 0 '
            '3.7 0M3.3 8v5.4h9.4V8"/>',
        ),
    ),
    form("/ui/merchants", add, refused_on=show),
    page("/ui/merchants/{name}", show_one),
    form("/ui/merchants/{name}/remove", remove),
    form("/ui/merchants/{name}/resume", resume),
    form("/ui/merchants/{name}/pins", pin, refused_on=show_one),
    form("/ui/merchants/{name}/unpin", unpin),
    page("/ui/merchants/{name}/topup", topup, "operate"),
    form("/ui/merchants/{name}/topup", order_topup, refused_on=topup),
    form("/ui/topups/{topup_id}/cancel", cancel_topup),
]
