"""The dialect `x402-v1`: x402 version 1 as Masumi's Cardano servers implement it.

The 402's body is the object itself, or an HTML page that contains it as `window.__x402Requirements`. `asset` is
the policy id; the asset name is in `extra`. The proof is the signed transaction in X-PAYMENT, and the merchant
submits it. Until the chain confirms it, the merchant answers 202 and expects the next request with ?tx=.

Source: Masumi's scheme text and its example servers.

Never: reads another dialect's fields.
"""

import re
from dataclasses import replace

from payagent.core import strict_json
from payagent.core.invoice import Invoice
from payagent.core.money import LOVELACE, parse_asset
from payagent.core.network import require_chain
from payagent.core.pay_and_retry import RetryVerdict
from payagent.core.problems import Refused
from payagent.dialects import x402, x402_answers
from payagent.dialects.dialect import Dialect, RetriedProof, RetryAnswer, Terms
from payagent.dialects.http_wire import (
    PAYMENT_REQUIRED,
    HttpResponse,
    ProofMaterial,
    Reading,
    fields_of,
    parse_timeout_s,
    refuse_unknown_terms,
    require,
    show,
)

NAME = "x402-v1"
VERSION = 1

_KEYS = frozenset(("x402Version", "error", "accepts"))
_ENTRY_KEYS = frozenset(
    (
        "scheme", "network", "maxAmountRequired", "asset", "payTo", "maxTimeoutSeconds", "extra",
        "resource", "description", "mimeType", "outputSchema",
    )
)  # fmt: skip
_EXTRA_KEYS = frozenset(("assetNameHex", "assetFingerprint", "decimals", "name", "version"))
_POLICY = re.compile(r"[0-9a-f]{56}", re.ASCII)
_ASSET_NAME = re.compile(r"(?:[0-9a-f]{2}){0,32}", re.ASCII)

# In version 1 the bare name means mainnet. `cardano-masumi` locks the money in a contract.
_MAINNET, _CONTRACT = "cardano", "cardano-masumi"


def _read(required: Terms, response: HttpResponse, reading: Reading) -> tuple[Invoice, ...] | None:
    """Parse the offers of a 402. Each kind of refusal has its own code."""
    if PAYMENT_REQUIRED in response.headers or not x402.has_version(required, VERSION):
        return None
    refuse_unknown_terms(required, _KEYS, "the 402")
    return x402.choose(required.get("accepts"), lambda entry: _read_entry(entry, reading), reading)


def _read_entry(entry: Terms, reading: Reading) -> Invoice:
    network = require(entry, "network")
    if network == _CONTRACT:
        raise Refused(
            "invoice_unsupported/transfer_method", f"the network {_CONTRACT} locks the money in a contract"
        )
    require_chain("cardano-mainnet" if network == _MAINNET else network, reading.network)
    refuse_unknown_terms(entry, _ENTRY_KEYS, "the entry of accepts")
    extra = x402.read_extra(entry, _EXTRA_KEYS)
    asset = _read_asset(require(entry, "asset"), extra.get("assetNameHex"))
    outputs = x402.read_output(entry, "maxAmountRequired", asset, reading)
    resource = x402.check_resource(entry.get("resource"), reading)
    timeout_s = parse_timeout_s(require(entry, "maxTimeoutSeconds"), "maxTimeoutSeconds")
    return Invoice(
        dialect=NAME,
        origin=reading.origin,
        invoice_id=x402.make_id(entry, resource),
        network=reading.network.name,
        outputs=outputs,
        expires_at_ms=reading.received_at_ms + timeout_s * 1000,
        decimals=reading.check_decimals(asset, extra.get("decimals")),
        proof="signed_cbor",
        merchant_submits=True,
        echo=strict_json.dumps({"x402Version": VERSION, "scheme": x402.SCHEME, "network": network}),
        has_own_id=False,
    )


def _read_asset(value: object, name: object) -> str:
    """Join policy id and name. A policy id without a name field is refused: it would mean the empty name."""
    if value == LOVELACE and name in (None, ""):
        return LOVELACE
    if (
        isinstance(value, str)
        and _POLICY.fullmatch(value)
        and isinstance(name, str)
        and _ASSET_NAME.fullmatch(name)
    ):
        return parse_asset(value + name)
    raise Refused("invoice_invalid/asset", f"asset is {show(value, 140)}, its assetNameHex is {show(name, 80)}")


def _proof_headers(*, shown: ProofMaterial, echo: str | None, **_: object) -> dict[str, str]:
    """Return X-PAYMENT in base64. The T Backend's header of the same name is raw."""
    echoed = strict_json.loads(echo or "")
    if not isinstance(echoed, dict):
        raise Refused("bad_request", "the values that the proof must repeat are missing")
    payload = {"transaction": x402.encode_transaction(shown.cbor)}
    return {"X-PAYMENT": x402.encode_header({**echoed, "payload": payload})}


def _read_pending(response: HttpResponse, proof: RetriedProof) -> RetryAnswer | None:
    """Read a 202 that asks to come again with ?tx= while the chain confirms the transaction."""
    fields = fields_of(response.body)
    if response.status != 202 or fields.get("pending") is not True:
        return None
    # The server names no transaction if it could not submit it: present it again unless it is on chain.
    is_sent = proof.is_on_chain or fields.get("transaction", proof.tx_id) not in ("", None)
    return RetryAnswer(RetryVerdict.PENDING, "pending", poll_query=f"tx={proof.tx_id}" if is_sent else None)


DIALECT = Dialect(
    NAME,
    x402.SHAPE,
    _read,
    _proof_headers,
    replace(x402_answers.ANSWERS, read_pending=_read_pending),
    is_timed_by_block=True,
)
