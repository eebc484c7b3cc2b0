"""Limits as bars. Never: computes what is left (the API does)."""

from collections.abc import Mapping
from typing import Any

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
    return {**limit, "title": WINDOWS[Window(limit["limit"])], "meter": meter}
