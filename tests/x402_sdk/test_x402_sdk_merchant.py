"""The official SDK's server accepts transactions made by hand and proofs written by payagent's dialects."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from kit.devnet import TOKEN, Output, Purse, ada, payer
from kit.http import NO_TLS
from kit.sdk_merchant import SdkMerchant

from payagent.core.network import NETWORKS
from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread
from payagent.dialects import (
    HttpRequest,
    HttpResponse,
    ProofMaterial,
    Reading,
    make_response,
    proof_headers,
    read_offers,
)

PAY_TO = role_address("pay_to")
PRICE = 10_000_000


def decoded(text: str) -> Any:
    return json.loads(base64.b64decode(text, validate=True))


def encoded(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


@dataclass
class Buyer(Purse):
    """A purse, and a client without redirects or retries."""

    http: httpx.Client

    def transaction(self, outputs: Sequence[Output] = (ada(PAY_TO.raw, PRICE),)) -> tuple[str, bytes, str]:
        """A signed transaction that nobody has sent: (id, bytes, the nonce)."""
        (utxo_id, index), *_ = self.coins()
        slot = self.state()["slot"]
        assert isinstance(slot, int)
        tx_id, raw = self.build(outputs, ttl=slot + 200)
        return tx_id, raw, f"{utxo_id}#{index}"


def payment(ask: httpx.Response, raw: bytes, nonce: str) -> dict[str, str]:
    """The header of the retry, put together by hand."""
    required = decoded(ask.headers["PAYMENT-REQUIRED"])
    told = {
        "x402Version": 2,
        "resource": required["resource"],
        "accepted": required["accepts"][0],
        "payload": {"transaction": base64.b64encode(raw).decode(), "nonce": nonce},
    }
    return {"PAYMENT-SIGNATURE": encoded(told)}


@pytest.fixture(scope="module")
def devnet() -> Iterator[DevnetThread]:
    with DevnetThread() as running:
        yield running


@pytest.fixture
def buyer(devnet: DevnetThread, request: pytest.FixtureRequest) -> Iterator[Buyer]:
    with httpx.Client(verify=NO_TLS, timeout=60) as http:
        funded = Buyer(payer(request.node.name), devnet, http)
        funded.fund(200_000_000, assets={TOKEN: 1_000})
        yield funded


def test_a_free_path_needs_no_payment(devnet: DevnetThread, buyer: Buyer) -> None:
    with SdkMerchant(devnet) as merchant:
        assert buyer.http.get(f"{merchant.url}/free").status_code == 200


def test_an_unpaid_request_gets_the_payment_required_header(devnet: DevnetThread, buyer: Buyer) -> None:
    with SdkMerchant(devnet, confirmations=3) as merchant:
        ask = buyer.http.get(f"{merchant.url}/premium?day=1")
        assert (ask.status_code, merchant.handled.total()) == (402, 0)
        assert decoded(ask.headers["PAYMENT-REQUIRED"]) == {
            "x402Version": 2,
            "error": "Payment required",
            "resource": {
                "url": f"{merchant.url}/premium?day=1",
                "description": "A paid answer",
                "mimeType": "application/json",
            },
            "accepts": [
                {
                    "scheme": "exact",
                    "network": "cardano:devnet",
                    "amount": "10000000",
                    "asset": "lovelace",
                    "payTo": PAY_TO.text,
                    "maxTimeoutSeconds": 300,
                    "extra": {"areFeesSponsored": False, "confirmationPolicy": {"l1Confirmations": 3}},
                }
            ],
        }


@pytest.mark.parametrize(("method", "path"), [("GET", "/premium"), ("POST", "/chat")])
def test_a_payment_made_by_hand_is_served_and_is_on_the_chain(
    devnet: DevnetThread, buyer: Buyer, method: str, path: str
) -> None:
    with SdkMerchant(devnet, confirmations=-1) as merchant:
        body = {"json": {"message": "hello"}} if method == "POST" else {}
        ask = buyer.http.request(method, merchant.url + path, **body)
        tx_id, raw, nonce = buyer.transaction()
        answer = buyer.http.request(method, merchant.url + path, headers=payment(ask, raw, nonce), **body)
        assert answer.status_code == 200
        receipt = decoded(answer.headers["PAYMENT-RESPONSE"])
        assert (receipt["success"], receipt["transaction"]) == (True, tx_id)
        assert merchant.payments == {tx_id: 1}
        assert merchant.handled == {path: 1}
    buyer.control("blocks", count=1)
    assert buyer.get(f"/txs/{tx_id}").status_code == 200


def test_the_server_waits_for_the_confirmation_that_its_policy_requires(buyer: Buyer) -> None:
    with DevnetThread(block_time_s=1) as ticking, SdkMerchant(ticking, confirmations=1) as merchant:
        waiting = replace(buyer, devnet=ticking)
        waiting.fund(50_000_000)
        ask = buyer.http.get(f"{merchant.url}/premium")
        tx_id, raw, nonce = waiting.transaction()
        answer = buyer.http.get(f"{merchant.url}/premium", headers=payment(ask, raw, nonce))
        assert answer.status_code == 200
        receipt = decoded(answer.headers["PAYMENT-RESPONSE"])
        assert receipt["transaction"] == tx_id
        assert receipt["extra"]["confirmations"] >= 1


def test_a_pending_answer_has_no_terms_and_the_same_header_is_served_later(
    devnet: DevnetThread, buyer: Buyer
) -> None:
    with SdkMerchant(devnet, wait_s=0) as merchant:
        ask = buyer.http.get(f"{merchant.url}/premium")
        tx_id, raw, nonce = buyer.transaction()
        headers = payment(ask, raw, nonce)
        pending = buyer.http.get(f"{merchant.url}/premium", headers=headers)
        assert (pending.status_code, pending.json()) == (402, {})
        assert "PAYMENT-REQUIRED" not in pending.headers
        receipt = decoded(pending.headers["PAYMENT-RESPONSE"])
        assert (receipt["errorReason"], receipt["transaction"]) == ("settlement_pending", tx_id)
        buyer.control("blocks", count=1)
        assert buyer.http.get(f"{merchant.url}/premium", headers=headers).status_code == 200
        assert merchant.payments == {tx_id: 1}


def test_a_payment_below_the_price_is_refused_before_the_handler_runs(devnet: DevnetThread, buyer: Buyer) -> None:
    with SdkMerchant(devnet) as merchant:
        ask = buyer.http.get(f"{merchant.url}/premium")
        _, raw, nonce = buyer.transaction([ada(PAY_TO.raw, PRICE - 1)])
        answer = buyer.http.get(f"{merchant.url}/premium", headers=payment(ask, raw, nonce))
        assert answer.status_code == 402
        told = decoded(answer.headers["PAYMENT-REQUIRED"])
        assert told["error"] == "invalid_exact_cardano_payload_amount_insufficient"
        assert (merchant.handled.total(), merchant.payments) == (0, {})


@pytest.mark.parametrize(("replays", "status"), [(True, 200), (False, 402)])
def test_a_repeated_proof_is_served_only_by_a_merchant_that_replays(
    devnet: DevnetThread, buyer: Buyer, replays: bool, status: int
) -> None:
    with SdkMerchant(devnet, confirmations=-1, replays=replays) as merchant:
        ask = buyer.http.get(f"{merchant.url}/premium")
        tx_id, raw, nonce = buyer.transaction()
        headers = payment(ask, raw, nonce)
        assert buyer.http.get(f"{merchant.url}/premium", headers=headers).status_code == 200
        again = buyer.http.get(f"{merchant.url}/premium", headers=headers)
        assert again.status_code == status
        if not replays:
            assert decoded(again.headers["PAYMENT-RESPONSE"])["errorReason"] == "duplicate_settlement"
        assert merchant.payments == {tx_id: 1 + replays}


# --- with payagent's own reading and writing ---------------------------------------------------------------------


def received(ask: httpx.Response) -> HttpResponse:
    return make_response(ask.status_code, dict(ask.headers), ask.json())


def reading(url: str, origin: str) -> Reading:
    return Reading(
        origin=origin,
        network=NETWORKS["devnet"],
        split_mode=None,
        received_at_ms=1,
        call=HttpRequest("GET", url, "", {}),
        assets=frozenset(("lovelace", TOKEN)),
    )


@pytest.mark.parametrize("asset", ["lovelace", f"{TOKEN[:56]}.{TOKEN[56:]}"])
def test_a_402_read_and_a_proof_written_by_the_dialects_are_served(
    devnet: DevnetThread, buyer: Buyer, asset: str
) -> None:
    price = PRICE if asset == "lovelace" else 300
    with SdkMerchant(devnet, asset=asset, price=str(price), confirmations=-1) as merchant:
        url = f"{merchant.url}/premium?day=1"
        (invoice,) = read_offers(received(buyer.http.get(url)), reading(url, merchant.url))
        (output,) = invoice.outputs
        assert (output.units, invoice.merchant_submits, invoice.proof) == (price, True, "signed_cbor")
        is_ada = output.asset == "lovelace"
        out = ada(output.address.raw, price) if is_ada else (output.address.raw, 1_300_000, {output.asset: price})
        tx_id, raw, nonce = buyer.transaction([out])
        shown = ProofMaterial(tx_id=tx_id, cbor=raw, nonce=nonce, intent_id="int_" + "0" * 24)
        headers = proof_headers(
            invoice.dialect,
            invoice_id=invoice.invoice_id,
            shown=shown,
            echo=invoice.echo,
            partner=None,
            wallet=buyer.who.address.text,
        )
        answer = buyer.http.get(url, headers=headers)
        assert answer.status_code == 200
        assert decoded(answer.headers["PAYMENT-RESPONSE"])["transaction"] == tx_id
