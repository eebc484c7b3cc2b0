"""Origins are normalized to one spelling, and two encodings of a path are one resource."""

import shlex
from urllib.parse import urlsplit

import pytest

from payagent.core.origin import (
    T_BACKEND,
    is_called,
    is_t_backend,
    is_this_machine,
    not_configured,
    origin_part,
    parse_origin,
    short_name,
)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("HTTPS://API.Example.com:443/", "https://api.example.com"),
        ("http://127.0.0.1:8402", "http://127.0.0.1:8402"),
        ("http://example.com:80", "http://example.com"),
        ("http://[0:0:0:0:0:0:0:1]:8402", "http://[::1]:8402"),
        ("https://xn--bcher-kva.example", "https://xn--bcher-kva.example"),
    ],
)
def test_an_origin_is_normalized_to_one_spelling(text: str, origin: str) -> None:
    assert parse_origin(text) == origin == parse_origin(origin)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.example.com/v1/chat?model=a#b", "api-example-com"),
        ("http://[::1]:8402/", "1"),
        (f"{T_BACKEND}/chat", "t"),
    ],
)
def test_a_url_of_a_merchant_gives_its_origin_and_a_name(url: str, name: str) -> None:
    origin = origin_part(url)
    assert parse_origin(origin) in (origin, T_BACKEND)
    assert short_name(origin) == name
    fix = not_configured(origin).problem.fix
    assert fix == f"Allow it with `payagent merchants add {name} --origin {shlex.quote(origin)}`."


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("https://bücher.example", "plain ASCII"),
        ("https://a b.example", "plain ASCII"),
        ("https://a.example\\@b.example", "plain ASCII"),
        ("https://a.example\n", "plain ASCII"),
        ("https://[::1", "host or port"),
        ("https://[1::2::3]", "host or port"),
        ("https://a.example:65536", "host or port"),
        ("ftp://a.example", "starts with http"),
        ("a.example", "starts with http"),
        ("https://", "starts with http"),
        ("https://a.example/chat", "only"),
        ("https://a.example?", "only"),
        ("https://a.example#", "only"),
        ("https://me@a.example", "only"),
        ("https://a.example:", "port"),
        ("https://a.example:0", "port"),
        ("https://-a.example", "a name or an address"),
        ("https://a..example", "a name or an address"),
    ],
)
def test_a_malformed_origin_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_origin(text)


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.1.9", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_localhost_and_loopback_addresses_are_this_machine(host: str, is_ours: bool) -> None:
    assert is_this_machine(host) is is_ours


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("https://api-v3.fluxpointstudios.com", True),
        ("https://API-v3.fluxpointstudios.com:443/", True),
        ("http://api-v3.fluxpointstudios.com", False),
        ("https://api-v3.fluxpointstudios.com.evil.example", False),
        ("api-v3.fluxpointstudios.com", False),
    ],
)
def test_only_the_https_origin_of_the_t_backend_is_recognized(text: str, known: bool) -> None:
    assert is_t_backend(text) is known


def is_same_resource(named: str, called: str) -> bool:
    return is_called(urlsplit(f"https://a.example{named}"), urlsplit(f"https://b.example{called}"))


@pytest.mark.parametrize(
    ("named", "called"),
    [
        ("", "/"),
        ("/", ""),
        ("/a", "/a?x=1"),
        ("/a?x=1", "/a?x=1"),
        ("/a b", "/a%20b"),
        ("/\u00e9", "/%c3%A9"),
        ("/a%2Fb", "/a%2fb"),
        ("/a?x=a b", "/a?x=a%20b"),
        ("/100%", "/100%25"),
    ],
)
def test_a_resource_is_the_same_however_it_is_encoded(named: str, called: str) -> None:
    assert is_same_resource(named, called)


@pytest.mark.parametrize(
    ("named", "called"),
    [
        ("/a", "/b"),
        ("/a/", "/a"),
        ("/a?x=1", "/a"),
        ("/a?x=1", "/a?x=2"),
        ("/a/b", "/a%2Fb"),
        ("/a%252Fb", "/a%2Fb"),
        ("/a b", "/a+b"),
        ("/a?x=1&y", "/a?x=1%26y"),
        ("/a?x=1&y", "/a?x%3D1&y"),
        ("/a?x=1+2", "/a?x=1%2B2"),
        ("/a?x=1;y", "/a?x=1%3By"),
        ("/\ud800", "/%ED%A0%80"),
        ("/%ED%A0%80", "/\ud800"),
        ("/a?\ud800", "/a?%ED%A0%80"),
    ],
)
def test_another_path_or_query_is_another_resource(named: str, called: str) -> None:
    assert not is_same_resource(named, called)
