"""A fake of the Telegram Bot API: bots poll it, and people write to a bot and press its buttons."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from kit.push_services import URLS


@dataclass(slots=True)
class BotMessage:
    """A message of the bot: its text and its buttons as they are now."""

    chat_id: int
    id: int
    text: str
    buttons: dict[str, str] = field(default_factory=dict)

    @property
    def links(self) -> list[str]:
        """What Telegram's apps would make tappable: links, mentions, hashtags and commands."""
        return [*URLS.findall(self.text), *re.findall(r"(?<!\S)[/@#][A-Za-z]\w*", self.text)]


class ApiError(Exception):
    """An answer with `ok` false."""

    def __init__(self, status: int, why: str, **parameters: int) -> None:
        super().__init__(why)
        self.status, self.parameters = status, parameters


class Telegram:
    """The service. `failures`: what the next sends are answered with; `pressed`: what each press was answered."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.failures: list[ApiError] = []
        self.refused = 0
        self.messages: list[BotMessage] = []
        self.pressed: dict[str, str] = {}
        self._updates: list[dict[str, Any]] = []
        self._count = 0
        self._is_open = True
        self._news = threading.Condition()
        telegram = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer: dict[str, object]
                try:
                    status, answer = 200, {"ok": True, "result": telegram.called(self.path, body)}
                except ApiError as refusal:
                    status = refusal.status
                    answer = {"ok": False, "error_code": status, "description": str(refusal)}
                    if refusal.parameters:
                        answer["parameters"] = refusal.parameters
                content = json.dumps(answer).encode()
                with suppress(BrokenPipeError, ConnectionResetError):  # a bot that stopped waits no longer
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def called(self, path: str, body: dict[str, Any]) -> object:
        """A call of the Bot API."""
        if not path.startswith(f"/bot{self.token}/"):
            raise ApiError(401, "Unauthorized")
        with self._news:
            method = path.rpartition("/")[2]
            if method == "getUpdates":
                return self._poll(body)
            if self.failures:
                self.refused += 1
                raise self.failures.pop(0)
            return {
                "sendMessage": self._send,
                "editMessageText": self._edit,
                "answerCallbackQuery": self._answer,
            }[method](body)

    def _poll(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        if "offset" in body:
            self._updates = [one for one in self._updates if one["update_id"] >= body["offset"]]
        self._news.wait_for(lambda: self._updates or not self._is_open, body["timeout"])
        return self._updates[: body["limit"]]

    def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        _require_text(body)
        (row,) = body.get("reply_markup", {}).get("inline_keyboard", [[]])
        assert all(1 <= len(button["callback_data"].encode()) <= 64 for button in row)
        self._count += 1
        buttons = {button["text"]: button["callback_data"] for button in row}
        self.messages.append(BotMessage(body["chat_id"], self._count, body["text"], buttons))
        return {"message_id": self._count, "chat": {"id": body["chat_id"]}, "text": body["text"]}

    def _edit(self, body: dict[str, Any]) -> dict[str, Any]:
        _require_text(body)
        for message in self.messages:
            if (message.chat_id, message.id) == (body["chat_id"], body["message_id"]):
                if message.text == body["text"] and not message.buttons:
                    raise ApiError(400, "Bad Request: message is not modified")
                message.text, message.buttons = body["text"], {}
                return {"message_id": message.id}
        raise ApiError(400, "Bad Request: message to edit not found")

    def _answer(self, body: dict[str, Any]) -> bool:
        assert len(body["text"]) <= 200
        if body["callback_query_id"] not in self.pressed:
            raise ApiError(
                400, "Bad Request: query is too old and response timeout expired or query ID is invalid"
            )
        self.pressed[body["callback_query_id"]] = body["text"]
        return True

    def write(self, chat_id: int, text: str, user_id: int | None = None) -> None:
        """A person writes to the bot. In a private chat the chat's id is the person's."""
        user = {"id": chat_id if user_id is None else user_id, "is_bot": False, "first_name": "Somebody"}
        chat = {"id": chat_id, "type": "private"}
        self._happen(message={"message_id": 1, "from": user, "chat": chat, "date": 0, "text": text})

    def press(self, data: str, chat_id: int, user_id: int | None = None) -> str:
        """A person presses a button with this data, in any chat. Returns the press's id."""
        press_id = f"press{len(self.pressed)}"
        self.pressed[press_id] = ""
        user = {"id": chat_id if user_id is None else user_id, "is_bot": False, "first_name": "Somebody"}
        message = {"message_id": 1, "chat": {"id": chat_id, "type": "private"}, "date": 0}
        self._happen(callback_query={"id": press_id, "from": user, "message": message, "data": data})
        return press_id

    def _happen(self, **what: object) -> None:
        with self._news:
            self._count += 1
            self._updates.append({"update_id": self._count, **what})
            self._news.notify_all()

    def of_chat(self, chat_id: int) -> list[BotMessage]:
        """The bot's messages in a chat."""
        return [message for message in self.messages if message.chat_id == chat_id]

    @contextmanager
    def serving(self) -> Iterator["Telegram"]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            with self._news:
                self._is_open = False
                self._news.notify_all()
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def _require_text(body: dict[str, Any]) -> None:
    if not 1 <= len(body["text"]) <= 4096:
        raise ApiError(400, "Bad Request: message is too long")
    assert "parse_mode" not in body, "a merchant's words could be markup"
