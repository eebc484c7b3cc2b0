"""Send notifications to ntfy, Slack and Discord, in the form that each service reads.

A notification may quote a merchant or an app. What they wrote stays text: it forms no link, mention or command.

Never: sends a link other than the ones it is given, shows its URL or token.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit, urlunsplit

from payagent.core.money import THOUSANDS
from payagent.core.notifications import Missed, Notification
from payagent.outbound.service_client import ServiceClient

TEXT_MAX_CHARS, LINE_MAX_CHARS = 700, 280
"""The most characters of a text, and of one of several lines, of which two can be long. With what escaping adds,
it is below every limit (ntfy: 4,096 bytes)."""

_LINK_LABELS = (("approve_url", "Approve"), ("deny_url", "Deny"))
_LINKING = re.compile(r"((?<![\w.])[0-9][0-9\u202f]*\.[0-9]+(?![\w.])|[.:/@#$<!&](?=\S))")
"""A number, which stays whole, or a character that a link, mention or command needs."""
_SPACE = re.compile(rf"[^\S{THOUSANDS}]+")
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
_BREAK = "\u200b"

Links = Mapping[str, str]
Shape = Callable[[str, str, str, Links], tuple[str, Mapping[str, object]]]


def plain(text: str, max_chars: int = TEXT_MAX_CHARS) -> str:
    """Return the text as one line in which no service finds a link, mention or command.

    A zero-width space follows each character that such a thing needs. Characters that control the line or its
    direction are left out.
    """
    line = "".join(one for one in _SPACE.sub(" ", text).strip() if unicodedata.category(one)[0] != "C")
    cut = line if len(line) <= max_chars else line[: max_chars - 1] + "…"
    return _LINKING.sub(lambda found: found[0] if found[0][0].isdigit() else found[0] + _BREAK, cut)


class Push(ServiceClient):
    """A topic or channel of one service. `kind`: `ntfy`, `slack` or `discord`. `token`: for a closed topic."""

    def __init__(self, kind: str, url: str, token: str | None) -> None:
        super().__init__()
        self._shape = SHAPES[kind]
        self._url = url
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    async def send(self, notification: Notification, links: Links, now_ms: int) -> Missed | None:
        """Send it. Returns None on a 2xx."""
        title, text = plain(notification.title), plain(notification.text)
        if notification.lines:
            text = "\n".join(plain(line, LINE_MAX_CHARS) for line in notification.lines)
        url, body = self._shape(self._url, title, text, links)
        return await self.deliver(url, json.dumps(body).encode(), self._headers)


def _ntfy(url: str, title: str, text: str, links: Links) -> tuple[str, Mapping[str, object]]:
    """JSON goes to the server's root, and names the topic that is the path of the URL."""
    parts = urlsplit(url)
    folder, _, topic = parts.path.rstrip("/").rpartition("/")
    body: dict[str, object] = {"topic": topic, "title": title, "message": text}
    if links:
        body |= {"priority": 4, "tags": ["question"], "click": links["approve_url"]}
        body["actions"] = [
            {"action": "view", "label": label, "url": links[name], "clear": True} for name, label in _LINK_LABELS
        ]
    return urlunsplit(parts._replace(path=f"{folder}/")), body


def _slack(url: str, title: str, text: str, links: Links) -> tuple[str, Mapping[str, object]]:
    """Elements of rich text are not parsed for markup. `text` is what the notification shows."""
    elements: list[dict[str, object]] = [
        {"type": "text", "text": title, "style": {"bold": True}},
        {"type": "text", "text": f"\n{text}"},
    ]
    section = {"type": "rich_text_section", "elements": elements}
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    blocks: list[dict[str, object]] = [{"type": "rich_text", "elements": [section]}]
    if links:
        buttons = [
            {"type": "button", "text": {"type": "plain_text", "text": label}, "url": links[name]}
            for name, label in _LINK_LABELS
        ]
        blocks.append({"type": "actions", "elements": buttons})
    return url, {"text": escaped, "unfurl_links": False, "unfurl_media": False, "blocks": blocks}


def _discord(url: str, title: str, text: str, links: Links) -> tuple[str, Mapping[str, object]]:
    """The text is Markdown, so all punctuation of ours and of others is escaped."""
    lines = [f"**{_in_markdown(title)}**", _in_markdown(text)]
    lines += [f"[{label}]({links[name]})" for name, label in _LINK_LABELS if links]
    return url, {"allowed_mentions": {"parse": []}, "embeds": [{"description": "\n".join(lines)}]}


def _in_markdown(text: str) -> str:
    return _PUNCTUATION.sub(r"\\\1", text)


SHAPES: Mapping[str, Shape] = {"ntfy": _ntfy, "slack": _slack, "discord": _discord}
