"""The devnet's x402 shop over real HTTP: its 402s, its answers and each of its faults."""

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from kit.devnet import TOKEN, HandClock, Output, Purse, ada, payer
from kit.http import NO_TLS

from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread

PAY_TO = role_address("pay_to")
PRICE = 10_000_000
HONEST: Sequence[Output] = (ada(PAY_TO.raw, PRICE),)
ASK = {"message": "hello"}


def encoded(value: object) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def decoded(text: str) -> Any:
    return json.loads(base64.b64decode(text, validate=True))


@dataclass
class Buyer(Purse):
    """A purse that also talks to the shop, in version 2 unless told otherwise."""

    http: httpx.Client

    def call(self, path: str = "/x402/chat", body: object = ASK, **headers: str) -> httpx.Response:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.http.post(self.devnet.merchant_url + path, json=body, headers=sent)

    def settings(self, **settings: object) -> httpx.Response:
        return self.http.post(self.devnet.merchant_url + "/merchant/settings", json=settings)

    def x402(self, **settings: object) -> None:
        assert self.settings(x402=settings).status_code == 200

    def books(self) -> Any:
        return self.http.get(self.devnet.merchant_url + "/merchant/state").json()["x402"]

    def asked(self, path: str = "/x402/chat") -> Any:
        answer = self.call(path)
        assert (answer.status_code, answer.json()) == (402, {})
        return decoded(answer.headers["PAYMENT-REQUIRED"])

    def transaction(self, outputs: Sequence[Output] = HONEST, ttl: int = 300) -> tuple[str, dict[str, str]]:
        """A signed transaction, not submitted: (id, payload)."""
        (tx_id, index), *_ = self.coins()
        signed_id, raw = self.build(outputs, ttl=ttl)
        return signed_id, {"transaction": base64.b64encode(raw).decode(), "nonce": f"{tx_id}#{index}"}

    def pay(
        self, payload: object, path: str = "/x402/chat", body: object = ASK, **changes: object
    ) -> httpx.Response:
        """Accept the first entry, and send the request with the payment."""
        asked = self.asked(path)
        payment = {
            "x402Version": 2,
            "resource": asked["resource"],
            "accepted": asked["accepts"][0],
            "payload": payload,
        } | changes
        return self.call(path, body, payment_signature=encoded(payment))


def receipt(answer: httpx.Response) -> Any:
    return decoded(answer.headers["PAYMENT-RESPONSE"])


def unsettled(answer: httpx.Response) -> str:
    """Why a settlement failed: a 402 without anything to pay."""
    assert (answer.status_code, answer.json()) == (402, {})
    assert "PAYMENT-REQUIRED" not in answer.headers
    told = receipt(answer)
    assert told["success"] is False
    return str(told["errorReason"])


def refused(answer: httpx.Response) -> str:
    """Why a payment was refused: the 402 again."""
    assert answer.status_code == 402
    assert "PAYMENT-RESPONSE" not in answer.headers
    return str(decoded(answer.headers["PAYMENT-REQUIRED"])["error"])


@pytest.fixture
def buyer() -> Iterator[Buyer]:
    with DevnetThread(now_ms=HandClock()) as devnet, httpx.Client(verify=NO_TLS) as http:
        funded = Buyer(payer("alice"), devnet, http)
        funded.fund(200_000_000, assets={TOKEN: 1_000})
        funded.x402(confirmations=0)
        yield funded


# --- the official version ----------------------------------------------------------------------------------------


def test_the_402_has_the_official_x402_header(buyer: Buyer) -> None:
    url = f"{buyer.devnet.merchant_url}/x402/chat?output=short"
    assert buyer.asked("/x402/chat?output=short") == {
        "x402Version": 2,
        "error": "PAYMENT-SIGNATURE header is required",
        "resource": {"url": url, "description": "A paid answer", "mimeType": "application/json"},
        "accepts": [
            {
                "scheme": "exact",
                "network": "cardano:devnet",
                "amount": "10000000",
                "asset": "lovelace",
                "payTo": PAY_TO.text,
                "maxTimeoutSeconds": 600,
                "extra": {"confirmationPolicy": {"l1Confirmations": 0}, "areFeesSponsored": False},
            }
        ],
    }


def test_the_shop_submits_a_payment_and_serves_it_once_it_is_in_a_block(buyer: Buyer) -> None:
    tx_id, payload = buyer.transaction()
    assert unsettled(buyer.pay(payload)) == "settlement_pending"
    buyer.control("blocks", count=1)
    answer = buyer.pay(payload)
    assert answer.status_code == 200
    assert (answer.json()["txHash"], answer.json()["replayed"]) == (tx_id, False)
    assert receipt(answer) == {
        "success": True,
        "transaction": tx_id,
        "network": "cardano:devnet",
        "payer": buyer.who.address.text,
        "extra": {"status": "confirmed", "confirmations": 0},
    }
    assert buyer.get(f"/txs/{tx_id}").status_code == 200
    books = buyer.books()
    assert books["payments"] == [
        {
            "txHash": tx_id,
            "method": "POST",
            "path": "/x402/chat",
            "asset": "lovelace",
            "units": "10000000",
            "rejected": False,
            "served": 1,
        }
    ]
    assert (books["served"], books["replayed"], books["pending"], books["refused"]) == (1, 0, 1, {})


def test_a_get_request_can_be_paid_too(buyer: Buyer) -> None:
    buyer.x402(confirmations=-1)
    url = f"{buyer.devnet.merchant_url}/x402/premium?day=1"
    asked = decoded(buyer.http.get(url).headers["PAYMENT-REQUIRED"])
    tx_id, payload = buyer.transaction()
    payment = {"x402Version": 2, "accepted": asked["accepts"][0], "payload": payload}
    answer = buyer.http.get(url, headers={"PAYMENT-SIGNATURE": encoded(payment)})
    assert answer.json() == {
        "path": "/x402/premium?day=1",
        "answer": "This answer was paid for.",
        "txHash": tx_id,
        "replayed": False,
    }
    assert receipt(answer)["extra"] == {"status": "mempool", "confirmations": -1}


def test_chat_completions_are_sold_by_x402_too(buyer: Buyer) -> None:
    buyer.x402(confirmations=-1)
    answer = buyer.pay(buyer.transaction()[1], "/x402/v1/chat/completions", {"model": "devnet", "messages": []})
    assert answer.json()["object"] == "chat.completion"


def test_chat_streams_server_sent_events(buyer: Buyer) -> None:
    buyer.x402(confirmations=-1)
    tx_id, payload = buyer.transaction()
    answer = buyer.pay(payload, body={**ASK, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert receipt(answer)["transaction"] == tx_id
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert (events[-1], json.loads(events[-2])["txHash"]) == ("[DONE]", tx_id)


def test_a_token_is_named_with_a_dot_in_the_402(buyer: Buyer) -> None:
    buyer.settings(asset=TOKEN, price="100", splits=[], x402={"confirmations": -1})
    entry = buyer.asked()["accepts"][0]
    assert (entry["asset"], entry["amount"]) == (f"{TOKEN[:56]}.{TOKEN[56:]}", "100")
    _, payload = buyer.transaction([(PAY_TO.raw, 1_300_000, {TOKEN: 100})])
    assert buyer.pay(payload).status_code == 200


def test_a_transaction_pays_for_one_request(buyer: Buyer) -> None:
    buyer.x402(confirmations=-1)
    _, payload = buyer.transaction()
    assert buyer.pay(payload).status_code == 200
    assert unsettled(buyer.pay(payload)) == "duplicate_settlement"
    buyer.settings(replays="serve")
    assert buyer.pay(payload).json()["replayed"]
    for other in ({"path": "/x402/other"}, {"path": "/x402/chat?x=1"}, {"body": {"message": "other"}}):
        assert unsettled(buyer.pay(payload, **other)) == "duplicate_settlement"  # type: ignore[arg-type]
    books = buyer.books()
    assert (books["served"], books["replayed"], books["refused"]) == (1, 1, {"duplicate_settlement": 4})


def test_a_pending_transaction_is_bound_to_its_request(buyer: Buyer) -> None:
    _, payload = buyer.transaction()
    assert unsettled(buyer.pay(payload)) == "settlement_pending"
    assert unsettled(buyer.pay(payload, path="/x402/other")) == "duplicate_settlement"


def test_a_transaction_that_does_not_pay_is_refused_and_not_submitted(buyer: Buyer) -> None:
    _, payload = buyer.transaction([ada(PAY_TO.raw, PRICE - 1)])
    reason = "invalid_exact_cardano_payload_amount_insufficient"
    assert refused(buyer.pay(payload)) == reason
    assert buyer.books()["refused"] == {reason: 1}
    assert buyer.state()["mempool"] == []


def test_a_payment_must_repeat_the_requirements_of_the_402(buyer: Buyer) -> None:
    _, payload = buyer.transaction()
    asked = buyer.asked()
    cheaper = {**asked["accepts"][0], "amount": "1"}
    assert refused(buyer.pay(payload, accepted=cheaper)) == "No matching payment requirements"
    elsewhere = {**asked["resource"], "url": "http://127.0.0.1/other"}
    assert refused(buyer.pay(payload, resource=elsewhere)) == "invalid_exact_cardano_payload"
    for header in ("", "no base64", encoded([1]), encoded("text"), "e30=" * 3):
        answer = buyer.call(payment_signature=header)
        assert refused(answer) == "invalid_exact_cardano_payload"


# --- settings ----------------------------------------------------------------------------------------


def test_the_requirements_may_be_in_the_body_and_extra_may_be_null(buyer: Buyer) -> None:
    official = buyer.asked()
    buyer.x402(in_body=True)
    answer = buyer.call()
    assert "PAYMENT-REQUIRED" not in answer.headers
    assert (answer.status_code, answer.json()) == (402, official)
    buyer.x402(in_body=False, extra_null=True)
    assert buyer.asked()["accepts"][0]["extra"] is None
    _, payload = buyer.transaction()
    assert unsettled(buyer.pay(payload)) == "settlement_pending"
    buyer.control("blocks", count=2)
    assert buyer.pay(payload).status_code == 200


def test_the_shop_can_let_the_payer_submit(buyer: Buyer) -> None:
    buyer.x402(submission_policy="client")
    assert buyer.asked()["accepts"][0]["extra"]["submissionPolicy"] == "client"
    tx_id, payload = buyer.transaction()
    assert refused(buyer.pay(payload)) == "invalid_exact_cardano_payload"
    payload["submissionMode"] = "client"
    assert unsettled(buyer.pay(payload)) == "settlement_pending"
    assert buyer.state()["mempool"] == []
    assert buyer.submit(base64.b64decode(payload["transaction"])).json() == tx_id
    buyer.control("blocks", count=1)
    assert buyer.pay(payload).status_code == 200


def test_a_required_payment_identifier_names_one_payment(buyer: Buyer) -> None:
    buyer.x402(payment_identifier="required", confirmations=-1)
    declared = buyer.asked()["extensions"]
    assert declared["payment-identifier"]["info"] == {"required": True}

    def identified(**info: object) -> dict[str, object]:
        return {"payment-identifier": {**declared["payment-identifier"], "info": {"required": True, **info}}}

    _, payload = buyer.transaction()
    for missing in ({}, {"extensions": {}}, {"extensions": identified()}, {"extensions": identified(id="short")}):
        assert buyer.pay(payload, **missing).status_code == 400  # type: ignore[arg-type]
    bent = identified(id="int_0123456789abcdef", required=False)
    assert refused(buyer.pay(payload, extensions=bent)) == "extension_echo_mismatch"
    assert not sent(buyer)
    own = identified(id="int_0123456789abcdef")
    assert buyer.pay(payload, extensions=own).status_code == 200
    assert unsettled(buyer.pay(payload, extensions=own)) == "duplicate_settlement"
    buyer.control("blocks", count=1)
    _, other = buyer.transaction()
    assert buyer.pay(other, extensions=own).status_code == 409
    assert not sent(buyer)
    buyer.x402(payment_identifier="optional")
    assert buyer.pay(other).status_code == 200
    assert buyer.books()["identifiers"] == ["int_0123456789abcdef"]


@pytest.mark.parametrize(
    "settings",
    [
        {"colour": "red"},
        {"version": 3},
        {"version": True},
        {"confirmations": 21},
        {"confirmations": -2},
        {"fault": "fire"},
        {"fault_count": 0},
        {"max_timeout_s": 0},
        {"html": 1},
        {"html": True},
        {"version": 1, "extra_null": True},
        {"version": 1, "payment_identifier": "optional"},
        {"submission_policy": "nobody"},
        [],
    ],
)
def test_invalid_settings_are_refused_and_change_nothing(buyer: Buyer, settings: object) -> None:
    state = lambda: buyer.http.get(buyer.devnet.merchant_url + "/merchant/state").json()["settings"]  # noqa: E731
    before = state()
    assert buyer.settings(x402=settings).status_code == 400
    assert buyer.settings(x402=settings, price="1").status_code == 400
    assert buyer.settings(x402={"fault": "pending"}, price="none").status_code == 400
    assert state() == before


# --- as the merchant's dialect -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["x402", "x402-v2"])
def test_a_merchant_set_to_x402_sells_its_own_paths_by_x402(buyer: Buyer, dialect: str) -> None:
    assert buyer.settings(dialect=dialect, batch=3).json()["dialect"] == "x402-v2"
    assert buyer.asked("/chat")["resource"]["url"] == f"{buyer.devnet.merchant_url}/chat"
    tx_id, payload = buyer.transaction()
    assert unsettled(buyer.pay(payload, "/chat")) == "settlement_pending"
    buyer.control("blocks", count=1)
    answer = buyer.pay(payload, "/chat")
    assert (answer.status_code, answer.json()["txHash"]) == (200, tx_id)
    assert "reply" in answer.json()
    assert buyer.call("/payments/topup").status_code == 409
    buyer.settings(dialect="t-backend", batch=1)
    assert buyer.call("/chat").json()["detail"]["chain"] == "cardano-devnet"


def test_the_dialect_setting_selects_the_x402_version(buyer: Buyer) -> None:
    assert buyer.settings(dialect="x402-v1").json()["x402"]["version"] == 1
    asked = buyer.call("/chat").json()
    assert (asked["x402Version"], asked["accepts"][0]["resource"]) == (1, f"{buyer.devnet.merchant_url}/chat")
    assert buyer.call("/x402/chat").json()["x402Version"] == 1
    buyer.settings(dialect="x402-v2")
    assert buyer.asked("/chat")["x402Version"] == 2


def test_an_invoice_of_the_previous_dialect_stays_payable(buyer: Buyer) -> None:
    invoice_id = buyer.call("/chat").json()["detail"]["invoiceId"]
    buyer.settings(dialect="x402")
    answer = buyer.call("/chat", X_Invoice_Id=invoice_id, X_Payment="0" * 64)
    assert answer.json() == {"detail": {"status": "pending"}}


# --- faults ------------------------------------------------------------------------------------------------------


def sent(buyer: Buyer) -> bool:
    return bool(buyer.state()["mempool"])


@pytest.mark.parametrize("fault", ["refuse_verify", "ttl_too_far"])
def test_a_refused_transaction_is_not_submitted(buyer: Buyer, fault: str) -> None:
    buyer.x402(fault=fault, fault_count=1)
    _, payload = buyer.transaction()
    assert refused(buyer.pay(payload)).startswith("invalid_exact_cardano_payload_")
    assert not sent(buyer)
    assert unsettled(buyer.pay(payload)) == "settlement_pending"
    assert sent(buyer)
    assert buyer.books()["faults"] == {fault: 1}


@pytest.mark.parametrize(
    ("fault", "is_sent"), [("settle_500_before_broadcast", False), ("settle_500_after_broadcast", True)]
)
def test_a_500_can_come_before_or_after_the_transaction_is_submitted(
    buyer: Buyer, fault: str, is_sent: bool
) -> None:
    buyer.x402(fault=fault, fault_count=2, confirmations=-1)
    _, payload = buyer.transaction()
    for _ in range(2):
        assert buyer.pay(payload).status_code == 500
        assert sent(buyer) is is_sent
    assert buyer.pay(payload).status_code == 200
    assert (buyer.books()["served"], buyer.books()["replayed"]) == (1, 0)


def test_a_connection_dropped_after_submission_can_be_retried(buyer: Buyer) -> None:
    buyer.x402(fault="drop_after_broadcast", fault_count=1)
    _, payload = buyer.transaction()
    with pytest.raises(httpx.RemoteProtocolError):
        buyer.pay(payload)
    assert sent(buyer)
    buyer.control("blocks", count=1)
    assert buyer.pay(payload).status_code == 200


def test_faults_report_pending_or_an_empty_reason_for_a_settled_payment(buyer: Buyer) -> None:
    buyer.x402(fault="pending", confirmations=-1)
    _, payload = buyer.transaction()
    for _ in range(3):
        assert unsettled(buyer.pay(payload)) == "settlement_pending"
    buyer.x402(fault="empty_reason", fault_count=1)
    answer = buyer.pay(payload)
    assert (unsettled(answer), receipt(answer)["transaction"]) == ("", "")
    assert buyer.pay(payload).status_code == 200
    buyer.x402(fault="pending")
    assert unsettled(buyer.pay(payload)) == "duplicate_settlement"


def test_a_redirect_of_the_paid_request_leads_to_another_402(buyer: Buyer) -> None:
    buyer.x402(fault="redirect_307", fault_count=1)
    _, payload = buyer.transaction()
    answer = buyer.pay(payload)
    assert (answer.status_code, answer.headers["location"]) == (307, "/x402/elsewhere")
    assert sent(buyer)
    assert buyer.call("/x402/elsewhere").status_code == 402


# --- version 1 ---------------------------------------------------------------------------------------------------


def payment_v1(signed: dict[str, str], **changes: object) -> str:
    whole = {
        "x402Version": 1,
        "scheme": "exact",
        "network": "cardano-devnet",
        "payload": {"transaction": signed["transaction"]},
    }
    return encoded(whole | changes)


def test_version_1_has_the_requirements_in_the_body(buyer: Buyer) -> None:
    buyer.settings(asset=TOKEN, price="100", splits=[], x402={"version": 1})
    answer = buyer.call()
    assert (answer.status_code, answer.headers["X-PAYMENT-ERROR"]) == (402, "missing")
    assert answer.json() == {
        "x402Version": 1,
        "error": "X-PAYMENT header is required",
        "accepts": [
            {
                "scheme": "exact",
                "network": "cardano-devnet",
                "maxAmountRequired": "100",
                "asset": TOKEN[:56],
                "payTo": PAY_TO.text,
                "resource": f"{buyer.devnet.merchant_url}/x402/chat",
                "description": "A paid answer",
                "mimeType": "application/json",
                "outputSchema": None,
                "maxTimeoutSeconds": 600,
                "extra": {"assetNameHex": TOKEN[56:], "decimals": 0},
            }
        ],
    }


def test_version_1_answers_202_while_pending_and_success_as_text(buyer: Buyer) -> None:
    buyer.x402(version=1)
    tx_id, payload = buyer.transaction()
    pending = buyer.call(x_payment=payment_v1(payload))
    assert (pending.status_code, pending.json()) == (
        202,
        {"pending": True, "transaction": tx_id, "retryAfterSeconds": 1},
    )
    buyer.control("blocks", count=1)
    answer = buyer.call(x_payment=payment_v1(payload))
    assert (answer.status_code, answer.json()["txHash"]) == (200, tx_id)
    told = decoded(answer.headers["X-PAYMENT-RESPONSE"])
    assert told == {"success": "true", "network": "cardano-devnet", "transaction": tx_id}


def test_version_1_as_an_html_page_has_the_same_json(buyer: Buyer) -> None:
    buyer.x402(version=1)
    plain = buyer.call("/x402/a?b=</script>&c").json()
    buyer.x402(html=True)
    answer = buyer.call("/x402/a?b=</script>&c")
    assert (answer.status_code, answer.headers["content-type"]) == (402, "text/html; charset=utf-8")
    script = answer.text.partition("window.__x402Requirements = ")[2].partition(";</script>")[0]
    assert json.loads(script) == plain


def test_version_1_refuses_an_invalid_payment_with_its_reason(buyer: Buyer) -> None:
    buyer.x402(version=1)
    _, payload = buyer.transaction([ada(PAY_TO.raw, PRICE - 1)])
    cases = {
        payment_v1(payload): "invalid_exact_cardano_payload_amount_insufficient",
        payment_v1(payload, x402Version=2): "invalid_exact_cardano_payload_unsupported_version",
        payment_v1(payload, network="cardano-preprod"): "network_mismatch",
        payment_v1(payload, scheme="upto"): "unsupported_scheme",
        payment_v1(payload, payload=None): "invalid_exact_cardano_payload",
        "ab" * 32: "invalid_exact_cardano_payload",
    }
    for proof, reason in cases.items():
        answer = buyer.call(x_payment=proof)
        assert (answer.status_code, answer.headers["X-PAYMENT-ERROR"], answer.json()["error"]) == (
            402,
            reason,
            reason,
        )
    assert not sent(buyer)
