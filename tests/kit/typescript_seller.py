"""A seller of the official TypeScript SDK in a node process, and the devnet's facilitator over HTTP for it."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI
from x402.schemas import PaymentPayload, PaymentRequirements, SettleResponse

from kit.cli import clean_environ
from kit.sdk_merchant import NETWORK, DevnetFacilitator, Server
from payagent.devnet.facilitator import REJECTED
from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread

SELLERS = Path(__file__).parents[1] / "x402_sdk" / "sellers"
IS_THERE = shutil.which("node") is not None and (SELLERS / "node_modules" / "@x402").is_dir()


def _app(facilitator: DevnetFacilitator, refuses: bool) -> FastAPI:
    app = FastAPI()

    @app.get("/supported")
    def supported() -> Any:
        return facilitator.get_supported().model_dump(by_alias=True)

    @app.post("/verify")
    async def verify(asked: dict[str, Any]) -> Any:
        return (await facilitator.verify(*_read(asked))).model_dump(by_alias=True, exclude_none=True)

    @app.post("/settle")
    async def settle(asked: dict[str, Any]) -> Any:
        told = await facilitator.settle(*_read(asked))
        if refuses:
            told = SettleResponse(success=False, error_reason=REJECTED, transaction="", network=NETWORK)
        return told.model_dump(by_alias=True, exclude_none=True)

    return app


def _read(asked: dict[str, Any]) -> tuple[PaymentPayload, PaymentRequirements]:
    payload, requirements = asked["paymentPayload"], asked["paymentRequirements"]
    return PaymentPayload.model_validate(payload), PaymentRequirements.model_validate(requirements)


@asynccontextmanager
async def _facilitator(app: FastAPI) -> AsyncIterator[str]:
    server = Server(uvicorn.Config(app, http="h11", lifespan="off", log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        assert await asyncio.to_thread(server.ready.wait, 60)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await asyncio.to_thread(thread.join)


@asynccontextmanager
async def typescript_seller(
    devnet: DevnetThread,
    framework: str,
    *,
    confirmations: int = -1,
    wait_s: float = 20,
    replays: bool = True,
    loses: bool = False,
    refuses: bool = False,
) -> AsyncIterator[str]:
    """Run one that sells `POST /chat` for 2 ADA, and yield its URL. `framework`: "express" or "hono".

    `loses`: its first answer to a payment does not arrive. `refuses`: its facilitator settles, and denies it.
    """
    app = _app(DevnetFacilitator(devnet, wait_s, replays), refuses)
    async with _facilitator(app) as facilitator:
        told = {
            "framework": framework,
            "facilitator": facilitator,
            "network": NETWORK,
            "payTo": role_address("pay_to").text,
            "price": {"amount": "2000000", "asset": "lovelace"},
            "extra": {"confirmationPolicy": {"l1Confirmations": confirmations}},
            "loses": loses,
        }
        process = await asyncio.create_subprocess_exec(
            *("node", str(SELLERS / "seller.mjs"), json.dumps(told)),
            env=clean_environ(),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        assert line, "it did not start"
        try:
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            await process.communicate()
