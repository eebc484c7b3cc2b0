"""The devnet merchant over real HTTP: an honest payment is served, any other is refused with its reason."""

import base64
import json
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest
from kit.devnet import POLICY, TOKEN, HandClock, Output, Purse, ada, payer
from kit.http import NO_TLS

from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread
from payagent.dialects import read_prepaid

PAY_TO, PLATFORM, CREATOR = (role_address(role).raw for role in ("pay_to", "platform", "creator"))
PRICE, PLATFORM_SHARE, CREATOR_SHARE = 10_000_000, 2_000_000, 1_000_000
HONEST: Sequence[Output] = (ada(PAY_TO, PRICE), ada(PLATFORM, PLATFORM_SHARE), ada(CREATOR, CREATOR_SHARE))
ASK = {"message": "hello", "session_id": "s1"}


class Buyer(Purse):
    """A purse that also talks to the merchant."""

    def call(
        self, body: object = ASK, path: str = "/chat", proof: tuple[str, str] | None = None, **headers: str
    ) -> httpx.Response:
        sent = {"X-Partner": "demo", "X-Wallet-Address": self.who.address.text}
        sent |= {f"X-{name.replace('_', '-')}": value for name, value in headers.items()}
        if proof is not None:
            sent |= {"X-Invoice-Id": proof[0], "X-Payment": proof[1]}
        return httpx.post(self.devnet.merchant_url + path, json=body, headers=sent, verify=NO_TLS)

    def invoice(self, body: object = ASK, path: str = "/chat", **headers: str) -> dict[str, object]:
        answer = self.call(body, path, **headers)
        assert answer.status_code == 402, answer.text
        return dict(answer.json()["detail"])

    def settings(self, **settings: object) -> httpx.Response:
        return httpx.post(self.devnet.merchant_url + "/merchant/settings", json=settings, verify=NO_TLS)

    def books(self) -> dict[str, object]:
        return dict(httpx.get(self.devnet.merchant_url + "/merchant/state", verify=NO_TLS).json())

    def status(self, invoice_id: object) -> object:
        return httpx.get(f"{self.devnet.merchant_url}/payments/status/{invoice_id}", verify=NO_TLS).json()[
            "status"
        ]

    def balance(self, partner: str = "demo") -> tuple[int, int]:
        answer = self.helper("balance", partner).json()
        return answer["remaining"], answer["total"]

    def helper(self, name: str, partner: str = "demo") -> httpx.Response:
        query = {"partner": partner, "wallet": self.who.address.text}
        return httpx.get(f"{self.devnet.merchant_url}/payments/{name}", params=query, verify=NO_TLS)


def reason(answer: httpx.Response) -> str:
    """Why a proof was refused; the answer carries nothing that could be paid."""
    assert answer.status_code == 402
    detail = answer.json()["detail"]
    assert detail["error"] == "payment_flow_error"
    assert "invoiceId" not in detail
    return str(detail["reason"])


def pending(answer: httpx.Response) -> bool:
    return answer.status_code == 402 and answer.json() == {"detail": {"status": "pending"}}


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def buyer(clock: HandClock) -> Iterator[Buyer]:
    with DevnetThread(now_ms=clock) as devnet:
        funded = Buyer(payer("alice"), devnet)
        funded.fund(200_000_000, assets={TOKEN: 1_000})
        yield funded


# --- the 402 -----------------------------------------------------------------------------------------------------


def test_the_402_has_the_documented_t_backend_body(buyer: Buyer) -> None:
    answer = buyer.call()
    assert (answer.status_code, list(answer.json())) == (402, ["detail"])
    detail = answer.json()["detail"]
    invoice_id = detail.pop("invoiceId")
    assert detail == {
        "version": "0.1",
        "chain": "cardano-devnet",
        "asset": "ADA",
        "amountUnits": "10000000",
        "decimals": 6,
        "payTo": role_address("pay_to").text,
        "timeout": 300,
        "extra": {
            "lovelace": True,
            "babel": False,
            "partner": "demo",
            "batchTarget": 1,
            "split": {
                "mode": "additional",
                "outputs": [
                    {"address": role_address("platform").text, "amountUnits": "2000000", "role": "platform"},
                    {"address": role_address("creator").text, "amountUnits": "1000000", "role": "creator"},
                ],
            },
        },
    }
    assert buyer.status(invoice_id) == "pending"


def test_a_flux_402_has_the_documented_body_and_headers(buyer: Buyer, clock: HandClock) -> None:
    buyer.settings(dialect="flux", split_mode="inclusive", timeout=60)
    clock.forward(1)
    answer = buyer.call()
    body = answer.json()
    assert body == {
        "invoiceId": answer.headers["X-Invoice-Id"],
        "amount": "10000000",
        "currency": "ADA",
        "payTo": role_address("pay_to").text,
        "chain": "cardano-devnet",
        "expiresAt": "2023-11-14T22:14:21.000Z",
        "splits": [
            {"to": role_address("platform").text, "amount": "2000000", "role": "platform"},
            {"to": role_address("creator").text, "amount": "1000000", "role": "creator"},
        ],
        "splitMode": "inclusive",
    }
    names = ("X-Pay-To", "X-Amount", "X-Asset", "X-Chain", "X-Timeout")
    values = (role_address("pay_to").text, "10000000", "ADA", "cardano-devnet", "60")
    assert tuple(answer.headers[name] for name in names) == values
    tx_id = buyer.pay([ada(PAY_TO, 7_000_000), ada(PLATFORM, PLATFORM_SHARE), ada(CREATOR, CREATOR_SHARE)])
    assert buyer.call(proof=(body["invoiceId"], tx_id)).status_code == 200


def test_the_same_request_gets_the_same_invoice_until_it_expires_or_is_paid(
    buyer: Buyer, clock: HandClock
) -> None:
    first = buyer.invoice()
    clock.forward(100)
    again = buyer.invoice()
    assert (again["invoiceId"], again["timeout"]) == (first["invoiceId"], 200)
    others = [
        buyer.invoice({"message": "other"}),
        buyer.invoice(path="/token-analysis"),
        buyer.invoice(path="/chat?output=structured"),
        buyer.invoice(Partner="another"),
        buyer.invoice(Wallet_Address=payer("bob").address.text),
    ]
    assert len({first["invoiceId"], *(other["invoiceId"] for other in others)}) == 6
    clock.forward(200)
    second = buyer.invoice()
    assert second["invoiceId"] != first["invoiceId"]
    assert buyer.status(first["invoiceId"]) == "expired"
    assert buyer.call(proof=(str(second["invoiceId"]), buyer.pay(HONEST))).status_code == 200
    assert buyer.invoice()["invoiceId"] != second["invoiceId"]


# --- the honest payment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/chat", "/token-analysis", "/images/generate", "/images/edit"])
def test_an_honest_payment_is_served(buyer: Buyer, path: str) -> None:
    invoice_id = str(buyer.invoice(path=path)["invoiceId"])
    tx_id = buyer.pay(HONEST)
    answer = buyer.call(path=path, proof=(invoice_id, tx_id), Request_Id="r-1")
    assert answer.status_code == 200
    assert (answer.json()["invoiceId"], answer.json()["txHash"]) == (invoice_id, tx_id)
    assert answer.headers["X-Request-ID"] == "r-1"
    books = buyer.books()
    assert (books["served"], books["refused"]) == (1, {})
    assert books["payments"] == [{"invoiceId": invoice_id, "txHash": tx_id}]
    assert buyer.status(invoice_id) == "consumed"


def test_the_order_of_outputs_does_not_matter(buyer: Buyer) -> None:
    invoice_id = str(buyer.invoice()["invoiceId"])
    assert buyer.call(proof=(invoice_id, buyer.pay(tuple(reversed(HONEST))))).status_code == 200


def test_a_proof_presented_again_is_served_and_counted_as_a_replay(buyer: Buyer) -> None:
    proof = (str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST))
    assert [buyer.call(proof=proof).json()["replayed"] for _ in range(3)] == [False, True, True]
    books = buyer.books()
    assert (books["served"], books["replayed"], len(books["payments"])) == (1, 2, 1)


def test_the_merchant_can_be_set_to_refuse_replayed_proofs(buyer: Buyer) -> None:
    proof = (str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST))
    assert buyer.settings(replays="refuse").json()["replays"] == "refuse"
    assert buyer.call(proof=proof).status_code == 200
    assert reason(buyer.call(proof=proof)) == "paid_already"
    buyer.settings(replays=None)
    assert buyer.call(proof=proof).json()["replayed"]


def test_a_replay_with_a_key_the_first_request_lacked_gets_a_new_invoice(buyer: Buyer) -> None:
    proof = (str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST))
    assert buyer.call(proof=proof, Idempotency_Key="late").status_code == 200
    again = buyer.call(proof=proof, Idempotency_Key="late")
    assert (again.status_code, again.json()["detail"]["invoiceId"] != proof[0]) == (402, True)
    assert buyer.call(proof=proof).json()["replayed"]


def test_a_replay_with_the_key_of_the_first_request_is_served_again(buyer: Buyer) -> None:
    proof = (str(buyer.invoice(Idempotency_Key="mine")["invoiceId"]), buyer.pay(HONEST))
    replayed = [buyer.call(proof=proof, Idempotency_Key="mine").json()["replayed"] for _ in range(2)]
    assert replayed == [False, True]


def test_chat_streams_server_sent_events(buyer: Buyer) -> None:
    ask = {**ASK, "stream": True}
    invoice_id = str(buyer.invoice(ask)["invoiceId"])
    answer = buyer.call(ask, proof=(invoice_id, buyer.pay(HONEST)))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["invoiceId"] == invoice_id
    assert "".join(json.loads(event)["token"] for event in events[:-2]).startswith("Cardano is")


def test_chat_completions_have_the_form_of_openais_api(buyer: Buyer) -> None:
    path, ask = "/v1/chat/completions", {"model": "devnet", "messages": [{"role": "user", "content": "hello"}]}
    proof = (str(buyer.invoice(ask, path)["invoiceId"]), buyer.pay(HONEST))
    whole = buyer.call(ask, path, proof).json()
    assert (whole["object"], whole["model"]) == ("chat.completion", "devnet")
    (choice,) = whole["choices"]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
    ask["stream"] = True
    proof = (str(buyer.invoice(ask, path)["invoiceId"]), buyer.pay(HONEST))
    answer = buyer.call(ask, path, proof)
    *events, end = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    chunks = [json.loads(event) for event in events]
    assert ({chunk["object"] for chunk in chunks}, end) == ({"chat.completion.chunk"}, "[DONE]")
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said.rstrip() == choice["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]


# --- invalid payments ---------------------------------------------------------------------------------------

INEXACT: dict[str, Sequence[Output]] = {
    "pay_to one unit short": (ada(PAY_TO, PRICE - 1), *HONEST[1:]),
    "pay_to one unit over": (ada(PAY_TO, PRICE + 1), *HONEST[1:]),
    "pay_to in two halves": (ada(PAY_TO, PRICE // 2), ada(PAY_TO, PRICE // 2), *HONEST[1:]),
    "pay_to twice": (HONEST[0], *HONEST),
    "no pay_to": HONEST[1:],
    "no split at all": HONEST[:1],
    "one split missing": HONEST[:2],
    "a split one unit short": (*HONEST[:2], ada(CREATOR, CREATOR_SHARE - 1)),
    "splits swapped": (HONEST[0], ada(PLATFORM, CREATOR_SHARE), ada(CREATOR, PLATFORM_SHARE)),
    "splits taken from the price": (ada(PAY_TO, PRICE - PLATFORM_SHARE - CREATOR_SHARE), *HONEST[1:]),
    "splits merged into pay_to": (ada(PAY_TO, PRICE + PLATFORM_SHARE + CREATOR_SHARE),),
    "a token beside the price": ((PAY_TO, PRICE, {TOKEN: 1}), *HONEST[1:]),
    "another payee": (ada(payer("bob").address.raw, PRICE), *HONEST[1:]),
}


@pytest.mark.parametrize("name", INEXACT)
def test_a_payment_with_inexact_outputs_is_refused(buyer: Buyer, name: str) -> None:
    invoice_id = str(buyer.invoice()["invoiceId"])
    answer = buyer.call(proof=(invoice_id, buyer.pay(INEXACT[name])))
    assert reason(answer) == "wrong_outputs"
    assert (buyer.books()["served"], buyer.books()["payments"]) == (0, [])


def test_one_transaction_pays_only_one_invoice(buyer: Buyer) -> None:
    first, second = (str(buyer.invoice({"message": text})["invoiceId"]) for text in ("one", "two"))
    tx_id = buyer.pay(HONEST)
    assert buyer.call({"message": "one"}, proof=(first, tx_id)).status_code == 200
    assert reason(buyer.call({"message": "two"}, proof=(second, tx_id))) == "transaction_used"


def test_one_invoice_is_paid_by_only_one_transaction(buyer: Buyer) -> None:
    invoice_id = str(buyer.invoice()["invoiceId"])
    first, second = buyer.pay(HONEST), buyer.pay(HONEST)
    assert buyer.call(proof=(invoice_id, first)).status_code == 200
    assert reason(buyer.call(proof=(invoice_id, second))) == "paid_already"


Change = Callable[[Buyer, tuple[str, str]], httpx.Response]
OTHER_REQUESTS: dict[str, Change] = {
    "body": lambda buyer, proof: buyer.call({"message": "other"}, proof=proof),
    "path": lambda buyer, proof: buyer.call(path="/token-analysis", proof=proof),
    "query": lambda buyer, proof: buyer.call(path="/chat?output=structured", proof=proof),
    "partner": lambda buyer, proof: buyer.call(proof=proof, Partner="another"),
    "wallet": lambda buyer, proof: buyer.call(proof=proof, Wallet_Address=payer("bob").address.text),
}


@pytest.mark.parametrize("name", OTHER_REQUESTS)
def test_an_invoice_pays_only_for_the_request_it_was_made_for(buyer: Buyer, name: str) -> None:
    proof = (str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST))
    assert reason(OTHER_REQUESTS[name](buyer, proof)) == "other_request"
    assert buyer.call(proof=proof).status_code == 200
    assert reason(OTHER_REQUESTS[name](buyer, proof)) == "other_request"


@pytest.mark.parametrize("told", [{}, {"X-Partner": "demo"}])
def test_a_client_may_add_the_partner_and_wallet_headers_on_the_retry(buyer: Buyer, told: dict[str, str]) -> None:
    asked = httpx.post(buyer.devnet.merchant_url + "/chat", json=ASK, headers=told, verify=NO_TLS)
    proof = (str(asked.json()["detail"]["invoiceId"]), buyer.pay(HONEST))
    assert reason(buyer.call({"message": "other"}, proof=proof)) == "other_request"
    assert buyer.call(proof=proof).status_code == 200
    assert buyer.call(proof=proof).json()["replayed"]


@pytest.mark.parametrize("shape", ["0x", "upper", "short", "json", "cbor", "base64"])
def test_only_a_plain_transaction_id_is_a_proof_when_set_so(buyer: Buyer, shape: str) -> None:
    buyer.settings(proof="tx_hash")
    invoice_id = str(buyer.invoice()["invoiceId"])
    tx_id = buyer.pay(HONEST)
    cbor = buyer.get(f"/txs/{tx_id}/cbor").json()["cbor"]
    proof = {
        "0x": "0x" + tx_id,
        "upper": tx_id.upper(),
        "short": tx_id[:-1],
        "json": json.dumps({"txHash": tx_id}),
        "cbor": cbor,
        "base64": base64.b64encode(bytes.fromhex(cbor)).decode(),
    }[shape]
    assert proof != tx_id
    assert reason(buyer.call(proof=(invoice_id, proof))) == "proof_not_understood"
    assert buyer.call(proof=(invoice_id, tx_id)).status_code == 200


def test_a_transaction_id_or_a_signed_transaction_is_a_proof_by_default(buyer: Buyer) -> None:
    tx_id, raw = buyer.build(HONEST)
    invoice_id = str(buyer.invoice()["invoiceId"])
    assert pending(buyer.call(proof=(invoice_id, raw.hex())))
    buyer.control("blocks", count=1)
    assert buyer.call(proof=(invoice_id, tx_id)).json()["txHash"] == tx_id
    assert buyer.call(proof=(invoice_id, raw.hex())).json()["replayed"]
    assert reason(buyer.call(proof=(invoice_id, "0x" + tx_id))) == "proof_not_understood"


def test_the_merchant_submits_a_signed_transaction_sent_as_proof(buyer: Buyer) -> None:
    buyer.settings(proof="signed_cbor")
    invoice_id = str(buyer.invoice()["invoiceId"])
    tx_id, raw = buyer.build(HONEST)
    assert reason(buyer.call(proof=(invoice_id, tx_id))) == "proof_not_understood"
    assert reason(buyer.call(proof=(invoice_id, raw[:-1].hex()))) == "proof_not_understood"
    for _ in range(2):
        assert pending(buyer.call(proof=(invoice_id, raw.hex())))
        assert buyer.state()["mempool"] == [tx_id]
    buyer.control("blocks", count=1)
    answer = buyer.call(proof=(invoice_id, raw.hex()))
    assert (answer.status_code, answer.json()["txHash"]) == (200, tx_id)
    assert buyer.call(proof=(invoice_id, raw.hex())).json()["replayed"]
    assert buyer.books()["payments"] == [{"invoiceId": invoice_id, "txHash": tx_id}]


def test_a_signed_transaction_that_does_not_pay_is_not_submitted(buyer: Buyer, clock: HandClock) -> None:
    buyer.settings(proof="signed_cbor")
    invoice_id = str(buyer.invoice()["invoiceId"])
    for outputs in INEXACT.values():
        assert reason(buyer.call(proof=(invoice_id, buyer.build(outputs)[1].hex()))) == "wrong_outputs"
    over = buyer.build(HONEST, ttl=1)[1]
    clock.forward(1)
    assert reason(buyer.call(proof=(invoice_id, over.hex()))) == "not_accepted"
    clock.forward(300)
    assert reason(buyer.call(proof=(invoice_id, buyer.build(HONEST)[1].hex()))) == "expired"
    assert buyer.state()["mempool"] == []


def test_a_proof_needs_both_headers_and_a_known_invoice(buyer: Buyer) -> None:
    invoice_id, tx_id = str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST)
    assert reason(buyer.call(proof=("no-such-invoice", tx_id))) == "unknown_invoice"
    assert reason(buyer.call(Payment=tx_id)) == "unknown_invoice"
    assert reason(buyer.call(Invoice_Id=invoice_id)) == "proof_not_understood"


def test_an_unconfirmed_payment_is_pending_and_then_served(buyer: Buyer) -> None:
    buyer.settings(confirmations=3)
    invoice_id = str(buyer.invoice()["invoiceId"])
    assert pending(buyer.call(proof=(invoice_id, "0" * 64)))
    tx_id = buyer.pay(HONEST, blocks=0)
    for _ in range(3):
        assert pending(buyer.call(proof=(invoice_id, tx_id)))
        assert buyer.status(invoice_id) == "submitted"
        buyer.control("blocks", count=1)
    assert buyer.status(invoice_id) == "confirmed"
    assert buyer.call(proof=(invoice_id, tx_id)).status_code == 200


def test_confirmations_0_serves_from_the_mempool(buyer: Buyer) -> None:
    buyer.settings(confirmations=0)
    invoice_id = str(buyer.invoice()["invoiceId"])
    assert buyer.call(proof=(invoice_id, buyer.pay(HONEST, blocks=0))).status_code == 200


def test_a_payment_in_a_rolled_back_block_is_pending_again(buyer: Buyer) -> None:
    invoice_id, tx_id = str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST)
    buyer.control("rollback", depth=1)
    assert pending(buyer.call(proof=(invoice_id, tx_id)))


def test_a_served_request_is_not_replayed_while_its_payment_is_rolled_back(buyer: Buyer, clock: HandClock) -> None:
    buyer.settings(confirmations=2)
    invoice_id, tx_id = str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST, blocks=2)
    raw = bytes.fromhex(buyer.get(f"/txs/{tx_id}/cbor").json()["cbor"])
    proof = (invoice_id, tx_id)
    assert buyer.call(proof=proof).status_code == 200
    buyer.control("rollback", depth=2)
    assert (pending(buyer.call(proof=proof)), buyer.status(invoice_id)) == (True, "pending")
    clock.forward(3600)  # the invoice has expired, but it is paid
    assert (pending(buyer.call(proof=proof)), buyer.status(invoice_id)) == (True, "pending")
    assert buyer.submit(raw).status_code == 200
    buyer.control("blocks", count=1)
    assert (pending(buyer.call(proof=proof)), buyer.status(invoice_id)) == (True, "submitted")
    buyer.control("blocks", count=1)
    assert buyer.call(proof=proof).json()["replayed"]
    assert buyer.status(invoice_id) == "consumed"
    assert (buyer.books()["served"], buyer.books()["replayed"]) == (1, 1)


@pytest.mark.parametrize(("late_by_s", "served"), [(-1, True), (0, False), (1, False)])
def test_a_payment_must_be_in_a_block_before_the_invoice_expires(
    buyer: Buyer, clock: HandClock, late_by_s: int, served: bool
) -> None:
    buyer.settings(timeout=60)
    invoice_id = str(buyer.invoice()["invoiceId"])
    clock.forward(60 + late_by_s)
    tx_id = buyer.pay(HONEST)
    clock.forward(600)
    answer = buyer.call(proof=(invoice_id, tx_id))
    assert answer.status_code == 200 if served else reason(answer) == "expired"


def test_an_unknown_transaction_after_the_expiry_is_expired_and_not_pending(
    buyer: Buyer, clock: HandClock
) -> None:
    invoice_id = str(buyer.invoice()["invoiceId"])
    clock.forward(300)
    assert reason(buyer.call(proof=(invoice_id, "0" * 64))) == "expired"


def test_a_transaction_older_than_the_invoice_does_not_pay_it(buyer: Buyer, clock: HandClock) -> None:
    tx_id = buyer.pay(HONEST)
    clock.forward(1)
    invoice_id = str(buyer.invoice()["invoiceId"])
    assert reason(buyer.call(proof=(invoice_id, tx_id))) == "older_than_invoice"


def test_a_body_that_is_not_a_json_object_gets_422_and_one_too_big_413(buyer: Buyer) -> None:
    url = buyer.devnet.merchant_url + "/chat"
    deep = b"[" * 100_000 + b"]" * 100_000
    odd = (b'{"token": ' + value + b"}" for value in (deep, b"NaN", b"1e999", b'"\\ud800"', b"\xff"))
    for body in (b"", b"[1]", b"{", b'"text"', *odd):
        answer = httpx.post(url, content=body, verify=NO_TLS)
        assert (answer.status_code, list(answer.json()["detail"][0])[:2]) == (422, ["type", "loc"])
    assert httpx.post(url, content=b"{" + b" " * 1024 * 1024 + b"}", verify=NO_TLS).status_code == 413


# --- settings ----------------------------------------------------------------------------------------------------


def test_a_token_invoice_requires_exactly_its_units(buyer: Buyer) -> None:
    splits = [{"role": "platform", "units": "30"}]
    assert buyer.settings(asset=TOKEN, price="100", splits=splits).status_code == 200
    detail = buyer.invoice()
    assert (detail["asset"], detail["amountUnits"]) == (f"{POLICY}.{TOKEN[56:]}", "100")
    assert (detail["decimals"], detail["extra"]["lovelace"]) == (0, False)
    invoice_id = str(detail["invoiceId"])

    def held(pay_to: int, platform: int) -> list[Output]:
        return [(PAY_TO, 1_300_000, {TOKEN: pay_to}), (PLATFORM, 1_200_000, {TOKEN: platform})]

    for outputs in (held(99, 30), held(101, 30), held(100, 29), [ada(PAY_TO, 2_000_000), held(100, 30)[1]]):
        assert reason(buyer.call(proof=(invoice_id, buyer.pay(outputs)))) == "wrong_outputs"
    assert buyer.call(proof=(invoice_id, buyer.pay(held(100, 30)))).status_code == 200


def test_each_split_mode_and_form_requires_its_own_outputs(buyer: Buyer) -> None:
    splits = [{"role": "platform", "units": "2000000"}]
    share = {"address": role_address("platform").text, "amountUnits": "2000000", "role": "platform"}
    first = {"address": role_address("pay_to").text, "amountUnits": "8000000", "role": "pay_to"}
    on_top = [ada(PAY_TO, 10_000_000), ada(PLATFORM, 2_000_000)]
    within = [ada(PAY_TO, 8_000_000), ada(PLATFORM, 2_000_000)]
    cases = [
        ("additional", "split", {"split": {"mode": "additional", "outputs": [share]}}, on_top, within),
        ("inclusive", "split", {"split": {"mode": "inclusive", "outputs": [share]}}, within, on_top),
        ("additional", "outputs", {"outputs": [share]}, on_top, within),
        ("inclusive", "outputs", {"outputs": [share]}, within, on_top),
        ("outputs", "split", {"outputs": [first, share]}, within, on_top),
    ]
    for mode, form, written, right, wrong in cases:
        buyer.settings(splits=splits, split_mode=mode, split_form=form)
        detail = buyer.invoice()
        got = {name: value for name, value in detail["extra"].items() if name in ("split", "outputs")}
        assert (detail["amountUnits"], got) == ("10000000", written)
        invoice_id = str(detail["invoiceId"])
        assert reason(buyer.call(proof=(invoice_id, buyer.pay(wrong)))) == "wrong_outputs"
        assert buyer.call(proof=(invoice_id, buyer.pay(right))).status_code == 200


def test_an_invoice_without_splits_has_no_split_field(buyer: Buyer) -> None:
    own = payer("carol").address.text
    buyer.settings(splits=[{"role": "own", "units": "1500000", "address": own}])
    assert buyer.invoice()["extra"]["split"]["outputs"][0]["address"] == own
    buyer.settings(splits=[])
    assert set(buyer.invoice()["extra"]) == {"lovelace", "babel", "partner", "batchTarget"}


@pytest.mark.parametrize(
    "words", [("address", "units"), ("to", "amount"), ("address", "amountUnits"), ("address", "amount")]
)
def test_split_settings_accept_the_field_names_of_any_402(buyer: Buyer, words: tuple[str, str]) -> None:
    own = payer("carol").address.text
    answer = buyer.settings(splits=[dict(zip(words, (own, "1500000"), strict=True))])
    assert answer.json()["splits"] == [{"role": "split", "address": own, "units": "1500000"}]
    assert buyer.settings(splits=answer.json()["splits"]).json() == answer.json()


@pytest.mark.parametrize(
    "settings",
    [
        {"colour": "red"},
        {"price": 0},
        {"price": 1.5},
        {"price": "1e6"},
        {"asset": "USDM"},
        {"splits": "none"},
        {"splits": [{"role": "pay_to", "units": "1"}]},
        {"splits": [{"role": "x", "units": "1", "percent": 5}]},
        {"splits": [{"role": "x", "units": "1", "amount": "2"}]},
        {"splits": [{"role": "x"}]},
        {"splits": [{"role": "x", "units": "1", "address": "addr1"}]},
        {"splits": [{"role": "x", "units": "10000000"}], "split_mode": "inclusive"},
        {"split_mode": "percent"},
        {"batch": 0},
        {"batch": True},
        {"timeout": -1},
        {"confirmations": 101},
        {"dialect": "materios"},
        {"replays": "sometimes"},
        {"proof": "promise"},
        {"balance_shape": "round"},
        {"dialect": "flux", "split_mode": "outputs"},
    ],
)
def test_invalid_settings_are_refused_and_change_nothing(buyer: Buyer, settings: dict[str, object]) -> None:
    before = buyer.books()["settings"]
    assert buyer.settings(**settings).status_code == 400
    assert buyer.books()["settings"] == before


def test_deeply_nested_settings_are_refused(buyer: Buyer) -> None:
    body = b'{"splits": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert (
        httpx.post(buyer.devnet.merchant_url + "/merchant/settings", content=body, verify=NO_TLS).status_code
        == 400
    )


def test_an_invoice_keeps_the_terms_it_was_made_with(buyer: Buyer) -> None:
    old = str(buyer.invoice()["invoiceId"])
    buyer.settings(price="20000000")
    assert buyer.invoice()["amountUnits"] == "20000000"
    assert buyer.call(proof=(old, buyer.pay(HONEST))).status_code == 200


# --- prepaid -----------------------------------------------------------------------------------------------------


def test_a_batch_pays_for_requests_of_this_partner_and_wallet_only(buyer: Buyer) -> None:
    buyer.settings(batch=3)
    detail = buyer.invoice()
    assert detail["extra"]["batchTarget"] == 3
    proof = (str(detail["invoiceId"]), buyer.pay(HONEST))
    assert buyer.balance() == (0, 0)
    assert buyer.call(proof=proof).status_code == 200
    assert buyer.balance() == (2, 3)
    assert buyer.call(proof=proof).json()["replayed"]
    assert buyer.balance() == (2, 3)
    assert buyer.call(Wallet_Address=payer("bob").address.text).status_code == 402
    assert buyer.call(Partner="another").status_code == 402
    assert [buyer.call({"message": str(turn)}).status_code for turn in range(3)] == [200, 200, 402]
    assert (buyer.balance(), buyer.balance("another")) == ((0, 3), (0, 0))
    books = buyer.books()
    assert (books["served"], books["served_prepaid"], len(books["payments"])) == (3, 2, 1)


@pytest.mark.parametrize("path", ["/chat", "/payments/topup"])
def test_a_batch_requires_the_wallet_address(buyer: Buyer, path: str) -> None:
    buyer.settings(batch=3)
    answer = httpx.post(buyer.devnet.merchant_url + path, json=ASK, headers={"X-Partner": "demo"}, verify=NO_TLS)
    assert (answer.status_code, answer.json()["detail"]) == (400, "wallet_address_required_for_prepaid_batches")


def test_a_top_up_buys_a_whole_batch_and_uses_none_of_it(buyer: Buyer) -> None:
    buyer.settings(batch=3)
    for bought in (3, 6):  # also while requests are left
        invoice_id, tx_id = str(buyer.invoice(path="/payments/topup")["invoiceId"]), buyer.pay(HONEST)
        assert reason(buyer.call(proof=(invoice_id, tx_id))) == "other_request"
        answer = buyer.call(path="/payments/topup", proof=(invoice_id, tx_id)).json()
        assert answer == {
            "credited": 3,
            "remaining": bought,
            "invoiceId": invoice_id,
            "txHash": tx_id,
            "replayed": False,
        }
        assert buyer.call(path="/payments/topup", proof=(invoice_id, tx_id)).json() == answer | {"replayed": True}
        assert buyer.balance() == (bought, bought)
    assert buyer.call().status_code == 200
    books = buyer.books()
    assert (buyer.balance(), books["topped_up"], books["served"], books["served_prepaid"]) == ((5, 6), 2, 1, 1)


def test_a_top_up_is_refused_when_no_batches_are_sold(buyer: Buyer) -> None:
    answer = buyer.call(path="/payments/topup")
    assert (answer.status_code, answer.json()["detail"]) == (409, "no batches are sold: nothing can be topped up")
    assert buyer.books()["invoices"] == []


def test_a_batch_whose_payment_was_rolled_back_is_not_served_until_it_returns(buyer: Buyer) -> None:
    buyer.settings(batch=3)
    proof = (str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST))
    raw = bytes.fromhex(buyer.get(f"/txs/{proof[1]}/cbor").json()["cbor"])
    assert [buyer.call(proof=proof).status_code, buyer.call().status_code] == [200, 200]
    buyer.control("rollback", depth=1)
    assert buyer.balance() == (0, 0)
    assert buyer.invoice({"message": "one more"})["extra"]["batchTarget"] == 3
    assert buyer.submit(raw).status_code == 200
    buyer.control("blocks", count=1)
    assert buyer.balance() == (1, 3)
    assert [buyer.call({"message": str(turn)}).status_code for turn in range(2)] == [200, 402]


def test_requests_served_from_a_rolled_back_batch_are_taken_from_the_next(buyer: Buyer) -> None:
    buyer.settings(batch=3)
    proof = (str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST))
    assert [buyer.call(proof=proof).status_code, buyer.call().status_code] == [200, 200]
    buyer.control("rollback", depth=1)
    invoice_id = str(buyer.invoice(path="/payments/topup")["invoiceId"])
    tx_id, raw = buyer.build(HONEST, ttl=1_000)  # from the same UTxO: the lost transaction can never return
    assert buyer.submit(raw).status_code == 200
    buyer.control("blocks", count=1)
    assert buyer.call(path="/payments/topup", proof=(invoice_id, tx_id)).json()["remaining"] == 1
    assert (buyer.balance(), buyer.books()["balances"][0]["used"]) == ((1, 3), 2)
    assert [buyer.call({"message": str(turn)}).status_code for turn in range(2)] == [200, 402]


@pytest.mark.parametrize(
    ("shape", "remaining", "total", "unit"),
    [("plain", 2, 3, None), ("nested", 2, 3, None), ("digits", 2, 3, "calls"), ("nonsense", None, None, None)],
)
def test_the_balance_has_the_configured_shape(
    buyer: Buyer, shape: str, remaining: int | None, total: int | None, unit: str | None
) -> None:
    buyer.settings(batch=3, balance_shape=shape)
    buyer.call(proof=(str(buyer.invoice()["invoiceId"]), buyer.pay(HONEST)))
    answer = buyer.helper("balance")
    said = read_prepaid(answer.status_code, answer.content)
    assert (said.remaining, said.total, said.unit, said.understood) == (remaining, total, unit, total is not None)
    credits = buyer.helper("credits").json()
    assert (credits["remaining"], credits["total"], credits["expires_at"]) == (2, 3, None)


def test_a_merchant_without_a_balance_path_still_serves_credits(buyer: Buyer) -> None:
    buyer.settings(balance_shape="missing")
    assert (buyer.helper("balance").status_code, buyer.helper("credits").status_code) == (404, 200)


def test_payment_helper_paths_refuse_invalid_requests(buyer: Buyer) -> None:
    url = buyer.devnet.merchant_url
    assert httpx.get(f"{url}/payments/status/none", verify=NO_TLS).status_code == 404
    assert httpx.get(f"{url}/payments/balance?partner=demo", verify=NO_TLS).status_code == 422
    assert httpx.get(f"{url}/payments/credits?wallet=w", verify=NO_TLS).status_code == 422
    assert httpx.get(f"{url}/chat", verify=NO_TLS).status_code == 405
    assert httpx.get(f"{url}/health", verify=NO_TLS).json() == {"status": "ok"}
