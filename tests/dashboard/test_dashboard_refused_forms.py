"""A refused form: a sentence for the web stands beside its field, with no flag and no pattern."""

import re
from html import unescape

import pytest
from kit.cli import Shop
from kit.dashboard import Visitor, visitor

FORMAL = re.compile(r"--\w|\^|\[\[|openapi|should|Input|topup\.path")
OWN = "addr_test1vz"


@pytest.fixture(scope="module")
def me(shop: Shop) -> Visitor:
    return visitor(shop)


@pytest.mark.parametrize(
    ("path", "typed", "field", "says"),
    [
        ("/ui/apps/new", {"name": "bad name!", "scopes": "pay", "expires": "90d"}, "name", "Use letters, digits"),
        (
            "/ui/apps/new",
            {"name": "fine", "per_day": "abc", "scopes": "pay", "expires": "90d"},
            "per_day",
            "such as 5",
        ),
        ("/ui/apps/new", {"name": "fine", "expires": "90d"}, "scopes", "Tick at least one."),
        ("/ui/merchants", {"name": "Bad Name", "origin": "https://x.example"}, "name", "Use small letters"),
        ("/ui/merchants", {"name": "x", "origin": "https://x.example/v1"}, "origin", "without a path"),
        ("/ui/merchants", {"name": "x", "origin": "https://x.example", "partner": "ä"}, "partner", "128 at most"),
        ("/ui/merchants/t/pins", {"role": "split", "address": "nonsense"}, "address", "Copy the whole address"),
        ("/ui/merchants/t/topup", {"amount": "20"}, "path", "begins with a slash"),
        (
            "/ui/merchants/t/topup",
            {"amount": "20", "path": "chat", "method": "GET"},
            "path",
            "begins with a slash",
        ),
        ("/ui/merchants/t/topup", {"amount": "", "path": "/chat"}, "amount", "such as 5"),
        ("/ui/merchants/t/topup", {"amount": "2.5", "unit": "calls", "path": "/chat"}, "amount", "whole number"),
        ("/ui/limits", {"limit": "per_day", "amount": "1,5"}, "amount", "'1,5 ADA' is not a valid amount"),
        ("/ui/limits", {"limit": "per_day", "amount": ""}, "amount", "The amount is empty"),
        ("/ui/wallet/send", {"address": OWN, "amount": "5"}, "address", "Copy the whole address"),
        ("/ui/wallet/split", {"count": "0", "each": "5"}, "count", "Write a whole number from 1 to 248."),
        ("/ui/wallet/split", {"count": "2", "each": "y"}, "each", "such as 5"),
    ],
)
def test_a_refusal_is_a_sentence_beside_its_field(
    me: Visitor, path: str, typed: dict[str, str], field: str, says: str
) -> None:
    answer = me.post(path, typed | me.hidden())
    assert answer.status_code == 400
    wrong = re.search(r'<p class="wrong" id="wrong">(.*?)</p>', answer.text)
    assert wrong is not None
    assert says in unescape(wrong[1])
    before = answer.text[: wrong.start()]
    assert re.findall(r'name="(\w+)"', before)[-1] == field
    banner = re.search(r'id="refusal".*?</section>', answer.text, re.DOTALL)
    assert banner is not None
    for text in (wrong[1], re.sub("<[^>]*>", " ", banner[0])):
        assert not FORMAL.search(unescape(text)), text
