"""x402's `batch-settlement`: offers, vouchers, the answers to them, and 402s where nothing pays by channel."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from kit.hostile_402s import TOKEN, address
from kit.x402_channels import (
    DRAFT_ADDRESS,
    DRAFT_OFFER,
    DRAFT_PAYLOAD,
    MISMATCH,
    VOUCHER,
    channel_entry,
    channel_state,
    corrective,
    hostile_entries,
    served_answer,
)
from kit.x402_examples import (
    DOTTED,
    JSON,
    answer_402,
    entry,
    knowing,
    offer,
    pack,
    page,
    required,
    unpack,
    v1_required,
)

from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.dialects import HttpResponse, Reading, make_response, parse_response, read_offers
from payagent.dialects.x402_batch import (
    ChannelOffer,
    ChannelState,
    VoucherVerdict,
    read_channel_offers,
    read_charge,
    read_correction,
    read_voucher_answer,
    voucher_headers,
)

INTENT = "int_" + "0" * 24
PREFIX = "invalid_batch_settlement_cardano_"


def read(*entries: dict[str, Any], known: Reading | None = None, **change: Any) -> tuple[ChannelOffer, ...]:
    return read_channel_offers(answer_402(required(*entries, **change)), known or knowing())


def refusal_of(response: HttpResponse, known: Reading | None = None) -> Refused:
    with pytest.raises(Refused) as refused:
        read_channel_offers(response, known or knowing())
    return refused.value


# --- offers


def test_the_drafts_offer_is_read() -> None:
    (found,) = read(DRAFT_OFFER)
    assert found == ChannelOffer(
        asset="lovelace",
        price=1000,
        pay_to=parse_address(DRAFT_ADDRESS, NETWORKS["preprod"]),
        script_hash=bytes.fromhex("62ce4309e37e09e5c633c96c6ae68061c434f122d32626d6912d7c2a"),
        provider=bytes.fromhex("cd8bede8affbab812d2b81a6739f69bdf53fa2a297efb10147243385"),
        withdraw_delay_s=900,
        echo=found.echo,
    )


def test_optional_members_may_be_missing_or_null() -> None:
    bare = channel_entry(extra={"referenceScript": None, "minDeposit": None})
    nulls = channel_entry()
    nulls["extra"] |= dict.fromkeys(("referenceScript", "minDeposit", "confirmationPolicy", "paymentFlow"))
    for made in (bare, nulls):
        (found,) = read(made)
        assert found.price == 1000


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ({"network": "cip34:0-1"}, "price", 1000),
        ({"asset": DOTTED, "amount": "3"}, "asset", TOKEN),
        ({"amount": "1"}, "price", 1),
        ({"asset": DOTTED, "amount": str(2**63 - 1), "extra": {"minDeposit": None}}, "price", 2**63 - 1),
        ({"extra": {"withdrawDelay": 2_592_000}}, "withdraw_delay_s", 2_592_000),
        ({"maxTimeoutSeconds": 900}, "withdraw_delay_s", 900),
        ({"extra": {"minDeposit": "1000"}}, "price", 1000),
        ({"extra": {"confirmationPolicy": {"l1Confirmations": 3}}}, "price", 1000),
        ({"extra": {"paymentFlow": "authorization"}}, "price", 1000),
        ({"extra": {"areFeesSponsored": True, "feeSponsor": {"maxFee": "1"}}}, "price", 1000),
        ({"extra": {"channelState": "any", "voucherState": 1}}, "price", 1000),
        ({"description": "any"}, "price", 1000),
    ],
)
def test_an_offer_at_a_bound_or_with_an_optional_member_is_read(
    change: dict[str, Any], name: str, value: object
) -> None:
    (found,) = read(channel_entry(**change))
    assert getattr(found, name) == value


@pytest.mark.parametrize("name", ["devnet", "preprod", "mainnet"])
def test_an_offer_that_is_not_understood_is_refused_with_its_code(name: str) -> None:
    network = NETWORKS[name]
    pay_to, own = address(network, 0, 0x50), address(network, 0, 0x77)
    known = replace(knowing(), network=network, own=parse_address(own, network))
    good = channel_entry(network=f"cardano:{name}", payTo=pay_to)
    assert read(good, known=known)[0].pay_to.text == pay_to
    rows = hostile_entries(network, pay_to, own)
    assert len({id for id, _, _ in rows}) == len(rows) > 100
    wrong = {}
    for id, code, hostile in rows:
        assert json.dumps(hostile) != json.dumps(good), id
        try:
            said = f"read as {read(hostile, known=known)}"
        except Refused as refused:
            is_shown = len(refused.detail) < 2_000 and refused.detail.isprintable()
            said = refused.name if is_shown else f"{refused.name}: {refused.detail!r}"
        if said != code:
            wrong[id] = said
    assert wrong == {}


def test_the_offers_come_in_the_merchants_order_without_those_that_are_not_understood() -> None:
    dear, broken = channel_entry(amount="2000"), channel_entry(extra={"withdrawDelay": 1})
    assert [found.price for found in read(entry(), broken, dear, channel_entry())] == [2000, 1000]


def test_the_refusal_is_about_an_entry_of_this_scheme_if_there_is_one() -> None:
    broken = channel_entry(amount="1e3")
    assert refusal_of(answer_402(required(entry(), broken))).name == "invoice_invalid/amount"
    refused = refusal_of(answer_402(required(entry())))
    assert (refused.name, refused.detail) == (
        "invoice_unsupported/scheme",
        'the scheme is "exact", not batch-settlement',
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"accepts": []}, "invoice_invalid/body"),
        ({"accepts": DRAFT_OFFER}, "invoice_invalid/body"),
        ({"accepts": [DRAFT_OFFER] * 65}, "invoice_invalid/body"),
        ({"accepts": ["batch-settlement"]}, "invoice_invalid/body"),
        ({"accepts": [{}]}, "invoice_invalid/missing_field"),
        ({"x402Version": 3}, "invoice_invalid/body"),
        ({"resource": {"url": "https://other.example.com/"}}, "resource_mismatch"),
        ({"platformFee": "1"}, "terms_not_understood"),
        ({"extensions": {"x": {"info": {"required": True}}}}, "invoice_unsupported/extension"),
    ],
)
def test_the_rest_of_the_402_is_as_strict_as_for_exact(change: dict[str, Any], code: str) -> None:
    assert refusal_of(answer_402(required(DRAFT_OFFER) | change)).name == code


def test_a_required_commitment_to_the_request_is_refused_because_a_voucher_has_none() -> None:
    info = {"required": True, "profile": "http:1", "commitment": {"method": True}}
    response = answer_402(required(DRAFT_OFFER, extensions={"cardano-request-commitment": {"info": info}}))
    assert refusal_of(response, knowing(salt=bytes(32))).name == "invoice_unsupported/extension"


def test_an_offer_in_the_body_is_read_and_version_1_or_a_page_is_refused() -> None:
    terms = required(DRAFT_OFFER)
    (found,) = read_channel_offers(make_response(402, JSON, terms), knowing())
    assert found.price == 1000
    for response in (make_response(402, JSON, v1_required()), make_response(402, {}, page(terms))):
        assert refusal_of(response).name == "invoice_invalid/body"


# --- where nothing pays by channel


def test_a_402_with_both_schemes_is_paid_by_exact_as_before() -> None:
    alone = offer(answer_402(required(entry())))
    for entries in ((entry(), DRAFT_OFFER), (DRAFT_OFFER, entry()), (channel_entry(amount="1e3"), entry())):
        assert offer(answer_402(required(*entries))) == alone


def test_a_402_with_this_scheme_alone_is_refused_and_names_the_page_of_channels() -> None:
    for terms in (required(DRAFT_OFFER), required(DRAFT_OFFER, channel_entry(amount="2000"))):
        with pytest.raises(Refused) as refused:
            read_offers(answer_402(terms), knowing())
        assert refused.value.name == "invoice_unsupported/scheme"
        assert refused.value.detail == 'the scheme is "batch-settlement", not exact'
        assert "docs/how-to/pay-small-amounts.md" in refused.value.problem.fix


def test_reading_402s_and_starting_the_daemon_do_not_import_it() -> None:
    code = "import sys, payagent.daemon.compose, payagent.proxy, payagent.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "payagent.dialects.x402_v2" in loaded
    assert "payagent.dialects.x402_batch" not in loaded


# --- the voucher


def proof(terms: dict[str, Any], intent_id: str = INTENT, **change: Any) -> tuple[str, dict[str, Any]]:
    """The header's text, and what it holds."""
    (found,) = read_channel_offers(answer_402(terms), knowing())
    headers = voucher_headers(found.echo, replace(VOUCHER, **change), intent_id)
    assert list(headers) == ["PAYMENT-SIGNATURE"]
    return headers["PAYMENT-SIGNATURE"], unpack(headers["PAYMENT-SIGNATURE"])


def test_the_drafts_voucher_is_written() -> None:
    terms = required(DRAFT_OFFER)
    _, made = proof(terms)
    assert made == {
        "x402Version": 2,
        "resource": terms["resource"],
        "accepted": DRAFT_OFFER,
        "payload": DRAFT_PAYLOAD,
    }


def test_the_accepted_entry_is_the_merchants_without_corrective_members() -> None:
    sponsor = {"areFeesSponsored": True, "feeSponsor": {"input": "ab" * 32 + "#0"}}
    plain = channel_entry(asset=DOTTED, amount="3", extra=sponsor)
    corrected = channel_entry(
        asset=DOTTED, amount="3", extra=sponsor | {"channelState": channel_state(), "voucherState": {}}
    )
    first, made = proof(required(plain))
    assert made["accepted"] == plain
    assert made["payload"]["channelConfig"]["token"] == DOTTED
    assert proof(required(corrected, error=MISMATCH))[0] == first


def test_the_same_voucher_has_the_same_bytes_and_another_has_others() -> None:
    identified = required(DRAFT_OFFER, extensions={"payment-identifier": {"info": {"required": True}}})
    first, made = proof(identified)
    assert proof(identified)[0] == first
    assert made["extensions"]["payment-identifier"]["info"]["id"] == INTENT
    others = [proof(identified, "int_" + "1" * 24)[0], proof(identified, amount=203_001)[0]]
    assert len({first, *others}) == 3


@pytest.mark.parametrize("echo", ["{}", '{"accepted": 1}', '{"accepted": {}}', '{"accepted": {"payTo": "a"}}', ""])
def test_an_echo_that_is_not_of_an_offer_is_refused(echo: str) -> None:
    with pytest.raises(Refused):
        voucher_headers(echo, VOUCHER, INTENT)


# --- the answers

RETRY, ADOPT, CLOSE, REFUSE = (
    VoucherVerdict.RETRY,
    VoucherVerdict.ADOPT,
    VoucherVerdict.CLOSE,
    VoucherVerdict.REFUSE,
)
DRAFT_CODES = {
    "payload_type": REFUSE,
    "payload": REFUSE,
    "network_mismatch": REFUSE,
    "scheme": REFUSE,
    "extra": REFUSE,
    "channel_config": CLOSE,
    "receiver_mismatch": REFUSE,
    "receiver_authorizer_mismatch": REFUSE,
    "token_mismatch": REFUSE,
    "withdraw_delay_mismatch": REFUSE,
    "withdraw_delay_out_of_range": REFUSE,
    "channel_not_found": RETRY,
    "channel_id_mismatch": CLOSE,
    "channel_state": CLOSE,
    "channel_closed": CLOSE,
    "channel_busy": RETRY,
    "missing_channel": RETRY,
    "voucher_signature": REFUSE,
    "cumulative_amount_mismatch": ADOPT,
    "cumulative_below_claimed": ADOPT,
    "cumulative_exceeds_balance": RETRY,
    "charge_exceeds_signed_cumulative": REFUSE,
    "deposit_transaction": REFUSE,
    "deposit_below_min_deposit": REFUSE,
    "refund_transaction": REFUSE,
    "claim_transaction": REFUSE,
    "transaction_failed": REFUSE,
    "verification_state_unavailable": RETRY,
}
"""The draft's table, in its order."""


def said_402(word: str) -> list[HttpResponse]:
    """The word as a server's verification says it, and as a settlement that failed does."""
    failed = {"success": False, "errorReason": word, "transaction": "", "network": "cardano:preprod"}
    return [
        answer_402(required(DRAFT_OFFER, error=word)),
        parse_response(402, JSON | {"PAYMENT-RESPONSE": pack(failed)}, b"{}"),
    ]


@pytest.mark.parametrize(
    ("word", "verdict"),
    [
        *((PREFIX + code, verdict) for code, verdict in DRAFT_CODES.items()),
        (PREFIX + "of_a_later_version", REFUSE),
        (PREFIX.upper() + "CHANNEL_CLOSED", CLOSE),
        (PREFIX + "channel_closed: channel is closed", CLOSE),
        ("settlement_pending", RETRY),
        ("fee_sponsor_taken", RETRY),
        ("unexpected_settle_error", RETRY),
        ("No matching payment requirements", REFUSE),
        ("PAYMENT-SIGNATURE header is required", REFUSE),
    ],
)
def test_each_code_says_what_to_do(word: str, verdict: VoucherVerdict) -> None:
    for response in said_402(word):
        assert read_voucher_answer(response) == (verdict, word)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        (200, VoucherVerdict.SERVED),
        (204, VoucherVerdict.SERVED),
        (404, VoucherVerdict.OTHER),
        (429, RETRY),
        (503, RETRY),
    ],
)
def test_without_a_402_the_status_decides(status: int, verdict: VoucherVerdict) -> None:
    assert read_voucher_answer(HttpResponse(status, {}, "")) == (verdict, f"status {status}")


@pytest.mark.parametrize("status", [202, 402, 409])
def test_a_pending_settlement_is_retried(status: int) -> None:
    response = served_answer(status, success=False, errorReason="settlement_pending")
    assert read_voucher_answer(response) == (RETRY, "settlement_pending")


def test_a_402_without_a_word_is_retried_and_a_reason_is_bounded_ascii() -> None:
    assert read_voucher_answer(HttpResponse(402, {}, "")) == (RETRY, "no reason given")
    _, reason = read_voucher_answer(answer_402(required(DRAFT_OFFER, error="\u20ac" * 500)))
    assert reason == "?" * 200


def test_the_charge_and_the_channels_state_are_read() -> None:
    charge = read_charge(served_answer(), VOUCHER)
    assert charge.units == 1000
    assert charge.state == ChannelState(
        channel_id=b"\x11" * 32,
        channel_ref="33" * 32 + "#1",
        balance=5_000_000,
        claimed=100_000,
        closed_at_s=None,
        count=203_000,
    )


def test_a_charge_may_be_zero_or_without_a_state_or_a_commitment() -> None:
    free = read_charge(
        served_answer(extra={"chargedAmount": "0", "channelState": None, "commitmentId": None}), VOUCHER
    )
    assert (free.units, free.state) == (0, None)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"success": False}, "invoice_invalid/body"),
        ({"success": "true"}, "invoice_invalid/body"),
        ({"extra": [1]}, "invoice_invalid/body"),
        ({"extra": {"chargedAmount": None}}, "invoice_invalid/missing_field"),
        ({"extra": {"chargedAmount": 1000}}, "invoice_invalid/amount"),
        ({"extra": {"chargedAmount": "-1"}}, "invoice_invalid/amount"),
        ({"extra": {"chargedAmount": "1e3"}}, "invoice_invalid/amount"),
        ({"extra": {"chargedAmount": str(2**63)}}, "invoice_invalid/amount_range"),
        ({"extra": {"commitmentId": "11" * 32 + ":202000"}}, "invoice_invalid/body"),
        ({"extra": {"commitmentId": "22" * 32 + ":203000"}}, "invoice_invalid/body"),
        ({"extra": {"commitmentId": 1}}, "invoice_invalid/body"),
        ({"extra": {"channelState": "open"}}, "invoice_invalid/body"),
        ({"extra": {"channelState": channel_state(channelId="22" * 32)}}, "invoice_invalid/contradiction"),
    ],
)
def test_an_answer_that_does_not_state_this_vouchers_charge_is_refused(change: dict[str, Any], code: str) -> None:
    response = served_answer(**change)
    with pytest.raises(Refused) as refused:
        read_charge(response, VOUCHER)
    assert refused.value.name == code


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "invoice_invalid/missing_field"),
        ({"payment-response": "no base64!"}, "invoice_invalid/json"),
        ({"payment-response": pack([1])}, "invoice_invalid/body"),
        ({"payment-response": pack({"success": True})}, "invoice_invalid/body"),
    ],
)
def test_an_answer_without_a_readable_payment_response_is_refused(headers: dict[str, str], code: str) -> None:
    with pytest.raises(Refused) as refused:
        read_charge(HttpResponse(200, headers, {}), VOUCHER)
    assert refused.value.name == code


def test_a_corrective_402_tells_the_merchants_count_and_voucher() -> None:
    response = corrective(channel_state(withdrawRequestedAt=1_796_000_000))
    assert read_voucher_answer(response) == (ADOPT, MISMATCH)
    found = read_correction(response, VOUCHER.channel_id)
    assert (found.signed, found.signature) == (202_000, b"\x5a" * 64)
    assert (found.state.count, found.state.claimed, found.state.balance) == (202_000, 100_000, 5_000_000)
    assert (found.state.channel_ref, found.state.closed_at_s) == ("33" * 32 + "#1", 1_796_000_000)


def test_the_reference_servers_answer_without_a_record_of_the_channel_is_read() -> None:
    """It answers so to a voucher below the price, which is not above what it would have to have counted."""
    none = channel_state(channelRef="", balance="0", totalClaimed="0", chargedCumulativeAmount="0")
    found = read_correction(corrective(none, {"signedMaxClaimable": "500"}), VOUCHER.channel_id)
    assert (found.state.channel_ref, found.state.count, found.signed) == (None, 0, 500)


WITHOUT = [
    *(({"state": channel_state(**{key: None})}, "invoice_invalid/missing_field") for key in channel_state()),
    *(({"held": {key: None}}, "invoice_invalid/missing_field") for key in ("signedMaxClaimable", "signature")),
]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        *WITHOUT,
        ({"state": "open"}, "invoice_invalid/body"),
        ({"held": "none"}, "invoice_invalid/body"),
        ({"state": channel_state(channelId="22" * 32)}, "invoice_invalid/contradiction"),
        ({"state": channel_state(channelId="AB" * 32)}, "invoice_invalid/body"),
        ({"state": channel_state(channelId=11)}, "invoice_invalid/body"),
        ({"state": channel_state(channelRef="33" * 32)}, "invoice_invalid/body"),
        ({"state": channel_state(channelRef="AB" * 32 + "#0")}, "invoice_invalid/body"),
        ({"state": channel_state(channelRef=0)}, "invoice_invalid/body"),
        ({"state": channel_state(balance=5_000_000)}, "invoice_invalid/amount"),
        ({"state": channel_state(balance="5 ADA")}, "invoice_invalid/amount"),
        ({"state": channel_state(totalClaimed="-1")}, "invoice_invalid/amount"),
        ({"state": channel_state(chargedCumulativeAmount=str(2**63))}, "invoice_invalid/amount_range"),
        ({"state": channel_state(chargedCumulativeAmount=202_000)}, "invoice_invalid/amount"),
        ({"state": channel_state(withdrawRequestedAt="0")}, "invoice_invalid/amount"),
        ({"state": channel_state(withdrawRequestedAt=True)}, "invoice_invalid/amount"),
        ({"state": channel_state(withdrawRequestedAt=-1)}, "invoice_invalid/amount"),
        ({"state": channel_state(withdrawRequestedAt=2**63)}, "invoice_invalid/amount_range"),
        ({"held": {"signedMaxClaimable": 202_000}}, "invoice_invalid/amount"),
        ({"held": {"signature": "5a" * 63}}, "invoice_invalid/body"),
        ({"held": {"signature": "5A" * 64}}, "invoice_invalid/body"),
        ({"held": {"signature": "0x" + "5a" * 64}}, "invoice_invalid/body"),
    ],
)
def test_a_correction_that_is_not_understood_is_refused(said: dict[str, Any], code: str) -> None:
    response = corrective(**said)
    assert read_voucher_answer(response)[0] is ADOPT
    with pytest.raises(Refused) as refused:
        read_correction(response, VOUCHER.channel_id)
    assert refused.value.name == code


def test_a_correction_in_no_entry_or_in_two_is_refused() -> None:
    told = channel_entry(extra={"channelState": channel_state(), "voucherState": {}})
    for entries in ((DRAFT_OFFER,), (told, told), (entry(extra=told["extra"]),), ("batch-settlement",)):
        response = answer_402(required() | {"accepts": list(entries), "error": MISMATCH})
        with pytest.raises(Refused) as refused:
            read_correction(response, VOUCHER.channel_id)
        assert refused.value.name == "invoice_invalid/body"
    for response in (HttpResponse(402, {}, ""), HttpResponse(402, {}, {"accepts": {}})):
        with pytest.raises(Refused):
            read_correction(response, VOUCHER.channel_id)
