"""What a merchant can be asked: `GET /payments/status/{invoiceId}` and `/payments/balance` (T Backend developer
guide), and `/payments/credits`, which only a partner's client knows.

What it says is advisory: the chain decides. See the room's docstring for what this may import and never does.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Literal
from urllib.parse import quote, urlencode

import httpx
import structlog

from payagent.core.bounds import ANSWER_MAX_BYTES
from payagent.core.problems import Refused
from payagent.core.strict_json import loads
from payagent.core.version import USER_AGENT
from payagent.dialects import as_recorded
from payagent.dialects.prepaid_answers import PrepaidAnswer, read_prepaid
from payagent.dialects.status_answers import StatusWord, read_status
from payagent.outbound.egress import Egress

BODY_MAX_BYTES = 65_536
KEPT_MAX_BYTES = 4_096
"""Of what is said of a balance: that may be something else each time, and all of it is on record for good."""

Source = Literal["balance", "credits"]
_SOURCES: tuple[Source, ...] = ("balance", "credits")
_NOT_THERE = (404, 405)

log = structlog.get_logger("payagent.outbound")


@dataclass(frozen=True, slots=True)
class MerchantReply:
    """A merchant's answer to a call. `body` is None when it has more bytes than are read."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes | None

    def record(self) -> str:
        """The answer as it came, as JSON for the record."""
        return as_recorded(self.status, self.headers, self.body or b"")


@dataclass(frozen=True, slots=True)
class Observed:
    """What a merchant answered when it was asked for a prepaid balance.

    `body` is the answer's text as it came, at most 4 KiB of it; a byte that is no UTF-8 stands as `\\xNN`.
    """

    source: Source
    status: int
    body: str
    said: PrepaidAnswer

    @property
    def is_puzzling(self) -> bool:
        """Whether the other path may say more: this one is not there, or its answer is not understood."""
        return self.status in _NOT_THERE or (200 <= self.status < 300 and not self.said.understood)


class MerchantClient:
    """One connection pool for all merchants. Every call ends within its time-out, whatever the peer does."""

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` is the network, as `Egress.transport` gives it; None for one that no name leads astray."""
        self._silent: set[str] = set()
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(10),
            headers={"User-Agent": USER_AGENT},
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            transport=transport or Egress().transport(),
        )

    async def status(
        self, origin: str, invoice_id: str, *, headers: dict[str, str], timeout_s: int
    ) -> StatusWord | None:
        """What the merchant says of its invoice; None when it could not be asked or did not make sense."""
        url = f"{origin}/payments/status/{quote(invoice_id, safe='')}"
        said, why = None, None
        try:
            async with asyncio.timeout(timeout_s):
                status, raw = await self._get(url, headers)
            if status == 200:
                said = read_status(loads(raw))
            else:
                why = f"http {status}"
        except (TimeoutError, httpx.HTTPError, Refused) as error:
            why = error.detail if isinstance(error, Refused) else type(error).__name__
        self._note_silence(origin, why)
        return said

    async def prepaid(
        self, origin: str, partner: str, wallet: str, *, headers: dict[str, str], timeout_s: int
    ) -> Observed | None:
        """What the merchant says is left of a wallet's prepaid balance; None when it could not be asked."""
        query = urlencode({"partner": partner, "wallet": wallet})
        seen: list[Observed] = []
        try:
            async with asyncio.timeout(timeout_s):
                for source in _SOURCES:
                    status, raw = await self._get(f"{origin}/payments/{source}?{query}", headers)
                    body = raw[:KEPT_MAX_BYTES].decode("utf-8", "backslashreplace")
                    seen.append(Observed(source, status, body, read_prepaid(status, raw)))
                    if not seen[-1].is_puzzling:
                        break
        except (TimeoutError, httpx.HTTPError, UnicodeError, Refused):  # UnicodeError: no header can say whose
            pass
        return _most_telling(seen)

    async def call(
        self, url: str, method: str, *, body: bytes, headers: dict[str, str], timeout_s: int
    ) -> MerchantReply:
        """Make a call. Raises `merchant_unreachable` or `merchant_timeout`; it may have been carried out then.

        `merchant_address_private` when its name leads where no call goes.
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(
                    method,
                    url,
                    content=body,
                    headers={"Accept-Encoding": "identity", **headers},
                    timeout=httpx.Timeout(timeout_s, connect=10),
                ) as answer,
            ):
                raw = await _read(answer, ANSWER_MAX_BYTES)
                whole = raw if len(raw) <= ANSWER_MAX_BYTES else None
                return MerchantReply(answer.status_code, tuple(answer.headers.multi_items()), whole)
        except (TimeoutError, httpx.TimeoutException):
            raise Refused("merchant_timeout", f"no answer within {timeout_s} s") from None
        except httpx.HTTPError as error:
            raise Refused("merchant_unreachable", f"no answer: {type(error).__name__}") from None

    def _note_silence(self, origin: str, why: str | None) -> None:
        """Tell the log when a merchant's word on its invoices is not to be had any more, and when it is again."""
        if why is None and origin in self._silent:
            self._silent.discard(origin)
            log.info("merchant.heard_again", origin=origin)
        elif why is not None and origin not in self._silent:
            self._silent.add(origin)
            log.warning("merchant.silent", origin=origin, why=why)

    async def _get(self, url: str, headers: dict[str, str]) -> tuple[int, bytes]:
        """The status and the body. A body above the bound comes longer than the bound, which no reader takes."""
        async with self._http.stream("GET", url, headers={"Accept-Encoding": "identity", **headers}) as response:
            return response.status_code, await _read(response, BODY_MAX_BYTES)

    async def aclose(self) -> None:
        await self._http.aclose()


async def _read(response: httpx.Response, most_bytes: int) -> bytes:
    """The body; of one above the bound, more than the bound."""
    raw = bytearray()
    async for chunk in response.aiter_raw():
        raw += chunk
        if len(raw) > most_bytes:
            break
    return bytes(raw)


def _most_telling(seen: Sequence[Observed]) -> Observed | None:
    """An answer that is understood, else one of a path that is there; of two alike the documented one."""
    ranked = sorted(seen, key=lambda one: (not one.said.understood, one.status in _NOT_THERE))
    return ranked[0] if ranked else None
