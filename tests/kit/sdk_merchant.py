"""A merchant made of the official x402 SDK: its resource server and FastAPI middleware, on a loopback port.

`with SdkMerchant(devnet) as merchant:` sells `GET /premium`, `GET /notes/...` and `POST /chat`; `GET /free` costs
nothing. The facilitator is the devnet's, in process, since the SDK has none for Cardano; it waits for blocks as
a real one does, up to `wait_s`. The order is the SDK's: verify, the handler, settle.
"""

import asyncio
import socket
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request
from x402 import x402ResourceServer
from x402.http import PaymentOption, RouteConfig
from x402.http.middleware.fastapi import payment_middleware
from x402.payment_flow import AUTHORIZATION_PAYMENT_FLOW
from x402.schemas import (
    AssetAmount,
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)

from payagent.devnet.facilitator import PENDING, Facilitator, Settlement
from payagent.devnet.merchant import role_address
from payagent.devnet.server import Devnet, DevnetThread

NETWORK = "cardano:devnet"
_POLL_S = 0.05


class CardanoServerScheme:
    """The server's half of `exact` on Cardano, as the SDK asks for it. Prices are units of an asset."""

    scheme = "exact"
    default_asset_transfer_method = "default"
    payment_flows = {"default": AUTHORIZATION_PAYMENT_FLOW}  # noqa: RUF012  the SDK reads it from the object

    def parse_price(self, price: Any, _network: str) -> AssetAmount:
        if isinstance(price, AssetAmount):
            return price
        raise ValueError("a price on Cardano is an AssetAmount")

    def enhance_payment_requirements(
        self, requirements: PaymentRequirements, _kind: SupportedKind, _extensions: list[str]
    ) -> PaymentRequirements:
        requirements.extra = {"areFeesSponsored": False, **requirements.extra}
        return requirements


class DevnetFacilitator:
    """The SDK's facilitator client over the devnet's facilitator, in the devnet's own loop.

    With `replays` a served request is settled again, as by the scheme's reference facilitator.
    """

    def __init__(self, devnet: DevnetThread, wait_s: float, replays: bool) -> None:
        self._devnet = devnet
        self._wait_s = wait_s
        self._replays = replays
        self.facilitator = devnet.run(lambda running: Facilitator(running.node, NETWORK))

    def get_supported(self) -> SupportedResponse:
        extra = {
            "assetTransferMethods": ["default"],
            "areFeesSponsored": False,
            "l1Confirmations": {"minimum": -1, "maximum": 20},
        }
        return SupportedResponse(
            kinds=[SupportedKind(x402_version=2, scheme="exact", network=NETWORK, extra=extra)]
        )

    async def verify(self, payload: PaymentPayload, requirements: PaymentRequirements) -> VerifyResponse:
        wanted, payment = _json(requirements), _json(payload)

        def run_pass(running: Devnet) -> str | None:
            running.node.tick()
            return self.facilitator.verify(wanted, payment)

        reason = await asyncio.to_thread(self._devnet.run, run_pass)
        return VerifyResponse(is_valid=reason is None, invalid_reason=reason)

    async def settle(self, payload: PaymentPayload, requirements: PaymentRequirements) -> SettleResponse:
        until = time.monotonic() + self._wait_s
        while True:
            settled = await asyncio.to_thread(self._settle, _json(payload), _json(requirements))
            if settled.reason != PENDING or time.monotonic() >= until:
                return SettleResponse.model_validate(settled.as_json())
            await asyncio.sleep(_POLL_S)

    def _settle(self, payment: dict[str, Any], wanted: dict[str, Any]) -> Settlement:
        buys = str((payment.get("resource") or {}).get("url"))

        def act(running: Devnet) -> Settlement:
            running.node.tick()
            settled = self.facilitator.settle(wanted, payment, buys, replays=self._replays)
            if settled.reason is None:
                self.facilitator.served(settled.tx_id)
            return settled

        return self._devnet.run(act)


def _json(model: PaymentPayload | PaymentRequirements) -> dict[str, Any]:
    return model.model_dump(by_alias=True, exclude_none=True)


class Server(uvicorn.Server):
    """`ready` is set once it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


class SdkMerchant:
    """The merchant in its own thread. `handled` counts the handled requests by path."""

    def __init__(
        self,
        devnet: DevnetThread,
        *,
        price: str = "10000000",
        asset: str = "lovelace",
        confirmations: int = 0,
        max_timeout_s: int = 300,
        wait_s: float = 20,
        replays: bool = True,
    ) -> None:
        self.pay_to = role_address("pay_to").text
        self.handled: Counter[str] = Counter()
        self._client = DevnetFacilitator(devnet, wait_s, replays)
        self._option = PaymentOption(
            scheme="exact",
            pay_to=self.pay_to,
            price=AssetAmount(amount=price, asset=asset),
            network=NETWORK,
            max_timeout_seconds=max_timeout_s,
            extra={"confirmationPolicy": {"l1Confirmations": confirmations}},
        )
        self._open(0)

    def _open(self, port: int) -> None:
        app = self._app(self._option)
        config = uvicorn.Config(app, http="h11", lifespan="off", log_config=None, access_log=False)
        self._server = Server(config)
        self._socket = socket.create_server(("127.0.0.1", port))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, name="x402 SDK merchant")

    @property
    def payments(self) -> dict[str, int]:
        """How many answers each transaction paid for, by its id."""
        return {claim.tx_id: claim.served for claim in self._client.facilitator.claims.values()}

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))

    def _app(self, option: PaymentOption) -> FastAPI:
        server = x402ResourceServer(self._client)
        server.register(NETWORK, CardanoServerScheme())
        route = RouteConfig(accepts=option, description="A paid answer", mime_type="application/json")
        app = FastAPI()
        routes = dict.fromkeys(("GET /premium", "GET /notes/*", "POST /chat"), route)
        app.middleware("http")(payment_middleware(routes, server))

        @app.get("/premium")
        async def premium() -> dict[str, object]:
            self.handled["/premium"] += 1
            return {"answer": "This answer was paid for."}

        @app.get("/notes/{name}")
        async def notes(name: str) -> dict[str, object]:
            self.handled["/notes"] += 1
            return {"note": name}

        @app.post("/chat")
        async def chat(request: Request) -> dict[str, object]:
            self.handled["/chat"] += 1
            return {"reply": (await request.json())["message"]}

        @app.get("/free")
        async def free() -> dict[str, object]:
            return {"answer": "This one is free."}

        return app

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._server.ready.wait(60):
            raise TimeoutError("the merchant did not start")
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
