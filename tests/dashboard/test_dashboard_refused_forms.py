"""A refused form: a sentence for the web stands beside its field, with no flag and no pattern."""

import re
from html import unescape

import pytest
from kit.cli import Shop
from kit.dashboard import Visitor, visitor

from payagent.core.problems import PROBLEMS
from payagent.dashboard.fields import fix_on_page

FORMAL = re.compile(r"--\w|\^|\[\[|openapi|should|Input|topup\.path")
OWN = "addr_test1vz"
ON_PAGES = ("app", "channels", "limits", "log", "merchants", "payments", "prepaid", "resume", "wallet")
"""The commands of which the pages have the controls."""


def banner(page: str) -> str:
    """What the refusal says, on a page with the frame or alone."""
    found = re.search(r'id="refusal".*?</section>|<main class="alone.*?</main>', page, re.DOTALL)
    assert found is not None
    return " ".join(unescape(re.sub("<[^>]*>", " ", found[0])).split())


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
        (
            "/ui/limits",
            {"limit": "per_day", "amount": "5 X"},
            "amount",
            "'X' is neither ADA nor lovelace. Write a",
        ),
        ("/ui/wallet/send", {"address": OWN, "amount": "5"}, "address", "Copy the whole address"),
        ("/ui/wallet/send", {"address": "addr1q9", "amount": "5"}, "address", "addr1q9 is not bech32. Copy"),
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
    for text in (wrong[1], banner(answer.text)):
        assert not FORMAL.search(unescape(text)), text


@pytest.mark.parametrize(
    ("path", "typed", "says"),
    [
        ("/ui/limits", {"limit": "per_second", "amount": "5"}, "per_second"),
        ("/ui/limits", {"limit": "per_day", "amount": "5", "asset": "X"}, "asset"),
        ("/ui/merchants/t/pins", {"role": "king", "address": OWN}, "'role'"),
    ],
)
def test_a_refusal_of_no_field_of_the_page_says_what_is_wrong(
    me: Visitor, path: str, typed: dict[str, str], says: str
) -> None:
    said = banner(me.post(path, typed | me.hidden()).text)
    assert says in said
    assert "marked field" not in said


@pytest.mark.parametrize(
    ("path", "typed", "says"),
    [
        ("/ui/apps/new", {"name": "operator", "scopes": "pay", "expires": "90d"}, "give that app a new token."),
        (
            "/ui/merchants",
            {"name": "t", "origin": "https://x.example"},
            "Edit a merchant of the config file there",
        ),
        ("/ui/limits", {"limit": "per_day", "amount": "5", "app": "nobody"}, "Check the id or the name."),
        ("/ui/wallet/split", {"count": "2", "each": "900000"}, "Fund the wallet."),
        ("/ui/apps/nobody/revoke", {}, "Check the id or the name."),
        ("/ui/payments/nobody/resolve", {}, "Check the id or the name."),
    ],
)
def test_a_refusal_names_no_command_of_what_the_pages_can_do(
    me: Visitor, path: str, typed: dict[str, str], says: str
) -> None:
    said = banner(me.post(path, typed | me.hidden()).text)
    assert says in said
    assert not re.search(rf"payagent ({'|'.join(ON_PAGES)})\b|list command", said), said


def test_each_fix_is_a_whole_text_without_the_commands_of_the_pages() -> None:
    rows = [row.of(name) for row in PROBLEMS.values() for name in row.reasons or [None]]
    for fix in map(fix_on_page, {row.fix for row in rows}):
        assert not re.search(rf"payagent ({'|'.join(ON_PAGES)})\b", fix), fix
        assert re.fullmatch(r"|(payagent (pays|closes)|[`A-Z]).*[^ ]\.", fix), fix
        assert "  " not in fix
        assert not fix.startswith(("That ", "Then ", "Later ")), fix
