"""A merchant's cardano-request-commitment, made from the draft's text and not by payagent's own code."""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

NO_HEADERS: Mapping[str, str | None] = MappingProxyType({})


def jcs(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def commitment_to(
    url: str,
    required: bool,
    method: str = "GET",
    body: bytes = b"",
    headers: Mapping[str, str | None] = NO_HEADERS,
) -> dict[str, Any]:
    """The extension as a merchant declares it for a request. `headers` are the bound ones, in order."""
    hashes = {name: b"\0" if value is None else b"\1" + value.encode() for name, value in headers.items()}
    binding = {
        "domain": "x402:exact:cardano:request-commitment:http:1",
        "method": method,
        "url": url,
        "bodyHash": hashlib.sha256(body).hexdigest(),
        "headers": [
            {"name": name, "valueHash": hashlib.sha256(told).hexdigest()} for name, told in hashes.items()
        ],
    }
    parts = [{"name": "request", "canonicalization": "jcs", "digest": hashlib.sha256(jcs(binding)).hexdigest()}]
    manifest = {"version": "1", "algorithm": "sha256", "parts": parts}
    digest = hashlib.sha256(b"masumi:x402:input:v1\n" + jcs(manifest)).hexdigest()
    info = {"required": required, "profile": "http:1", "bindingParams": {"headers": list(headers)}}
    return {"cardano-request-commitment": {"info": info | {"commitment": manifest | {"digest": digest}}}}
