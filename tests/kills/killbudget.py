"""The clients of the budget test, which ask for more than the daily limit; some run in a separate process.

As a program it reads one JSON object from stdin, `Orders`, asks over the daemon's Unix socket, and writes the
results of its clients to stdout, as JSON.
"""

import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

Json = dict[str, Any]
Call = Callable[..., Awaitable[httpx.Response]]


@dataclass
class Shop:
    """The merchant, and the address of the wallet that pays."""

    http: httpx.AsyncClient
    merchant_url: str
    wallet: str

    async def asked(self, body: bytes) -> Json:
        """Its 402 for a call, as a client forwards it."""
        headers = {"Content-Type": "application/json", "X-Wallet-Address": self.wallet}
        while True:
            try:
                answer = await self.http.post(f"{self.merchant_url}/chat", content=body, headers=headers)
                break
            except httpx.TransportError:  # the kept-alive connection was closed
                await asyncio.sleep(0.02)
        assert answer.status_code == 402, answer.text
        received = {"status": 402, "headers": dict(answer.headers), "body": answer.json()}
        request = {"method": "POST", "path": "/chat", "body_sha256": hashlib.sha256(body).hexdigest()}
        return {"origin": self.merchant_url, "request": request, "response": received}


@dataclass
class Client:
    """One app, and the answers it got for each of its requests."""

    shop: Shop
    call: Call
    number: int
    token: str
    wanted: int
    paid: dict[str, Json] = field(default_factory=dict)
    refused: int = 0

    async def want_everything(self) -> None:
        for number in range(self.wanted):
            await self.want(b'{"message": "client %d wants %d"}' % (self.number, number))

    async def want(self, body: bytes) -> None:
        """Ask until there is an answer, as a client does whose daemon dies, or does not trust its clock."""
        key = hashlib.sha256(body).hexdigest()
        ask = await self.shop.asked(body)
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": key}
        while True:
            try:
                answer = await self.call("POST", "/v1/payments", json=ask, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            told = answer.json()
            if answer.status_code in (200, 201):
                self.paid[key] = {"id": told["id"], "tx_hash": told["tx_hash"]}
                return
            if told["code"] == "limit_exceeded":
                assert (told["limit"], told["asset"]) == ("per_day", "lovelace"), told
                self.refused += 1
                return
            assert told["retryable"], told
            await asyncio.sleep(0.02)


async def run(orders: Json) -> list[Json]:
    async with (
        httpx.AsyncClient(trust_env=False, timeout=60) as http,
        httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=orders["socket"]), timeout=60) as daemon,
    ):
        shop = Shop(http, orders["merchant_url"], orders["wallet"])

        async def call(method: str, path: str, **options: Any) -> httpx.Response:
            return await daemon.request(method, f"http://payagent{path}", **options)

        clients = [Client(shop, call, *client) for client in orders["clients"]]
        await asyncio.gather(*(client.want_everything() for client in clients))
    return [{"paid": client.paid, "refused": client.refused} for client in clients]


async def in_a_process_of_its_own(orders: Json) -> list[Json]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__)), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        told, _ = await process.communicate(json.dumps(orders).encode())
        assert process.returncode == 0, process.returncode
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found: list[Json] = json.loads(told)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
