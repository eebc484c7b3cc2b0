"""Channels, the payments that change them, and the calls that they pay.

Never: decides; commits.
"""

from dataclasses import dataclass, fields, replace

from payagent.core.channel import LIVE, LOCKED, CallState, Channel, ChannelCall, ChannelPhase
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, POSTED, State
from payagent.core.problems import Refused
from payagent.store.db.sql import find_all, find_one, number, places, sql_list
from payagent.store.db.unit import Connection, Unit

_NAMES = [one.name for one in fields(Channel)]
_CHANNEL = f"SELECT {', '.join(_NAMES)} FROM channels"  # noqa: S608  our own names
_CALL_NAMES = [{"channel": "channel_id"}.get(one.name, one.name) for one in fields(ChannelCall)]
_CALL = f"SELECT {', '.join(_CALL_NAMES)} FROM channel_calls"  # noqa: S608  our own names
_STEP = """
SELECT s.payment_id, s.channel_id, s.step, s.units, s.is_booked, p.state
FROM channel_steps s JOIN payments p ON p.id = s.payment_id"""

CHANNELS_APP = "app_channels"
"""The app of the steps that payagent makes by itself."""


@dataclass(frozen=True, slots=True)
class ChannelStepRow:
    """A payment that opens, raises, closes or ends a channel. `units`: what it locks, or brings back.

    `is_booked`: the channel has taken it into account, as confirmed.
    """

    payment_id: str
    channel_id: str
    step: str
    units: int
    is_booked: bool
    state: State

    @property
    def is_over(self) -> bool:
        """Whether it ended without changing the channel."""
        return self.state in ENDED_WITHOUT_PAYING

    @property
    def is_posted(self) -> bool:
        return self.state in POSTED

    @property
    def is_under_way(self) -> bool:
        """Whether it may still change the channel."""
        return self.state not in (*POSTED, *ENDED_WITHOUT_PAYING, State.CANCELLING)


def _channel(*columns: object) -> Channel:
    row = dict(zip(_NAMES, columns, strict=True))
    row["phase"] = ChannelPhase(str(row["phase"]))
    for name in ("is_settled", "is_count_known", "is_used"):
        row[name] = bool(row[name])
    return Channel(**row)  # type: ignore[arg-type]


def _call(*columns: object) -> ChannelCall:
    row = dict(zip((one.name for one in fields(ChannelCall)), columns, strict=True))
    row["state"] = CallState(str(row["state"]))
    return ChannelCall(**row)  # type: ignore[arg-type]


def _step(payment_id: str, channel_id: str, step: str, units: int, is_booked: int, state: str) -> ChannelStepRow:
    return ChannelStepRow(payment_id, channel_id, step, units, bool(is_booked), State(state))


def channel(conn: Connection, channel_id: str) -> Channel:
    """Refused: `not_found`."""
    row = find_one(conn, _channel, f"{_CHANNEL} WHERE id = ?", (channel_id,))
    if row is None:
        raise Refused(
            "not_found", f"there is no channel {channel_id[:80]!r}", fix="See `payagent channels list --json`."
        )
    return row


def live_channel(conn: Connection, origin: str) -> Channel | None:
    """The channel of a merchant that is opening or open."""
    return find_one(conn, _channel, f"{_CHANNEL} WHERE origin = ? AND phase IN {sql_list(*LIVE)}", (origin,))


def locked_channels(conn: Connection, account: int | None = None) -> list[Channel]:
    """Channels that hold money, or may come to hold it; oldest first."""
    of_account, values = ("", ()) if account is None else (" AND account = ?", (account,))
    return find_all(
        conn, _channel, f"{_CHANNEL} WHERE phase IN {sql_list(*LOCKED)}{of_account} ORDER BY seq", values
    )


def followed_channels(conn: Connection, account: int) -> list[Channel]:
    """Channels of an account that the chain may still change.

    Those are locked, or ended by what a rollback may take, or void although a rollback confirmed their opening.
    """
    return find_all(
        conn,
        _channel,
        f"{_CHANNEL} WHERE account = ? AND (phase IN {sql_list(*LOCKED)} OR id IN (SELECT s.channel_id "  # noqa: S608
        "FROM channel_steps s JOIN payments p ON p.id = s.payment_id "
        "WHERE (s.step IN ('end', 'elapse') AND s.is_booked = 1 AND p.state <> 'settled') "
        f"OR (s.step = 'open' AND s.is_booked = 0 AND p.state IN {sql_list(*POSTED)}))) ORDER BY seq",
        (account,),
    )


def channels_at_rest(conn: Connection) -> list[Channel]:
    """Channels that the chain shows and that no payment is about to change, but those that are settled."""
    return find_all(
        conn,
        _channel,
        f"{_CHANNEL} WHERE phase IN {sql_list(*LOCKED)} AND ref IS NOT NULL AND is_settled = 0 AND NOT EXISTS ("  # noqa: S608
        "SELECT 1 FROM channel_steps s JOIN payments p ON p.id = s.payment_id WHERE s.channel_id = channels.id "
        f"AND p.state NOT IN {sql_list(*ENDED_WITHOUT_PAYING)} AND NOT (p.state IN {sql_list(*POSTED)} "
        "AND (s.is_booked = 1 OR s.step = 'close'))) ORDER BY seq",
    )


def channels_page(conn: Connection, before_seq: int | None, limit: int) -> list[tuple[int, Channel]]:
    """Channels with their numbers, newest first."""
    return find_all(
        conn,
        lambda seq, *columns: (seq, _channel(*columns)),
        f"SELECT seq, {', '.join(_NAMES)} FROM channels WHERE seq < COALESCE(?, {2**63 - 1}) "  # noqa: S608
        "ORDER BY seq DESC LIMIT ?",
        (before_seq, limit),
    )


def put(unit: Unit, row: Channel) -> None:
    """Write a channel, or add it."""
    values = [getattr(row, name) for name in _NAMES]
    unit.conn.execute(
        f"INSERT INTO channels({', '.join(_NAMES)}) VALUES ({places(len(values))}) "  # noqa: S608  our own names
        f"ON CONFLICT (id) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _NAMES)}",
        [int(value) if isinstance(value, bool) else value for value in values],
    )


def forget_steps(unit: Unit, channel_id: str) -> None:
    """The channel is not what its steps made."""
    unit.conn.execute("DELETE FROM channel_steps WHERE channel_id = ?", (channel_id,))


def doubt(unit: Unit, channel_id: str) -> None:
    """The count is not known any more: the next voucher asks for it."""
    unit.conn.execute("UPDATE channels SET is_count_known = 0 WHERE id = ?", (channel_id,))


def add_step(unit: Unit, payment_id: str, channel_id: str, step: str, units: int) -> None:
    unit.conn.execute(
        "INSERT INTO channel_steps(payment_id, channel_id, step, units) VALUES (?, ?, ?, ?)",
        (payment_id, channel_id, step, units),
    )


def steps_of(conn: Connection, channel_id: str) -> list[ChannelStepRow]:
    """The payments that change a channel, oldest first."""
    return find_all(conn, _step, f"{_STEP} WHERE s.channel_id = ? ORDER BY s.seq", (channel_id,))


def step_of(conn: Connection, payment_id: str) -> ChannelStepRow | None:
    return find_one(conn, _step, f"{_STEP} WHERE s.payment_id = ?", (payment_id,))


def set_booked(unit: Unit, payment_id: str, is_booked: bool) -> None:
    unit.conn.execute("UPDATE channel_steps SET is_booked = ? WHERE payment_id = ?", (int(is_booked), payment_id))


def locked_since(conn: Connection, since_ms: int) -> int:
    """Units that openings and additions locked since a time, or are about to lock."""
    return number(
        conn,
        "SELECT COALESCE(SUM(s.units), 0) FROM channel_steps s "  # noqa: S608  our own names
        "JOIN payments p ON p.id = s.payment_id "
        f"WHERE s.step IN ('open', 'add') AND p.state NOT IN {sql_list(*ENDED_WITHOUT_PAYING)} "
        "AND p.created_at_ms >= ?",
        (since_ms,),
    )


def add_call(unit: Unit, call: ChannelCall, counted_at_ms: int) -> None:
    """Add a call. Its `seq` is given by the table. `counted_at_ms`: the limits' clock."""
    names = [*_CALL_NAMES[1:], "counted_at_ms"]
    values = [getattr(call, one.name) for one in fields(ChannelCall)][1:]
    unit.conn.execute(
        f"INSERT INTO channel_calls({', '.join(names)}) VALUES ({places(len(names))})",  # noqa: S608
        [*values, counted_at_ms],
    )


def set_call(unit: Unit, call: ChannelCall, state: CallState, charged: int | None, now_ms: int) -> ChannelCall:
    unit.conn.execute(
        "UPDATE channel_calls SET state = ?, charged = ?, updated_at_ms = ? WHERE id = ?",
        (state, charged, now_ms, call.id),
    )
    return replace(call, state=state, charged=charged, updated_at_ms=now_ms)


def promise_again(unit: Unit, call_id: str, amount: int, channel_ref: str, now_ms: int) -> None:
    """Another voucher pays a call that no answer counts for."""
    unit.conn.execute(
        "UPDATE channel_calls SET amount = ?, channel_ref = ?, updated_at_ms = ? WHERE id = ?",
        (amount, channel_ref, now_ms, call_id),
    )


def is_newest(conn: Connection, call: ChannelCall) -> bool:
    """Whether its channel has promised no other call since."""
    newest = number(conn, "SELECT MAX(seq) FROM channel_calls WHERE channel_id = ?", (call.channel,))
    return newest == call.seq


def is_paid(conn: Connection, channel_id: str, amount: int) -> bool:
    """Whether the voucher for an amount has paid a call, whose answer the merchant may have stored."""
    paid = f"{_CALL} WHERE channel_id = ? AND amount = ? AND state IN ('served', 'paid_not_served')"
    return find_one(conn, _call, paid, (channel_id, amount)) is not None


def exact_fees_since(conn: Connection, origin: str, since_ms: int) -> int:
    """Fees in lovelace of the payments to a merchant that were made since a time."""
    return number(
        conn,
        "SELECT COALESCE(SUM(a.fee_lovelace), 0) FROM payments p JOIN attempts a ON a.tx_id = p.tx_id "
        "WHERE p.kind = 'invoice' AND p.origin = ? AND p.created_at_ms >= ?",
        (origin, since_ms),
    )


def call(conn: Connection, call_id: str) -> ChannelCall | None:
    return find_one(conn, _call, f"{_CALL} WHERE id = ?", (call_id,))


def require_call(conn: Connection, call_id: str) -> ChannelCall:
    """Refused: `not_found`."""
    if (row := call(conn, call_id)) is None:
        raise Refused("not_found", f"there is no call {call_id[:80]!r}")
    return row


def call_for(conn: Connection, intent_id: str) -> ChannelCall | None:
    """The call of an intent that is not void."""
    return find_one(conn, _call, f"{_CALL} WHERE intent_id = ? AND state <> 'void'", (intent_id,))


def unanswered_call(conn: Connection, channel_id: str) -> ChannelCall | None:
    """The call of a channel that has no answer yet. There is one at most."""
    return find_one(conn, _call, f"{_CALL} WHERE channel_id = ? AND state = 'promised'", (channel_id,))


def promised_by_calls(conn: Connection, channel_id: str) -> int:
    """What the calls of a channel have promised, which limits have counted."""
    return number(conn, "SELECT COALESCE(SUM(promised), 0) FROM channel_calls WHERE channel_id = ?", (channel_id,))


def calls_page(conn: Connection, channel_id: str, before_seq: int | None, limit: int) -> list[ChannelCall]:
    """Calls of a channel, newest first."""
    return find_all(
        conn,
        _call,
        f"{_CALL} WHERE channel_id = ? AND seq < COALESCE(?, {2**63 - 1}) ORDER BY seq DESC LIMIT ?",
        (channel_id, before_seq, limit),
    )


def unserved_in_a_row(conn: Connection, channel_id: str, most: int) -> int:
    """How many of the last `most` answered calls were charged and not served, counted from the newest."""
    states = find_all(
        conn,
        str,
        "SELECT state FROM channel_calls WHERE channel_id = ? AND state IN ('served', 'paid_not_served') "
        "ORDER BY seq DESC LIMIT ?",
        (channel_id, most),
    )
    return next((place for place, state in enumerate(states) if state == CallState.SERVED), len(states))
