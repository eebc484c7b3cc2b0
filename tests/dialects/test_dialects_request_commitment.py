"""Request commitments: the published test vectors, and a commitment to another request is refused."""

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from payagent.core.problems import Refused
from payagent.dialects.request_commitment import HttpRequest, check_declared, salted_hash

SALT = bytes(range(32))
GET = HttpRequest("GET", "https://api.example.com/article/A", hashlib.sha256(b"").hexdigest(), {})
POST = HttpRequest(
    "POST",
    "https://api.example.com/search?q=cardano&lang=es",
    hashlib.sha256(b'{"q":"cardano"}').hexdigest(),
    {"content-type": "application/json", "accept": "*/*"},
)
VECTORS = [
    (
        GET,
        [],
        "22351cc0b694189e9feb7bab0fb3956fc1dcc0927b704406d2428e0fe821acd1",
        "556fb70df9929f3ebd96b8b51b772374a9d38379b3983f820bf5e4629bd34e68",
        "712cdce8a4e64fc7e2b2fb3b70ba41317ff606d84e98890c65d4fd828276a621",
    ),
    (
        POST,
        ["content-type"],
        "19f76af6c9d60eb3f599273ac707830fb5fd2703b870aa9165014048fd5375c3",
        "f2a6d890837465ce790568b4872b576e5004fb304c3c7ed061be2fb5fa988b52",
        "d26cbb2a326a7c06dad25e8a21de168a5461e8c413fb6f2efe87980cfb2b778e",
    ),
]


def declared(headers: list[Any], part: str, digest: str, **change: Any) -> dict[str, Any]:
    """A merchant's declaration for a request."""
    parts = [{"name": "request", "canonicalization": "jcs", "digest": part}]
    commitment = {"version": "1", "algorithm": "sha256", "parts": parts, "digest": digest}
    info = {"required": True, "profile": "http:1", "bindingParams": {"headers": headers}, "commitment": commitment}
    return info | change


@pytest.mark.parametrize(("call", "headers", "part", "digest", "salted"), VECTORS)
def test_commitments_match_the_published_test_vectors(
    call: HttpRequest, headers: list[str], part: str, digest: str, salted: str
) -> None:
    bound = check_declared(declared(headers, part, digest), call)
    assert bound == tuple(headers)
    assert salted_hash(call, bound, SALT).hex() == salted
    assert salted_hash(call, bound, bytes(32)).hex() != salted


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"method": "post"},
        {"url": "https://api.example.com/search?lang=es&q=cardano"},
        {"url": "https://api.example.org/search?q=cardano&lang=es"},
        {"body_sha256": "00" * 32},
        {"headers": {"content-type": "text/plain"}},
        {"headers": {"content-type": ""}},
        {"headers": {}},
    ],
)
def test_a_commitment_of_another_request_is_refused(change: dict[str, Any]) -> None:
    _, headers, part, digest, salted = VECTORS[1]
    other = replace(POST, **change)
    with pytest.raises(Refused) as refused:
        check_declared(declared(headers, part, digest), other)
    assert refused.value.name == "resource_mismatch"
    assert salted_hash(other, headers, SALT).hex() != salted


def test_unbound_headers_and_spaces_around_values_do_not_change_the_commitment() -> None:
    _, headers, part, digest, salted = VECTORS[1]
    same = replace(POST, headers={"content-type": " application/json\t", "accept": "text/html"})
    assert check_declared(declared(headers, part, digest), same) == ("content-type",)
    assert salted_hash(same, headers, SALT).hex() == salted


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "mcp:1"},
        {"profile": None},
        {"bindingParams": None},
        {"bindingParams": {}},
        {"bindingParams": {"headers": [], "more": 1}},
        {"bindingParams": {"headers": ["Accept"]}},
        {"bindingParams": {"headers": ["b", "a"]}},
        {"bindingParams": {"headers": ["a", "a"]}},
        {"bindingParams": {"headers": ["payment-signature"]}},
        {"bindingParams": {"headers": "accept"}},
        {"bindingParams": {"headers": [["accept"]]}},
        {"bindingParams": {"headers": [""]}},
    ],
)
def test_a_malformed_declaration_is_refused(change: dict[str, Any]) -> None:
    _, headers, part, digest, _ = VECTORS[0]
    with pytest.raises(Refused) as refused:
        check_declared(declared(headers, part, digest) | change, GET)
    assert refused.value.name == "invoice_invalid/body"


@pytest.mark.parametrize("info", [None, [], "x", {}, 5])
def test_a_declaration_that_is_not_an_object_is_refused(info: object) -> None:
    with pytest.raises(Refused):
        check_declared(info, GET)


@pytest.mark.parametrize("commitment", [None, {}, "556f", {"version": "1"}])
def test_a_declaration_without_a_valid_commitment_is_refused(commitment: object) -> None:
    _, headers, part, digest, _ = VECTORS[0]
    with pytest.raises(Refused) as refused:
        check_declared(declared(headers, part, digest, commitment=commitment), GET)
    assert refused.value.name == "resource_mismatch"


@pytest.mark.parametrize(
    "change",
    [
        {"url": "/article/A"},
        {"url": "ftp://api.example.com/a"},
        {"url": "https://user@api.example.com/a"},
        {"url": "https://api.example.com/a#b"},
        {"url": "https://api.example.com/\u00e4"},
        {"url": "https://api.example.com/a b"},
        {"url": "https:///a"},
        {"method": "GE T"},
        {"method": ""},
        {"headers": {"accept": "caf\u00e9"}},
        {"headers": {"accept": "a\r\nb"}},
    ],
)
def test_a_request_that_cannot_be_committed_to_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        salted_hash(replace(GET, **change), ["accept"], SALT)
    assert refused.value.name == "invoice_unsupported/extension"


def test_a_url_may_have_an_at_sign_in_its_path_or_no_path() -> None:
    for url in ("https://api.example.com/@me", "https://api.example.com?x=@", "http://[::1]:8402"):
        assert len(salted_hash(replace(GET, url=url), [], SALT)) == 32


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_salt_that_is_not_32_bytes_raises_a_value_error(size: int) -> None:
    with pytest.raises(ValueError, match="32"):
        salted_hash(GET, [], bytes(size))


def test_without_recorded_headers_only_method_url_and_body_are_checked() -> None:
    """A receipt is checked this way years later: it has no request headers."""
    _, headers, part, digest, _ = VECTORS[1]
    assert check_declared(declared(headers, part, digest), replace(POST, headers=None)) == ("content-type",)
    _, unbound, part, digest, _ = VECTORS[0]
    assert check_declared(declared(unbound, part, digest), replace(GET, headers=None)) == ()
    for forgotten in (replace(GET, headers=None, method="PUT"), replace(GET, headers=None, body_sha256="00" * 32)):
        with pytest.raises(Refused) as refused:
            check_declared(declared(unbound, part, digest), forgotten)
        assert refused.value.name == "resource_mismatch"
