"""Receiving, UTxOs, splitting and sending. What no limit bounds is confirmed in the terminal.

Never: SQL; sends anything by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import segno
from markupsafe import Markup
from starlette.responses import Response

from payagent.api.models.wallet import SplitOrder
from payagent.core.address import parse_address
from payagent.core.money import LOVELACE, LOVELACE_PER_ADA, Tokens, show_amount
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused, own_order
from payagent.dashboard.fields import read_units
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.text import amount_text
from payagent.dashboard.visit import MenuEntry, Visit, form, page

SHOWN = 10
SIZES_ADA = (2, 5, 10, 20, 50)
CHIPS = {"available": "ok", "reserved": "warn", "pending": "go", "locked": "off", "missing": "bad"}
MEANINGS = {
    "available": "can be spent now",
    "reserved": "for a payment",
    "pending": "change that no block shows yet",
    "locked": "came with a datum or a script, never spent here",
    "missing": "no provider shows it now",
}


async def show(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    wallet = await visit.api.get("/v1/wallet")
    utxos = (await visit.api.get("/v1/wallet/utxos"))["utxos"]
    utxos.sort(key=lambda one: -int(one["lovelace"]))
    shows_all = "all" in visit.request.query_params
    return await visit.page(
        "wallet.html",
        refused,
        wallet=wallet,
        money=_money(wallet, utxos),
        qr=_qr(wallet["address"]),
        sizes=_sizes(utxos),
        utxos=[
            one | {"chip": CHIPS[one["state"]], "meaning": MEANINGS[one["state"]]}
            for one in (utxos if shows_all else utxos[:SHOWN])
        ],
        utxo_count=len(utxos),
        free=wallet["utxos"]["available"],
    )


def _money(wallet: Mapping[str, Any], utxos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """ADA in parts that add up to the total, and the other assets."""
    ada = next(one for one in wallet["assets"] if one["asset"] == LOVELACE)
    available, held, total = (int(ada[name]) for name in ("available", "held", "total"))
    locked = sum(int(one["lovelace"]) for one in utxos if one["state"] in ("locked", "missing"))
    return {
        "available": available,
        "held": held,
        "change": total - available - held - locked,
        "locked": locked,
        "total": total,
        "others": [one for one in wallet["assets"] if one["asset"] != LOVELACE],
    }


def _qr(address: str) -> Markup:
    code = segno.make(address, error="m", micro=False)
    return Markup(code.svg_inline(omitsize=True, svgclass=None, lineclass="qrline", border=1))  # noqa: S704  no text


def _sizes(utxos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The UTxOs by size: how many can be spent now, how many not, and a bar of both."""
    edges = (0, *SIZES_ADA)
    rows = []
    for at, low in enumerate(edges):
        high = edges[at + 1] if at + 1 < len(edges) else None
        label = f"over {low} ADA" if high is None else f"{low} to {high} ADA" if low else f"under {high} ADA"
        of_size = [one for one in utxos if _is_between(int(one["lovelace"]), low, high)]
        free = sum(one["state"] == "available" for one in of_size)
        sums = sum(int(one["lovelace"]) for one in of_size)
        rows.append({"label": label, "free": free, "other": len(of_size) - free, "lovelace": sums})
    most = max((row["free"] + row["other"] for row in rows), default=0) or 1
    return [row | {"meter": [(row["free"] * 100 / most, "f1"), (row["other"] * 100 / most, "f3")]} for row in rows]


def _is_between(lovelace: int, low: int, high: int | None) -> bool:
    return low * LOVELACE_PER_ADA <= lovelace and (high is None or lovelace < high * LOVELACE_PER_ADA)


async def split(visit: Visit) -> Response:
    """Keep a split until the terminal confirms it: no limit counts its fee."""
    wallet, count = await visit.api.get("/v1/wallet"), visit.form.get("count", "")
    tokens = visit.renderer.facts["tokens"]
    is_number = count.isascii() and count.isdecimal() and len(count) < 10
    lovelace = read_units(visit.form.get("each", ""), LOVELACE, tokens, "each")
    body = {"count": int(count) if is_number else count, "lovelace": str(lovelace)}
    order = SplitOrder.check(body)
    _require_available(wallet, LOVELACE, order.count * order.lovelace, tokens)
    each = amount_text(order.lovelace)
    facts = (
        ("makes", f"{order.count} UTxOs of {each} each, in this wallet"),
        ("fee", "the network's, known when it is signed; less than 1 ADA"),
        ("limits", "only limits.signed_per_day bounds it"),
    )
    title = f"Split into {order.count} UTxOs of {each}"
    return visit.confirm_in_terminal(title, facts, "/ui/wallet", "/v1/wallet/split", body, visit.order)


async def send(visit: Visit) -> Response:
    """Keep a send until the terminal confirms it."""
    wallet = await visit.api.get("/v1/wallet")
    address, order, text, left = _order(visit.form, wallet, visit.renderer.facts["tokens"])
    facts = (
        ("sends", text),
        ("fee", "the network's, known when it is signed; less than 1 ADA"),
        ("to", address),
        ("history", await _history(visit, address, wallet["address"])),
        ("left after", left),
    )
    body = {"address": address, **order}
    return visit.confirm_in_terminal(f"Send {text}", facts, "/ui/wallet", "/v1/wallet/send", body, visit.order)


def _order(
    fields: Mapping[str, str], wallet: Mapping[str, Any], tokens: Tokens
) -> tuple[str, dict[str, object], str, str]:
    """A send: the address, what the API is asked to send, and in words what it sends and what is left."""
    with own_order(key="address"):
        address = parse_address(fields.get("address", ""), NETWORKS[wallet["network"]]).text
    if "all" in fields:
        left = "nothing that may leave, unless it does not fit into one transaction"
        return address, {"all": True}, "everything that is available and may leave", left
    asset = fields.get("asset") or LOVELACE
    units = read_units(fields.get("amount", ""), asset, tokens)
    if units == 0:
        raise Refused("amount_invalid", "the amount is zero", key="amount")
    left = f"{show_amount(asset, _require_available(wallet, asset, units, tokens) - units, tokens)} spendable"
    text = show_amount(asset, units, tokens)
    if asset == LOVELACE:
        left += ", less the fee"
    else:
        text += ", with the ADA that an output with a token must carry"
    return address, {"asset": asset, "units": str(units)}, text, left


def _require_available(wallet: Mapping[str, Any], asset: str, units: int, tokens: Tokens) -> int:
    """What can be spent of an asset now. Refused: `not_enough_funds`."""
    available = {one["asset"]: int(one["available"]) for one in wallet["assets"]}.get(asset, 0)
    if units > available:
        raise Refused("not_enough_funds", f"{show_amount(asset, available, tokens)} can be spent now")
    return available


async def _history(visit: Visit, address: str, own: str) -> str:
    """Whether the wallet has sent to this address before."""
    if address == own:
        return "this is the wallet's own address: it merges UTxOs"
    sent = (await visit.api.get("/v1/ledger/spend", by="destination"))["spend"]
    sends = sum(row["payments"] for row in sent if row["destination"] == address)
    return f"sent to before, {sends} confirmed" if sends else "the first send to this address"


async def unfreeze(visit: Visit) -> Response:
    frozen_by = (await visit.api.get("/v1/wallet"))["frozen_by"]
    facts = (
        ("what", "payagent signs again"),
        ("after", "another program spent from this wallet in the transactions below"),
        ("transactions", ", ".join(frozen_by)),
    )
    return visit.confirm_in_terminal(
        "Unfreeze the wallet", facts, "/ui/wallet", "/v1/wallet/unfreeze", {"seen": frozen_by}, None
    )


PAGES = [
    page(
        "/ui/wallet",
        show,
        entry=MenuEntry(
            "Wallet",
            (3, 1),
            '<path d="M2.4 5.2V12a1 1 0 0 0 1 1h9.2a1 1 0 0 0 1-1V6.4a1 1 0 0 0-1-1H3.6a1.2 1.2 0 0 1 0-2.5h8M11 '
            '9.2h.1"/>',
        ),
    ),
    form("/ui/wallet/split", split, refused_on=show),
    form("/ui/wallet/send", send, refused_on=show),
    form("/ui/wallet/unfreeze", unfreeze),
]
