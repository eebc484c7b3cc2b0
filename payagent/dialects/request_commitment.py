"""The x402 extension `cardano-request-commitment`: the transaction commits to the request that it buys.

The merchant publishes a digest of the request that it sells. payagent computes the digest of the request that was
actually made and refuses the 402 if they differ. The digest with a fresh salt goes into the transaction's
metadata. Only someone who knows the salt can check it.

Source: the extension's draft (profile http:1) and the input commitment of scheme exact on Cardano.

Never: makes a salt; uses the merchant's digest instead of its own.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from payagent.core import strict_json
from payagent.core.problems import Refused
from payagent.dialects.http_wire import HttpRequest, show

PROFILE = "http:1"

_DOMAIN = "x402:exact:cardano:request-commitment:http:1"
_TAG = b"masumi:x402:input:v1\n"
_SALT_BYTES = 32
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\x20-\x7e\t]*", re.ASCII)
# An authority without / ? #, then a path or a query without #.
_URL = re.compile(r"https?://[!-\"$-.0->A-~]+(?:[/?][!-\"$-~]*)?", re.ASCII)


def check_declared(info: object, call: HttpRequest) -> tuple[str, ...]:
    """Check that the merchant's commitment is that of our request, and return the headers that it binds.

    Refused: `resource_mismatch` if it is another request's, even if the extension is optional. If it binds headers
    and ours are no longer known, the commitment is not checked.
    """
    declared = info if isinstance(info, dict) else {}
    params, commitment = declared.get("bindingParams"), declared.get("commitment")
    if declared.get("profile") != PROFILE or not isinstance(params, dict) or params.keys() != {"headers"}:
        raise Refused("invoice_invalid/body", f"the request commitment is {show(info)}, which is not understood")
    bound = _check_names(params["headers"])
    parts = [_part("request", _bind(call, bound))]
    expected = {"version": "1", "algorithm": "sha256", "parts": parts, "digest": _digest(parts).hex()}
    if commitment != expected and not (bound and call.headers is None):
        raise Refused("resource_mismatch", f"the 402 commits to another request than {call.method} {call.url}")
    return bound


def salted_hash(call: HttpRequest, bound: Sequence[str], salt: bytes) -> bytes:
    """Return the 32 bytes that the transaction commits to.

    The salt must be random and new for each payment, and the proof must pass it to the merchant.
    """
    if len(salt) != _SALT_BYTES:
        raise ValueError(f"a salt has {_SALT_BYTES} bytes")
    return _digest([_part("request", _bind(call, bound)), _part("salt", salt.hex())])


def _check_names(names: object) -> tuple[str, ...]:
    """Require lower-case names, sorted, without duplicates, and without the header that carries the proof."""
    listed = names if isinstance(names, list) else [None]
    if not all(isinstance(name, str) and _HEADER_NAME.fullmatch(name) for name in listed):
        raise Refused("invoice_invalid/body", f"the bound headers are {show(names)}, not a list of names")
    if sorted(set(listed)) != listed or "payment-signature" in listed:
        raise Refused("invoice_invalid/body", f"the bound headers are {show(names)}, which is not allowed")
    return tuple(listed)


def _bind(call: HttpRequest, bound: Sequence[str]) -> dict[str, object]:
    if not _METHOD.fullmatch(call.method) or not _URL.fullmatch(call.url) or "@" in _authority(call.url):
        raise Refused(
            "invoice_unsupported/extension", f"no commitment can be made for {show(call.method)} {show(call.url)}"
        )
    return {
        "domain": _DOMAIN,
        "method": call.method,
        "url": call.url,
        "bodyHash": call.body_sha256,
        "headers": [{"name": name, "valueHash": _hash_value((call.headers or {}).get(name))} for name in bound],
    }


def _authority(url: str) -> str:
    return re.split("[/?]", url.partition("://")[2])[0]


def _hash_value(value: str | None) -> str:
    if value is None:
        return hashlib.sha256(b"\x00").hexdigest()
    trimmed = value.strip(" \t")
    if not _HEADER_VALUE.fullmatch(trimmed):
        raise Refused(
            "invoice_unsupported/extension", "no commitment can be made for a header that is not plain ASCII"
        )
    return hashlib.sha256(b"\x01" + trimmed.encode("ascii")).hexdigest()


def _part(name: str, content: object) -> dict[str, str]:
    return {"name": name, "canonicalization": "jcs", "digest": hashlib.sha256(_canonical(content)).hexdigest()}


def _digest(parts: Sequence[Mapping[str, str]]) -> bytes:
    manifest = {"version": "1", "algorithm": "sha256", "parts": list(parts)}
    return hashlib.sha256(_TAG + _canonical(manifest)).digest()


def _canonical(value: object) -> bytes:
    """Encode as RFC 8785 (JCS), which for ASCII values is compact JSON with sorted keys."""
    return strict_json.dumps(value, sort_keys=True).encode("ascii")
