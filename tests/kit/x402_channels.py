"""The examples of x402's draft `batch-settlement` on Cardano, and offers and answers made from them."""

from collections.abc import Iterator
from typing import Any

from kit.hostile_402s import BYRON, OTHER_POLICY, address
from kit.x402_examples import pack, required
from payagent.core.network import Network
from payagent.dialects import HttpResponse, parse_response
from payagent.dialects.x402_batch import Voucher

DRAFT_ADDRESS = (
    "addr_test1qrxchm0g4la6hqfd9wq6vuuldx7l20az52t7lvgpgujr8pvwmpzru5kuf4mpmvtaf0hlsjtz7t4r2h7tj9v3c02dhljq0wqkef"
)
DRAFT_OFFER: dict[str, Any] = {
    "scheme": "batch-settlement",
    "network": "cardano:preprod",
    "asset": "lovelace",
    "amount": "1000",
    "payTo": DRAFT_ADDRESS,
    "maxTimeoutSeconds": 300,
    "extra": {
        "scriptHash": "62ce4309e37e09e5c633c96c6ae68061c434f122d32626d6912d7c2a",
        "receiverAuthorizer": "cd8bede8affbab812d2b81a6739f69bdf53fa2a297efb10147243385",
        "withdrawDelay": 900,
        "referenceScript": "544752f68665183e51c8ecb6e0a835543aec64a6ec8e7588d34470ddfd12cdb5#0",
        "minDeposit": "10000",
    },
}
"""The draft's entry of `accepts`."""

DRAFT_PAYLOAD: dict[str, Any] = {
    "type": "voucher",
    "channelConfig": {
        "payer": "00b7847c89d5721592fc0cc8932f50a8f8258b39b93861140a1b99fb",
        "payerAuthorizer": "ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c",
        "receiver": DRAFT_ADDRESS,
        "receiverAuthorizer": "cd8bede8affbab812d2b81a6739f69bdf53fa2a297efb10147243385",
        "token": "lovelace",
        "withdrawDelay": 900,
    },
    "voucher": {
        "channelId": "11" * 32,
        "maxClaimableAmount": "203000",
        "signature": "d09aac1f109a70db6328acec3e83d01f9d894d6bab248b03e8689ac3818526582426262cbd8c14ec2d7636969107"
        "48159405ff38ee3d049c1a3954ddfa073a08",
        "channelRef": "22" * 32 + "#0",
    },
}
"""The draft's payload of a voucher for that offer."""

VOUCHER = Voucher(
    channel_id=b"\x11" * 32,
    channel_ref="22" * 32 + "#0",
    payer=bytes.fromhex(DRAFT_PAYLOAD["channelConfig"]["payer"]),
    iou_key=bytes.fromhex(DRAFT_PAYLOAD["channelConfig"]["payerAuthorizer"]),
    amount=203_000,
    signature=bytes.fromhex(DRAFT_PAYLOAD["voucher"]["signature"]),
)

MISMATCH = "invalid_batch_settlement_cardano_cumulative_amount_mismatch"


def changed(fields: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The fields with other values; a value of None removes the key."""
    return {key: value for key, value in (fields | change).items() if value is not None}


def channel_entry(**change: Any) -> dict[str, Any]:
    """The draft's entry, changed. `extra` changes members of its `extra`; anything but an object replaces it."""
    extra = change.get("extra", {})
    made = changed(DRAFT_OFFER["extra"], extra) if isinstance(extra, dict) else extra
    return changed(DRAFT_OFFER, change | {"extra": made})


def channel_state(**change: Any) -> dict[str, Any]:
    """What the merchant says of the channel of `VOUCHER`, which holds 5 ADA and was charged 0.202 ADA."""
    known = {
        "channelId": "11" * 32,
        "channelRef": "33" * 32 + "#1",
        "balance": "5000000",
        "totalClaimed": "100000",
        "withdrawRequestedAt": 0,
        "chargedCumulativeAmount": "202000",
    }
    return changed(known, change)


def corrective(state: Any = None, held: Any = None) -> HttpResponse:
    """A 402 that says what the merchant counted. `held`: changes its voucher of 0.202 ADA, or replaces it."""
    voucher = {"signedMaxClaimable": "202000", "signature": "5a" * 64}
    extra = {
        "channelState": channel_state() if state is None else state,
        "voucherState": changed(voucher, held or {}) if isinstance(held, dict | None) else held,
    }
    terms = required(channel_entry(extra=extra), error=MISMATCH)
    return parse_response(402, {"PAYMENT-REQUIRED": pack(terms)}, b"{}")


def served_answer(status: int = 200, extra: Any = None, **change: Any) -> HttpResponse:
    """The reference server's answer to `VOUCHER`: it charged 0.001 ADA. `extra` changes or replaces it."""
    said = {
        "chargedAmount": "1000",
        "commitmentId": "11" * 32 + ":203000",
        "channelState": channel_state(chargedCumulativeAmount="203000"),
    }
    settled = {
        "success": True,
        "payer": VOUCHER.payer.hex(),
        "transaction": "",
        "network": "cardano:preprod",
        "amount": "",
        "extra": changed(said, extra or {}) if isinstance(extra, dict | None) else extra,
    }
    return parse_response(status, {"PAYMENT-RESPONSE": pack(settled | change)}, b"{}")


NOT, RANGE, TERMS, SHAPE = (
    "invoice_invalid/amount",
    "invoice_invalid/amount_range",
    "terms_not_understood",
    "invoice_invalid/body",
)
MISSING, ASSET = "invoice_invalid/missing_field", "invoice_invalid/asset"
SHA, REF = "cd" * 28, "ab" * 32


def hostile_entries(network: Network, pay_to: str, own: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Entries that are refused: an id, the code, the entry. `own` is the wallet that reads them."""
    here = {"network": f"cardano:{network.name}", "payTo": pay_to}
    rows = [*_members(network, pay_to, own), *_extras()]
    return [(id, code, channel_entry(**(here | change))) for id, code, change in rows]


Change = tuple[str, str, dict[str, Any]]


def _members(network: Network, pay_to: str, own: str) -> Iterator[Change]:
    for key in ("network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra"):
        yield f"no-{key}", MISSING, {key: None}
    other = "cardano:mainnet" if network.name != "mainnet" else "cip34:0-1"
    yield "network-other", "network_mismatch", {"network": other}
    here = f"cardano:{network.name}"
    for named in ("eip155:8453", "cardano", network.wire, here.upper(), here + "\n", 1):
        yield f"network-{named!a}", "invoice_invalid/chain", {"network": named}
    for amount in ("-1", "01", "1e3", "1000.0", "1_000", " 1", "\u0661", "", 1000, 1000.0, True, ["1"], {}):
        yield f"amount-{amount!a}", NOT, {"amount": amount}
    for amount in ("0", "9" * 30, "45000000000000001", str(2**63)):
        yield f"amount-{amount}", RANGE, {"amount": amount}
    for asset in ("ADA", "Lovelace", OTHER_POLICY, "aa" * 28, "AA" * 28 + ".474f", "aa" * 28 + ".474F", 5):
        yield f"asset-{str(asset)[-8:]}", ASSET, {"asset": asset}
    yield "asset-odd-name", ASSET, {"asset": "aa" * 28 + ".474"}
    yield "asset-unknown", "asset_not_allowed", {"asset": OTHER_POLICY[:56] + "." + OTHER_POLICY[56:]}
    yield "own", "address_invalid/own", {"payTo": own}
    yield "script", "address_invalid/script", {"payTo": address(network, 7, 0x52)}
    yield "script-base", "address_invalid/script", {"payTo": address(network, 1, 0x52)}
    yield "byron", "address_invalid/byron", {"payTo": BYRON[0]}
    yield "upper-case", "address_invalid/mixed_case", {"payTo": pay_to.upper()}
    yield "pay-to-number", "address_invalid/not_text", {"payTo": 7}
    for seconds in (0, -300):
        yield f"timeout-{seconds}", "invoice_expired", {"maxTimeoutSeconds": seconds}
    yield "timeout-2-days", MISSING, {"maxTimeoutSeconds": 172_800}
    for timeout in ("300", 300.0, True):
        yield f"timeout-{timeout!a}", NOT, {"maxTimeoutSeconds": timeout}
    for key in ("splits", "fee", "maxAmountRequired", "recipients", "deposit"):
        yield key, TERMS, {key: "1"}
    for extra in ("default", [], 1):
        yield f"extra-{extra!a}", SHAPE, {"extra": extra}


def _extras() -> Iterator[Change]:
    def one(id: str, code: str, **extra: Any) -> Change:
        return id, code, {"extra": extra}

    for key in ("scriptHash", "receiverAuthorizer"):
        yield one(f"no-{key}", MISSING, **{key: None})
        for value in (
            SHA.upper(),
            SHA[:-1],
            SHA[:-2],
            SHA + "cd",
            "0x" + SHA,
            SHA + "\n",
            "xy" * 28,
            7,
            [SHA],
            "",
        ):
            yield one(f"{key}-{value!a}", SHAPE, **{key: value})
    yield one("no-withdrawDelay", MISSING, withdrawDelay=None)
    for delay in (0, -900, 899, 2_592_001, 10**30, "900", 900.0, 900.5, True, [900]):
        yield one(f"withdrawDelay-{delay!a}", SHAPE, withdrawDelay=delay)
    yield "withdrawDelay-below-timeout", SHAPE, {"maxTimeoutSeconds": 901}
    for ref in (REF, REF + "#", REF + "#00", REF + "#01", REF + "#-1", REF.upper() + "#0", REF[2:] + "#0", 5, {}):
        yield one(f"referenceScript-{ref!a}", SHAPE, referenceScript=ref)
    yield one("referenceScript-index", SHAPE, referenceScript=REF + "#100000")
    for units in (10_000, "1e4", "-1", "010000", "", True, ["10000"]):
        yield one(f"minDeposit-{units!a}", NOT, minDeposit=units)
    yield one("minDeposit-long", RANGE, minDeposit="9" * 20)
    for units in ("0", "999"):
        yield one(f"minDeposit-{units}", "invoice_invalid/contradiction", minDeposit=units)
    for depth in (21, -2, "1", 1.0, True):
        yield one(f"confirmations-{depth!a}", SHAPE, confirmationPolicy={"l1Confirmations": depth})
    for policy in ({}, {"l1Confirmations": 1, "l2": 1}, 1):
        yield one(f"policy-{policy!a}", SHAPE, confirmationPolicy=policy)
    for flow in ("upfront", "escrow", "Authorization", 1, ["authorization"]):
        yield one(f"paymentFlow-{flow!a}", SHAPE, paymentFlow=flow)
    for key in ("note", "platformFee", "payTo", "decimals", "assetTransferMethod", "salt", "ScriptHash"):
        yield one(f"extra-{key}", TERMS, **{key: "1"})
    yield one("extra-null", TERMS, **{"note": [None]})
    yield one("echo-long", "invoice_invalid/too_big", feeSponsor={"note": "x" * 9_000})
