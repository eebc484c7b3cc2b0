"""A saved 402, in each form in which one is kept: its body, `curl -i`, an object, or what /v1/payments takes.

May import: click, core. Never: reads an invoice, or repairs what came: it goes on to the daemon as it stands.
"""

import base64
import json
import re
from dataclasses import dataclass

import click

from payagent.core import strict_json
from payagent.core.problem import Refused

FILE_BYTES_MAX = 128 * 1024

_RESPONSE = {"status", "headers", "body"}
_ORDER = {"origin", "request", "response", "max_total", "max_total_asset"}
# an order is two objects around the 402's body
_DEPTH_MAX = strict_json.MAX_DEPTH + 2
_STATUS_LINE = re.compile(rb"HTTP/[0-9](?:\.[0-9])? ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")


@dataclass(frozen=True, slots=True)
class Order:
    """A body of /v1/payments, but for its last brace."""

    open_text: str

    def text(self, most: tuple[int, str] | None) -> str:
        """The whole of it, with a bound of (units, asset)."""
        bound = "" if most is None else f', "max_total": "{most[0]}", "max_total_asset": "{most[1]}"'
        return f"{self.open_text}{bound}}}"


@dataclass(frozen=True, slots=True)
class Saved:
    """A file's 402 as an open order. `origin` and `is_bound`: whether that says who sent it, and a bound.

    `is_bare` is the body alone: terms that stood in headers are not there.
    """

    open_text: str
    origin: str | None = None
    is_bare: bool = False
    is_bound: bool = False

    def order(self, origin: str) -> Order:
        """To pay whom the 402 came from."""
        named = "" if self.origin is not None else f', "origin": {json.dumps(origin)}'
        return Order(self.open_text + named)


def read_saved(raw: bytes) -> Saved:
    """Take a file for what it is; what is none of the other forms is a body, and the daemon says what is wrong."""
    if _STATUS_LINE.match(raw):
        return _of_response(json.dumps(_of_http(raw)))
    try:
        value = strict_json.loads(raw, max_bytes=FILE_BYTES_MAX - 1, max_depth=_DEPTH_MAX)
    except Refused:
        value = None
    if isinstance(value, dict) and "body" in value and value.keys() <= _RESPONSE:
        return _of_response(raw.decode())
    if isinstance(value, dict) and {"origin", "response"} <= value.keys() <= _ORDER:
        if not isinstance(value["origin"], str):
            raise click.BadParameter("its origin is no text", param_hint="FILE")
        return Saved(raw.decode().rstrip()[:-1], value["origin"], is_bound="max_total" in value)
    return _of_response(json.dumps({"status": 402, "body_base64": _base64(raw)}), is_bare=True)


def _of_response(text: str, *, is_bare: bool = False) -> Saved:
    return Saved(f'{{"response": {text}', is_bare=is_bare)


def _of_http(raw: bytes) -> dict[str, object]:
    """The answer that stands behind whatever 100 Continue came before it."""
    while True:
        head, *rest = _EMPTY_LINE.split(raw, maxsplit=1)
        body = rest[0] if rest else b""
        status_line, *lines = head.splitlines()
        status = int(status_line.split()[1])
        if status >= 200 or not _STATUS_LINE.match(body):
            break
        raw = body
    pairs = [line.decode("latin-1").partition(":") for line in lines]
    headers = [[name.strip(), value.strip()] for name, _, value in pairs]
    return {"status": status, "headers": headers, "body_base64": _base64(body)}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
