"""A Telegram bot as a notification target: pairs chats, tells them the news, and takes decisions on approvals.

A chat is paired by a code that an operator orders. Only paired chats are told anything. A button decides only in
the chat that got it, pressed by the person who paired that chat, and only on the terms that the message showed.
Start with `TelegramTarget.run`.

Never: decides by itself; takes a decision from what a button brings back; shows a token or a code.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

from payagent.agent.base.log import log
from payagent.agent.base.merchant_trust import priced_call
from payagent.agent.base.requests import Approver
from payagent.agent.fleet.fleet import Fleet
from payagent.agent.operator.approval_links import WAYS, Way
from payagent.core.history import decision_in_words
from payagent.core.money import show_amount
from payagent.core.notifications import Missed, Notification
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.outbound.push import plain
from payagent.outbound.service_client import ServiceError
from payagent.outbound.telegram import TEXT_MAX_UNITS, Buttons, ChatMessage, Press, TelegramBot
from payagent.store.rows import approvals, apps, chats, intents, payments
from payagent.store.rows.approvals import ApprovalRow
from payagent.store.rows.chats import ApprovalMessage, PairedChat

CODE_BYTES = 4
CODE_FOR_MS = 600_000
_PAIRING = re.compile(rf"(?:/start(?:@\w+)?\s+)?([0-9A-Fa-f]{{{2 * CODE_BYTES}}})")
"""In a group, Telegram's apps add the bot's name to a command."""

CODE_TRIES = 5
"""How many wrong codes end a pairing: guessing one of 2^32 is hopeless."""

AGAIN_S = 2.0
"""The wait after a failed request."""

_TERMS_MAX_BYTES = 2 * (TEXT_MAX_UNITS - 600)
"""The most bytes of the terms in UTF-16. The rest is for the link, or for what was decided."""

_ENDED_MAX = 100
"""How many notifications are known that some chats have and others wait for."""

_GONE = (400, 403)
"""Telegram's answers about a message or chat that is gone: asking again changes nothing."""

_NOT_PAIRED = "This chat is not paired. To pair it, send the code that `payagent notifications pair` prints."
_NOT_HERE = "This button does not decide here. Nothing was decided."


@dataclass(slots=True)
class PairingCode:
    """A code that pairs one chat, once. `by_app`: who ordered it."""

    text: str
    by_app: str
    made_at_ms: int
    tries_left: int = CODE_TRIES

    @property
    def expires_at_ms(self) -> int:
        return self.made_at_ms + CODE_FOR_MS


class TelegramTarget:
    """One bot. `send` tells the paired chats; `run` is a task beside it."""

    def __init__(self, name: str, bot: TelegramBot, fleet: Fleet) -> None:
        self.name = name
        self._bot = bot
        self._context = fleet.context
        self._fleet = fleet
        self._code: PairingCode | None = None
        self._done: int | None = None
        self._ended: dict[str, dict[int, str | None]] = {}

    def paired(self) -> list[PairedChat]:
        return chats.of_target(self._context.conn, self.name)

    def new_code(self, by_app: str) -> PairingCode:
        """Make a code. An earlier one is void. It is kept in memory only."""
        text = self._context.ports.randomness.token_hex(CODE_BYTES).upper()
        self._code = PairingCode(text, by_app, self._context.ports.clock.now_ms())
        return self._code

    async def unpair(self, chat_id: int, by_app: str) -> None:
        """End a pairing at once. Refused: `not_found`."""
        if not await self._context.write_at(
            "pairing", lambda unit, now_ms: chats.unpair(unit, self.name, chat_id, by_app, now_ms)
        ):
            raise Refused("not_found", f"{self.name} has no paired chat {chat_id}")
        log.warning("notification.chat_unpaired", target=self.name, chat=chat_id, by=by_app)

    async def send(self, notification: Notification, links: Mapping[str, str], now_ms: int) -> Missed | None:
        """Tell every paired chat. Returns None once all have it; a chat that has it is not told again.

        A chat that is gone is not tried again, and delays no other.
        """
        paired, approval = self.paired(), self._approval(notification)
        if not paired:  # a new chat gets only what a person still has to decide
            why = f"no chat is paired: run payagent notifications pair {self.name}"
            return Missed(why, then="given_up" if approval is None else "waiting")
        text = "\n".join(map(plain, (notification.title, *(notification.lines or (notification.text,)))))
        if approval is not None:  # a line that is cut makes the message too long: nobody decides on a part
            *facts, payment_id = notification.lines or (notification.text, approval.payment_id)
            lines = notification.title, *facts, *self._terms(approval), payment_id
            text = "\n".join(plain(line, TEXT_MAX_UNITS) for line in lines)
        missed, ended = None, self._ended.pop(notification.id, {})
        for chat_id in {chat.chat_id for chat in paired} - ended.keys():
            try:
                await self._tell(chat_id, text, approval, links)
                ended[chat_id] = None
            except ServiceError as failed:
                why = f"chat {chat_id}: {failed}"
                if failed.status in _GONE:
                    ended[chat_id] = why
                else:
                    missed = Missed(why, failed.wait_s)
        gone = [why for why in ended.values() if why is not None]
        if missed is not None:
            self._ended[notification.id] = ended
            if len(self._ended) > _ENDED_MAX:
                del self._ended[next(iter(self._ended))]
        elif gone:
            missed = Missed(", ".join(gone), then="given_up" if len(gone) == len(ended) else "delivered")
        return missed

    def _approval(self, notification: Notification) -> ApprovalRow | None:
        """The approval that a notification asks for, while it is open."""
        payment_id = notification.payment_id
        if notification.type != "approval.asked" or payment_id is None:
            return None
        is_open = approvals.decided(self._context.conn, payment_id) is None
        return approvals.of_payment(self._context.conn, payment_id) if is_open else None

    def _terms(self, approval: ApprovalRow) -> Iterator[str]:
        """What a press decides, exactly, in lines."""
        conn, row = self._context.conn, self._context.payment(approval.payment_id)
        tokens = self._context.config.tokens
        if (request := intents.request_of(conn, row.intent.id)) is not None:
            yield f"Request: {' '.join(priced_call(request))}"
        for output in row.outputs:
            yield f"{output.role}: {show_amount(output.asset, output.units, tokens)} to {output.address}"
        for asset, units in payments.hold(conn, row.id, "approval").items():
            yield f"At most, with fee: {show_amount(asset, units, tokens)}"
        if "approve" not in self._ways(row.id):
            yield f"To approve a new address, check it first. Then: payagent payments approve {row.id}"

    async def _tell(self, chat_id: int, text: str, approval: ApprovalRow | None, links: Mapping[str, str]) -> None:
        """Send a message, with buttons if it asks for an approval. What they refer to is durable before it leaves.

        Terms that are too long for a message get no buttons: nobody decides on what was not shown.
        """
        if approval is not None and len(text.encode("utf-16-le")) > _TERMS_MAX_BYTES:
            text = f"{text[:1000]}…\nToo long for a message: payagent payments show {approval.payment_id}"
            approval = None
        if approval is None:
            await self._bot.send_message(chat_id, text, {})
            return
        message = ApprovalMessage(
            id=self._context.ports.new_id("button"),
            target=self.name,
            chat_id=chat_id,
            payment_id=approval.payment_id,
            terms_hash=approval.terms_hash,
            text=text,
        )
        await self._context.write("notify", lambda unit: chats.add_message(unit, message))
        buttons: Buttons = {way.capitalize(): f"{way}:{message.id}" for way in self._ways(approval.payment_id)}
        # who has the link decides, so it is not for a group: there, everybody reads it
        link = f"\nApprove page: {links['approve_url']}" if links and chat_id > 0 else ""
        message_id = await self._bot.send_message(chat_id, text + link, buttons)
        await self._context.write("notify", lambda unit: chats.set_message_sent(unit, message.id, message_id))

    async def run(self) -> None:
        """Read what people send, and keep messages true to what was decided, until cancelled."""
        await asyncio.gather(self._repeat(self._poll), self._repeat(self._follow))

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        """Take a step again and again. A step that fails is logged once and waits.

        An error is the same if only its numbers differ, such as how long Telegram asked to wait.
        """
        last: str | None = None
        while True:
            try:
                await step()
                last = None
            except Exception as error:
                same = re.sub(r"\d+", "", repr(error))
                if same != last:
                    last, is_known = same, isinstance(error, ServiceError)
                    log.warning("notification.trouble", target=self.name, error=repr(error), exc_info=not is_known)
                await asyncio.sleep(AGAIN_S)

    async def _poll(self) -> None:
        """Read what people sent to the bot, or wait for it.

        An update is done with before Telegram is told so. After a crash it comes again, and decides nothing twice.
        """
        for update in await self._bot.updates(self._done):
            try:
                await self._take(update.what)
            except Exception as error:  # one update must not hold up those after it
                is_known = isinstance(error, ServiceError)
                log.warning("notification.not_answered", to=self.name, error=repr(error), exc_info=not is_known)
            self._done = update.id

    async def _follow(self) -> None:
        """Edit the messages whose approvals were decided, here or elsewhere, and wait for the next change.

        The messages then say what was decided, and have no buttons. Raises `ServiceError`: edit the rest later.
        """
        problem: ServiceError | None = None
        with self._context.changes.following() as changed:
            for message in chats.decided_messages(self._context.conn, self.name):
                if message.message_id is not None and message.chat_id in {one.chat_id for one in self.paired()}:
                    text = f"{message.text}\n\n{plain(self._outcome(message.payment_id))}"
                    try:
                        await self._bot.edit_message(message.chat_id, message.message_id, text)
                    except ServiceError as failed:
                        if failed.status not in _GONE:
                            problem = failed
                            continue
                await self._close(message.id)
            if problem is not None:
                raise problem
            await changed.wait()

    async def _close(self, message: str) -> None:
        await self._context.write_at("notify", lambda unit, now_ms: chats.close_message(unit, message, now_ms))

    def _outcome(self, payment_id: str) -> str:
        """What was decided, when and by whom."""
        decided = approvals.decided(self._context.conn, payment_id)
        if decided is None:
            return "It awaits no decision any more."
        app = apps.by_id(self._context.conn, decided.by_app or "")
        by = decided.by_app if app is None else app.name
        words = decision_in_words({"decision": decided.decision, "via": decided.via, "by": by})
        return f"{words}, at {iso_time(decided.at_ms)}."

    async def _take(self, what: ChatMessage | Press | None) -> None:
        if isinstance(what, Press):
            await self._take_press(what)
        elif what is not None:
            await self._take_message(what)

    async def _take_message(self, message: ChatMessage) -> None:
        """Pair the chat if the message is the code. Anybody may write to a bot: all else gets a refusal.

        In a group people write to each other, so nothing else is answered there.
        """
        if await self._is_paired_by(message):
            answer = "This chat is paired: it gets payagent's notifications, and your presses on buttons decide."
        elif message.chat_id < 0:
            return
        elif any(chat.chat_id == message.chat_id for chat in self.paired()):
            answer = "This chat is paired already. payagent reads no commands here."
        else:
            answer = _NOT_PAIRED
        await self._bot.send_message(message.chat_id, answer, {})

    async def _is_paired_by(self, message: ChatMessage) -> bool:
        code, now_ms = self._code, self._context.ports.clock.now_ms()
        found = _PAIRING.fullmatch(message.text.strip())
        if code is None or found is None or not code.made_at_ms <= now_ms < code.expires_at_ms:
            return False
        code.tries_left -= 1
        is_right = hmac.compare_digest(found[1].upper().encode(), code.text.encode())
        if is_right or not code.tries_left:
            self._code = None
        if is_right:
            await self._context.write(
                "pairing",
                lambda unit: chats.pair(unit, self.name, message.chat_id, message.user_id, code.by_app, now_ms),
            )
            log.warning("notification.chat_paired", target=self.name, chat=message.chat_id, by=code.by_app)
        return is_right

    async def _take_press(self, press: Press) -> None:
        """Decide as the button says. What the button brings back only finds the message in the ledger."""
        way, _, message_id = press.data.partition(":")
        message = chats.find_message(self._context.conn, message_id)
        if message is None or not self._may_decide(message, press) or way not in self._ways(message.payment_id):
            log.warning("notification.press_refused", target=self.name, chat=press.chat_id, user=press.user_id)
            await self._bot.answer_press(press, _NOT_HERE)
            return
        who = f"{self.name}, chat {press.chat_id}, user {press.user_id}"
        by = Approver("telegram", who, message.terms_hash)
        try:
            await (self._fleet.approve if way == "approve" else self._fleet.deny)(message.payment_id, by)
        except Refused as refused:
            self._context.metrics.refusals[refused.code] += 1
            answer = f"{refused.problem.title}. {refused.money}"
        else:
            answer = self._outcome(message.payment_id)
        await self._bot.answer_press(press, answer)

    def _ways(self, payment_id: str) -> tuple[Way, ...]:
        """What buttons decide. No button approves a new address: somebody has to check it first."""
        approval = approvals.of_payment(self._context.conn, payment_id)
        reasons = () if approval is None else approval.reasons
        return ("deny",) if any(reason.code == "address_not_pinned" for reason in reasons) else WAYS

    def _may_decide(self, message: ApprovalMessage, press: Press) -> bool:
        """Whether the press comes from the chat that got the message, and from the person who paired that chat."""
        sent_here = (message.target, message.chat_id) == (self.name, press.chat_id)
        pairs = {(chat.chat_id, chat.user_id) for chat in self.paired()}
        return sent_here and (press.chat_id, press.user_id) in pairs

    async def aclose(self) -> None:
        await self._bot.aclose()
