"""What was spent in the last 30 days, by merchant, app and day: the sums that pages show.

Entries of the ledger never change. So the sums are kept with the newest entry, and a page adds what came since: it
costs the same however long the ledger is.

Never: SQL; adds amounts of two assets.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from payagent.dashboard.visit import Visit

DAYS = 30


class SpentOn(NamedTuple):
    """A day of one merchant and app in one asset. `origin` and `merchant` (its name) are None for transfers."""

    day: str
    origin: str | None
    merchant: str | None
    app: str | None
    asset: str


class Sum(NamedTuple):
    """Units, with fees, and the number of payments."""

    total: int
    payments: int


Sums = dict[SpentOn, Sum]


def days() -> list[str]:
    """The last 30 days in UTC, today last."""
    today = datetime.now(UTC).date()
    return [str(today - timedelta(days=ago)) for ago in reversed(range(DAYS))]


async def spent(visit: Visit) -> Sums:
    """The sums of the last 30 days."""
    first = days()[0]
    last, before = visit.kept.get("spent", (None, {}))
    answer = await visit.api.get("/v1/ledger/spend", by="merchant,app,day", since=f"{first}T00:00:00Z", after=last)
    sums: Sums = {on: one for on, one in before.items() if on.day >= first}
    for row in answer["spend"]:
        on = SpentOn(*(row[name] for name in SpentOn._fields))
        total, payments = sums.get(on, Sum(0, 0))
        sums[on] = Sum(total + int(row["total"]), payments + row["payments"])
    visit.kept["spent"] = answer["last_entry"], sums
    return sums
