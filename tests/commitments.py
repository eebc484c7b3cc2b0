"""A merchant's cardano-request-commitment, made from the draft's text and not by payagent's own code."""

import hashlib
import json
from typing import Any


def jcs(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def commitment_to(url: str, required: bool) -> dict[str, Any]:
    """The extension as a merchant declares it for a GET without a body."""
    binding = {
        "domain": "x402:exact:cardano:request-commitment:http:1",
        "method": "GET",
        "url": url,
        "bodyHash": hashlib.sha256(b"").hexdigest(),
        "headers": [],
    }
    parts = [{"name": "request", "canonicalization": "jcs", "digest": hashlib.sha256(jcs(binding)).hexdigest()}]
    manifest = {"version": "1", "algorithm": "sha256", "parts": parts}
    digest = hashlib.sha256(b"masumi:x402:input:v1\n" + jcs(manifest)).hexdigest()
    info = {"required": required, "profile": "http:1", "bindingParams": {"headers": []}}
    return {"cardano-request-commitment": {"info": info | {"commitment": manifest | {"digest": digest}}}}
