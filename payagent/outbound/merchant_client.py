"""HTTP client for merchants: invoice status, prepaid balance, and the request of a top-up.

It reads `GET /payments/status/{invoiceId}` and `GET /payments/balance` (T Backend developer guide), and `GET
/payments/credits`, which only a partner's client knows. The answers are advisory: the chain decides.
Never: pays, follows a redirect, keeps a cookie.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode

import httpx
import structlog

from payagent.core.bounds import ANSWER_MAX_BYTES
from payagent.core.problems import Refused
from payagent.core.strict_json import loads
from payagent.dialects import as_recorded
from payagent.dialects.prepaid_answers import PrepaidAnswer, read_prepaid
from payagent.dialects.status_answers import StatusWord, read_status
from payagent.http_client import HttpClient, read_body
from payagent.outbound.egress import Egress

BODY_MAX_BYTES = 65_536
KEPT_MAX_BYTES = 4_096
"""The most bytes recorded of a balance answer: each answer may differ, and all of them are kept forever."""

Source = Literal["balance", "credits"]
_SOURCES: tuple[Source, ...] = ("balance", "credits")
_NOT_THERE = (404, 405)

log = structlog.get_logger("payagent.outbound")


@dataclass(frozen=True, slots=True)
class MerchantReply:
    """A merchant's answer. `body` is None if it is longer than the limit."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | None

    def record(self) -> str:
        """The answer as JSON for the record."""
        return as_recorded(self.status, self.headers, self.body or b"")


@dataclass(frozen=True, slots=True)
class Observed:
    """A merchant's answer about a prepaid balance.

    `body` is the answer's text, at most 4 KiB. A byte that is not UTF-8 is written as `\\xNN`.
    """

    source: Source
    status: int
    body: str
    parsed: PrepaidAnswer

    @property
    def is_inconclusive(self) -> bool:
        """Whether the other path may say more: this one does not exist, or its answer is not understood."""
        return self.status in _NOT_THERE or (200 <= self.status < 300 and not self.parsed.understood)


class MerchantClient:
    """One connection pool for all merchants. Every request ends within its timeout, whatever the peer does."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` makes the connections. By default it is that of an `Egress` without private hosts."""
        self._silent: set[str] = set()
        self._http = HttpClient(transport or Egress().transport())

    async def status(
        self, origin: str, invoice_id: str, *, headers: dict[str, str], timeout_s: int
    ) -> StatusWord | None:
        """Return the status that the merchant gives its invoice; None if there is no usable answer."""
        url = f"{origin}/payments/status/{quote(invoice_id, safe='')}"
        status_word, why = None, None
        try:
            async with asyncio.timeout(timeout_s):
                status, raw = await self._get(url, headers)
            if status == 200:
                status_word = read_status(loads(raw))
            else:
                why = f"http {status}"
        except (TimeoutError, httpx.HTTPError, Refused) as error:
            why = error.detail if isinstance(error, Refused) else type(error).__name__
        self._note_silence(origin, why)
        return status_word

    async def prepaid(
        self, origin: str, partner: str, wallet: str, *, headers: dict[str, str], timeout_s: int
    ) -> Observed | None:
        """Return the merchant's answer about a wallet's prepaid balance; None if there is none."""
        query = urlencode({"partner": partner, "wallet": wallet})
        observations: list[Observed] = []
        try:
            async with asyncio.timeout(timeout_s):
                for source in _SOURCES:
                    status, raw = await self._get(f"{origin}/payments/{source}?{query}", headers)
                    body = raw[:KEPT_MAX_BYTES].decode("utf-8", "backslashreplace")
                    observations.append(Observed(source, status, body, read_prepaid(status, raw)))
                    if not observations[-1].is_inconclusive:
                        break
        except (TimeoutError, httpx.HTTPError, UnicodeError, Refused):  # UnicodeError: names no header can hold
            pass
        return _best_answer(observations)

    async def call(
        self, url: str, method: str, *, body: bytes, headers: dict[str, str], timeout_s: int
    ) -> MerchantReply:
        """Send a request and read the answer.

        Raises `merchant_unreachable` or `merchant_timeout`; the merchant may have carried the request out. Raises
        `merchant_in_private_network` if the host's name resolves to an address that is not allowed.
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(method, url, headers, body) as answer,
            ):
                raw = await read_body(answer, ANSWER_MAX_BYTES)
                complete = raw if len(raw) <= ANSWER_MAX_BYTES else None
                return MerchantReply(answer.status_code, tuple(answer.headers.multi_items()), complete)
        except (TimeoutError, httpx.TimeoutException):
            raise Refused("merchant_timeout", f"no answer within {timeout_s} s") from None
        except httpx.HTTPError as error:
            raise Refused("merchant_unreachable", f"no answer: {type(error).__name__}") from None

    def _note_silence(self, origin: str, why: str | None) -> None:
        """Log when a merchant stops answering status requests, and when it answers again."""
        if why is None and origin in self._silent:
            self._silent.discard(origin)
            log.info("merchant.heard_again", origin=origin)
        elif why is not None and origin not in self._silent:
            self._silent.add(origin)
            log.warning("merchant.silent", origin=origin, why=why)

    async def _get(self, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """Return the status and the body. A body over the limit stays longer than it, so parsing fails."""
        async with self._http.stream("GET", url, headers) as response:
            return response.status_code, await read_body(response, BODY_MAX_BYTES)

    async def aclose(self) -> None:
        await self._http.aclose()


def _best_answer(observations: Sequence[Observed]) -> Observed | None:
    """Prefer an understood answer, then one from a path that exists, then the documented path."""
    ranked = sorted(observations, key=lambda answer: (not answer.parsed.understood, answer.status in _NOT_THERE))
    return ranked[0] if ranked else None
