"""What strangers, other web pages and lesser tokens try on the dashboard: each is refused, and nothing changes."""

import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import pytest
from kit.cli import Shop
from kit.dashboard import PAGES, Visitor, stranger, visitor

from payagent.dashboard.app import COOKIE, FORM_MAX_BYTES
from payagent.dashboard.visit import DashboardPage

FORM = "application/x-www-form-urlencoded"
PLACEHOLDER = re.compile(r"\{[a-z_]+\}")
FORMS = [one for one in PAGES if one.is_form]


def address(one: DashboardPage) -> str:
    return PLACEHOLDER.sub("pay_0", one.path)


@pytest.fixture(scope="module")
def slow_form(shop: Shop) -> Iterator[socket.socket]:
    """A form whose body does not end: it is begun with the first test, and read by the last."""
    me = visitor(shop)
    with socket.create_connection(("127.0.0.1", int(me.host.rpartition(":")[2]))) as connection:
        head = f"POST /ui/sign-in HTTP/1.1\r\nhost: {me.host}\r\norigin: {me.origin}\r\n"
        head += f"sec-fetch-site: same-origin\r\ncontent-type: {FORM}\r\ncontent-length: 20\r\n\r\n"
        connection.sendall(f"{head}code=".encode())
        yield connection


@pytest.fixture(scope="module")
def operator(shop: Shop, slow_form: socket.socket) -> Visitor:
    return visitor(shop)


@pytest.fixture(scope="module", autouse=True)
def apps(shop: Shop) -> None:
    """One app for each scope, of the scope's name."""
    for scope in ("pay", "read", "approve"):
        assert shop.payagent("app", "add", scope, "--scope", scope).code == 0


def is_paused(shop: Shop) -> bool:
    port, headers = stranger(shop).server, {"authorization": f"Bearer {shop.made['token']}"}
    return bool(shop.http.get(f"{port}/v1/pause", headers=headers).json()["paused"])


def refusals(shop: Shop) -> int:
    return shop.payagent("log", "--limit", "200").out.count("dashboard_refused")


def raw(me: Visitor, head: str) -> bytes:
    """The first line of the answer to a request, which is sent as it stands."""
    with socket.create_connection(("127.0.0.1", int(me.host.rpartition(":")[2])), 60) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
        return connection.recv(4096).split(b"\r\n")[0]


# host names


def test_the_api_and_the_proxy_do_not_answer_at_the_dashboards_host(shop: Shop, operator: Visitor) -> None:
    token = {"authorization": f"Bearer {shop.made['token']}"}
    for path in ("/v1/wallet", "/v1/apps", "/proxy/t/chat", "/healthz", "/metrics", "/openapi.json"):
        assert operator.get(path, **token).status_code == 404, path
    assert operator.post("/v1/pause", authorization=token["authorization"]).status_code == 404
    assert not is_paused(shop)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_the_dashboard_does_not_answer_at_the_apis_hosts(operator: Visitor, name: str) -> None:
    port = operator.host.rpartition(":")[2]
    elsewhere = Visitor(operator.http, operator.server, f"{name}:{port}", operator.cookie)
    for path in ("/ui/", "/ui/sign-in", "/ui/events"):
        assert elsewhere.get(path).status_code == 404
    assert elsewhere.post("/ui/pause", operator.hidden()).status_code in (403, 404)


def test_a_name_that_only_looks_like_the_dashboards_reaches_nothing(operator: Visitor) -> None:
    for name in ("rebound.example", "payagent.localhost.example", "payagent.localhost.", "x.payagent.localhost"):
        elsewhere = Visitor(operator.http, operator.server, name, operator.cookie)
        answer = elsewhere.get("/ui/")
        assert (answer.status_code, answer.json()["code"]) == (403, "browser_refused")
    two_hosts = f"GET /ui/ HTTP/1.1\nhost: {operator.host}\nhost: rebound.example\ncookie: {operator.cookie}"
    assert raw(operator, two_hosts).split()[1] in (b"400", b"403")


# other pages


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": ""},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:9"},
        {"origin": "http://payagent.localhost:9"},
        {"origin": "http://payagent.localhost.example"},
        {"sec_fetch_site": ""},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site"},
    ],
    ids=str,
)
def test_a_form_that_another_page_sends_is_refused(shop: Shop, operator: Visitor, headers: dict[str, str]) -> None:
    assert operator.post("/ui/pause", operator.hidden(), **headers).status_code == 403
    code = shop.payagent("dashboard").json["code"]
    assert stranger(shop).post("/ui/sign-in", {"code": code}, **headers).status_code == 403
    assert not is_paused(shop)


def test_a_form_with_a_second_origin_is_refused(shop: Shop, operator: Visitor) -> None:
    fields = "&".join(f"{name}={text}" for name, text in operator.hidden().items())
    head = f"POST /ui/pause HTTP/1.1\nhost: {operator.host}\ncookie: {operator.cookie}\norigin: {operator.origin}"
    head += f"\norigin: http://127.0.0.1:9\nsec-fetch-site: same-origin\ncontent-type: {FORM}"
    assert raw(operator, f"{head}\ncontent-length: {len(fields)}\n\n{fields}").split()[1] == b"403"
    assert not is_paused(shop)


def test_a_form_needs_the_token_of_its_own_session(shop: Shop, operator: Visitor) -> None:
    own, ended = operator.hidden(), visitor(shop)
    old = ended.hidden()
    ended.post("/ui/sign-out", old)
    for csrf in ("", "0" * 64, own["csrf"][:-1], old["csrf"], visitor(shop).hidden()["csrf"]):
        assert operator.post("/ui/pause", own | {"csrf": csrf}).status_code == 403
    assert operator.post("/ui/pause", {"order": own["order"]}).status_code == 403
    assert not is_paused(shop)


def test_no_other_page_may_frame_read_or_embed_an_answer(shop: Shop, operator: Visitor) -> None:
    style = re.search(r'href="(/ui/static/payagent\.[0-9a-f]{12}\.css)"', operator.get("/ui/").text)
    assert style is not None
    answers = [
        operator.get("/ui/"),
        operator.get("/"),
        operator.get(style[1]),
        operator.get("/ui/nowhere"),
        operator.post("/ui/pause"),
        operator.http.request("PUT", f"{operator.server}/ui/", headers={"host": operator.host}),
        stranger(shop).get("/ui/sign-in"),
        stranger(shop).get("/ui/enter/0"),
        stranger(shop).get("/ui/"),
    ]
    for answer in answers:
        headers = answer.headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-opener-policy"] == headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        is_asset = "/ui/static/" in str(answer.url)
        assert headers["cache-control"] == ("public, max-age=31536000, immutable" if is_asset else "no-store")


def test_the_event_stream_is_not_kept_by_a_cache(operator: Visitor) -> None:
    headers = {"host": operator.host, "cookie": operator.cookie}
    with operator.http.stream("GET", f"{operator.server}/ui/events", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "no-store" in answer.headers["cache-control"]
        assert answer.headers["x-frame-options"] == "DENY"


# signing in


def test_a_link_is_used_up_by_its_button_alone_and_works_once(shop: Shop) -> None:
    path = urlsplit(shop.payagent("dashboard").json["url"]).path
    scanner, me = stranger(shop), stranger(shop)
    for _ in range(3):
        answer = scanner.get(path)
        assert (answer.status_code, "set-cookie" in answer.headers) == (200, False)
        assert scanner.http.head(scanner.server + path, headers={"host": scanner.host}).status_code == 200
    assert me.enter(path).status_code == 303
    assert me.get("/ui/").status_code == 200
    for again in (scanner.get(path), scanner.enter(path)):
        assert (again.status_code, "set-cookie" in again.headers) == (403, False)


def test_five_wrong_codes_end_every_open_code_and_no_link(shop: Shop) -> None:
    made, me = shop.payagent("dashboard").json, stranger(shop)
    for _ in range(5):
        assert me.enter_by_code("0000-0000-0000").status_code == 403
    assert me.enter_by_code(made["code"]).status_code == 403
    assert me.enter(made["url"]).status_code == 303


def test_guesses_of_links_and_codes_write_nothing_into_the_ledger(shop: Shop) -> None:
    me, guesses = stranger(shop), 30
    for _ in range(5):
        me.enter_by_code("wrong")
    before = refusals(shop)
    for number in range(guesses):
        assert me.enter_by_code(f"{number:012}").status_code == 403
        assert me.post(f"/ui/enter/{number:064x}").status_code == 403
    assert refusals(shop) == before


def test_a_cookie_from_before_the_sign_in_is_not_taken_over(shop: Shop) -> None:
    me = stranger(shop)
    me.cookie = planted = f"{COOKIE}={'a' * 64}"
    answer = me.enter(shop.payagent("dashboard").json["url"])
    assert me.cookie != planted
    first = me.cookie
    assert "Secure" in answer.headers["set-cookie"]
    assert me.enter(shop.payagent("dashboard").json["url"]).status_code == 303
    assert me.cookie not in (planted, first)
    me.cookie = planted
    assert me.get("/ui/").headers["location"].startswith("/ui/sign-in")


def test_the_cookie_is_sent_to_the_dashboard_alone_and_read_by_no_script(shop: Shop) -> None:
    answer = stranger(shop).enter(shop.payagent("dashboard").json["url"])
    named, *attributes = answer.headers["set-cookie"].split("; ")
    assert re.fullmatch(r"__Host-payagent=[0-9a-f]{64}", named)
    assert sorted(map(str.lower, attributes)) == [
        "httponly",
        "max-age=28800",
        "path=/",
        "samesite=strict",
        "secure",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "https://other.example/",
        "//other.example/",
        "//[other.example",
        "/\\other.example",
        "/ui/\\..\\other.example",
        "javascript:alert(1)",
        "/ui/\r\nlocation: https://other.example/",
        "/v1/pause",
    ],
)
def test_signing_in_leads_to_no_other_site(shop: Shop, path: str) -> None:
    me = stranger(shop)
    assert (
        "other.example"
        not in me.http.get(f"{me.server}/ui/sign-in", params={"next": path}, headers={"host": me.host}).text
    )
    assert me.enter_by_code(shop.payagent("dashboard").json["code"], path).headers["location"] == "/ui/"


def test_signing_in_leads_back_to_the_page_that_was_asked_for(shop: Shop) -> None:
    me = stranger(shop)
    asked = me.get("/ui/orders/1?from=there").headers["location"]
    assert asked == "/ui/sign-in?next=/ui/orders/1%3Ffrom%3Dthere"
    page = me.get(asked).text
    assert 'name="next" value="/ui/orders/1?from=there"' in page
    back = me.enter_by_code(shop.payagent("dashboard").json["code"], "/ui/orders/1?from=there")
    assert back.headers["location"] == "/ui/orders/1?from=there"


def test_a_new_link_leads_back_to_the_page_that_was_asked_for(shop: Shop) -> None:
    me = stranger(shop)
    asked = me.get(me.get("/ui/limits?app=a%26b").headers["location"])
    me.cookie = asked.headers["set-cookie"].partition(";")[0]
    assert me.enter(shop.payagent("dashboard").json["url"]).headers["location"] == "/ui/limits?app=a%26b"
    me = stranger(shop)
    me.cookie = "__Host-payagent-next=https%3A//other.example"
    assert me.enter(shop.payagent("dashboard").json["url"]).headers["location"] == "/ui/"


def test_signing_in_leads_to_no_stream_and_no_file(shop: Shop) -> None:
    """Whatever answers something else than a page, and whatever the browser asked for in the background."""
    me, unknown = visitor(shop), stranger(shop)
    nowhere = {"/ui/events", "/ui/payments/pay_0/receipt"}  # this one would be a file, and that one does not end
    for path in {address(one) for one in PAGES if not one.is_form} - nowhere:
        is_file = "content-disposition" in me.get(path).headers
        nowhere |= {path} if is_file else set()
        asked = "/ui/sign-in" if is_file else f"/ui/sign-in?next={path}"
        assert unknown.get(path).headers["location"] == asked
    assert len(nowhere) == 5
    assert {unknown.get(path).headers["location"] for path in nowhere} == {"/ui/sign-in"}
    assert unknown.get("/ui/limits", sec_fetch_dest="empty").headers["location"] == "/ui/sign-in"
    assert (
        unknown.get("/ui/limits", sec_fetch_dest="document").headers["location"] == "/ui/sign-in?next=/ui/limits"
    )
    assert "set-cookie" not in unknown.get("/ui/sign-in", sec_fetch_dest="empty").headers
    refreshed = unknown.get("/ui/limits", sec_fetch_dest="empty", payagent_refresh="1")
    assert refreshed.headers["location"] == "/ui/sign-in?next=/ui/limits"


def test_after_signing_out_the_cookie_is_worth_nothing(shop: Shop) -> None:
    me = visitor(shop)
    answer = me.post("/ui/sign-out", me.hidden())
    assert (answer.status_code, "Max-Age=0" in answer.headers["set-cookie"]) == (303, True)
    assert me.get("/ui/").headers["location"].startswith("/ui/sign-in")


def test_a_revoked_token_ends_its_session_at_the_next_call(shop: Shop) -> None:
    shop.payagent("app", "add", "leaver", "--scope", "read")
    me = visitor(shop, "--app", "leaver")
    assert me.get("/ui/").status_code == 200
    shop.payagent("app", "revoke", "leaver")
    assert me.get("/ui/").headers["location"].startswith("/ui/sign-in")
    assert me.get("/ui/events").headers["location"].startswith("/ui/sign-in")


# lesser tokens


def test_a_token_that_may_only_pay_opens_no_dashboard(shop: Shop) -> None:
    assert shop.payagent("dashboard", "--app", "pay").problem == "forbidden"


@pytest.mark.parametrize("scope", ["read", "approve"])
def test_a_lesser_session_is_refused_every_form_that_its_scope_does_not_have(shop: Shop, scope: str) -> None:
    me = visitor(shop, "--app", scope)
    refused = [one for one in FORMS if scope not in one.scopes]
    assert len(refused) > 2
    for one in refused:
        assert me.post(address(one), {"csrf": "0", "order": "0"}).status_code == 403, one.path
    assert not is_paused(shop)


def test_a_session_that_reads_gets_no_form_but_the_one_to_sign_out(shop: Shop) -> None:
    me = visitor(shop, "--app", "read")
    for one in PAGES:
        if not one.is_form and "{" not in one.path and one.path != "/ui/events" and "read" in one.scopes:
            answer = me.get(one.path)
            assert answer.status_code == 200, one.path
            if "html" in answer.headers["content-type"] and "content-disposition" not in answer.headers:
                forms = set(re.findall(r'<form[^>]*method="post"[^>]*action="(.*?)"', answer.text))
                assert forms == {"/ui/sign-out"}, one.path


def test_a_session_that_approves_sees_nothing_else(shop: Shop) -> None:
    me = visitor(shop, "--app", "approve")
    assert me.get("/ui/").headers["location"] == "/ui/approvals"
    for one in PAGES:
        if not one.is_form and "approve" not in one.scopes and one.path != "/ui/":
            assert me.get(address(one)).status_code == 403, one.path


# forms


def test_a_double_click_is_one_order(shop: Shop) -> None:
    me = visitor(shop)
    form = me.hidden()
    with ThreadPoolExecutor(4) as clicks:
        answers = list(clicks.map(lambda _: me.post("/ui/resume", form), range(4)))
    orders = {answer.headers["location"] for answer in answers if "/ui/orders/" in answer.headers["location"]}
    assert [answer.status_code for answer in answers] == [303] * 4
    assert len(orders) == 1
    assert me.post("/ui/resume", form).headers["location"] in orders
    assert me.post("/ui/resume", me.hidden()).headers["location"] not in orders


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"reason=" + b"x" * FORM_MAX_BYTES, FORM, 413),
        ("&".join(f"f{number}=1" for number in range(1000)).encode(), FORM, 400),
        (b"reason=\xff\xfe", FORM, 400),
        (b"reason=%ff%fe", FORM, 400),
        (b'{"csrf": "1"}', "application/json", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415),
        (b"csrf=1", "text/plain", 415),
        (b"", "", 415),
    ],
    ids=["huge", "many fields", "bytes", "bad escapes", "json", "multipart", "plain", "nothing"],
)
def test_a_body_that_is_no_form_is_refused(
    shop: Shop, operator: Visitor, body: bytes, kind: str, status: int
) -> None:
    headers = {"host": operator.host, "cookie": operator.cookie, "origin": operator.origin}
    headers |= {"sec-fetch-site": "same-origin"} | ({"content-type": kind} if kind else {})
    answer = operator.http.post(f"{operator.server}/ui/pause", content=body, headers=headers)
    assert answer.status_code == status
    assert not is_paused(shop)


@pytest.mark.parametrize("path", ["/ui/sign-in", "/ui/enter/0", "/ui/pause", "/ui/nowhere", "/v1/pause"])
def test_a_form_with_a_broken_chunk_is_refused_and_makes_no_error_in_the_log(
    shop: Shop, operator: Visitor, path: str
) -> None:
    log = shop.folder / "daemon.log"
    before = len(log.read_text())
    host = "localhost" if path.startswith("/v1/") else operator.host
    head = f"POST {path} HTTP/1.1\nhost: {host}\norigin: {operator.origin}\nsec-fetch-site: same-origin"
    head += f"\ncontent-type: {FORM}\ntransfer-encoding: chunked\n\nthis is no size\n"
    assert raw(operator, head).split()[1] == b"400"
    assert operator.get("/ui/").status_code == 200
    said = log.read_text()[before:]
    assert "Traceback" not in said
    assert ("dashboard.client_gone" in said) == (path == "/ui/sign-in")  # which alone reads its form


@pytest.mark.parametrize("expires", [{}, {"expires": ""}, {"expires": "1000d"}], ids=str)
def test_a_form_that_does_not_say_when_a_token_ends_makes_none(
    shop: Shop, operator: Visitor, expires: dict[str, str]
) -> None:
    def tokens() -> list[tuple[str, object]]:
        return [(app["name"], app["token_made_at"]) for app in shop.payagent("app", "list").json["apps"]]

    before = tokens()
    for path, typed in {"/ui/apps/new": {"name": "endless", "scopes": "pay"}, "/ui/apps/pay/token": {}}.items():
        answer = operator.post(path, typed | expires | operator.hidden(path))
        assert (answer.status_code, "expires must be one of" in answer.text) == (400, True)
    assert tokens() == before


def test_a_form_that_does_not_end_is_given_up(slow_form: socket.socket, operator: Visitor) -> None:
    slow_form.settimeout(120)
    assert slow_form.recv(4096).split()[1] == b"408"


def test_everything_else_still_works_after_all_that(shop: Shop, operator: Visitor) -> None:
    answer: httpx.Response = operator.post("/ui/pause", operator.hidden() | {"reason": "enough"})
    assert answer.status_code == 303
    assert is_paused(shop)
