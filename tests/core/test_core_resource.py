"""The resource that a 402 names, compared with the call: percent signs count only where they hide a delimiter."""

from urllib.parse import urlsplit

import pytest

from payagent.core.resource import is_called


def said(named: str, called: str) -> bool:
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
def test_the_same(named: str, called: str) -> None:
    assert said(named, called)


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
def test_another(named: str, called: str) -> None:
    assert not said(named, called)
