"""What a daemon asks of another that holds the account: the request and its outcome, as the JSON of their rows.

Never: carries a request's headers but those that name the owner of a prepaid balance; decides.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.core import strict_json
from payagent.core.problems import Refused

_PAYMENT_REQUEST = TypeAdapter(PaymentRequest)
_BODY_MAX_BYTES = 1 << 30
"""The body was accepted before, with the API's or the proxy's own bound."""

_OWNERS = ("x-partner", "x-wallet-address")

Outcome = Mapping[str, Any]


def dump_payment_request(asked: PaymentRequest) -> str:
    """A `PaymentRequest` as JSON. The numbers of its 402 keep their text."""
    response = replace(asked.response, body=strict_json.dumps(asked.response.body))
    request = None if asked.request is None else _with_owner(asked.request)
    return _PAYMENT_REQUEST.dump_json(replace(asked, response=response, request=request)).decode()


def load_payment_request(text: str) -> PaymentRequest:
    asked = _PAYMENT_REQUEST.validate_json(text)
    body = strict_json.loads(str(asked.response.body), max_bytes=_BODY_MAX_BYTES, any_text=True)
    return replace(asked, response=replace(asked.response, body=body))


def _with_owner(request: MerchantRequest) -> MerchantRequest:
    return replace(request, headers={name: text for name, text in request.headers.items() if name in _OWNERS})


def dump_refusal(refusal: Refused) -> str:
    context = {key: value for key, value in refusal.context.items() if isinstance(value, (str, int, bool))}
    return json.dumps({"refused": refusal.name, "detail": refusal.detail, "context": context})


def read_outcome(text: str) -> Outcome:
    """The outcome of a request that has ended. Raises the refusal if it was refused."""
    outcome: Outcome = json.loads(text)
    if "refused" in outcome:
        raise Refused(outcome["refused"], outcome["detail"], **outcome["context"])
    return outcome
