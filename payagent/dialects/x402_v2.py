"""The dialect `x402-v2`: the official x402, version 2, scheme `exact` on Cardano.

The 402 is an object in the header PAYMENT-REQUIRED, or in the body of older servers. The proof is the signed
transaction in PAYMENT-SIGNATURE, together with the terms of the 402. The merchant submits the transaction, unless
its `submissionPolicy` is the older `client`.

Source: the specifications of x402 (transport http, scheme exact on Cardano) and of its payment-identifier.

Never: reads another dialect's fields.
"""

import re
from dataclasses import dataclass
from typing import Any, cast

from payagent.core import strict_json
from payagent.core.invoice import Invoice
from payagent.core.money import parse_asset
from payagent.core.network import require_chain
from payagent.core.problems import Refused
from payagent.dialects import x402, x402_answers
from payagent.dialects.dialect import Dialect, Terms
from payagent.dialects.http_wire import (
    PAYMENT_REQUIRED,
    HttpResponse,
    ProofMaterial,
    Reading,
    fields_of,
    parse_timeout_s,
    refuse_unknown_terms,
    require,
    require_object,
    show,
)
from payagent.dialects.request_commitment import check_declared, salted_hash

NAME = "x402-v2"
VERSION = 2

PAYMENT_IDENTIFIER = "payment-identifier"
REQUEST_COMMITMENT = "cardano-request-commitment"

_KEYS = frozenset(("x402Version", "error", "resource", "accepts", "extensions"))
_ENTRY_KEYS = frozenset(
    (
        "scheme", "network", "amount", "asset", "payTo", "maxTimeoutSeconds", "extra",
        # From servers that are older than the published scheme.
        "resource", "assetTransferMethod",
    )
)  # fmt: skip
_EXTRA_KEYS = frozenset(
    (
        "assetTransferMethod", "confirmationPolicy", "submissionPolicy", "areFeesSponsored", "feeSponsor",
        "paymentFlow", "name", "version", "symbol", "decimals",
    )
)  # fmt: skip
_CONTRACT_KEYS = frozenset(
    (
        "datum", "script", "scriptHash", "parameters", "terms", "inputCommitment", "deployment",
        "referenceKey", "referenceSignature", "blockchainIdentifier",
    )
)  # fmt: skip
_FLOWS = (None, "authorization", "upfront")
_POLICIES = (None, "server", "either", "client")
_CONFIRMATIONS = range(-1, 21)
_ASSET = re.compile(r"lovelace|[0-9a-f]{56}\.[0-9a-f]{0,64}", re.ASCII)
_NETWORK = re.compile(r"(?:cardano|cip34):.+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Required:
    """The parts of a 402 that all its entries share."""

    resource: object
    resource_url: str | None
    commitment: str | None
    extensions: object


def _read(required: Terms, response: HttpResponse, reading: Reading) -> tuple[Invoice, ...] | None:
    """Parse the offers of a 402. Each kind of refusal has its own code."""
    shared = read_required(required, response, reading)
    if shared is None:
        return None
    return x402.choose(required.get("accepts"), lambda entry: _read_entry(entry, shared, reading), reading)


def read_required(required: Terms, response: HttpResponse, reading: Reading) -> Required | None:
    """Parse what a 402 states beside its entries. None: it is of another version."""
    is_version_2, is_page = x402.has_version(required, VERSION), isinstance(response.body, str)
    if PAYMENT_REQUIRED not in response.headers and (is_page or not is_version_2):
        return None
    if not is_version_2:
        version = show(required.get("x402Version"), 60)
        raise Refused("invoice_invalid/body", f"x402Version is {version}, expected {VERSION}")
    refuse_unknown_terms(required, _KEYS, "the 402")
    resource = required.get("resource")
    if resource is not None:
        require_object(resource, "resource is")
    url = x402.check_resource(_read_url(resource), reading)
    extensions = required.get("extensions")
    _check_extensions(extensions, reading)
    return Required(resource, url, *_commit(extensions, reading))


def _read_url(resource: object) -> object:
    return resource.get("url") if isinstance(resource, dict) else resource


def _check_extensions(value: object, reading: Reading) -> None:
    """Refuse a required extension that payagent does not support. Optional ones are ignored."""
    if value is None:
        return
    extensions = require_object(value, "extensions is")
    is_committed = reading.salt is not None and reading.call is not None and _declaration(extensions) is not None
    known = {PAYMENT_IDENTIFIER} | ({REQUEST_COMMITMENT} if is_committed else set())
    for name in extensions.keys() - known:
        extension = fields_of(extensions[name])
        for fields in (extension, fields_of(extension.get("info"))):
            if fields.get("required") not in (None, False):
                raise Refused("invoice_unsupported/extension", f"the 402 requires the extension {show(name, 80)}")


def _declaration(extensions: object) -> object:
    """Return the declared request commitment, or None if it commits to nothing.

    A server that does not know the bytes of the body declares the extension without a commitment.
    """
    extension = strict_json.value_at(extensions, REQUEST_COMMITMENT)
    info = strict_json.value_at(extension, "info")
    return None if isinstance(info, dict) and info.get("commitment") is None else extension


def _commit(extensions: object, reading: Reading) -> tuple[str | None, object]:
    """Return what the transaction commits to, if the merchant asks for it, and the extensions with our salt."""
    extension = _declaration(extensions)
    if reading.salt is None or reading.call is None or not isinstance(extensions, dict) or extension is None:
        return None, extensions
    bound = check_declared(strict_json.value_at(extension, "info"), reading.call)
    salted = salted_hash(reading.call, bound, reading.salt)
    declared = cast("dict[str, Any]", extension)  # anything else was refused
    salted_info = {**declared["info"], "salt": reading.salt.hex()}
    return salted.hex(), {**extensions, REQUEST_COMMITMENT: {**declared, "info": salted_info}}


def _read_entry(entry: Terms, shared: Required, reading: Reading) -> Invoice:
    check_network(entry, reading)
    refuse_unknown_terms(entry, _ENTRY_KEYS, "the entry of accepts")
    x402.check_resource(_read_url(entry.get("resource")), reading)
    submission = _check_extra(entry)
    asset = read_asset(require(entry, "asset"))
    outputs = x402.read_output(entry, "amount", asset, reading)
    decimals = reading.check_decimals(asset, fields_of(entry.get("extra")).get("decimals"))
    timeout_s = parse_timeout_s(require(entry, "maxTimeoutSeconds"), "maxTimeoutSeconds")
    return Invoice(
        dialect=NAME,
        origin=reading.origin,
        invoice_id=x402.make_id(entry, shared.resource_url),
        network=reading.network.name,
        outputs=outputs,
        expires_at_ms=reading.received_at_ms + timeout_s * 1000,
        decimals=decimals,
        proof="signed_cbor",
        merchant_submits=submission != "client",
        echo=write_echo(entry, shared),
        commitment=shared.commitment,
        has_own_id=False,
    )


def check_network(entry: Terms, reading: Reading) -> None:
    """Refuse an entry for another network, or in a network's name that this version does not have."""
    network = require(entry, "network")
    if not isinstance(network, str) or not _NETWORK.fullmatch(network):
        raise Refused("invoice_invalid/chain", f"the network is {show(network, 80)}, not a Cardano network")
    require_chain(network, reading.network)


def read_asset(value: object) -> str:
    """Parse `lovelace` or `policy.name` in lower-case hex, as `parse_asset` does."""
    if not isinstance(value, str) or not _ASSET.fullmatch(value):
        raise Refused("invoice_invalid/asset", f"asset is {show(value, 140)}, not lovelace or policy.name in hex")
    return parse_asset(value)


def _check_extra(entry: Terms) -> object:
    """Refuse any transfer that is not a plain payment. Return the submission policy."""
    extra = entry.get("extra")
    fields = fields_of(extra)
    keys = sorted(fields.keys() & _CONTRACT_KEYS)
    for method in (fields.get("assetTransferMethod"), entry.get("assetTransferMethod")):
        if method not in (None, "default") or keys:
            raise Refused(
                "invoice_unsupported/transfer_method",
                f"the transfer method is {show(method, 80)}, with {show(keys)}",
            )
    x402.read_extra(entry, _EXTRA_KEYS)
    flow, submission = fields.get("paymentFlow"), fields.get("submissionPolicy")
    if flow not in _FLOWS or submission not in _POLICIES or not _is_plain_fee(fields):
        raise Refused("invoice_invalid/body", f"extra is {show(extra)}, which is not understood")
    read_confirmations(fields.get("confirmationPolicy"))
    return submission


def _is_plain_fee(extra: Terms) -> bool:
    """Whether we may pay the fee ourselves.

    A `feeSponsor` offers a UTxO of the merchant for the fee (draft of loveaihq/cardano-x402-sponsor). A client may
    ignore the offer and pay the fee itself.
    """
    sponsor = extra.get("feeSponsor")
    is_offered = isinstance(sponsor, dict)
    return (sponsor is None or is_offered) and extra.get("areFeesSponsored") in (None, False, is_offered)


def read_confirmations(policy: object) -> int | None:
    """Return the blocks that a confirmation policy asks for: -1 (in the mempool) to 20. None: no policy."""
    if policy is None:
        return None
    depth = policy.get("l1Confirmations") if isinstance(policy, dict) else None
    if not isinstance(policy, dict) or len(policy) != 1 or type(depth) is not int or depth not in _CONFIRMATIONS:
        raise Refused("invoice_invalid/body", f"confirmationPolicy is {show(policy)}, which is not understood")
    return depth


def write_echo(entry: Terms, shared: Required) -> str:
    """Write what a proof repeats of the 402. More than 8 KiB are refused (`invoice_invalid/too_big`)."""
    echo: dict[str, object] = {"x402Version": VERSION}
    if shared.resource is not None:
        echo["resource"] = shared.resource
    echo["accepted"] = entry
    if isinstance(entry.get("resource"), dict):
        # Servers whose entries describe the resource expect both beside the payload.
        echo |= {"scheme": entry["scheme"], "network": entry["network"]}
    if shared.extensions is not None:
        echo["extensions"] = shared.extensions
    text = strict_json.dumps(echo)
    if len(text) > x402.ECHO_MAX_BYTES:
        raise Refused("invoice_invalid/too_big", f"the proof would repeat {len(text)} bytes of the 402")
    return text


def _proof_headers(*, shown: ProofMaterial, echo: str | None, wallet: str, **_: object) -> dict[str, str]:
    """Return PAYMENT-SIGNATURE. The same payment always gives the same bytes."""
    echoed, accepted = read_echo(echo)
    payload: dict[str, object] = {"transaction": x402.encode_transaction(shown.cbor), "nonce": shown.nonce}
    extra = accepted.get("extra")
    if extra is None:
        payload["payer"] = wallet
    elif isinstance(extra, dict) and extra.get("submissionPolicy") == "client":
        payload["submissionMode"] = "client"
    return write_proof(echoed, payload, shown.intent_id)


def read_echo(echo: str | None) -> tuple[Terms, Terms]:
    """Parse what `write_echo` wrote. Return all of it, and its entry."""
    echoed = strict_json.loads(echo or "")
    if not isinstance(echoed, dict) or not isinstance(echoed.get("accepted"), dict):
        raise Refused("bad_request", "the values that the proof must repeat are missing")
    return echoed, echoed["accepted"]


def write_proof(echoed: Terms, payload: Terms, intent_id: str) -> dict[str, str]:
    """Write PAYMENT-SIGNATURE: the echo and the payload. The same arguments always give the same bytes."""
    proof: dict[str, object] = {**echoed, "payload": payload}
    if "extensions" in echoed:
        proof["extensions"] = _fill_extensions(echoed["extensions"], intent_id)
    return {"PAYMENT-SIGNATURE": x402.encode_header(proof)}


def _fill_extensions(extensions: object, intent_id: str) -> object:
    """Return the merchant's extensions. If it asks for a payment identifier, fill in the intent id."""
    identifier = strict_json.value_at(extensions, PAYMENT_IDENTIFIER)
    info = strict_json.value_at(identifier, "info")
    if not isinstance(extensions, dict) or not isinstance(identifier, dict) or not isinstance(info, dict):
        return extensions
    return {**extensions, PAYMENT_IDENTIFIER: {**identifier, "info": {**info, "id": intent_id}}}


DIALECT = Dialect(
    NAME,
    x402.SHAPE,
    _read,
    _proof_headers,
    x402_answers.ANSWERS,
    is_timed_by_block=True,
    names_payer=True,
)
