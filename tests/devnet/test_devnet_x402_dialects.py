"""The devnet's x402 shop in every form: payagent's dialects read its 402s and it serves their proofs."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from kit.devnet import TOKEN, HandClock, Purse, payer
from kit.http import NO_TLS

from payagent.core.invoice import Invoice
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.dialects import (
    HttpRequest,
    HttpResponse,
    ProofMaterial,
    Reading,
    RetryVerdict,
    proof_headers,
    read_offers,
)
from payagent.dialects.http_wire import parse_answer, parse_response
from payagent.dialects.retry_answers import read_answer

PATH = "/x402/chat?output=short"
INTENT = "int_" + "0" * 24


@dataclass
class Reader(Purse):
    """A purse that talks to the shop through payagent's dialects."""

    http: httpx.Client

    def settings(self, **settings: object) -> None:
        answer = self.http.post(self.devnet.merchant_url + "/merchant/settings", json=settings)
        assert answer.status_code == 200, answer.text

    def call(self, headers: dict[str, str] | None = None) -> httpx.Response:
        return self.http.post(self.devnet.merchant_url + PATH, json={"message": "hi"}, headers=headers)

    def invoice(self) -> Invoice:
        ask = self.call()
        reading = Reading(
            origin=self.devnet.merchant_url,
            network=NETWORKS["devnet"],
            split_mode=None,
            received_at_ms=1,
            call=HttpRequest("POST", self.devnet.merchant_url + PATH, "", {}),
            assets=frozenset(("lovelace", TOKEN)),
        )
        (invoice,) = read_offers(parse_response(ask.status_code, ask.headers.multi_items(), ask.content), reading)
        return invoice

    def proof(self, invoice: Invoice) -> tuple[ProofMaterial, dict[str, str]]:
        """A signed transaction that pays the invoice, and the headers of the retry."""
        outputs = [
            (out.address.raw, out.units, {})
            if out.asset == "lovelace"
            else (out.address.raw, 1_300_000, {out.asset: out.units})
            for out in invoice.outputs
        ]
        (coin_id, index), *_ = self.coins()
        tx_id, raw = self.build(outputs, ttl=300)
        shown = ProofMaterial(tx_id, raw, f"{coin_id}#{index}", INTENT)
        headers = proof_headers(
            invoice.dialect,
            invoice_id=invoice.invoice_id,
            shown=shown,
            echo=invoice.echo,
            partner=None,
            wallet=self.who.address.text,
        )
        return shown, headers

    def said(self, invoice: Invoice, shown: ProofMaterial, answer: httpx.Response) -> RetryVerdict:
        response: HttpResponse = parse_answer(answer.status_code, answer.headers.multi_items(), answer.content)
        told = {"invoice_id": invoice.invoice_id, "shown_tx": shown.tx_id}
        return read_answer(invoice.dialect, response, **told, now_ms=0).verdict


@pytest.fixture
def reader() -> Iterator[Reader]:
    with DevnetThread(now_ms=HandClock()) as devnet, httpx.Client(verify=NO_TLS) as http:
        funded = Reader(payer("alice"), devnet, http)
        funded.fund(200_000_000, assets={TOKEN: 1_000})
        funded.settings(x402={"confirmations": 0}, splits=[])
        yield funded


FORMS: dict[str, dict[str, object]] = {
    "official": {},
    "in the body": {"in_body": True},
    "extra null": {"extra_null": True},
    "server submits": {"submission_policy": "server"},
    "either submits": {"submission_policy": "either"},
    "identifier": {"payment_identifier": "required"},
    "version 1": {"version": 1},
    "version 1 as a page": {"version": 1, "html": True},
}


@pytest.mark.parametrize("asset", ["lovelace", TOKEN])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_x402_is_read_paid_and_served(reader: Reader, form: str, asset: str) -> None:
    price = 10_000_000 if asset == "lovelace" else 300
    reader.settings(asset=asset, price=str(price), x402=FORMS[form])
    invoice = reader.invoice()
    assert [(out.asset, out.units) for out in invoice.outputs] == [(asset, price)]
    assert (invoice.proof, invoice.merchant_submits) == ("signed_cbor", True)
    shown, headers = reader.proof(invoice)
    assert reader.said(invoice, shown, reader.call(headers)) is RetryVerdict.PENDING
    assert reader.state()["mempool"] == [shown.tx_id]
    reader.control("blocks", count=2)
    answer = reader.call(headers)
    assert reader.said(invoice, shown, answer) is RetryVerdict.SERVED
    assert answer.json()["txHash"] == shown.tx_id


def test_a_payment_the_payer_submits_is_served(reader: Reader) -> None:
    reader.settings(x402={"submission_policy": "client"})
    invoice = reader.invoice()
    assert not invoice.merchant_submits
    shown, headers = reader.proof(invoice)
    assert reader.said(invoice, shown, reader.call(headers)) is RetryVerdict.PENDING
    assert reader.state()["mempool"] == []
    assert shown.cbor is not None
    assert reader.submit(shown.cbor).status_code == 200
    reader.control("blocks", count=1)
    assert reader.said(invoice, shown, reader.call(headers)) is RetryVerdict.SERVED


FAULTS = {
    "pending": RetryVerdict.PENDING,
    "duplicate": RetryVerdict.USED_UP,
    "empty_reason": RetryVerdict.UNCLEAR,
    "settle_500_before_broadcast": RetryVerdict.UNCLEAR,
    "settle_500_after_broadcast": RetryVerdict.UNCLEAR,
    "refuse_verify": RetryVerdict.REFUSED,
    "ttl_too_far": RetryVerdict.UNCLEAR,
    "redirect_307": RetryVerdict.OTHER,
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_every_x402_fault_gets_the_right_verdict(reader: Reader, fault: str, version: int) -> None:
    reader.settings(x402={"version": version, "confirmations": -1, "fault": fault, "fault_count": 1})
    invoice = reader.invoice()
    shown, headers = reader.proof(invoice)
    assert reader.said(invoice, shown, reader.call(headers)) is FAULTS[fault]
    assert reader.said(invoice, shown, reader.call(headers)) is RetryVerdict.SERVED
    assert reader.said(invoice, shown, reader.call(headers)) is RetryVerdict.USED_UP
    assert reader.said(invoice, shown, reader.call()) is RetryVerdict.INVOICED
