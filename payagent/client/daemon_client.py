"""Clients for the daemon, blocking and async: HTTP on loopback or over a Unix socket, with an app's token.

Never: shows the token, or sends it anywhere but to this machine; follows a redirect or a proxy from the
environment.
"""

import json
import os
import re
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from payagent.client.errors import own_error
from payagent.client.steps import AskDaemon, DaemonReply
from payagent.core.origin import is_this_machine

DEFAULT = "http://127.0.0.1:8402"
TOKEN_VARIABLE = "PAYAGENT_TOKEN"  # noqa: S105  the variable's name

_TOKEN = re.compile(r"[!-~]+", re.ASCII)
_NO_SCHEME = re.compile(r"[^/]*:[0-9]+/?", re.ASCII)
_ADDRESS_FORMS = "the daemon listens on this machine: http://127.0.0.1:PORT, or its socket's path"
_TIMEOUT_S, _WAIT_MORE_S = 30.0, 15.0
_LIMITS = httpx.Limits(max_connections=100)  # all of them are kept open; httpx would keep 20


@dataclass(frozen=True, slots=True)
class DaemonAddress:
    """Where the daemon listens, and the token for it. `socket` is the path of a Unix socket."""

    url: str
    socket: Path | None
    token: str = field(repr=False)

    @classmethod
    def read(cls, daemon: str | Path, token: str | None) -> "DaemonAddress":
        """Build the address from a URL or a socket path.

        Without a token, $PAYAGENT_TOKEN is used. Raises ValueError.
        """
        token = os.environ.get(TOKEN_VARIABLE) if token is None else token
        if not token:
            raise ValueError(f"no token: give one, or set {TOKEN_VARIABLE}")
        if not _TOKEN.fullmatch(token):
            raise ValueError("the token has characters that a token cannot have")
        text = str(daemon)
        if _NO_SCHEME.fullmatch(text):
            raise ValueError(_ADDRESS_FORMS)
        if "://" not in text:
            return cls("http://localhost", Path(text), token)
        url = httpx.URL(text)
        if url.scheme != "http" or not is_this_machine(url.host) or url.raw_path != b"/":
            raise ValueError(_ADDRESS_FORMS)
        return cls(text.rstrip("/"), None, token)

    def request(self, ask: AskDaemon) -> dict[str, Any]:
        """Return the arguments of an httpx client's `request`."""
        headers = {"authorization": f"Bearer {self.token}"}
        if ask.key is not None:
            headers["idempotency-key"] = ask.key
        arguments: dict[str, Any] = {"method": ask.method, "url": ask.path, "headers": headers}
        if ask.body is not None:
            headers["content-type"] = "application/json"
            arguments["content"] = json.dumps(ask.body).encode()
        if ask.wait_s:
            arguments |= {"params": {"wait": ask.wait_s}, "timeout": _timeout(ask.wait_s + _WAIT_MORE_S)}
        return arguments

    def require_own_socket(self) -> None:
        """Refuse a socket that another user listens on."""
        if self.socket is None:
            return
        try:
            status = self.socket.stat()
        except OSError:
            raise self.not_running() from None
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid not in (0, os.geteuid()):
            raise own_error("config_invalid", f"{self.socket} is not this user's socket: no token is sent there")

    def not_running(self) -> Exception:
        return own_error("daemon_not_running", f"nothing listens on {self.socket or self.url}")


class _Client:
    """What both clients do alike. `_types`: httpx's client and transport."""

    _types: tuple[type[Any], type[Any]]

    def __init__(self, address: DaemonAddress) -> None:
        self._address = address
        self._open()

    def _open(self) -> None:
        client, transport = self._types
        uds = None if self._address.socket is None else str(self._address.socket)
        # Nothing here speaks TLS, and loading them takes longer than the request.
        no_certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._http = client(
            transport=transport(uds=uds, verify=no_certificates, limits=_LIMITS),
            base_url=self._address.url,
            trust_env=False,
            follow_redirects=False,
            timeout=_timeout(_TIMEOUT_S),
        )
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    @contextmanager
    def _asking(self, ask: AskDaemon) -> Iterator[None]:
        """Raises `PayAgentError` in place of what httpx raises."""
        self._address.require_own_socket()
        if self._pid != os.getpid():  # forked: two processes on one connection would mix up answers
            self._open()
        try:
            yield
        except httpx.ConnectError:
            raise self._address.not_running() from None
        except (httpx.HTTPError, ValueError) as error:
            detail = f"it did not answer {ask.method} {ask.path}: {type(error).__name__}"
            raise own_error("daemon_timeout", detail) from None


class DaemonClient(_Client):
    """Blocking client. It can be used again after `close`, like httpx's own transports."""

    _types = (httpx.Client, httpx.HTTPTransport)

    def ask(self, ask: AskDaemon) -> DaemonReply:
        with self._asking(ask):
            return _reply(self._http.request(**self._address.request(ask)))

    def close(self) -> None:
        self._http.close()
        self._open()


class AsyncDaemonClient(_Client):
    """Async client. It can be used again after `aclose`."""

    _types = (httpx.AsyncClient, httpx.AsyncHTTPTransport)

    async def ask(self, ask: AskDaemon) -> DaemonReply:
        with self._asking(ask):
            return _reply(await self._http.request(**self._address.request(ask)))

    async def aclose(self) -> None:
        await self._http.aclose()
        self._open()


def _timeout(most_s: float) -> httpx.Timeout:
    """Return timeouts without a limit on the wait for a free connection.

    If no daemon listens, connecting fails at once. A long wait for a connection only means that the daemon or this
    program is busy. The requests in progress end within their own timeouts.
    """
    return httpx.Timeout(most_s, pool=None)


def _reply(answer: httpx.Response) -> DaemonReply:
    """Read the daemon's JSON object. Raises ValueError for anything else."""
    body = answer.json()
    if not isinstance(body, dict):
        raise ValueError("not an object")
    after = answer.headers.get("retry-after", "")
    return DaemonReply(answer.status_code, body, int(after) if after.isdecimal() else 0)
