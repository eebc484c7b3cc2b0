"""Calls the daemon over HTTP through its Unix socket, with the operator's token.

`http.client` suffices for a socket of this machine, and is imported in a tenth of the time that httpx takes.
Never: follows a redirect or a proxy from the environment; shows the token; uses TCP, because while the daemon is
down any local process may bind the port and would receive the token.
"""

import codecs
import http.client
import json
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from payagent.cli.terminal import ProblemError
from payagent.core.problems import Refused
from payagent.secret_file import make_secret_file, of_another_user, put_in_place, read_header_secret
from payagent.settings.config_file import TOKEN_FILE, DaemonPaths

if TYPE_CHECKING:
    from payagent.settings.schema import Settings

TOKEN_PREFIX = "pa_"  # noqa: S105  as the daemon makes them
WAIT_S = 25
_CONNECT_S = 2.0
_ANSWER_S = WAIT_S + 15.0
_FILE_S = 600.0
_PIECE_BYTES = 65_536


class _SocketConnection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_CONNECT_S)
        try:
            self.sock.connect(str(self._path))
        except TimeoutError:
            raise
        except OSError as error:
            raise _unreached(self._path, error) from None
        self.sock.settimeout(self.timeout)


class OperatorClient:
    """Calls the daemon. Raises `ProblemError` for its refusals, `daemon_not_running` if none runs,
    `config_invalid` for a socket or a token file that this user cannot use.

    `token`: in place of the one in `token_file`, or else in the operator's file.
    """

    def __init__(
        self, paths: DaemonPaths, token_file: Path | None, config: Path | None = None, token: str | None = None
    ) -> None:
        self._paths = paths
        self._token_file = (token_file or paths.data_dir / TOKEN_FILE).resolve()
        self._config = config
        if token is not None:
            self._auth = {"authorization": f"Bearer {token}"}

    def __repr__(self) -> str:
        return "OperatorClient()"

    @cached_property
    def settings(self) -> "Settings":
        """The whole config, for the commands that need more of it than the daemon's paths."""
        from payagent.settings.loading import load_settings

        return load_settings(self._config, os.environ)

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """GET an object. Query values that are None are left out."""
        return self._request("GET", _with_query(path, query))

    def stream(self, path: str, **query: str | None) -> Iterator[str]:
        """GET text in pieces of 64 KiB. A truncated answer raises an error."""
        return codecs.iterdecode(self._pieces(_with_query(path, query), _ANSWER_S), "utf-8")

    def stream_bytes(self, path: str) -> Iterator[bytes]:
        """GET a file in pieces. The daemon builds it first, so the first byte may take minutes."""
        return self._pieces(path, _FILE_S)

    def _pieces(self, target: str, timeout_s: float) -> Iterator[bytes]:
        with self._answer("GET", target, self._auth, timeout_s=timeout_s) as answer:
            if answer.status >= 400:
                raise ProblemError(_object(answer))
            while piece := answer.read(_PIECE_BYTES):
                yield piece
            if answer.length:
                raise http.client.IncompleteRead(b"", answer.length)

    def post(self, path: str, body: object, key: str | None = None) -> dict[str, Any]:
        """POST an object as JSON, with an optional idempotency key."""
        return self.post_text(path, json.dumps(body), key)

    def post_text(self, path: str, body: str, key: str | None = None) -> dict[str, Any]:
        """POST JSON text unchanged."""
        if key is not None and not (key.isascii() and key.isprintable()):
            raise Refused("idempotency_key_invalid", "the key has characters that are not printable ASCII")
        headers = {"content-type": "application/json"} | ({} if key is None else {"idempotency-key": key})
        return self._request("POST", path, headers, body.encode())

    def renew_own_token(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """Replace the token in this client's file. The answer names it as `token_file`.

        The new token is on disk before the daemon gets it. After a crash either the old one is still valid, or
        `finish_renewal` finds the new one.
        """
        import secrets

        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        self._new_token_file.unlink(missing_ok=True)
        make_secret_file(self._new_token_file, token)
        answer = self.post(path, body | {"token": token})
        self._take_new_token()
        return answer | {"token_file": str(self._token_file)}

    def finish_renewal(self) -> None:
        """Finish an interrupted renewal: if the token in the file is no longer valid, take the new one."""
        if not self._new_token_file.exists():
            return
        try:
            self.get("/v1/apps")
        except ProblemError as problem:
            if problem.problem.get("code") != "unauthorized":
                raise
            OperatorClient(self._paths, self._new_token_file).get("/v1/apps")
            self._take_new_token()

    @property
    def _new_token_file(self) -> Path:
        return self._token_file.with_name(f"{self._token_file.name}.new")

    def _take_new_token(self) -> None:
        put_in_place(self._new_token_file, self._token_file)
        del self._auth

    def readiness(self) -> dict[str, Any]:
        """The answer of /readyz, ready or not. Needs no token."""
        with self._answer("GET", "/readyz", {}) as answer:
            return _object(answer)

    def unsigned_because(self) -> list[str]:
        """The reasons why the daemon signs nothing, from /readyz. Empty if it signs.

        Called after a command succeeded, so an error here is a reason and does not fail the command.
        """
        try:
            answer = self.readiness()
        except (ProblemError, Refused):
            return ["unknown: the daemon did not answer"]
        checks = {} if answer.get("ready") else answer.get("checks", {})
        return [reason for reason in checks.values() if reason != "ok"]

    def _request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, content: bytes | None = None
    ) -> dict[str, Any]:
        with self._answer(method, target, self._auth | dict(headers or {}), content) as answer:
            body = _object(answer)
        if answer.status >= 400:
            if body.get("code") == "unauthorized" and self._new_token_file.exists():
                body["detail"] = (
                    f"{body.get('detail')}; a renewal was interrupted ({self._new_token_file}): "
                    "run payagent app rotate-token NAME again"
                )
            raise ProblemError(body)
        return body

    @cached_property
    def _auth(self) -> dict[str, str]:
        self._require_token_file()
        return {"authorization": f"Bearer {read_header_secret(self._token_file)}"}

    def _require_token_file(self) -> None:
        try:
            self._token_file.stat()
        except FileNotFoundError:
            raise Refused(
                "config_invalid",
                f"the token file {self._token_file} is missing; "
                "if it is lost, docs/how-to/rotate-tokens.md says how to get a new one",
            ) from None
        except OSError:
            return  # reading it gives the reason

    @contextmanager
    def _answer(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        content: bytes | None = None,
        timeout_s: float = _ANSWER_S,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own: a kept one may have ended while a person was asked."""
        path = self._paths.socket
        _require_ours(path)
        with closing(_SocketConnection(path, timeout_s)) as connection:
            try:
                connection.request(method, target, content, dict(headers))
                yield connection.getresponse()
            except (http.client.HTTPException, OSError) as error:
                raise Refused(
                    "daemon_timeout",
                    f"no answer to {method} {target.partition('?')[0]}: {type(error).__name__}",
                ) from None


def _with_query(path: str, query: Mapping[str, str | int | None]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _require_ours(path: Path) -> None:
    """Refuse a socket of another user, who would receive the token."""
    try:
        status = path.stat()
    except OSError as error:
        raise _unreached(path, error) from None
    if not stat.S_ISSOCK(status.st_mode):
        raise _unreached(path)
    if status.st_uid not in (0, os.geteuid()):
        raise of_another_user(f"api.socket {path} belongs to another user; the token was not sent", status.st_uid)


def _unreached(path: Path, error: OSError | None = None) -> Refused:
    if isinstance(error, PermissionError):
        return Refused("config_invalid", f"no permission to use api.socket {path}; run this as the daemon's user")
    return Refused("daemon_not_running", f"nothing listens on {path}")


def _object(answer: http.client.HTTPResponse) -> dict[str, Any]:
    """The answer's JSON object. Any other answer is not from payagent."""
    with suppress(ValueError):
        body = json.loads(answer.read())
        if isinstance(body, dict):
            return body
    raise Refused("daemon_timeout", f"what answers on the socket is not payagent (status {answer.status})")
