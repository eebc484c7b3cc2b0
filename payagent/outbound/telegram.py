"""A Telegram bot, by the Bot API: sends and edits messages, and reads what people sent to it by long polling.

The bot's token is part of the path of every URL, so no URL may be shown.

Never: decides; writes text that Telegram would read as markup.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from payagent.core.problems import Refused
from payagent.core.strict_json import loads, value_at
from payagent.outbound.service_client import ANSWER_MAX_BYTES, TIMEOUT_S, ServiceClient, ServiceError

POLL_S = 25
"""How long Telegram keeps a request for news open."""

TEXT_MAX_UNITS = 4096
"""The most of a message, in units of UTF-16."""

_TOKEN = re.compile(r"[0-9]+:[A-Za-z0-9_-]+", re.ASCII)
_UPDATES_MAX = 10
_JSON_DEPTH_MAX = 64
_POPUP_MAX_CHARS = 200

Buttons = Mapping[str, str]
"""Labels of buttons, each with the data that a press on it brings back (64 bytes at most)."""


def bot_token(secret: str) -> str:
    """Return the token of a bot. Refused `config_invalid` if the text is none."""
    if not _TOKEN.fullmatch(secret):
        raise Refused(
            "config_invalid",
            "the file of notifications.secret_file must hold a bot's token, as BotFather shows it",
        )
    return secret


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A text that somebody sent to the bot."""

    chat_id: int
    user_id: int
    text: str


@dataclass(frozen=True, slots=True)
class Press:
    """A press on a button. `id` names the press, to answer it; `data` is what the button has."""

    id: str
    chat_id: int
    user_id: int
    data: str


@dataclass(frozen=True, slots=True)
class Update:
    """Something that happened to the bot. `what`: None for anything but a text or a press."""

    id: int
    what: ChatMessage | Press | None


class TelegramBot(ServiceClient):
    """One bot. Its calls raise `ServiceError`, without a request while Telegram asked to wait for that chat."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__()
        self._base = f"{url.rstrip('/')}/bot{token}"

    async def send_message(self, chat_id: int, text: str, buttons: Buttons) -> int:
        """Send a message. Returns its id."""
        fields = {"chat_id": chat_id, "text": text, **_keyboard(buttons), **_NO_PREVIEW}
        result = await self._send(chat_id, "sendMessage", fields)
        message_id = value_at(result, "message_id")
        if not isinstance(message_id, int):
            raise ServiceError("its answer has no message id")
        return message_id

    async def edit_message(self, chat_id: int, message_id: int, text: str) -> None:
        """Replace a message's text, and remove its buttons."""
        fields = {"chat_id": chat_id, "message_id": message_id, "text": text, **_NO_PREVIEW}
        await self._send(chat_id, "editMessageText", fields)

    async def answer_press(self, press: Press, text: str) -> None:
        """Show a text to the person who pressed a button."""
        fields = {"callback_query_id": press.id, "text": text[:_POPUP_MAX_CHARS], "show_alert": True}
        await self._send(press.chat_id, "answerCallbackQuery", fields)

    async def updates(self, after_id: int | None) -> list[Update]:
        """Wait for news. Those up to `after_id` are done with, and Telegram forgets them."""
        self.require_may_send()
        offset = {} if after_id is None else {"offset": after_id + 1}
        result = await self._call(
            "getUpdates",
            {
                **offset,
                "timeout": POLL_S,
                "limit": _UPDATES_MAX,
                "allowed_updates": ["message", "callback_query"],
            },
            POLL_S + TIMEOUT_S,
        )
        if not isinstance(result, list):
            raise ServiceError("its answer is not understood")
        return [_update(one) for one in result]

    async def _send(self, chat_id: int, method: str, fields: Mapping[str, object]) -> object:
        self.require_may_send(chat_id)
        return await self._call(method, fields, TIMEOUT_S, chat_id)

    async def _call(self, method: str, fields: Mapping[str, object], timeout_s: float, chat_id: int = 0) -> object:
        status, raw = await self.post(f"{self._base}/{method}", json.dumps(fields).encode(), timeout_s)
        try:
            answer = loads(raw, max_bytes=ANSWER_MAX_BYTES, max_depth=_JSON_DEPTH_MAX, any_text=True)
        except Refused:
            answer = None
        if value_at(answer, "ok") is True:
            return value_at(answer, "result")
        asked_s = value_at(answer, "parameters", "retry_after")
        wait_s = asked_s if isinstance(asked_s, int) and asked_s > 0 else None
        if wait_s is not None:
            self.wait(wait_s, chat_id)
        raise ServiceError(f"it answered {status}", status, wait_s)


_NO_PREVIEW = {"link_preview_options": {"is_disabled": True}}


def _keyboard(buttons: Buttons) -> dict[str, object]:
    row = [{"text": label, "callback_data": data} for label, data in buttons.items()]
    return {"reply_markup": {"inline_keyboard": [row]}} if row else {}


def _update(value: object) -> Update:
    update_id = value_at(value, "update_id")
    if not isinstance(update_id, int):
        raise ServiceError("its answer is not understood")
    return Update(update_id, _press(value_at(value, "callback_query")) or _message(value_at(value, "message")))


def _message(value: object) -> ChatMessage | None:
    chat_id, user_id, text = value_at(value, "chat", "id"), value_at(value, "from", "id"), value_at(value, "text")
    if isinstance(chat_id, int) and isinstance(user_id, int) and isinstance(text, str):
        return ChatMessage(chat_id, user_id, text)
    return None


def _press(value: object) -> Press | None:
    press_id, data = value_at(value, "id"), value_at(value, "data")
    chat_id, user_id = value_at(value, "message", "chat", "id"), value_at(value, "from", "id")
    if (
        isinstance(press_id, str)
        and isinstance(data, str)
        and isinstance(chat_id, int)
        and isinstance(user_id, int)
    ):
        return Press(press_id, chat_id, user_id, data)
    return None
