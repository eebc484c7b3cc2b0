"""The merchant's status call: `GET /payments/status/{invoiceId}` (T Backend developer guide).

What it says is advisory: the chain decides. See the room's docstring for what this may import and never does.
"""

import asyncio
from urllib.parse import quote

import httpx

from payagent.core.problem import Refused
from payagent.core.strict_json import loads
from payagent.dialects.status import StatusSaid, read_status

BODY_MAX_BYTES = 65_536


class MerchantClient:
    """One connection pool for all merchants. Every call ends within its time-out, whatever the peer does."""

    def __init__(self) -> None:
        self._http = httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=httpx.Timeout(10))

    async def status(
        self, origin: str, invoice_id: str, *, headers: dict[str, str], timeout_s: int
    ) -> StatusSaid | None:
        """What the merchant says of its invoice; None when it could not be asked or did not make sense."""
        url = f"{origin}/payments/status/{quote(invoice_id, safe='')}"
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._get(url, headers)
        except (TimeoutError, httpx.HTTPError):
            return None
        return None if body is None else read_status(body)

    async def _get(self, url: str, headers: dict[str, str]) -> object | None:
        async with self._http.stream("GET", url, headers={"Accept-Encoding": "identity", **headers}) as response:
            if response.status_code != 200:
                return None
            raw = b""
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) > BODY_MAX_BYTES:
                    return None
        try:
            return loads(raw)
        except Refused:
            return None

    async def aclose(self) -> None:
        await self._http.aclose()
