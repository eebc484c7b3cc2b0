"""Refused requests: their codes, and problem documents (RFC 9457) that say what it means for the money."""

import json
from typing import Any

import httpx
import pytest
from kit.agent import World
from kit.api import JSON, PAY, QUOTE, SEND, SPLIT, Api, require_nothing_signed, require_problem, served
from kit.http import NO_TLS

from payagent.api.app import create_app
from payagent.core.bounds import SPLIT_COUNT_MAX
from payagent.core.version import VERSION
from payagent.proxy.app import Bounds

CALL = {"method": "POST", "path": "/chat", "body_sha256": "ab" * 32}
NO_PAYMENT = "/v1/payments/pay_000000000000000000000000"


async def test_an_invalid_body_is_refused_and_the_wrong_key_is_named(api: Api) -> None:
    good = api.body()
    response: dict[str, Any] = dict(good["response"])  # type: ignore[call-overload]
    other = "https://api.example.com"
    rows: list[tuple[str, object, str, str | None]] = [
        (PAY, [], "bad_request", None),
        (PAY, {"origin": other}, "bad_request", "response"),
        (PAY, good | {"max_totl": "5"}, "bad_request", "max_totl"),
        (PAY, good | {"max_total": 5_000_000}, "bad_request", "max_total"),
        (PAY, good | {"max_total": 5.5}, "bad_request", "max_total"),
        (PAY, good | {"max_total": "0"}, "bad_request", "max_total"),
        (PAY, good | {"max_total": "5 ADA"}, "bad_request", "max_total"),
        (PAY, good | {"max_total": "5", "max_total_asset": "USDM"}, "bad_request", "max_total_asset"),
        (PAY, good | {"max_total": "5", "max_total_asset": None}, "bad_request", "max_total_asset"),
        (PAY, good | {"max_total_asset": "lovelace"}, "bad_request", "max_total"),
        (PAY, good | {"origin": other}, "merchant_not_allowed", None),
        (PAY, good | {"origin": "api.example.com"}, "merchant_not_allowed", "origin"),
        (PAY, good | {"origin": 7}, "merchant_not_allowed", "origin"),
        (PAY, good | {"request": {}}, "bad_request", "method"),
        (PAY, good | {"request": CALL | {"method": "post"}}, "bad_request", "request.method"),
        (PAY, good | {"request": CALL | {"path": "chat"}}, "bad_request", "request.path"),
        (PAY, good | {"request": CALL | {"path": "/a\u00e9"}}, "bad_request", "request.path"),
        (PAY, good | {"request": CALL | {"body_sha256": "AB" * 32}}, "bad_request", "request.body_sha256"),
        (PAY, good | {"request": CALL | {"body": ""}}, "bad_request", "body"),
        (PAY, good | {"response": response | {"status": "402"}}, "bad_request", "response.status"),
        (PAY, good | {"response": response | {"status": 42}}, "bad_request", "response.status"),
        (PAY, good | {"response": response | {"status": 200}}, "not_an_invoice", None),
        (PAY, good | {"response": response | {"headers": {"a": 1}}}, "bad_request", "response.headers"),
        (PAY, good | {"response": response | {"headers": "a: 1"}}, "bad_request", "response.headers"),
        (PAY, good | {"response": response | {"headers": [["a"]]}}, "bad_request", "response.headers"),
        (PAY, good | {"response": {"status": 402}}, "bad_request", "response.body"),
        (PAY, good | {"response": response | {"body_base64": ""}}, "bad_request", "response.body"),
        (PAY, good | {"response": {"status": 402, "body_base64": "?"}}, "bad_request", "response.body_base64"),
        (PAY, good | {"response": response | {"body": {"a": "x" * 70_000}}}, "body_too_big", None),
        (QUOTE, good | {"max_totl": "5"}, "bad_request", "max_totl"),
        (SPLIT, {"count": 2}, "bad_request", "lovelace"),
        (SPLIT, {"count": "2", "lovelace": "5000000"}, "bad_request", "count"),
        (SPLIT, {"count": True, "lovelace": "5000000"}, "bad_request", "count"),
        (SPLIT, {"count": 10**9, "lovelace": "5000000"}, "bad_request", "count"),
        (SPLIT, {"count": 2, "lovelace": 5000000}, "bad_request", "lovelace"),
        (SPLIT, {"count": 2, "lovelace": "1"}, "transfer_invalid", None),
        (SPLIT, {"count": SPLIT_COUNT_MAX + 1, "lovelace": "1000000"}, "bad_request", "count"),
        (SPLIT, {"count": SPLIT_COUNT_MAX, "lovelace": str(2**32)}, "transfer_invalid", None),
        (SEND, {"address": api.world.address}, "bad_request", "units"),
        (SEND, {"address": api.world.address, "units": "5", "all": True}, "bad_request", "units"),
        (SEND, {"address": api.world.address, "all": False}, "bad_request", "all"),
        (SEND, {"address": api.world.address, "all": 1}, "bad_request", "all"),
        (SEND, {"address": api.world.address, "all": True, "asset": "lovelace"}, "bad_request", "all"),
        (SEND, {"address": api.world.address, "units": "45000000000000001"}, "bad_request", "units"),
        (SEND, {"address": api.world.address, "units": "5"}, "transfer_invalid", None),
        (SEND, {"address": "addr1xyz", "units": "5000000"}, "transfer_invalid", "address"),
        (SEND, {"address": "addr1xyz", "all": True}, "transfer_invalid", "address"),
        (SEND, {"address": api.world.address, "units": "5", "asset": "USDM"}, "transfer_invalid", "asset"),
        (NO_PAYMENT + "/delivery", {"status": True}, "bad_request", "status"),
        (NO_PAYMENT + "/delivery", {"status": 200, "body_base64": "?"}, "bad_request", "body_base64"),
        (NO_PAYMENT + "/delivery", {"status": 200, "unanswered": "reset"}, "bad_request", "unanswered"),
        (NO_PAYMENT + "/delivery", {"status": True, "unanswered": "reset"}, "bad_request", "status"),
        (NO_PAYMENT + "/delivery", {"status": 504, "unanswered": "", "body": "x"}, "bad_request", "unanswered"),
        (NO_PAYMENT + "/delivery", {"status": 504, "unanswered": "reset"}, "not_found", None),
        (NO_PAYMENT + "/delivery", {"status": 200}, "not_found", None),
    ]
    for path, body, code, key in rows:
        told = require_problem(await api.http.post(path, json=body), code)
        assert told.get("key") == key, (path, told)
    require_nothing_signed(api)


async def test_a_body_that_is_not_strict_json_is_refused(api: Api) -> None:
    for path, content, headers, code in (
        (PAY, b"", JSON, "invoice_invalid/json"),
        (PAY, b"{", JSON, "invoice_invalid/json"),
        (PAY, b'{"origin": "a", "origin": "b"}', JSON, "invoice_invalid/json"),
        (PAY, b'{"max_total": NaN}', JSON, "invoice_invalid/json"),
        (PAY, b"\xff\xfe", JSON, "invoice_invalid/json"),
        (PAY, b"[" * 100_000, JSON, "invoice_invalid/json"),
        (PAY, b" " * (256 * 1024 + 1), JSON, "body_too_big"),
        (SPLIT, b"{", JSON, "bad_request"),
        (SPLIT, b'{"count": 1, "count": 2, "lovelace": "5000000"}', JSON, "bad_request"),
        (PAY, b"{}", {}, "media_type_refused"),
        (PAY, b"{}", {"content-type": "text/plain"}, "media_type_refused"),
        (PAY, b"{}", {"content-type": "application/x-www-form-urlencoded"}, "media_type_refused"),
        (PAY, b"{}", {"content-type": "application/json; charset=latin-1"}, "media_type_refused"),
        (PAY, b"{}", {"content-type": "application/json; charset=UTF-8"}, "bad_request"),
        (PAY, b"{}", JSON | {"idempotency-key": "a b"}, "bad_request"),
    ):
        require_problem(await api.http.post(path, content=content, headers=headers), code)
    require_nothing_signed(api)


async def test_an_idempotency_key_is_1_to_255_visible_ascii_characters(api: Api) -> None:
    body = api.body()
    for key in ("", "a b", "x" * 256, "caf\u00e9"):
        answer = await api.http.post(PAY, json=body, headers={"Idempotency-Key": key.encode("latin-1")})
        require_problem(answer, "idempotency_key_invalid")
    require_nothing_signed(api)
    longest = await api.http.post(PAY, json=body, headers={"Idempotency-Key": "~" * 255})
    assert longest.status_code == 201


async def test_two_idempotency_keys_are_refused(api: Api) -> None:
    twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    require_problem(await api.http.post(PAY, json=api.body(), headers=twice), "bad_request")
    require_problem(
        await api.http.post(SPLIT, json={"count": 1, "lovelace": "5000000"}, headers=twice), "bad_request"
    )
    require_nothing_signed(api)


async def test_unknown_paths_methods_and_invalid_parameters_are_refused_with_a_code(api: Api) -> None:
    for method, path, code in (
        ("GET", "/", "not_found"),
        ("GET", "/docs", "not_found"),
        ("GET", "/v1/payments/", "not_found"),
        ("GET", "/v1/nothing", "not_found"),
        ("DELETE", PAY, "method_not_allowed"),
        ("PUT", "/healthz", "method_not_allowed"),
        ("GET", NO_PAYMENT, "not_found"),
        ("GET", NO_PAYMENT + "?wait=61", "bad_request"),
        ("GET", NO_PAYMENT + "?wait=-1", "bad_request"),
        ("GET", NO_PAYMENT + "?wait=x", "bad_request"),
        ("GET", NO_PAYMENT + "?wiat=5", "bad_request"),
        ("GET", PAY + "?limit=0", "bad_request"),
        ("GET", PAY + "?limit=201", "bad_request"),
        ("GET", PAY + "?cursor=0", "bad_request"),
        ("GET", PAY + "?cursor=1%27--", "bad_request"),
        ("GET", PAY + "?state=failed", "bad_request"),
        ("GET", PAY + "?stat=settled", "bad_request"),
        ("GET", PAY + "?origin=example.com", "bad_request"),
        ("GET", PAY + "?since=yesterday", "bad_request"),
        ("GET", PAY + "?since=2026-11-24T25:38:18", "bad_request"),
        ("GET", "/v1/ledger/entries?acount=wallet", "bad_request"),
        ("GET", PAY + "?app=nobody", "bad_request"),
        ("GET", "/v1/ledger/entries?merchant=nobody", "bad_request"),
        ("GET", "/v1/ledger/entries?app=nobody", "bad_request"),
        ("GET", "/v1/ledger/balance?app=", "bad_request"),
        ("GET", "/v1/ledger/spend?app=PAYER", "bad_request"),
        ("GET", "/v1/ledger/export?app=nobody", "bad_request"),
        ("GET", "/v1/ledger/balance?asset=ADAX", "bad_request"),
        ("GET", "/v1/ledger/balance?kind=paid", "bad_request"),
        ("GET", "/v1/ledger/export?format=xls", "bad_request"),
        ("GET", "/v1/ledger/export?until=tomorrow", "bad_request"),
        ("GET", "/v1/ledger/export?until=9999-12-31T23:59:59-05:00", "bad_request"),
        ("GET", "/v1/ledger/export?since=0001-01-01T00:00:00%2B01:00", "bad_request"),
    ):
        answer = await api.http.request(method, path)
        require_problem(answer, code)
        assert ("allow" in answer.headers) == (code == "method_not_allowed")
    for path, takes in (
        (PAY, {"GET", "POST"}),
        ("/healthz", {"GET", "HEAD"}),
        (NO_PAYMENT + "/deny", {"POST"}),
        ("/openapi.json", {"GET", "HEAD"}),
    ):
        allow = (await api.http.delete(path)).headers["allow"]
        assert set(allow.split(", ")) == takes, "every method that the path allows (RFC 9110 10.2.1)"


async def test_unknown_and_repeated_query_parameters_are_refused(api: Api) -> None:
    token = {"name": "late"}
    for method, path, body, key in (
        ("POST", PAY + "?max_total=1", api.body(), "max_total"),
        ("POST", QUOTE + "?max_total=1", api.body(), "max_total"),
        ("POST", SEND + "?dry_run=1", {"address": api.world.address, "units": "5000000"}, "dry_run"),
        ("POST", "/v1/apps?expires_at=2020-01-01T00:00:00Z", token, "expires_at"),
        ("GET", "/v1/ledger/snapshot?until=2026-11-01T00:00:00Z", None, "until"),
        ("GET", "/v1/wallet?asset=lovelace", None, "asset"),
        ("GET", PAY + "?state=void&state=rejected", None, "state"),
        ("GET", "/v1/ledger/export?app=first&app=payer", None, "app"),
        ("GET", NO_PAYMENT + "?wait=1&wait=2", None, "wait"),
    ):
        answer = await api.http.request(method, path, json=body)
        assert require_problem(answer, "bad_request")["key"] == key
    require_nothing_signed(api)
    require_problem(await api.as_("reader").post(PAY + "?max_total=1", json=api.body()), "forbidden")


async def test_health_checks_answer_head_requests(api: Api) -> None:
    api.stale.append("the sweeps are late")
    for path in ("/healthz", "/readyz"):
        whole, head = await api.http.get(path), await api.http.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-length"] == whole.headers["content-length"]
    require_problem(await api.http.delete("/readyz"), "method_not_allowed")


async def test_requests_under_v1_without_a_valid_token_are_refused(api: Api) -> None:
    token = api.tokens["first"]
    async with httpx.AsyncClient(base_url=api.url, verify=NO_TLS, trust_env=False) as http:
        for headers in (
            {},
            {"Authorization": "Bearer pa_" + "A" * 43},
            {"Authorization": "Bearer"},
            {"Authorization": f"Basic {token}"},
            {"Authorization": token},
            {"X-Payagent-Token": token},
        ):
            for method, path in (
                ("POST", PAY),
                ("POST", QUOTE),
                ("GET", PAY),
                ("GET", NO_PAYMENT),
                ("POST", NO_PAYMENT + "/delivery"),
                ("GET", "/v1/wallet"),
                ("GET", "/v1/wallet/utxos"),
                ("POST", SPLIT),
                ("POST", SEND),
                ("GET", "/v1/ledger/entries"),
                ("GET", "/v1/ledger/balance"),
                ("GET", "/v1/ledger/verify"),
                ("GET", "/v1/ledger/export"),
                ("GET", "/v1/limits"),
            ):
                require_problem(await http.request(method, path, headers=headers), "unauthorized")
        assert (await http.get("/healthz")).json() == {"status": "ok", "version": VERSION}
        assert (await http.get("/openapi.json")).status_code == 200
        assert (await http.get(f"/v1/wallet?token={token}")).status_code == 401


async def test_a_token_allows_only_what_its_scopes_permit(api: Api) -> None:
    body, split = api.body(), {"count": 1, "lovelace": "5000000"}
    send = {"address": api.world.address, "units": "5000000"}
    table: dict[tuple[str, str], tuple[object, set[str]]] = {
        ("POST", QUOTE): (body, {"payer"}),
        ("POST", PAY): (body, {"payer"}),
        ("GET", PAY): (None, {"payer", "reader", "operator"}),
        ("GET", "/v1/wallet"): (None, {"payer", "reader", "operator"}),
        ("GET", "/v1/limits"): (None, {"payer", "reader", "operator"}),
        ("GET", "/v1/ledger/entries"): (None, {"reader", "operator"}),
        ("GET", "/v1/ledger/balance"): (None, {"reader", "operator"}),
        ("GET", "/v1/ledger/verify"): (None, {"reader", "operator"}),
        ("GET", "/v1/ledger/export"): (None, {"reader", "operator"}),
        ("POST", SPLIT): (split, {"operator"}),
        ("POST", SEND): (send, {"operator"}),
    }
    for (method, path), (content, allowed) in table.items():
        for app in ("payer", "reader", "operator"):
            answer = await api.as_(app).request(method, path, json=content)
            if app in allowed:
                assert answer.status_code in (200, 201), (app, path, answer.text)
            else:
                require_problem(answer, "forbidden")


async def test_a_web_page_cannot_spend(api: Api) -> None:
    body = api.body()
    for headers, code in (
        ({"Host": "evil.example"}, "browser_refused/host"),
        ({"Host": "127.0.0.1.evil.example"}, "browser_refused/host"),
        ({"Host": "localhost.evil.example:8402"}, "browser_refused/host"),
        ({"Host": "192.168.1.2:8402"}, "browser_refused/host"),
        ({"Host": "payagent"}, "browser_refused/host"),
        ({"Origin": "https://evil.example"}, "browser_refused/web_page"),
        ({"Origin": "null"}, "browser_refused/web_page"),
        ({"Origin": api.url}, "browser_refused/web_page"),
        ({"Sec-Fetch-Site": "cross-site"}, "browser_refused/web_page"),
        ({"Sec-Fetch-Site": "same-site"}, "browser_refused/web_page"),
        # a merchant's page that the proxy passed on, and a link that another program opened
        ({"Sec-Fetch-Site": "same-origin"}, "browser_refused/web_page"),
        ({"Sec-Fetch-Site": "none"}, "browser_refused/web_page"),
    ):
        for method, path in (
            ("POST", PAY),
            ("GET", "/v1/limits"),
            ("OPTIONS", PAY),
            ("GET", "/proxy/devnet/chat"),
        ):
            told = await api.http.request(method, path, json=body, headers=headers)
            require_problem(told, code)
            assert not [name for name in told.headers if name.startswith("access-control-")]
    require_problem(await api.http.get("/healthz", headers={"Host": "evil.example"}), "browser_refused/host")
    require_nothing_signed(api)
    for host in ("localhost", "LOCALHOST:8402", "127.0.0.1:1", "[::1]:8402", "127.9.9.9"):
        answer = await api.http.get("/v1/limits", headers={"Host": host})
        assert answer.status_code == 200, host


async def test_a_forward_proxy_request_is_refused_with_the_url_to_use(api: Api) -> None:
    async with httpx.AsyncClient(proxy=api.url) as http:
        for origin in ("http://merchant.example", api.world.origin):
            told = require_problem(await http.get(f"{origin}/chat"), "bad_request")
            assert all(word in told["detail"] for word in ("a forward proxy", "/proxy/NAME"))
        with pytest.raises(httpx.ProxyError, match="400"):
            await http.get("https://merchant.example/chat")
    require_nothing_signed(api)


async def test_only_host_names_in_allowed_hosts_are_accepted_besides_loopback(world: World) -> None:
    """A name that only begins or ends like an allowed one is refused."""
    async with world.run() as run, served(run, Bounds(allowed_hosts=frozenset({"payagent.internal"}))) as api:
        for host in ("payagent.internal", "Payagent.Internal:8402", "localhost:8402"):
            for path, status in (("/v1/limits", 200), ("/proxy/nobody/x", 403)):
                answer = await api.http.get(path, headers={"Host": host})
                assert (answer.status_code, answer.json().get("code")) != (403, "browser_refused"), host
                assert answer.status_code == status, answer.text
        for host in (
            "payagent.internal.evil.example",
            "evil.payagent.internal",
            "internal",
            "payagent.internal:x",
        ):
            for path in ("/v1/limits", "/proxy/nobody/x", "/healthz"):
                require_problem(await api.http.get(path, headers={"Host": host}), "browser_refused/host")


async def test_the_unix_socket_accepts_any_host_but_no_web_page(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.tokens['first']}"}
    transport = httpx.AsyncHTTPTransport(uds=api.unix_path, verify=NO_TLS)
    async with httpx.AsyncClient(base_url="http://payagent", transport=transport, headers=headers) as http:
        assert (await http.get("/v1/limits")).status_code == 200
        require_problem(await http.get("/v1/limits", headers={"Origin": "null"}), "browser_refused/web_page")


async def test_a_payment_is_refused_while_the_chain_is_unread_or_the_wallet_is_empty(world: World) -> None:
    async with world.run() as run, served(run) as api:
        body = api.body()
        told = require_problem(await api.http.post(PAY, json=body), "chain_not_ready")
        assert told["retryable"] is True
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        assert ready.json()["checks"]["chain"] != "ok"
        assert "retry-after" in ready.headers
        world.fault("/addresses", "server", count=1)
        await run.run_pass()
        assert "transactions: http 500" in (await api.http.get("/readyz")).json()["checks"]["chain"]
        await run.run_pass()
        assert (await api.http.get("/readyz")).status_code == 200
        require_problem(await api.http.post(PAY, json=body), "not_enough_funds")
        require_nothing_signed(api)


async def test_a_second_402_while_a_batch_is_bought_is_refused_with_retry_after(api: Api) -> None:
    api.run.world.settings(batch=10)
    first = await api.pay()
    answer = await api.http.post(PAY, json=api.body("another"))
    told = require_problem(answer, "batch_in_progress")
    assert (told["payment"], answer.headers["retry-after"]) == (first["id"], "2")


async def test_late_passes_make_the_daemon_not_ready(api: Api) -> None:
    checks = (await api.http.get("/readyz")).json()["checks"]
    assert checks == dict.fromkeys(("chain", "ledger", "sweeps", "signer", "pause"), "ok")
    api.stale.append("the last look is 31 s ago")
    ready = await api.http.get("/readyz")
    assert (ready.status_code, ready.json()["checks"]["sweeps"]) == (503, "the last look is 31 s ago")


async def test_passes_that_run_but_are_incomplete_are_reported_and_the_daemon_stays_ready(api: Api) -> None:
    app = create_app(
        api.run.fleet, heartbeat=lambda: ("the providers disagree about the tip", True), signer=lambda: None
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost:8402") as http:
        ready = await http.get("/readyz")
    told = ready.json()
    assert (ready.status_code, told["ready"], told["code"]) == (200, True, None)
    assert told["checks"]["sweeps"] == "the providers disagree about the tip"


async def test_a_lost_signer_makes_the_daemon_not_ready(api: Api) -> None:
    app = create_app(
        api.run.fleet,
        heartbeat=lambda: (None, True),
        signer=lambda: "its process has ended",
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(base_url="http://localhost:8402", transport=transport) as http:
        ready = await http.get("/readyz")
    told = ready.json()
    assert (ready.status_code, told["checks"]["signer"], told["code"]) == (
        503,
        "its process has ended",
        "signer_lost",
    )


async def test_a_bug_is_an_internal_error_without_details(api: Api) -> None:
    def broken() -> tuple[str | None, bool]:
        raise RuntimeError("canary-7d1f")

    app = create_app(api.run.fleet, heartbeat=broken, signer=lambda: None)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(base_url="http://localhost:8402", transport=transport) as http:
        answer = await http.get("/readyz")
    require_problem(answer, "internal_error")
    assert "canary" not in answer.text


async def test_no_answer_contains_a_token_or_may_be_cached(api: Api) -> None:
    token = api.tokens["first"]
    paid = await api.pay()
    for path in (
        PAY,
        f"{PAY}/{paid['id']}",
        "/v1/wallet",
        "/v1/wallet/utxos",
        "/v1/limits",
        "/v1/ledger/entries",
        "/v1/ledger/balance",
        "/v1/ledger/verify",
        "/v1/ledger/export",
        "/openapi.json",
        "/healthz",
        "/readyz",
        f"/{token}",
        f"/proxy/~{token}/nobody/chat",
    ):
        answer = await api.http.get(path)
        whole = answer.text + json.dumps(dict(answer.headers))
        assert answer.headers["cache-control"] == "no-store"
        assert token[3:] not in whole, path


async def test_a_ledger_damaged_at_run_time_is_store_failed_and_not_an_internal_error(api: Api) -> None:
    """Every page is overwritten, as by a failing disk; caches may still hold some."""
    for name in ("ledger.db", "ledger.db-wal"):
        path = api.world.folder / name
        with path.open("r+b") as file:
            file.write(b"\xa5" * path.stat().st_size)
    for path in ("/v1/payments", "/v1/ledger/entries", "/v1/ledger/export", "/v1/wallet/utxos"):
        told = require_problem(await api.http.get(path), "store_failed")
        assert "the ledger" in told["detail"]
    require_problem(await api.http.post(PAY, json=api.body()), "store_failed")
