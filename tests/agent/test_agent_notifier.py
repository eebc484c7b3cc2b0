"""Targets of notifications: told once of what they want, later when they were down, each by itself."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World, daily, with_terms, world_with_clock
from kit.merchants import leave_unserved
from kit.payments import attempts, fork_with, wait_for_void
from kit.telegram import Telegram
from kit.webhook import KEY, Receiver

from payagent.agent.base.requests import Approver
from payagent.agent.operator.alerts import note_check
from payagent.agent.operator.approval_links import ApprovalLinks
from payagent.agent.operator.notifier import Notifier, retry_at_ms, take_targets, wait_ms
from payagent.agent.operator.telegram import TelegramTarget
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.notifications import Missed, Notification
from payagent.core.payment.machine import State
from payagent.core.policy import WALLET, Limit, Window
from payagent.core.problems import Refused
from payagent.outbound.telegram import TelegramBot
from payagent.outbound.webhook import Webhook
from payagent.settings.schema import NotificationSettings
from payagent.store.executor import raise_alert
from payagent.store.rows import chats, limit_counters, notifications
from payagent.store.rows.notifications import DeliveryRow
from payagent.wallet.keys import derive, seed_from_words

SECOND, HOUR, DAY = 1000, 3_600_000, 86_400_000
ELSEWHERE = derive(seed_from_words("zoo " * 23 + "vote"), DEVNET).address
SECRET_FILE = Path("/secret")
TOKEN = "5c" * 28 + "6c"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as world:
        yield world


@dataclass
class Life:
    """One life of the agent, with its targets of notifications."""

    run: Run
    notifiers: Mapping[str, Notifier]

    async def tell(self) -> None:
        """Run each notifier once."""
        for notifier in self.notifiers.values():
            await notifier.run_once()

    async def alert(self, subject: str) -> None:
        now_ms = self.run.context.ports.clock.now_ms()
        facts = {"detail": "for a test"}
        await self.run.context.write("test", lambda unit: raise_alert(unit, "paused", subject, facts, now_ms))

    def rows(self, target: str = "ops") -> list[DeliveryRow]:
        """A target's deliveries, oldest first."""
        rows = notifications.page(self.run.context.conn, target=target, state=None, before_seq=None, limit=100)
        return rows[::-1]

    def states(self, target: str = "ops") -> list[str]:
        return [row.state for row in self.rows(target)]

    def last_problem(self, target: str = "ops") -> str | None:
        return notifications.state_of(self.run.context.conn, target).last_problem


def ops(receiver: Receiver, name: str = "ops", **wanted: tuple[str, ...]) -> NotificationSettings:
    return NotificationSettings(
        name=name,
        kind="webhook",
        url=receiver.url,
        secret_file=SECRET_FILE,
        **wanted,  # type: ignore[arg-type]
    )


@asynccontextmanager
async def life(
    world: World, *targets: NotificationSettings, links: ApprovalLinks | None = None, **terms: object
) -> AsyncIterator[Life]:
    async with world.run(terms=with_terms(**terms)) as run, AsyncExitStack() as stack:
        await take_targets(run.context, [one.name for one in targets])
        notifiers = {}
        for one in targets:
            webhook = Webhook(one.url, KEY)
            stack.push_async_callback(webhook.aclose)
            notifiers[one.name] = Notifier(run.context, one, webhook, links)
        yield Life(run, notifiers)


def require_whole(run: Run) -> None:
    with run.context.readers.snapshot() as conn:
        found = list(verify(conn, Owner(run.context.config.own, run.context.config.network)))
    assert not [one for one in found if isinstance(one, AuditFinding)], found


async def test_a_payment_is_told_when_it_is_confirmed_and_when_it_is_not_served(
    world: World, receiver: Receiver
) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver)) as one:
        row = await one.run.pay_in_block()
        await one.run.agent.deliveries.record_delivery(row.id, 402)
        await one.run.settle_down(2)
        await one.run.agent.deliveries.give_up_unserved()
        world.clock.ahead_ms += 2 * HOUR
        await one.run.settle_down(1)
        for _ in range(2):
            await one.run.agent.deliveries.give_up_unserved()
            await one.run.agent.deliveries.record_delivery(row.id, 402)
            await one.tell()
        assert receiver.types() == ["payment.confirmed", "payment.paid_not_served"]
        paid = receiver.calls[0].said
        assert (paid["payment"], paid["merchant"], paid["app"]) == (row.id, "t", "test")
        assert (paid["title"], paid["tx_hash"]) == ("Paid 13 ADA to t", row.attempt.tx_id)
        assert (paid["network"], paid["address"]) == ("devnet", world.address)
        assert len(set(receiver.ids())) == 2
        assert one.states() == ["delivered", "delivered"]
        require_whole(one.run)


async def test_a_void_payment_that_pays_after_all_is_told_again_as_not_served(
    world: World, receiver: Receiver
) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver)) as one:
        lost = await leave_unserved(world, one.run, "lost")
        paying, before = attempts(one.run, lost)[0], (lost.block.height or 0) - 1
        fork_with(world, before)
        for _ in range(4):
            await one.run.run_pass()
        await one.run.agent.lifecycle.resolve(lost.id, APP)
        await wait_for_void(world, one.run)
        fork_with(world, before, paying.cbor)
        await one.run.settle_down(8)
        await one.tell()
        unserved, void = "payment.paid_not_served", "payment.void"
        assert one.run.state(lost.id) is State.CONFIRMED
        assert [told for told in receiver.types() if told in (unserved, void)] == [unserved, void, unserved]
        first, *_, last = (call.said for call in receiver.calls if call.type == unserved)
        del first["id"], last["id"]
        assert first == last
        require_whole(one.run)


async def test_a_transfer_is_told_and_a_split_is_not(world: World, receiver: Receiver) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver)) as one:
        await one.run.run_pass()
        await one.run.agent.transfers.split(APP, 2, 5 * ADA)
        await one.run.settle_down(2)
        await one.run.agent.transfers.send(APP, ELSEWHERE, "lovelace", 15 * ADA, None)
        await one.run.settle_down(3)
        await one.tell()
    (call,) = receiver.calls
    assert (call.type, call.said["title"]) == ("payment.confirmed", f"Paid 15 ADA to {ELSEWHERE.text}")


async def test_an_approval_is_told_with_links_while_it_is_open_and_then_its_decision(
    world: World, receiver: Receiver
) -> None:
    world.fund(100 * ADA)
    links = ApprovalLinks("https://payagent.example", b"k" * 32)
    above = {"lovelace": 5 * ADA}
    async with life(world, ops(receiver), links=links, approval_required_above=above) as one:
        await one.run.run_pass()
        first, _ = await one.run.agent.pay(world.ask("first"))
        await one.tell()
        second, _ = await one.run.agent.pay(world.ask("second"))
        for payment_id in (first.id, second.id):
            await one.run.agent.decisions.deny(payment_id, Approver("token", APP))
        await one.tell()
    assert receiver.types() == ["approval.asked"] * 2 + ["approval.decided"] * 2
    asked, late, *decided = (call.said for call in receiver.calls)
    assert asked["approve_url"].startswith(f"https://payagent.example/ui/decide/{first.id}/approve/")
    assert "deny_url" in asked
    assert asked["text"].startswith("App: test; Decide before 20")
    assert asked["text"].endswith(first.id)
    assert "approve_url" not in late, "nothing is left to decide"
    assert [(one["payment"], one["decision"], one["via"]) for one in decided] == [
        (first.id, "denied", "token"),
        (second.id, "denied", "token"),
    ]


async def test_people_are_told_a_token_in_the_decimals_of_the_config(world: World, receiver: Receiver) -> None:
    world.fund(20 * ADA, assets={TOKEN: 1_000})
    limits = tuple(
        Limit(WALLET, asset, Window.DAY, units) for asset, units in ((TOKEN, 45), ("lovelace", 20 * ADA))
    )
    terms = {"limits": limits, "tokens": {"USDM": (TOKEN, 1)}}
    async with life(world, ops(receiver), **terms) as one:
        await one.run.run_pass()
        world.settings(price="50", asset=TOKEN, splits=[])
        with pytest.raises(Refused, match="daily limit leaves"):
            await one.run.agent.pay(world.ask("too much"))
        await one.tell()
    (told,) = (call.said for call in receiver.calls)
    assert "the wallet's daily limit leaves 4.5 USDM, this payment takes 5 USDM and its fee" in told["text"]
    assert told["asset"] == TOKEN


async def test_a_new_chat_is_told_nothing_of_before(world: World) -> None:
    settings = NotificationSettings(name="phone", kind="telegram", secret_file=SECRET_FILE)
    with Telegram("1:x").serving() as telegram:
        async with life(world) as one:
            context = one.run.context
            await take_targets(context, ["phone"])
            target = TelegramTarget("phone", TelegramBot(telegram.url, "1:x"), one.run.fleet)
            notifier = Notifier(context, settings, target)
            for subject in ("before", "after"):
                await one.alert(subject)
                await notifier.run_once()
                await context.write("test", lambda unit: chats.pair(unit, "phone", 11, 11, APP, 1))
            assert one.states("phone") == ["given_up", "delivered"]
            assert len(telegram.of_chat(11)) == 1
            await target.aclose()


async def test_a_limit_is_told_once_for_a_series_of_refusals(world: World, receiver: Receiver) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver), limits=daily(5 * ADA, 50 * ADA)) as one:
        await one.run.run_pass()
        for message in ("one", "two", "three"):
            with pytest.raises(Refused, match="limit per payment leaves"):
                await one.run.agent.pay(world.ask(message))
            await one.tell()
        assert receiver.types() == ["limit.reached"]
        assert "limit per payment" in receiver.calls[0].said["text"]
        world.clock.ahead_ms += HOUR
        await one.run.settle_down()
        with pytest.raises(Refused):
            await one.run.agent.pay(world.ask("an hour later"))
        await one.tell()
        assert receiver.types() == ["limit.reached"] * 2


async def test_each_limit_is_told_for_itself_and_an_apps_own_maximum_never(
    world: World, receiver: Receiver
) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver), limits=daily(20 * ADA, 20 * ADA)) as one:
        await one.run.pay_in_block()
        with pytest.raises(Refused, match="the call's own limit"):
            await one.run.agent.pay(world.ask("cheap", max_total_units=1))
        await one.tell()
        with pytest.raises(Refused, match="daily limit leaves"):
            await one.run.agent.pay(world.ask("too much for the day"))
        await one.tell()
        most = Limit(WALLET, "lovelace", Window.PAYMENT, 5 * ADA)
        await one.run.context.write("test", lambda unit: limit_counters.set_limit(unit, most))
        with pytest.raises(Refused, match="limit per payment leaves"):
            await one.run.agent.pay(world.ask("too much for a payment"))
        await one.tell()
    told = [call.said for call in receiver.calls if call.type == "limit.reached"]
    assert [(one["limit"], one["asset"], one["scope"]) for one in told] == [
        ("per_day", "lovelace", "wallet"),
        ("per_payment", "lovelace", "wallet"),
    ]


async def test_a_limit_is_told_also_when_the_first_commit_fails(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver), limits=daily(5 * ADA, 50 * ADA)) as one:
        await one.run.run_pass()
        with pytest.raises(Refused, match="limit per payment leaves"):
            await one.run.agent.pay(world.ask("one"))

        async def is_full(*_: object) -> None:
            raise Refused("store_failed", "the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(one.run.context, "write", is_full)
            with pytest.raises(Refused, match="store_failed"):
                await one.tell()
        await one.tell()
    assert receiver.types() == ["limit.reached"]


async def test_wrong_books_are_told_once_until_they_are_right(world: World, receiver: Receiver) -> None:
    async with life(world, ops(receiver)) as one:
        for found in (0, 2, 3, 0, 0):
            await note_check(one.run.context, "payagent ledger verify", found)
            await one.tell()
    assert receiver.types() == ["books.wrong", "alert.cleared"]
    assert (
        receiver.calls[0].said["text"] == "`payagent ledger verify` found 2 differences. Run it again to see them"
    )


async def test_a_target_is_told_only_what_it_wants(world: World, receiver: Receiver) -> None:
    world.fund(100 * ADA)
    with Receiver().serving() as other:
        targets = ops(receiver, events=("payment.*",)), ops(other, "desk", merchants=("u",))
        async with life(world, *targets) as one:
            await one.run.pay_in_block()
            await one.run.settle_down(2)
            await one.alert("pause")
            await one.tell()
        assert (receiver.types(), other.types()) == (["payment.confirmed"], [])


async def test_a_target_that_is_down_holds_up_no_other_and_only_its_own_next_try(
    world: World, receiver: Receiver
) -> None:
    receiver.status = 503
    with Receiver().serving() as other:
        async with life(world, ops(receiver), ops(other, "desk")) as one:
            await one.alert("first")
            await one.alert("second")
            await one.tell()
            assert len(receiver.calls) == 1
            assert other.said() == [("paused", "first"), ("paused", "second")]
            receiver.status = 204
            await one.tell()
            assert receiver.said() == [("paused", "first"), ("paused", "second")], "the first one waits"
            assert (one.last_problem(), one.last_problem("desk")) == ("it answered 503", None)
            await one.tell()
            assert receiver.said()[2:] == [("paused", "first")], "the target answers again"
            assert one.last_problem() is None


async def test_people_are_not_asked_what_is_decided(world: World, receiver: Receiver) -> None:
    world.fund(100 * ADA)
    people = ops(receiver).model_copy(update={"kind": "ntfy"})
    async with life(world, people, approval_required_above={"lovelace": 5 * ADA}) as one:
        await one.run.run_pass()
        receiver.status = 503
        row, _ = await one.run.agent.pay(world.ask("first"))
        await one.tell()
        await one.run.agent.decisions.deny(row.id, Approver("token", APP))
        receiver.status = 204
        world.clock.ahead_ms += 5 * SECOND
        await one.tell()
        assert receiver.types() == ["approval.asked", "approval.decided"]
        assert one.states() == ["given_up", "delivered"]
        assert one.rows()[0].last_problem == "it was decided before it could be sent"


async def test_an_open_approval_is_tried_every_minute_for_as_long_as_it_is_open(
    world: World, receiver: Receiver
) -> None:
    world.fund(100 * ADA)
    async with life(world, ops(receiver), approval_required_above={"lovelace": 5 * ADA}) as one:
        await one.run.run_pass()
        receiver.status = 503
        row, _ = await one.run.agent.pay(world.ask("first"))
        for _ in range(9):
            await one.tell()
            world.clock.ahead_ms += 60 * SECOND
        assert len(receiver.calls) == 9
        world.clock.ahead_ms += 2 * DAY
        await one.tell()
        assert one.states() == ["waiting"]
        await one.run.agent.decisions.deny(row.id, Approver("token", APP))
        world.clock.ahead_ms += 60 * SECOND
        await one.tell()
        await one.tell()
        assert one.states()[0] == "given_up"


async def test_a_wait_that_the_service_asks_for_is_no_try(world: World, receiver: Receiver) -> None:
    receiver.status, receiver.retry_after = 429, "40"
    async with life(world, ops(receiver)) as one:
        await one.alert("pause")
        world.clock.stopped_ms = world.clock.now_ms()
        await one.tell()
        (row,) = one.rows()
        assert (row.tries, row.next_try_at_ms) == (0, world.clock.now_ms() + 40 * SECOND)


async def test_a_request_for_approval_goes_first_and_a_run_sends_a_bounded_number(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payagent.agent.operator.notifier.SENT_MAX", 2)
    world.fund(100 * ADA)
    async with life(world, ops(receiver), approval_required_above={"lovelace": 5 * ADA}) as one:
        await one.run.run_pass()
        for subject in ("first", "second"):
            await one.alert(subject)
        await one.run.agent.pay(world.ask("last"))
        await one.tell()
        assert receiver.types() == ["approval.asked", "signing.paused"]
        await one.tell()
        assert one.states() == ["delivered"] * 3


@dataclass
class Half:
    """A target that reaches some of its people, and then none."""

    missed: list[Missed]

    async def send(self, notification: Notification, links: Mapping[str, str], now_ms: int) -> Missed | None:
        return self.missed.pop(0)

    async def aclose(self) -> None: ...


async def test_a_chat_that_is_gone_holds_up_nothing_and_is_shown(world: World, receiver: Receiver) -> None:
    async with life(world, ops(receiver)) as one:
        half = Half([Missed("chat 2: it answered 403", then="given_up"), Missed("chat 1: gone", then="delivered")])
        one.notifiers["ops"].target = half
        for subject in ("first", "second"):
            await one.alert(subject)
        await one.tell()
        assert (half.missed, one.states()) == ([], ["given_up", "delivered"])
        assert one.last_problem() == "chat 1: gone"


async def test_a_notification_is_delivered_later_when_the_receiver_is_down_also_after_a_restart(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.status = 503
    async with life(world, ops(receiver)) as one:
        await one.alert("pause")
        for wait_ms in (0, 5 * SECOND, 30 * SECOND):
            world.clock.ahead_ms += wait_ms
            await one.tell()
            await one.tell()
        assert len(receiver.calls) == 3
        await one.alert("before the restart")
    async with life(world, ops(receiver, events=("signing.paused",))) as one:
        receiver.status = 302
        await one.tell()
        assert len(receiver.calls) == 4, "two minutes are not over for the first"
        world.clock.ahead_ms += 120 * SECOND
        receiver.status = 200
        await one.tell()
        assert [call.path for call in receiver.calls] == ["/hook"] * 6, "a redirect was followed"
        world.clock.ahead_ms += DAY
        await one.tell()
        first = [call for call in receiver.calls if call.said["subject"] == "pause"]
        assert len(first) == 4
        assert len({call.headers["webhook-id"] for call in first}) == len({call.body for call in first}) == 1
        times_s = [int(call.headers["webhook-timestamp"]) for call in first]
        assert times_s == sorted(times_s)
        assert one.states() == ["delivered", "delivered"]
        require_whole(one.run)


async def test_a_notification_delayed_by_a_wrong_clock_is_sent_once_it_is_right(
    world: World, receiver: Receiver
) -> None:
    receiver.status = 503
    world.clock.ahead_ms = DAY
    async with life(world, ops(receiver)) as one:
        await one.alert("first")
        await one.tell()
        await one.alert("second")
        assert len(receiver.calls) == 1
    world.clock.ahead_ms, receiver.status = 0, 204
    async with life(world, ops(receiver)) as one:
        await one.tell()
        assert sorted(receiver.said()[1:]) == [("paused", "first"), ("paused", "second")]


async def test_an_unreachable_target_is_given_up_after_a_day_and_can_be_replayed(
    world: World, receiver: Receiver
) -> None:
    receiver.status = 500
    async with life(world, ops(receiver)) as one:
        await one.alert("pause")
        for _ in range(12):
            await one.tell()
            world.clock.ahead_ms += 6 * HOUR
        assert one.states() == ["given_up"]
        (row,) = notifications.page(one.run.context.conn, target="ops", state="given_up", before_seq=None, limit=9)
        assert (row.last_problem, row.next_try_at_ms) == ("it answered 500", None)
        tried = len(receiver.calls)
        receiver.status = 204
        await one.notifiers["ops"].replay(row.id)
        await one.tell()
        await one.tell()
        assert (len(receiver.calls), one.states()) == (tried + 1, ["delivered"])
        assert set(receiver.ids()) == {row.id}


async def test_all_that_is_a_day_old_is_given_up_at_the_next_failure(world: World, receiver: Receiver) -> None:
    receiver.status = 500
    async with life(world, ops(receiver)) as one:
        for subject in ("first", "second", "third"):
            await one.alert(subject)
        await one.tell()
        world.clock.ahead_ms += DAY
        await one.tell()
        assert (len(receiver.calls), one.states()) == (2, ["given_up"] * 3)
        assert one.rows()[2].last_problem == "not taken within a day"


async def test_what_a_wrong_clock_dated_later_is_given_up_a_day_after_it_is_right(
    world: World, receiver: Receiver
) -> None:
    receiver.status = 500
    world.clock.ahead_ms = 10 * DAY
    async with life(world, ops(receiver)) as one:
        await one.alert("first")
        await one.tell()
        world.clock.ahead_ms = 0
        await one.tell()
        assert len(receiver.calls) == 2
        world.clock.ahead_ms = DAY
        await one.tell()
        assert one.states() == ["given_up"]


def test_delivery_is_retried_with_growing_delays_for_a_day() -> None:
    now_ms, tries, waits = 0, 0, []
    while (again_ms := retry_at_ms(0, wait_ms(tries := tries + 1), now_ms)) is not None:
        waits.append((again_ms - now_ms) // 1000)
        now_ms = again_ms
    assert waits == [5, 30, 120, 600, 3600, 21600, 21600, 21600, 17245]
    assert now_ms == DAY


async def test_a_new_target_is_told_no_old_news_and_a_removed_one_nothing_more(
    world: World, receiver: Receiver
) -> None:
    receiver.status = 503
    with Receiver().serving() as other:
        async with life(world, ops(receiver)) as one:
            await one.alert("old")
            await one.tell()
        async with life(world, ops(other, "desk")) as one:
            await one.tell()
            assert (one.states(), other.calls) == (["given_up"], [])
            await one.alert("new")
            await one.tell()
            assert other.said() == [("paused", "new")]
        receiver.status = 204
        async with life(world, ops(receiver), ops(other, "desk")) as one:
            world.clock.ahead_ms += HOUR
            await one.tell()
            assert (len(receiver.calls), len(other.calls)) == (1, 1)


async def test_the_chats_of_a_removed_target_are_unpaired(world: World, receiver: Receiver) -> None:
    async with life(world, ops(receiver), ops(receiver, "desk")) as one:
        for target in ("ops", "desk"):
            pair = partial(chats.pair, target=target, chat_id=7, user_id=7, by_app=APP, now_ms=1)
            await one.run.context.write("test", pair)
    for targets in ([ops(receiver)], [ops(receiver), ops(receiver, "desk")]):
        async with life(world, *targets) as one:
            conn = one.run.context.conn
            assert [len(chats.of_target(conn, target)) for target in ("ops", "desk")] == [1, 0]
            require_whole(one.run)


async def test_an_unreachable_target_stops_nothing(world: World) -> None:
    receiver = Receiver()
    receiver.server.server_close()
    async with life(world, ops(receiver)) as one:
        await one.alert("pause")
        await one.tell()
        await one.tell()
        (row,) = one.rows()
        assert (row.tries, row.last_problem) == (1, "ConnectError")


async def test_telling_costs_the_ledger_nothing_while_nothing_happens(world: World, receiver: Receiver) -> None:
    async with life(world, ops(receiver)) as one:
        await one.alert("pause")
        await one.tell()
        commits = one.run.commits
        for _ in range(3):
            await one.tell()
        assert one.run.commits == commits


async def test_a_test_reaches_a_target_whatever_it_wants(world: World, receiver: Receiver) -> None:
    async with life(world, ops(receiver, events=("payment.*",))) as one:
        test_id, problem = await one.notifiers["ops"].test()
        receiver.status = 500
        _, missed = await one.notifiers["ops"].test()
    assert (problem, missed) == (None, "it answered 500")
    assert receiver.types() == ["test", "test"]
    assert receiver.ids()[0] == test_id
