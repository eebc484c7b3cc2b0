"""Reads a saved 402 in each form it may be saved in: its body, `curl -i` output, or a JSON object with headers.

Never: reads an invoice; repairs the 402, which goes to the daemon unchanged.
"""

import base64
import json
import re

from payagent.core import strict_json
from payagent.core.problems import Refused

FILE_BYTES_MAX = 128 * 1024

_ENVELOPE = {"status", "headers", "body"}
_STATUS_LINE = re.compile(rb"HTTP/[0-9](?:\.[0-9])? ([0-9]{3})(?: [^\r\n]*)?\r?\n")
_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")


def read_saved(raw: bytes) -> tuple[str, bool]:
    """The `response` for the daemon as JSON text, and whether the file was treated as a bare body.

    Anything that has no other form is treated as a bare body. The daemon says what is wrong with it.
    """
    if _STATUS_LINE.match(raw):
        return json.dumps(_of_http(raw)), False
    try:
        value = strict_json.loads(raw, max_bytes=FILE_BYTES_MAX - 1)
    except Refused:
        value = None
    if isinstance(value, dict) and "body" in value and value.keys() <= _ENVELOPE:
        return raw.decode(), False
    return json.dumps({"status": 402, "body_base64": _base64(raw)}), True


def _of_http(raw: bytes) -> dict[str, object]:
    """The 402 in `curl -i` output. Skips earlier answers: a proxy's, 100 Continue, a redirect."""
    while True:
        head, *rest = _EMPTY_LINE.split(raw, maxsplit=1)
        body = rest[0] if rest else b""
        status_line, *lines = head.splitlines()
        status = int(status_line.split()[1])
        if status == 402 or not _STATUS_LINE.match(body):
            break
        raw = body
    pairs = [line.decode("latin-1").partition(":") for line in lines]
    headers = [[name.strip(), value.strip()] for name, _, value in pairs]
    return {"status": status, "headers": headers, "body_base64": _base64(body)}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
