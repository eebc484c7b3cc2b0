"""Calls the daemon over HTTP through its Unix socket, with the operator's token.

May import: httpx, core, secret_file, settings.
Never: follows a redirect or a proxy from the environment; shows the token; uses TCP, because while the daemon is
down any local process may bind the port and would receive the token.
"""

import json
import os
import secrets
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from payagent.cli.terminal import ProblemError
from payagent.core.problems import Refused
from payagent.secret_file import make_secret_file, put_in_place, read_header_secret
from payagent.settings.paths import TOKEN_FILE
from payagent.settings.schema import Settings

TOKEN_PREFIX = "pa_"  # noqa: S105  as the daemon makes them
WAIT_S = 25
_TIMEOUT = httpx.Timeout(30.0, connect=2.0, read=WAIT_S + 15.0)
_FILE_TIMEOUT = httpx.Timeout(30.0, connect=2.0, read=600.0)


class OperatorClient:
    """Calls the daemon. Raises `ProblemError` for its refusals, `daemon_not_running` if none runs."""

    def __init__(self, settings: Settings, token_file: Path | None) -> None:
        self.settings = settings
        self._token_file = (token_file or settings.data_dir / TOKEN_FILE).resolve()
        self._token: str | None = None
        self._client: httpx.Client | None = None

    def __repr__(self) -> str:
        return "OperatorClient()"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()

    def get(self, path: str, **query: str | int | None) -> dict[str, Any]:
        """GET an object. Query values that are None are left out."""
        params = {name: value for name, value in query.items() if value is not None}
        return self._request("GET", path, params=params)

    def stream(self, path: str, **query: str | None) -> Iterator[str]:
        """GET text in pieces, as they arrive. A truncated answer raises an error."""
        params = {name: value for name, value in query.items() if value is not None}
        with self._streaming(path, params, _TIMEOUT) as answer:
            yield from answer.iter_text()

    def stream_bytes(self, path: str) -> Iterator[bytes]:
        """GET a file in pieces. The daemon builds it first, so the first byte may take minutes."""
        with self._streaming(path, {}, _FILE_TIMEOUT) as answer:
            yield from answer.iter_bytes()

    @contextmanager
    def _streaming(self, path: str, query: dict[str, str], timeout: httpx.Timeout) -> Iterator[httpx.Response]:
        client = self._opened()
        with (
            self._errors_as_refusals("GET", path),
            client.stream("GET", path, params=query, headers=self._auth(), timeout=timeout) as answer,
        ):
            if answer.status_code >= 400:
                answer.read()
                raise ProblemError(_object(answer))
            yield answer

    def post(self, path: str, body: object, key: str | None = None) -> dict[str, Any]:
        """POST an object as JSON, with an optional idempotency key."""
        return self.post_text(path, json.dumps(body), key)

    def post_text(self, path: str, body: str, key: str | None = None) -> dict[str, Any]:
        """POST JSON text unchanged."""
        if key is not None and not (key.isascii() and key.isprintable()):
            raise Refused("idempotency_key_invalid", "the key has characters that are not printable ASCII")
        key_header = {} if key is None else {"idempotency-key": key}
        headers = {"content-type": "application/json"} | key_header
        return self._request("POST", path, content=body.encode(), headers=headers)

    def renew_own_token(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        """Replace the token in this client's file.

        The new token is on disk before the daemon gets it. After a crash either the old one is still valid, or
        `finish_renewal` finds the new one.
        """
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        self._new_token_file.unlink(missing_ok=True)
        make_secret_file(self._new_token_file, token)
        answer = self.post(path, body | {"token": token})
        self._take_new_token()
        return answer

    def finish_renewal(self) -> None:
        """Finish an interrupted renewal: if the token in the file is no longer valid, take the new one."""
        if not self._new_token_file.exists():
            return
        try:
            self.get("/v1/apps")
        except ProblemError as problem:
            if problem.problem.get("code") != "unauthorized":
                raise
            with OperatorClient(self.settings, self._new_token_file) as other:
                other.get("/v1/apps")
            self._take_new_token()

    @property
    def _new_token_file(self) -> Path:
        return self._token_file.with_name(f"{self._token_file.name}.new")

    def _take_new_token(self) -> None:
        put_in_place(self._new_token_file, self._token_file)
        self._token = None

    def readiness(self) -> dict[str, Any]:
        """The answer of /readyz, ready or not. Needs no token."""
        return _object(self._send("GET", "/readyz", {}))

    def unsigned_because(self) -> list[str]:
        """The reasons why the daemon signs nothing, from /readyz. Empty if it signs.

        Called after a command succeeded, so an error here is a reason and does not fail the command.
        """
        try:
            checks = self.readiness().get("checks", {})
        except (ProblemError, Refused):
            return ["unknown: the daemon did not answer"]
        return [reason for reason in checks.values() if reason != "ok"]

    def _request(
        self, method: str, path: str, headers: dict[str, str] | None = None, **content: Any
    ) -> dict[str, Any]:
        answer = self._send(method, path, self._auth() | (headers or {}), **content)
        body = _object(answer)
        if answer.status_code >= 400:
            if body.get("code") == "unauthorized" and self._new_token_file.exists():
                fix = (
                    f"a renewal was interrupted ({self._new_token_file}): run payagent app rotate-token NAME again"
                )
                body["detail"] = f"{body.get('detail')}; {fix}"
            raise ProblemError(body)
        return body

    def _auth(self) -> dict[str, str]:
        if self._token is None:
            self._require_token_file()
            self._token = read_header_secret(self._token_file)
        return {"authorization": f"Bearer {self._token}"}

    def _require_token_file(self) -> None:
        try:
            self._token_file.stat()
        except FileNotFoundError:
            fix = "if it is lost, docs/how-to/rotate-tokens.md says how to get a new one"
            raise Refused("config_invalid", f"the token file {self._token_file} is missing; {fix}") from None
        except OSError:
            return  # reading it gives the reason

    def _send(self, method: str, path: str, headers: dict[str, str], **content: Any) -> httpx.Response:
        client = self._opened()
        with self._errors_as_refusals(method, path):
            return client.request(method, path, headers=headers, **content)

    def _opened(self) -> httpx.Client:
        _require_ours(self.settings)
        if self._client is None:
            self._client = _client(self.settings.api.socket)
        return self._client

    @contextmanager
    def _errors_as_refusals(self, method: str, path: str) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise _not_running(self.settings) from None
        except (httpx.HTTPError, OSError) as error:
            raise Refused(
                "daemon_timeout",
                f"no answer to {method} {path.partition('?')[0]}: {type(error).__name__}",
            ) from None


def _client(socket: Path) -> httpx.Client:
    # No certificates: nothing here speaks TLS, and loading them takes longer than the call.
    transport = httpx.HTTPTransport(uds=str(socket), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return httpx.Client(
        transport=transport, base_url="http://localhost", trust_env=False, follow_redirects=False, timeout=_TIMEOUT
    )


def _require_ours(settings: Settings) -> None:
    """Refuse a socket of another user, who would receive the token."""
    path = settings.api.socket
    try:
        status = path.stat()
    except OSError:
        raise _not_running(settings) from None
    if not stat.S_ISSOCK(status.st_mode):
        raise _not_running(settings)
    if status.st_uid not in (0, os.geteuid()):
        raise Refused("config_invalid", f"api.socket {path} belongs to another user; the token was not sent")


def _not_running(settings: Settings) -> Refused:
    return Refused("daemon_not_running", f"nothing listens on {settings.api.socket}")


def _object(answer: httpx.Response) -> dict[str, Any]:
    """The answer's JSON object. Any other answer is not from payagent."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refused(
            "daemon_timeout", f"the server at {answer.url.host} is not payagent (status {answer.status_code})"
        )
    return body
