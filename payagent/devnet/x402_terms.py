"""The x402 shop's settings, the requirements in its 402s, and the parsing of payment headers.

Version 2 is the official form, version 1 that of Masumi's examples. A version 1 payment is converted to version 2,
so that one facilitator checks both. Pure.

Never: imports the dialects.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings

from payagent.core.money import LOVELACE
from payagent.devnet.facilitator import (
    DEFAULT_CONFIRMATIONS,
    IN_MEMPOOL,
    MOST_CONFIRMATIONS,
    NETWORK_MISMATCH,
    PAYLOAD,
    Unpayable,
    read_transaction,
    require,
)
from payagent.devnet.merchant import DEVNET, Terms
from payagent.devnet.settings import STRICT, BadSettings, made

Json = dict[str, object]

NETWORK = f"cardano:{DEVNET.name}"
X402Fault = Literal[
    "pending",
    "duplicate",
    "settle_500_after_broadcast",
    "settle_500_before_broadcast",
    "drop_after_broadcast",
    "refuse_verify",
    "empty_reason",
    "ttl_too_far",
    "redirect_307",
]
NO_MATCH = "No matching payment requirements"
ECHO_MISMATCH = "extension_echo_mismatch"
IDENTIFIER = "payment-identifier"
_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{16,128}", re.ASCII)


@settings(frozen=True, slots=True, config=STRICT)
class X402:
    """The settings of /x402/, and its faults.

    `html`: send version 1 as a page with the JSON inside. `extra_null`: send version 2 with `extra` null.
    `in_body`: send version 2's object in the body and without the header. `payment_identifier`: the extension of
    that name, `optional` or `required`. `confirmations` as in the scheme: -1 mempool, 0 in a block, n newer
    blocks. `fault` applies to calls whose payment verifies, `fault_count` times; None means until cleared.
    """

    version: Annotated[int, Field(ge=1, le=2)] = 2
    html: bool = False
    extra_null: bool = False
    in_body: bool = False
    submission_policy: Literal["server", "client", "either"] | None = None
    confirmations: Annotated[int, Field(ge=IN_MEMPOOL, le=MOST_CONFIRMATIONS)] = DEFAULT_CONFIRMATIONS
    max_timeout_s: Annotated[int, Field(ge=1, le=86_400)] = 600
    payment_identifier: Literal["optional", "required"] | None = None
    fault: X402Fault | None = None
    fault_count: Annotated[int, Field(ge=1, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        of_2 = (self.extra_null, self.in_body, self.submission_policy, self.payment_identifier)
        if self.version == 1 and any(of_2):
            raise ValueError("x402 version 1 has no extra_null, in_body, submission_policy and payment_identifier")
        if self.version == 2 and self.html:
            raise ValueError("x402 version 2 has no html")
        return self


def read_x402(body: object, now: X402) -> X402:
    """The settings with some of them replaced. Raises `BadSettings`."""
    if not isinstance(body, dict):
        raise BadSettings("x402 must be an object")
    return made(partial(replace, now), {"fault_count": None} | body if "fault" in body else body)


# --- requirements ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class X402Request:
    """One request under /x402/. `path` includes the query; `proof` is the version's payment header."""

    method: str
    url: str
    path: str
    body: bytes
    proof: str | None

    @property
    def key(self) -> str:
        """The call that a transaction is bound to."""
        return json.dumps([self.method, self.path, sha256(self.body).hexdigest()])


def requirements(terms: Terms, x402: X402) -> Json:
    """The one entry of `accepts`, in version 2's form."""
    extra: Json = {"confirmationPolicy": {"l1Confirmations": x402.confirmations}, "areFeesSponsored": False}
    if x402.submission_policy is not None:
        extra["submissionPolicy"] = x402.submission_policy
    asset = terms.asset
    return {
        "scheme": "exact",
        "network": NETWORK,
        "amount": str(terms.price_units),
        "asset": asset if asset == LOVELACE else f"{asset[:56]}.{asset[56:]}",
        "payTo": terms.pay_to.text,
        "maxTimeoutSeconds": x402.max_timeout_s,
        "extra": None if x402.extra_null else extra,
    }


def requirements_v1(terms: Terms, x402: X402, url: str) -> Json:
    """The same in version 1's form: `asset` is the policy id only, and the asset name is in `extra`."""
    ada = terms.asset == LOVELACE
    extra: Json = {"decimals": 6} if ada else {"assetNameHex": terms.asset[56:], "decimals": 0}
    return {
        "scheme": "exact",
        "network": DEVNET.wire,
        "maxAmountRequired": str(terms.price_units),
        "asset": LOVELACE if ada else terms.asset[:56],
        "payTo": terms.pay_to.text,
        "resource": url,
        "description": "A paid answer",
        "mimeType": "application/json",
        "outputSchema": None,
        "maxTimeoutSeconds": x402.max_timeout_s,
        "extra": extra,
    }


def resource(url: str) -> Json:
    """The resource that is sold, in version 2's form."""
    return {"url": url, "description": "A paid answer", "mimeType": "application/json"}


def payment_required(terms: Terms, x402: X402, url: str, error: str) -> Json:
    """The object by which version 2 asks for a payment, with the declared extensions."""
    required: Json = {
        "x402Version": 2,
        "error": error,
        "resource": resource(url),
        "accepts": [requirements(terms, x402)],
    }
    if x402.payment_identifier is None:
        return required
    text = {"type": "string", "minLength": 16, "maxLength": 128, "pattern": "^[a-zA-Z0-9_-]+$"}
    schema = {
        "type": "object",
        "properties": {"required": {"type": "boolean"}, "id": text},
        "required": ["required"],
    }
    info = {"required": x402.payment_identifier == "required"}
    return required | {"extensions": {IDENTIFIER: {"info": info, "schema": schema}}}


# --- payments ----------------------------------------------------------------------------------------------------


def encode_header(value: object) -> str:
    """JSON in base64, as x402's headers have it."""
    return base64.b64encode(json.dumps(value, separators=(",", ":")).encode()).decode()


def read_proof(proof: str) -> Json:
    """The JSON object of a payment header. Raises `Unpayable`."""
    try:
        value = json.loads(base64.b64decode(proof, validate=True))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Unpayable(PAYLOAD)
    return value


def _payment_v2(proof: str, call: X402Request, expected: Json) -> Json:
    """A version 2 payment, which must repeat the requirements."""
    payment = read_proof(proof)
    require(payment.get("accepted") == expected, NO_MATCH)
    require(payment.get("resource") in (None, resource(call.url)), PAYLOAD)
    return payment


def _payment_v1(proof: str, _call: X402Request, expected: Json) -> Json:
    """A version 1 payment in version 2's form. It names no nonce, so its first input is used."""
    payment = read_proof(proof)
    require(payment.get("x402Version") == 1, f"{PAYLOAD}_unsupported_version")
    require(payment.get("network") == DEVNET.wire, NETWORK_MISMATCH)
    inputs = read_transaction(payment).inputs
    nonce = f"{inputs[0][0]}#{inputs[0][1]}" if inputs else None
    carried = payment.get("payload")
    payload = {**carried, "nonce": nonce} if isinstance(carried, dict) else carried
    return {"x402Version": 2, "accepted": {**expected, "scheme": payment.get("scheme")}, "payload": payload}


READERS: dict[int, Callable[[str, X402Request, Json], Json]] = {1: _payment_v1, 2: _payment_v2}


class BadIdentifier(Exception):  # noqa: N818  the caller's mistake, reported with its reason
    """The payment-identifier is missing or malformed."""


def read_identifier(payment: Json, x402: X402) -> str | None:
    """The payer's identifier of a payment; None if none is required or given.

    Raises `BadIdentifier`, and `Unpayable` if the declaration was not repeated unchanged.
    """
    carried = payment.get("extensions")
    identifier = carried.get(IDENTIFIER) if isinstance(carried, dict) else None
    if x402.payment_identifier is None or (identifier is None and x402.payment_identifier == "optional"):
        return None
    info = identifier.get("info") if isinstance(identifier, dict) else None
    if not isinstance(info, dict) or "id" not in info:
        raise BadIdentifier(f"{IDENTIFIER} is required")
    require(info.get("required") is (x402.payment_identifier == "required"), ECHO_MISMATCH)
    if not isinstance(info["id"], str) or not _IDENTIFIER.fullmatch(info["id"]):
        raise BadIdentifier(f"{IDENTIFIER} must be 16 to 128 of A-Z a-z 0-9 _ -")
    return info["id"]
