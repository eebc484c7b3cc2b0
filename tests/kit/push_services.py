"""Fakes of ntfy, Slack and Discord: they take what the services take, and find links and mentions as these do."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

URLS = re.compile(r"https?://[^\s\u200b)>]+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b[^\s\u200b]*")
"""What apps turn into a link: an address with a scheme, and a bare name of a host."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as a person sees it: its text, the links in it, and who it calls (`@everyone`)."""

    text: str
    links: list[str]
    mentions: list[str]
    buttons: list[str]
    headers: dict[str, str]


Read = tuple[str, list[str], list[str], list[str]]
"""Text, links, mentions, and the labels of buttons."""


def ntfy(path: str, body: Any) -> Read:
    """ntfy takes JSON at its root only. A message above 4,096 bytes would become an attachment."""
    assert path == "/", "JSON sent to a topic is shown as JSON"
    assert re.fullmatch(r"[-_A-Za-z0-9]{1,64}", body["topic"])
    assert len(body["message"].encode()) <= 4096
    assert len(body.get("actions", [])) <= 3
    assert 1 <= body.get("priority", 3) <= 5
    buttons = [action["url"] for action in body.get("actions", []) if action["action"] == "view"]
    text = f"{body['title']}\n{body['message']}"
    return text, [*URLS.findall(text), *buttons], [], [action["label"] for action in body.get("actions", [])]


def slack(_path: str, body: Any) -> Read:
    """Slack reads `<...>` in `text` as a link or a mention, and shows the blocks as they are."""
    markup = re.findall(r"<([^>]*)>", body["text"])
    rich, *actions = body["blocks"]
    elements = [one for section in rich["elements"] for one in section["elements"]]
    assert all(one["type"] == "text" for one in elements)
    buttons = [button for block in actions for button in block["elements"]]
    assert all((button["type"], button["text"]["type"]) == ("button", "plain_text") for button in buttons)
    links = [*URLS.findall(body["text"]), *(button["url"] for button in buttons)]
    return "".join(one["text"] for one in elements), links, markup, [one["text"]["text"] for one in buttons]


def discord(_path: str, body: Any) -> Read:
    """Discord reads Markdown in the description, and mentions unless `allowed_mentions` forbids them."""
    (embed,) = body["embeds"]
    assert len(embed["description"]) <= 4096
    markdown = re.sub(r"\\[!-/:-@\[-`{-~]", " ", embed["description"])
    links = [url for _, url in re.findall(r"\[([^\]]*)\]\((\S+?)\)", markdown)]
    bare = URLS.findall(re.sub(r"\[[^\]]*\]\(\S+?\)", "", markdown))
    mentions = re.findall(r"@everyone|@here|<@\d+>", markdown) if body["allowed_mentions"]["parse"] else []
    text = re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", embed["description"])
    return text.replace("**", ""), [*bare, *links], mentions, []


READERS: dict[str, Callable[[str, Any], Read]] = {
    "ntfy": ntfy,
    "slack": slack,
    "discord": discord,
}
ANSWERS = {"ntfy": (200, b"{}"), "slack": (200, b"ok"), "discord": (204, b"")}


class PushService:
    """A service of one kind. It answers `failures` first (status and headers), and then as the service does."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.seen: list[Seen] = []
        self.refused = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, content = ANSWERS[service.kind]
                headers: dict[str, str] = {}
                if service.failures:
                    service.refused += 1
                    (status, headers), content = service.failures.pop(0), b""
                else:
                    sent = {name.lower(): value for name, value in self.headers.items()}
                    service.seen.append(Seen(*READERS[service.kind](self.path, body), sent))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/a-topic"

    @contextmanager
    def serving(self) -> Iterator["PushService"]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()
