"""Checks that tokens end as the events say: when the app is revoked or gets a new token.

May import: store, audit. Never: sees a token.
"""

from collections import defaultdict
from collections.abc import Iterator

from payagent.audit.finding import AuditFinding
from payagent.store.audit import books
from payagent.store.db.unit import Connection


def check_tokens(conn: Connection) -> Iterator[AuditFinding]:
    events: dict[str | None, list[tuple[str, int]]] = defaultdict(list)
    for app, event, at_ms in books.token_events(conn):
        events[app].append((event, at_ms))
    tokens: dict[str, list[tuple[int, int | None]]] = defaultdict(list)
    for number, app, revoked_at_ms in books.tokens(conn):
        tokens[app].append((number, revoked_at_ms))
    for app, app_tokens in tokens.items():
        ends = _ends(len(app_tokens), events[app])
        for (number, revoked_at_ms), expected_ms in zip(app_tokens, ends, strict=True):
            if revoked_at_ms != expected_ms:
                message = f"it ended at {revoked_at_ms}; by the events, at {expected_ms}"
                yield AuditFinding("tokens", str(number), message)


def _ends(count: int, events: list[tuple[str, int]]) -> list[int | None]:
    """When each of an app's tokens ended. The first may have been issued with the app, which no event records."""
    ends: list[int | None] = [None] * count
    current = count - 1 - sum(event == "token_issued" for event, _ in events)
    is_good = current >= 0
    for event, at_ms in events:
        if is_good and 0 <= current < count:
            ends[current] = at_ms
        is_good = event == "token_issued"
        current += is_good
    return ends
