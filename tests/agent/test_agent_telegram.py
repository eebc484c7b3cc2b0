"""A Telegram bot and its paired chats over time: codes that end, approvals that time out, terms that differ.

The chain and the agent share one clock, which a test can move. The bot talks to a fake of Telegram.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kit.agent import ADA, APP, Run, World, with_terms, world_with_clock
from kit.canaries import plant
from kit.merchants import guarded, pay_to
from kit.telegram import ApiError, BotMessage, Telegram

from payagent.agent.base.config import AgentConfig
from payagent.agent.base.requests import Approver
from payagent.agent.operator.telegram import CODE_FOR_MS, CODE_TRIES, TelegramTarget
from payagent.core.aggregate import PaymentRow
from payagent.core.merchant_rules import MerchantRules, Pin
from payagent.core.notifications import Missed, Notification
from payagent.core.payment.machine import State
from payagent.outbound.telegram import TelegramBot
from payagent.store.rows import approvals

TOKEN = plant("the bot's token", "123456:a-canary_of-a-bot")
ASKING = with_terms(approval_required_above={"lovelace": 5 * ADA}, approval_timeout_s=600)
ANN, BOB, MALLORY = 11, 22, 66
GROUP = -100500
NEWS = Notification("ntf_1", "test", 1, "A test", "of all chats", {}, None, None, None)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as world:
        world.fund(50 * ADA, 50 * ADA)
        world.settings(timeout=7_200, price=str(10 * ADA), splits=[])
        yield world


@pytest.fixture
def telegram() -> Iterator[Telegram]:
    with Telegram(TOKEN).serving() as telegram:
        yield telegram


async def until(reached: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not reached():
            await asyncio.sleep(0.02)


@dataclass
class Phone:
    """The agent with its bot."""

    run: Run
    target: TelegramTarget
    telegram: Telegram

    async def pair(self, chat: int, user: int | None = None) -> None:
        self.telegram.write(chat, f"/start {self.target.new_code(APP).text}", user)
        await until(lambda: chat in [one.chat_id for one in self.target.paired()])

    async def ask(
        self, purpose: str = "for a test", links: Mapping[str, str] = {}
    ) -> tuple[PaymentRow, BotMessage]:
        """Ask about a payment. Returns it and the newest message with buttons."""
        row, _ = await self.run.agent.pay(replace(self.run.world.ask("hello"), purpose=purpose))
        assert row.state is State.AWAITING_APPROVAL
        news = Notification("ntf_1", "approval.asked", 1, "A payment waits", "for you", {}, row.id, "t", "test")
        news = replace(news, lines=("App: test", f"Purpose: {purpose}", row.id))
        assert await self.target.send(news, links, 1) is None
        return row, next(one for one in reversed(self.telegram.messages) if one.buttons)

    async def press(self, data: str, chat: int, user: int | None = None) -> str:
        """Press a button. Returns what the person is shown."""
        press = self.telegram.press(data, chat, user)
        await until(lambda: self.telegram.pressed[press])
        return self.telegram.pressed[press]

    def state(self, row: PaymentRow) -> State:
        return self.run.context.payment(row.id).state


@asynccontextmanager
async def phone(
    world: World, telegram: Telegram, terms: Callable[[AgentConfig], AgentConfig] = ASKING
) -> AsyncIterator[Phone]:
    async with world.run(terms=terms) as run:
        await run.run_pass()
        target = TelegramTarget("phone", TelegramBot(telegram.url, TOKEN), run.fleet)
        task = asyncio.create_task(target.run())
        try:
            yield Phone(run, target, telegram)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await target.aclose()


async def test_a_code_pairs_one_chat_once(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        code = one.target.new_code(APP).text
        telegram.write(ANN, code.lower())
        await until(one.target.paired)
        telegram.write(MALLORY, f"/start {code}")
        await until(lambda: telegram.of_chat(MALLORY))
        assert [chat.chat_id for chat in one.target.paired()] == [ANN]
        assert "not paired" in telegram.of_chat(MALLORY)[0].text


async def test_a_code_pairs_a_group_where_the_bot_is_silent_otherwise(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        code = one.target.new_code(APP).text
        for text in (*["good morning"] * CODE_TRIES, "/start@other_bot", f"/start@payagent_bot {code}", "thanks"):
            telegram.write(GROUP, text, ANN)
        telegram.write(BOB, "/start")
        await until(lambda: telegram.of_chat(BOB))
        assert [(chat.chat_id, chat.user_id) for chat in one.target.paired()] == [(GROUP, ANN)]
        assert len(telegram.of_chat(GROUP)) == 1


@pytest.mark.parametrize("ahead_ms", [CODE_FOR_MS, -CODE_FOR_MS])
async def test_a_code_ends_after_ten_minutes(world: World, telegram: Telegram, ahead_ms: int) -> None:
    async with phone(world, telegram) as one:
        code = one.target.new_code(APP).text
        world.clock.ahead_ms += ahead_ms
        telegram.write(ANN, code)
        await until(lambda: telegram.of_chat(ANN))
        assert one.target.paired() == []


async def test_a_few_wrong_codes_void_the_right_one(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        code = one.target.new_code(APP).text
        for text in ["/start", *["/start 00000000"] * CODE_TRIES, code]:
            telegram.write(MALLORY, text)
        await until(lambda: len(telegram.of_chat(MALLORY)) == CODE_TRIES + 2)
        assert one.target.paired() == []


async def test_an_approval_that_times_out_is_told_in_its_message(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        row, message = await one.ask()
        world.clock.ahead_ms += 601_000
        await one.run.settle_down()
        await one.run.agent.decisions.deny_what_is_over()
        await until(lambda: not message.buttons)
        assert "nobody decided in time" in message.text
        assert one.state(row) is State.DENIED


async def test_a_press_after_the_time_is_over_approves_nothing(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        row, message = await one.ask()
        world.clock.ahead_ms += 601_000
        await one.run.settle_down()
        assert "Nothing was signed" in await one.press(message.buttons["Approve"], ANN)
        assert one.state(row) is State.DENIED


async def test_terms_that_the_message_did_not_show_are_not_approved(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        row, message = await one.ask()
        await one.run.context.write(
            "test", lambda unit: unit.conn.execute("UPDATE approval_messages SET terms_hash = 'of other terms'")
        )
        for button in ("Approve", "Deny"):
            assert "terms" in await one.press(message.buttons[button], ANN)
        assert one.state(row) is State.AWAITING_APPROVAL


async def test_words_of_an_app_form_no_link_or_line_of_the_message(world: World, telegram: Telegram) -> None:
    words = "see https://evil.example/x or evil.example and @mallory_bot /approve #now"
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        row, message = await one.ask(purpose=words, links={"approve_url": "https://payagent.internal/decide/x"})
        assert "see https:" in message.text
        title, app, purpose, *_, last = message.text.partition("\nApprove page")[0].splitlines()
        assert (title, app, purpose[:8]) == ("A payment waits", "App: test", "Purpose:")
        assert last == row.id
        assert message.links == ["https://payagent.internal/decide/x"]


async def test_only_a_private_chat_gets_the_link_that_decides(world: World, telegram: Telegram) -> None:
    link = "https://payagent.internal/decide/x"
    async with phone(world, telegram) as one:
        await one.pair(GROUP, ANN)
        await one.pair(BOB)
        await one.ask(links={"approve_url": link})
        assert f"Approve page: {link}" in telegram.of_chat(BOB)[-1].text
        assert telegram.of_chat(GROUP)[-1].links == []


async def test_only_the_person_who_paired_a_group_decides_there(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(GROUP, ANN)
        row, message = await one.ask()
        assert "Nothing was decided" in await one.press(message.buttons["Approve"], GROUP, MALLORY)
        assert one.state(row) is State.AWAITING_APPROVAL
        await one.press(message.buttons["Deny"], GROUP, ANN)
        assert one.state(row) is State.DENIED
        decided = approvals.decided(one.run.context.conn, row.id)
        assert decided is not None
        assert (decided.via, decided.by_app) == ("telegram", f"phone, chat {GROUP}, user {ANN}")


@pytest.mark.parametrize(("status", "then"), [(500, "waiting"), (400, "delivered"), (403, "delivered")])
async def test_a_chat_that_has_a_message_does_not_get_it_again_for_another_that_has_not(
    world: World, telegram: Telegram, status: int, then: str
) -> None:
    news = Notification("ntf_1", "test", 1, "A test", "of all chats", {}, None, None, None)
    async with phone(world, telegram) as one:
        missed = await one.target.send(news, {}, 1)
        assert missed is not None
        assert ("no chat is paired" in missed.why, missed.then) == (True, "given_up"), "a new chat gets no backlog"
        await one.pair(ANN)
        await one.pair(BOB)
        await until(lambda: telegram.of_chat(BOB))
        before = len(telegram.messages)
        assert await one.target.send(news, {}, 1) is None
        assert len(telegram.messages) == before + 2
        told = telegram.called

        def is_blocked(path: str, body: dict[str, object]) -> object:
            if body.get("chat_id") == ANN:
                raise ApiError(status, "Forbidden: bot was blocked by the user")
            return told(path, body)

        telegram.called = is_blocked  # type: ignore[method-assign]
        missed = Missed(f"chat {ANN}: it answered {status}", then=then)  # type: ignore[arg-type]
        assert await one.target.send(news, {}, 1) == missed
        assert len(telegram.messages) == before + 3, "Bob is told all the same"
        telegram.called = told  # type: ignore[method-assign]
        if then == "waiting":
            assert await one.target.send(news, {}, 1) is None
            assert len(telegram.messages) == before + 4
        assert not one.target._ended


async def test_an_approval_that_is_open_waits_for_a_chat(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        row, _ = await one.run.agent.pay(world.ask("hello"))
        news = Notification("ntf_1", "approval.asked", 1, "A payment waits", "for you", {}, row.id, "t", "test")
        missed = await one.target.send(news, {}, 1)
        assert missed is not None
        assert ("no chat is paired" in missed.why, missed.then) == (True, "waiting")
        await one.pair(ANN)
        assert await one.target.send(news, {}, 1) is None
        assert telegram.of_chat(ANN)[-1].buttons.keys() >= {"Approve", "Deny"}


async def test_what_every_chat_refuses_for_good_is_given_up(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        await until(lambda: telegram.of_chat(ANN))
        telegram.failures = [ApiError(403, "Forbidden: bot was blocked by the user")]
        missed = Missed(f"chat {ANN}: it answered 403", then="given_up")
        assert await one.target.send(NEWS, {}, 1) == missed


async def test_the_memory_of_half_told_notifications_is_bounded(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        await until(lambda: telegram.of_chat(ANN))
        telegram.failures = [ApiError(429, "Too Many Requests: retry after 60", retry_after=60)]
        for count in range(200):
            assert await one.target.send(replace(NEWS, id=f"ntf_{count}"), {}, 1)
        assert len(one.target._ended) <= 100


async def test_a_chat_gets_nothing_while_telegram_asked_to_wait(world: World, telegram: Telegram) -> None:
    news = Notification("ntf_1", "test", 1, "A test", "of the wait", {}, None, None, None)
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        await until(lambda: telegram.of_chat(ANN))
        telegram.failures = [ApiError(429, "Too Many Requests: retry after 60", retry_after=60)]
        assert await one.target.send(news, {}, 1) == Missed(f"chat {ANN}: it answered 429", 60)
        assert f"chat {ANN}: it asked to wait 60 s more" in str(await one.target.send(news, {}, 1))
        assert telegram.refused == 1
        await one.pair(BOB)
        await until(lambda: telegram.of_chat(BOB))  # the wait is for the other chat


async def test_a_chat_that_must_wait_holds_up_no_other_and_is_logged_once(
    world: World, telegram: Telegram, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("payagent.agent.operator.telegram.AGAIN_S", 0.3)
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        await one.pair(BOB)
        row, _ = await one.ask()
        telegram.failures = [ApiError(429, "Too Many Requests: retry after 1", retry_after=1)]
        await one.run.agent.decisions.deny(row.id, Approver("token", APP))
        first, second = (telegram.of_chat(chat)[-1] for chat in (ANN, BOB))
        await until(lambda: not first.buttons or not second.buttons)
        assert first.buttons or second.buttons, "the other chat still waits"
        await until(lambda: not first.buttons and not second.buttons)
    log = capsys.readouterr().out
    assert "it answered 429" in log
    assert log.count("it asked to wait") <= 1


async def test_a_decision_elsewhere_edits_the_message_even_after_an_outage(
    world: World, telegram: Telegram
) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        row, message = await one.ask()
        telegram.failures = [ApiError(500, "Internal Server Error")]
        await one.run.agent.decisions.deny(row.id, Approver("token", APP))
        await until(lambda: not message.buttons)
        assert "by test, token" in message.text


async def test_no_line_of_the_terms_is_cut_in_a_message_with_buttons(world: World, telegram: Telegram) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        row, message = await one.ask(purpose="x" * 1_000 + " the end")
        assert "the end" in message.text
        news = Notification("ntf_1", "approval.asked", 1, "A payment", "x" * 9_000, {}, row.id, "t", "test")
        assert await one.target.send(news, {}, 1) is None
        assert telegram.messages[-1].buttons == {}


async def test_a_payment_with_more_terms_than_a_message_holds_has_no_buttons(
    world: World, telegram: Telegram
) -> None:
    async with phone(world, telegram) as one:
        await one.pair(ANN)
        await until(lambda: telegram.of_chat(ANN))
        splits = [{"role": "receiver-" + letter, "units": "1500000"} for letter in "abcdefghijklmn"]
        world.settings(price=str(10 * ADA), splits=splits)
        row, _ = await one.run.agent.pay(world.ask("many outputs"))
        news = Notification("ntf_1", "approval.asked", 1, "." * 700, "." * 700, {}, row.id, "t", "test")
        assert await one.target.send(news, {}, 1) is None
        assert telegram.messages[-1].buttons == {}
        assert "payagent payments show" in telegram.messages[-1].text


async def test_no_button_approves_a_new_address(world: World, telegram: Telegram) -> None:
    known = guarded(world, MerchantRules(from_file=frozenset({Pin("pay_to", pay_to("known"))})))
    async with phone(world, telegram, lambda config: ASKING(known(config))) as one:
        await one.pair(ANN)
        row, message = await one.ask()
        assert list(message.buttons) == ["Deny"]
        assert "To approve a new address, check it first" in message.text
        made_up = message.buttons["Deny"].replace("deny", "approve")
        assert "Nothing was decided" in await one.press(made_up, ANN)
        assert one.state(row) is State.AWAITING_APPROVAL
        await one.press(message.buttons["Deny"], ANN)
        assert one.state(row) is State.DENIED
