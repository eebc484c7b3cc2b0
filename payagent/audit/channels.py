"""Checks channels against their events, their calls, and the entries.

Never: asks a merchant or the chain; lets a stored total change how it judges.
"""

import json
from collections import Counter
from collections.abc import Iterator

from payagent.audit.finding import AuditFinding, Progress, each_differing
from payagent.core.channel import EFFECTS, LOCKED, ChannelEvent, ChannelPhase
from payagent.core.ledger import channel_account
from payagent.store.audit import books
from payagent.store.db.unit import Connection
from payagent.store.rows import journal
from payagent.store.rows.channels import channels_page

_EVENTS = {f"channel_{event}": event for event in ChannelEvent}
_NEW = (ChannelPhase.OPENING, 0, 0)


def check_channels(conn: Connection) -> Iterator[AuditFinding | Progress]:
    """Check that each channel is what its events, calls and entries make it, and the balances of the accounts."""
    rows = {row.id: row for _, row in channels_page(conn, None, 2**31)}
    # an earlier ledger had the entries of what these held, all of which counts as signed
    forgotten = {
        detail["channel"]: int(detail["signed"])
        for _, text, _ in books.wallet_events(conn, ("channel_recover",))
        for detail in (json.loads(text),)
    }
    by_events = dict.fromkeys(rows, _NEW)
    only_charged = set(rows)
    for name, text, _ in books.wallet_events(conn, (*_EVENTS, "channel_ordered", "channel_recover")):
        detail = json.loads(text)
        channel, signed, count = detail["channel"], int(detail.get("signed", 0)), int(detail.get("count", 0))
        if name == "channel_ordered":  # a void channel's opening may be ordered again, with the same input
            if detail["step"] == "open":
                by_events[channel] = _NEW
            continue
        if name == "channel_recover":
            by_events[channel] = ChannelPhase.CLOSING, signed, 0
            continue
        before = by_events.get(channel, _NEW)
        effect = EFFECTS.get((before[0], _EVENTS[name]))
        if effect is None or signed < before[1]:
            yield AuditFinding("channels", channel, f"{name} cannot follow {before}")
        if _EVENTS[name] is not ChannelEvent.SERVE and count != before[2]:
            only_charged.discard(channel)  # the merchant or the chain changed its count
        by_events[channel] = (effect and effect.next) or before[0], signed, count
    facts = ((row.id, (row.phase, row.signed, row.count), by_events.pop(row.id)) for row in rows.values())
    yield from each_differing(
        "channels", facts, "its state, what is signed and its count are {}; by its events, {}"
    )
    left: Counter[tuple[str, str]] = Counter()
    for channel, promised, charged, used, locked, under_way in books.channel_sums(conn):
        row = rows[channel]
        spent = (row.signed if row.phase in LOCKED else row.claimed) - forgotten.get(channel, 0)
        back = locked - (row.deposited - row.returned - forgotten.get(channel, 0))
        # more came back than this ledger has locked
        if row.phase is ChannelPhase.ENDED and back < 0 and not under_way:
            spent += back
        else:
            back = 0
        left[channel_account(row.origin), row.asset] += locked - spent
        # a rollback took its opening, and the next pass says what becomes of it
        is_unopened = row.phase is ChannelPhase.CLOSING and not locked
        for is_wrong, what in (
            (promised > row.signed, f"its calls promise {promised}, and {row.signed} is signed"),
            (
                channel in only_charged and charged < row.count,
                f"its calls charge {charged}, it counts {row.count}",
            ),
            (used != spent, f"the entries of its promises spend {used}, it spends {spent}"),
            (
                row.phase is not ChannelPhase.OPENING
                and not (under_way or is_unopened)
                and locked != row.deposited - row.returned - forgotten.get(channel, 0) + back,
                f"{locked} is booked as locked, it says {row.deposited} less {row.returned}",
            ),
        ):
            if is_wrong:
                yield AuditFinding("channels", channel, what)
    booked = {(account, asset): units for account, asset, units in journal.balances(conn)}
    accounts = sorted(left.keys() | {key for key in booked if key[0].startswith(channel_account(""))})
    sums = ((" ".join(key), booked.get(key, 0), left[key]) for key in accounts)
    yield from each_differing("balances", sums, "it is {}; its channels hold {}")
    yield from (AuditFinding("channels", one, "it has events, and no row") for one in sorted(by_events))
    yield Progress("channels", len(rows))
