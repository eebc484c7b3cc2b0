"""Clients for the daemon, blocking and async: HTTP on loopback or over a Unix socket, with an app's token.

Never: shows the token, or sends it anywhere but to this machine; follows a redirect or a proxy from the
environment.
"""

import json
import os
import re
import ssl
import stat
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

    def options(self) -> dict[str, Any]:
        """The options common to both clients."""
        return {
            "base_url": self.url,
            "trust_env": False,
            "follow_redirects": False,
            "timeout": _timeout(_TIMEOUT_S),
        }

    def transport_options(self) -> dict[str, Any]:
        # No certificates: nothing here speaks TLS, and loading them takes longer than the request.
        uds = None if self.socket is None else str(self.socket)
        return {"uds": uds, "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "limits": _LIMITS}

    def not_running(self) -> Exception:
        return own_error("daemon_not_running", f"nothing listens on {self.socket or self.url}")

    def no_answer(self, ask: AskDaemon, error: Exception) -> Exception:
        return own_error("daemon_timeout", f"it did not answer {ask.method} {ask.path}: {type(error).__name__}")


class DaemonClient:
    """Blocking client. It can be used again after `close`, like httpx's own transports."""

    def __init__(self, address: DaemonAddress) -> None:
        self._address = address
        self._open()

    def _open(self) -> None:
        transport = httpx.HTTPTransport(**self._address.transport_options())
        self._http = httpx.Client(transport=transport, **self._address.options())
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"Daemon({self._address!r})"

    def ask(self, ask: AskDaemon) -> DaemonReply:
        self._address.require_own_socket()
        if self._pid != os.getpid():  # forked: two processes on one connection would mix up answers
            self._open()
        try:
            return _reply(self._http.request(**self._address.request(ask)))
        except httpx.ConnectError:
            raise self._address.not_running() from None
        except (httpx.HTTPError, ValueError) as error:
            raise self._address.no_answer(ask, error) from None

    def close(self) -> None:
        self._http.close()
        self._open()


class AsyncDaemonClient:
    """Async client. It can be used again after `aclose`."""

    def __init__(self, address: DaemonAddress) -> None:
        self._address = address
        self._open()

    def _open(self) -> None:
        transport = httpx.AsyncHTTPTransport(**self._address.transport_options())
        self._http = httpx.AsyncClient(transport=transport, **self._address.options())
        self._pid = os.getpid()

    def __repr__(self) -> str:
        return f"AsyncDaemon({self._address!r})"

    async def ask(self, ask: AskDaemon) -> DaemonReply:
        self._address.require_own_socket()
        if self._pid != os.getpid():
            self._open()
        try:
            return _reply(await self._http.request(**self._address.request(ask)))
        except httpx.ConnectError:
            raise self._address.not_running() from None
        except (httpx.HTTPError, ValueError) as error:
            raise self._address.no_answer(ask, error) from None

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
