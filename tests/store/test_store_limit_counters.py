"""Limit counters, compared with a model that remembers every payment and adds them up each time."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from kit import holds
from kit.effort import pick

from payagent.audit.verify import check_limits
from payagent.core import policy
from payagent.core.policy import ANY, LENGTH_MS, SPAN_MS, WALLET, Limit, Scope, Window, scopes_of
from payagent.store import executor
from payagent.store.db.opening import migrate, open_database
from payagent.store.db.unit import Unit
from payagent.store.rows import limit_counters

ADA, TOKEN = "lovelace", "ab" * 28 + "00"
APPS, SHOPS = ("app_1", "app_2"), ("https://a.example", "https://b.example")
BEGIN_MS = 1_800_000_000_000
EVERY_LIMIT = [
    Limit(scope, asset, window, 0)
    for scope in {WALLET, *(one for app in APPS for shop in SHOPS for one in scopes_of(app, shop))}
    for asset in (ADA, TOKEN)
    for window in Window
]


@dataclass
class Hold:
    """A payment in the model: what counts, and since when by the chain's time (None: it is open)."""

    app: str
    merchant: str
    at_ms: int | None
    asked: dict[str, int]
    counts: dict[str, int]


def place(
    unit: Unit, name: str, app: str, origin: str, units: dict[str, int], clock_ms: int, *, is_counted: bool
) -> None:
    """A payment with its hold; one that is not counted is an operator's transfer."""
    (number,) = unit.conn.execute("SELECT COUNT(*) + 1 FROM payments").fetchone()
    executor.open_intent(
        unit,
        intent_id=f"int_{name}",
        app_id=app,
        idempotency_key=name,
        is_key_derived=False,
        fingerprint="f",
        origin=origin,
        request=None,
        request_id="r",
        now_ms=1,
    )
    executor.open_payment(
        unit,
        payment_id=name,
        kind="invoice" if is_counted else "send",
        app_id=app,
        intent_id=f"int_{name}",
        invoice_seq=number if is_counted else None,
        outputs=[],
        now_ms=1,
    )
    holds.place_hold(unit, name, units, 1, clock_ms, is_counted)


@cache
def empty_ledger() -> bytes:
    with closing(open_database(Path(":memory:"))) as conn:
        migrate(conn)
        return conn.serialize()


def ledger_in_memory() -> sqlite3.Connection:
    """A ledger with tables, and without the rows that holds refer to."""
    conn = open_database(Path(":memory:"))
    conn.deserialize(empty_ledger())
    conn.execute("PRAGMA foreign_keys = OFF")
    return conn


class Spending(RuleBasedStateMachine):
    """Payments come, end without paying and come back, while blocks come and clocks jump."""

    @initialize()
    def begin(self) -> None:
        self.conn = ledger_in_memory()
        self.unit = Unit(self.conn)
        self.holds: dict[str, Hold] = {}
        self.block_ms: int | None = BEGIN_MS
        self.latest_ms = 0

    @rule(ahead_ms=st.one_of(st.integers(0, 400_000), st.integers(0, 40 * 86_400_000)))
    def a_block_comes(self, ahead_ms: int) -> None:
        self.block_ms = (self.block_ms or BEGIN_MS) + ahead_ms

    @rule(back_ms=st.integers(0, 86_400_000))
    def a_rollback_puts_the_chain_back(self, back_ms: int) -> None:
        self.block_ms = (self.block_ms or BEGIN_MS) - back_ms

    @rule()
    def no_block_is_believed(self) -> None:
        self.block_ms = None

    @rule(
        app=st.sampled_from(APPS),
        merchant=st.sampled_from(SHOPS),
        lovelace=st.integers(1, 10**7),
        tokens=st.one_of(st.none(), st.integers(1, 2**63 - 1)),
    )
    def a_payment_is_admitted(self, app: str, merchant: str, lovelace: int, tokens: int | None) -> None:
        name = f"pay{len(self.holds)}"
        asked = {ADA: lovelace} | ({} if tokens is None else {TOKEN: tokens})
        clock_ms = limit_counters.clock_ms(self.conn, self.block_ms)
        assert clock_ms >= self.latest_ms  # whatever the chain and the clocks did
        self.latest_ms = clock_ms
        place(self.unit, name, app, merchant, asked, clock_ms, is_counted=True)
        self.holds[name] = Hold(app, merchant, None, asked, dict(asked))

    @rule(app=st.sampled_from(APPS))
    def the_operator_moves_utxos(self, app: str) -> None:
        name = f"send{self.conn.execute('SELECT COUNT(*) FROM payments').fetchone()[0]}"
        clock_ms = limit_counters.clock_ms(self.conn, self.block_ms)
        self.latest_ms = clock_ms
        place(self.unit, name, app, "", {ADA: 10**9}, clock_ms, is_counted=False)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), landed_ms=st.integers(BEGIN_MS - 10**8, BEGIN_MS + 10**8))
    def a_payment_is_posted(self, data: st.DataObject, landed_ms: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.holds)))
        hold = self.holds[name]
        if hold.at_ms is None:
            hold.at_ms = limit_counters.clock_ms(self.conn, max(landed_ms, self.block_ms or 0))
            holds.post_hold(self.unit, name, hold.at_ms)

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), fee=st.integers(0, 200_000))
    def a_payment_ends_without_paying(self, data: st.DataObject, fee: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.holds)))
        hold = self.holds[name]
        if hold.at_ms is None:
            hold.at_ms = limit_counters.clock_ms(self.conn, self.block_ms)
            holds.release_hold(self.unit, name, 9, fee, hold.at_ms)
            hold.counts = {asset: fee if asset == ADA else 0 for asset in hold.asked}

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def a_rollback_brings_it_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.holds)))
        holds.renew_hold(self.unit, name)
        self.holds[name].at_ms, self.holds[name].counts = None, dict(self.holds[name].asked)

    @invariant()
    def what_is_counted_is_what_was_spent(self) -> None:
        clock_ms = limit_counters.clock_ms(self.conn, self.block_ms)
        for limit, told in limit_counters.counted_for_each(self.conn, EVERY_LIMIT, clock_ms).items():
            scope, asset, window, _ = limit
            assert self._least(scope, asset, window, clock_ms) <= told, (scope, window)
            assert told <= self._most(scope, asset, window, clock_ms), (scope, window)

    def teardown(self) -> None:
        """The audit of the limits finds nothing; that of the holds would, as no void event has a fee."""
        assert not [one for one in check_limits(self.conn) if one.table == "limit_counters"]
        self.conn.close()

    def _least(self, scope: Scope, asset: str, window: Window, clock_ms: int) -> int:
        """What is newer than the window's start, to the millisecond."""
        since_ms = clock_ms - LENGTH_MS[window] if window in LENGTH_MS else -1
        return 0 if window is Window.PAYMENT else self._sum(scope, asset, since_ms)

    def _most(self, scope: Scope, asset: str, window: Window, clock_ms: int) -> int:
        """Including what is older by less than a span."""
        if window in LENGTH_MS:
            return self._sum(scope, asset, clock_ms - LENGTH_MS[window] - SPAN_MS[window])
        return self._least(scope, asset, window, clock_ms)

    def _sum(self, scope: Scope, asset: str, since_ms: int) -> int:
        return sum(
            hold.counts.get(asset, 0)
            for hold in self.holds.values()
            if (hold.at_ms is None or hold.at_ms > since_ms)
            and scope.app in (ANY, hold.app)
            and scope.merchant in (ANY, hold.merchant)
        )


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=pick(20, 60), stateful_step_count=25, deadline=None)

ROLLING = {Window.HOUR: 100, Window.DAY: 250}


class Landings(RuleBasedStateMachine):
    """On the chain, what lands within a window of chain time stays within the limit of that window.

    The daemon admits by its counters, sees blocks late or not at all, and payments land at any time.
    """

    @initialize()
    def begin(self) -> None:
        self.conn = ledger_in_memory()
        self.unit = Unit(self.conn)
        self.now_ms = BEGIN_MS
        self.seen_ms: int | None = BEGIN_MS
        self.wanted: dict[str, int] = {}
        self.landed: dict[str, tuple[int, int]] = {}
        """When a payment or its cancel landed, and its units."""
        self.ended: set[str] = set()

    @rule(ms=st.sampled_from([1, 300_000, 1_800_000, 3_300_000, 3_900_000, 80_000_000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def the_daemon_sees_the_newest_block(self) -> None:
        self.seen_ms = self.now_ms

    @rule()
    def the_daemon_believes_no_block(self) -> None:
        self.seen_ms = None

    @rule(units=st.sampled_from([1, 40, 60, 100]))
    def a_payment_is_wanted(self, units: int) -> None:
        clock_ms = limit_counters.clock_ms(self.conn, self.seen_ms)
        limits = [Limit(WALLET, ADA, window, most) for window, most in ROLLING.items()]
        asked = [policy.ask(one, limit_counters.counted(self.conn, one, clock_ms), {ADA: units}) for one in limits]
        if policy.tightest(asked) is None:
            name = f"pay{len(self.wanted)}"
            place(self.unit, name, APPS[0], SHOPS[0], {ADA: units}, clock_ms, is_counted=True)
            self.wanted[name] = units

    @precondition(lambda self: self.wanted.keys() - self.landed.keys() - self.ended)
    @rule(data=st.data())
    def one_lands(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.wanted.keys() - self.landed.keys() - self.ended)))
        self.landed[name] = self.now_ms, self.wanted[name]

    @precondition(lambda self: self.landed.keys() - self.ended)
    @rule(data=st.data())
    def one_is_posted(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.landed.keys() - self.ended)))
        holds.post_hold(self.unit, name, self._from_ms(self.landed[name][0]))
        self.ended.add(name)

    @precondition(lambda self: self.wanted.keys() - self.landed.keys() - self.ended)
    @rule(data=st.data())
    def the_cancel_of_one_lands(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.wanted.keys() - self.landed.keys() - self.ended)))
        self.landed[name] = self.now_ms, 1
        self.ended.add(name)
        holds.release_hold(self.unit, name, 9, 1, self._from_ms(self.now_ms))

    @precondition(lambda self: self.landed)
    @rule(data=st.data())
    def a_rollback_takes_one_back(self, data: st.DataObject) -> None:
        """Not a cancel: it counts from `void_depth` on, and no limit can foresee a deeper fork."""
        name = data.draw(st.sampled_from(sorted(self.landed)))
        if self.landed[name][1] != self.wanted[name]:
            return
        del self.landed[name]
        self.ended.discard(name)
        holds.renew_hold(self.unit, name)

    def _from_ms(self, landed_ms: int) -> int:
        """As the agent computes it (`ChainView.landed_ms`)."""
        return limit_counters.clock_ms(self.conn, max(landed_ms, self.seen_ms or 0))

    @invariant()
    def no_window_of_the_chain_is_above_its_limit(self) -> None:
        landed = sorted(self.landed.values())
        for window, most in ROLLING.items():
            for first_ms, _ in landed:
                end_ms = first_ms + LENGTH_MS[window]
                taken = sum(units for at_ms, units in landed if first_ms <= at_ms < end_ms)
                assert taken <= most, (window, landed)

    def teardown(self) -> None:
        assert not [one for one in check_limits(self.conn) if one.table == "limit_counters"]
        self.conn.close()


TestLandings = Landings.TestCase
TestLandings.settings = settings(max_examples=pick(60, 200), stateful_step_count=25, deadline=None)


def test_a_daily_limit_adds_up_at_most_a_day_of_spans(tmp_path: Path) -> None:
    """At most a day of the smallest spans is added up."""
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    limit = Limit(WALLET, ADA, Window.DAY, 0)
    conn.execute("BEGIN")
    for number in range(5_000):
        limit_counters.count(Unit(conn), "app", "https://a.example", {ADA: 1}, BEGIN_MS + number * 300_000)
    conn.execute("COMMIT")
    clock_ms = BEGIN_MS + 4_999 * 300_000
    assert len(limit_counters.spans(conn, limit, clock_ms)) == limit_counters.counted(conn, limit, clock_ms) == 289
    conn.close()


@pytest.mark.parametrize("window", list(Window))
def test_a_limit_can_be_set_read_back_and_dropped(tmp_path: Path, window: Window) -> None:
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    unit, scope = Unit(conn), Scope("app", "https://a.example")
    limit_counters.set_limit(unit, Limit(scope, ADA, window, 5))
    limit_counters.set_limit(unit, Limit(scope, ADA, window, 7))
    limit_counters.set_limit(unit, Limit(WALLET, ADA, window, 9))
    assert set(limit_counters.limits(conn)) == {Limit(scope, ADA, window, 7), Limit(WALLET, ADA, window, 9)}
    assert limit_counters.limits_binding(conn, "app", "https://b.example") == [Limit(WALLET, ADA, window, 9)]
    limit_counters.drop_limit(unit, scope, ADA, window)
    assert limit_counters.limits(conn) == [Limit(WALLET, ADA, window, 9)]
    conn.close()


def test_no_query_about_limits_scans_a_whole_table(tmp_path: Path) -> None:
    conn = open_database(tmp_path / "ledger.db")
    migrate(conn)
    asked: list[str] = []
    conn.set_trace_callback(asked.append)
    for window in Window:
        limit_counters.counted(conn, Limit(WALLET, ADA, window, 0), BEGIN_MS)
    limit_counters.spans(conn, Limit(WALLET, ADA, Window.DAY, 0), BEGIN_MS)
    limit_counters.limits_binding(conn, "app", "https://a.example")
    conn.set_trace_callback(None)
    steps = [row[3] for sql in asked for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert len(steps) >= len(Window) + 1
    assert all(
        step.startswith(("SEARCH limit_counters USING PRIMARY KEY", "SEARCH limits USING PRIMARY"))
        for step in steps
    )
    conn.close()
