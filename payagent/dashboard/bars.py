"""Limits as bars. Never: computes what is left (the API does)."""

from collections.abc import Mapping, Sequence
from typing import Any

from payagent.core.money import LOVELACE
from payagent.core.policy import Window

WINDOWS = {
    Window.PAYMENT: "One payment",
    Window.HOUR: "Last hour",
    Window.DAY: "Last 24 hours",
    Window.WEEK: "Last 7 days",
    Window.MONTH: "Last 30 days",
    Window.TOTAL: "Ever",
}


def limit_bar(limit: Mapping[str, Any]) -> dict[str, Any]:
    """A limit of the API as a bar. It changes its colour at 80% and at 95%. A limit of one payment has no bar."""
    spent, most = int(limit["spent"]), int(limit["most"])
    percent = min(spent * 100 / most, 100.0) if most else 100.0
    look = "fbad" if percent >= 95 else "fwarn" if percent >= 80 else "f1"
    meter = [] if limit["limit"] == Window.PAYMENT else [(percent, look)]
    return {**limit, "title": WINDOWS[Window(limit["limit"])], "meter": meter, "percent": percent}


def wallet_bars(limits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The wallet's own limits, those in ADA first."""
    own = [limit_bar(one) for one in limits if not one["app"] and not one["merchant"]]
    return sorted(own, key=lambda one: bool(one["asset"] != LOVELACE))
