"""The first page: what needs a person, what can be spent, and what happened.

Never: changes anything.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from payagent.core.ledger import in_channels
from payagent.core.money import LOVELACE
from payagent.core.notifications import ALERTS
from payagent.dashboard.bars import wallet_bars
from payagent.dashboard.charts import spend_chart
from payagent.dashboard.pages import approvals
from payagent.dashboard.spent import days, spent
from payagent.dashboard.text import amount_text
from payagent.dashboard.visit import MenuEntry, Visit, page

LATEST = 6


async def show(visit: Visit) -> Response:
    api = visit.api
    wallet = await api.get("/v1/wallet")
    limits = (await api.get("/v1/limits"))["limits"]
    latest = (await api.get("/v1/payments", limit=LATEST))["payments"]
    awaiting = (await api.get("/v1/payments", state="awaiting_approval", limit=20))["payments"]
    apps = (await api.get("/v1/apps"))["apps"]
    merchants = (await api.get("/v1/merchants"))["merchants"]
    return await visit.page(
        "overview.html",
        asks=[approvals.ask(one) for one in awaiting],
        asks_icon=approvals.ENTRY.icon,
        needs=_needs((await api.get("/v1/alerts"))["alerts"]),
        money=_money(wallet),
        in_channels=in_channels((await api.get("/v1/ledger/balance"))["balances"]),
        address=wallet["address"],
        limits=wallet_bars(limits),
        **await _spent(visit),
        prepaid=(await api.get("/v1/prepaid"))["prepaid"],
        latest=latest,
        steps=None if latest else _steps(wallet, merchants, apps),
    )


def _needs(alerts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a person is to look into."""
    needs = []
    for alert in alerts:
        if alert["kind"] in ("approval_needed", "paused"):  # stand there by themselves
            continue
        needs.append(
            {
                "icon": "falling" if alert["kind"].endswith("_low") else "bad",
                "is_bad": not alert["kind"].endswith("_low"),
                "title": ALERTS[alert["kind"]][1],
                "text": alert["facts"].get("detail", alert["subject"]),
                "href": _place(alert),
            }
        )
    return needs


def _place(alert: Mapping[str, Any]) -> str:
    """The page that deals with an alert."""
    if "payment" in alert["facts"]:
        return f"/ui/payments/{alert['facts']['payment']}"
    kinds = {
        "wallet_low": "wallet",
        "external_spend": "wallet",
        "prepaid_low": "merchants",
        "terms_changed": "merchants",
    }
    return f"/ui/{kinds.get(alert['kind'], 'merchants' if 'merchant' in alert['facts'] else 'settings')}"


def _money(wallet: Mapping[str, Any]) -> dict[str, Any]:
    """ADA in parts that add up to the total; the rest is change that no block shows yet, or locked."""
    row = next(one for one in wallet["assets"] if one["asset"] == LOVELACE)
    available, held, total, in_flight = (int(row[name]) for name in ("available", "held", "total", "in_flight"))
    parts = [("f1", available), ("f2", in_flight), ("f3", held - in_flight), ("f5", total - available - held)]
    whole = max(total, 1)
    return {
        "available": available,
        "in_flight": in_flight,
        "held": held - in_flight,
        "change": total - available - held,
        "total": total,
        "meter": [(max(units, 0) * 100 / whole, look) for look, units in parts],
        "others": [one for one in wallet["assets"] if one["asset"] != LOVELACE],
    }


async def _spent(visit: Visit) -> dict[str, Any]:
    """The chart of 30 days in ADA, and what was spent today and in 30 days of each asset, ADA first."""
    units: Counter[tuple[str, str | None]] = Counter()
    today, month = Counter({LOVELACE: 0}), Counter({LOVELACE: 0})
    dates = days()
    for on, one in (await spent(visit)).items():
        if on.asset == LOVELACE:
            units[on.day, on.merchant] += one.total
        month[on.asset] += one.total
        if on.day == dates[-1]:
            today[on.asset] += one.total
    return {"chart": spend_chart(units, dates), "today": today.items(), "month": month.items()}


def _steps(
    wallet: Mapping[str, Any], merchants: Sequence[object], apps: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The way to the first paid call, while there is no payment."""
    ada = next(one for one in wallet["assets"] if one["asset"] == LOVELACE)
    has_money, has_app = int(ada["total"]) > 0, any(one["scopes"] == ["pay"] and one["active"] for one in apps)
    money = f"{amount_text(ada['total'])} in the wallet" if has_money else "The wallet is empty"
    return [
        {"title": "A wallet", "text": "payagent init made it", "is_done": True, "href": "", "action": ""},
        {
            "title": "A merchant",
            "text": "Who may be paid",
            "is_done": bool(merchants),
            "href": "/ui/merchants",
            "action": "Add a merchant",
        },
        {"title": "Money", "text": money, "is_done": has_money, "href": "/ui/wallet", "action": "Receive ADA"},
        {
            "title": "A program",
            "text": "With a token and limits of its own",
            "is_done": has_app,
            "href": "/ui/apps/new",
            "action": "Add an app",
        },
        {
            "title": "Its first paid call",
            "text": "Point its base URL at payagent",
            "is_done": False,
            "href": "/ui/apps#connect",
            "action": "Show me",
        },
    ]


PAGES = [
    page(
        "/ui/",
        show,
        entry=MenuEntry(
            "Overview",
            (1, 1),
            '<path d="M2.5 7.2 8 2.6l5.5 4.6V13a.6.6 0 0 1-.6.6H9.8V9.8H6.2v3.8H3.1a.6.6 0 0 1-.6-.6z"/>',
        ),
    )
]
