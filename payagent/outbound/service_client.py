"""POST JSON to a service that brings messages to people, and read its answer within limits.

Never: follows a redirect, reads proxies from the environment, shows a URL, a header or a body in an error.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

from payagent.core.notifications import Missed
from payagent.http_client import HttpClient, read_body

TIMEOUT_S = 10
ANSWER_MAX_BYTES = 2 * 1024 * 1024
WAIT_MAX_S = 86_400
"""The longest wait that a service may ask for: a notification is given up after a day."""


class ServiceError(Exception):
    """Why a service did not take a request, in words without its URL.

    `status`: None if it gave no answer. `wait_s`: how long it asked to wait.
    """

    def __init__(self, why: str, status: int | None = None, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.status = status
        self.wait_s = wait_s


class ServiceClient:
    """Requests to one service. Every request ends within its timeout, whatever the peer does."""

    def __init__(self) -> None:
        self._http = HttpClient()
        self._not_before_s: dict[int, float] = {}

    def wait(self, seconds: int, chat: int = 0) -> None:
        """Send nothing to a chat for so long, because the service asked for it."""
        now_s = asyncio.get_running_loop().time()
        self._not_before_s = {key: at_s for key, at_s in self._not_before_s.items() if at_s > now_s}
        self._not_before_s[chat] = now_s + min(seconds, WAIT_MAX_S)

    def require_may_send(self, chat: int = 0) -> None:
        """Raises `ServiceError` while the service asked to wait."""
        left_s = self._not_before_s.get(chat, 0) - asyncio.get_running_loop().time()
        if left_s > 0:
            raise ServiceError(f"it asked to wait {left_s:.0f} s more", wait_s=left_s)

    async def post(self, url: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Send JSON. Returns the status and the body. Raises `ServiceError` without a complete answer in time."""
        async with self._posted(url, body, {}, timeout_s) as response:
            answer = await read_body(response, ANSWER_MAX_BYTES)
            if len(answer) > ANSWER_MAX_BYTES:
                raise ServiceError("its answer does not end", response.status_code)
            return response.status_code, answer

    async def deliver(self, url: str, body: bytes, headers: Mapping[str, str]) -> Missed | None:
        """Send JSON, unless the service asked to wait. None on a 2xx. The body of the answer is not read."""
        try:
            self.require_may_send()
            async with self._posted(url, body, headers, TIMEOUT_S) as response:
                if response.is_success:
                    return None
                wait_s = _retry_after_s(response) if response.status_code in (429, 503) else None
                if wait_s is not None:
                    self.wait(wait_s)
                return Missed(f"it answered {response.status_code}", wait_s)
        except ServiceError as failed:
            return Missed(str(failed), failed.wait_s)

    @asynccontextmanager
    async def _posted(
        self, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncIterator[httpx.Response]:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream("POST", url, {"Content-Type": "application/json", **headers}, body) as response,
            ):
                yield response
        except TimeoutError:
            raise ServiceError(f"no answer within {timeout_s:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServiceError(type(error).__name__) from None

    async def aclose(self) -> None:
        await self._http.aclose()


def _retry_after_s(response: httpx.Response) -> int | None:
    """What the Retry-After header asks for. A zero asks for nothing."""
    text = response.headers.get("retry-after", "")
    return int(text) or None if text.isascii() and text.isdigit() and len(text) < 10 else None
