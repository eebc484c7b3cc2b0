"""The command against the running daemon: what it shows, and how it exits."""

import json
import re
import signal
import socket
import sqlite3
import stat
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from kit.cli import TOKEN, Result, Shop, checks, invoke, spawn, until, write_private

from payagent.devnet.merchant import role_address
from payagent.store.rows.merchants import all_merchants

OTHER = role_address("creator").text


def pay(shop: Shop, file: Path, *more: str) -> Result:
    return shop.payagent("pay", file, "--merchant", "t", *more)


@pytest.fixture(autouse=True)
def _plain_merchant(request: pytest.FixtureRequest) -> None:
    """Every test begins with the same price."""
    if "shop" in request.fixturenames:
        shop: Shop = request.getfixturevalue("shop")
        shop.settings(asset="lovelace", price="2000000", splits=[], dialect="t-backend", batch=1, timeout=300)


def test_a_saved_402_is_paid_and_the_retry_is_served(shop: Shop) -> None:
    file = shop.saved("paid from a file")
    paid = pay(shop, file)
    assert paid.code == 0, paid.err
    served = shop.call("paid from a file", paid.json)
    assert served.status_code == 200
    assert served.json()["txHash"] == paid.json["X-Payment"]
    count = len(shop.payments())
    assert pay(shop, file).json == paid.json
    assert len(shop.payments()) == count


def test_the_human_output_of_pay_is_header_lines_for_curl(shop: Shop) -> None:
    lines = pay(shop, shop.saved("as lines"), "--human").out.splitlines()
    headers = dict(line.split(": ", 1) for line in lines)
    assert shop.call("as lines", headers).status_code == 200


def test_a_402_file_with_status_headers_and_body_is_read_as_a_whole(shop: Shop) -> None:
    shop.settings(dialect="flux")
    answer = shop.call("in an envelope")
    envelope = {"status": answer.status_code, "headers": dict(answer.headers), "body": answer.json()}
    file = shop.folder / "envelope.json"
    file.write_text(json.dumps(envelope))
    quote = pay(shop, file, "--dry-run")
    assert (quote.code, quote.json["dialect"]) == (10, "flux")
    envelope["headers"]["X-Amount"] = "1"
    file.write_text(json.dumps(envelope))
    assert pay(shop, file, "--dry-run").problem == "invoice_invalid/contradiction"


def test_pay_reads_a_402_from_standard_input(shop: Shop) -> None:
    file = shop.saved("from a pipe")
    with file.open() as text:
        process = spawn(
            *("pay", "-", "--merchant", "t", "--dry-run", "--config", shop.config),
            stdin=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 10
    assert json.loads(out)["outputs"][0]["units"] == "2000000"


def test_a_dry_run_reserves_nothing(shop: Shop) -> None:
    before = (shop.held(), len(shop.payments()))
    quote = pay(shop, shop.saved("only asking"), "--dry-run")
    assert quote.code == 10
    assert int(quote.json["total"]) == 2_000_000 + int(quote.json["fee"])
    assert (shop.held(), len(shop.payments())) == before


def test_pay_with_no_wait_exits_with_8_and_the_proof_headers(shop: Shop) -> None:
    file = shop.saved("not waiting")
    early = pay(shop, file, "--no-wait")
    assert early.code == 8
    assert early.json["X-Payment"]
    assert pay(shop, file).json == early.json


@pytest.mark.parametrize("dry", [("--dry-run",), ()])
def test_a_payment_above_max_is_refused(shop: Shop, dry: tuple[str, ...]) -> None:
    refused = pay(shop, shop.saved(f"too dear {dry}"), "--max", "2 ADA", *dry)
    assert (refused.code, refused.problem) == (6, "limit_exceeded")
    assert pay(shop, shop.saved(f"too dear {dry}"), "--max", "2.5 ADA", "--dry-run").code == 10


def test_people_see_a_token_in_the_decimals_of_the_config(shop: Shop) -> None:
    """The config that the command reads gives the token six decimals. Programs go on to get units."""
    text = shop.config.read_text()
    assert "decimals = 0" in text
    config = write_private(shop.folder / "six.toml", text.replace("decimals = 0", "decimals = 6"))
    shown = invoke("limits", "--human", "--config", config).out
    assert " COIN " in shown
    assert "0.005 COIN" in shown
    assert "5000" in {row["most"] for row in invoke("limits", "--json", "--config", config).json["limits"]}
    shop.settings(asset=TOKEN, price="40", splits=[])
    refused = invoke(
        "pay", shop.saved("six"), "--merchant", "t", "--max", "0.000039 COIN", "--human", "--config", config
    )
    assert "0.00004 COIN" in refused.err, refused.err


def test_a_max_in_ada_is_not_applied_to_tokens(shop: Shop) -> None:
    shop.settings(asset=TOKEN, price="40", splits=[])
    file = shop.saved("in tokens")
    refused = pay(shop, file, "--max", "5 ADA")
    assert (refused.code, refused.problem) == (2, "amount_invalid")
    assert pay(shop, file, "--max", "39 units").problem == "limit_exceeded"
    for most in ("40 units", "40 COIN", f"40 {TOKEN}"):
        assert pay(shop, file, "--max", most, "--dry-run").code == 10
    assert pay(shop, file, "--max", "39 COIN").problem == "limit_exceeded"


def test_a_max_in_ada_does_not_allow_another_offer_in_tokens(shop: Shop) -> None:
    """The ADA offer is within the limits, so the quote is in ADA; it is above --max, and 40 tokens are not."""
    file = shop.folder / "two-offers.json"
    offer = {"scheme": "exact", "network": "cardano-devnet", "payTo": OTHER, "maxTimeoutSeconds": 300}
    offer |= {"resource": f"{shop.devnet.merchant_url}/x", "description": "", "mimeType": "text/plain"}
    named = {"asset": TOKEN[:56], "extra": {"assetNameHex": TOKEN[56:], "decimals": 0}}
    offers = [{"asset": "lovelace", "maxAmountRequired": "6000000"}, named | {"maxAmountRequired": "40"}]
    body = {"x402Version": 1, "error": "", "accepts": [offer | one for one in offers]}
    file.write_text(json.dumps(body))
    assert pay(shop, file, "--dry-run").json["outputs"][0]["asset"] == "lovelace"
    refused = pay(shop, file, "--max", "5 ADA", "--dry-run")
    assert (refused.code, refused.problem) == (6, "limit_exceeded")
    assert pay(shop, file, "--max", "5 ADA").problem == "limit_exceeded"


def test_pay_with_max_finds_a_payment_that_exists(shop: Shop) -> None:
    file = shop.saved("found again")
    first = pay(shop, file, "--max", "3 ADA", "--key", "found-again")
    file.write_text('{"detail": {"status": "pending"}}')
    again = pay(shop, file, "--max", "3 ADA", "--key", "found-again")
    assert (again.code, again.json) == (0, first.json)
    assert pay(shop, file, "--max", "3 ADA", "--key", "another").problem == "not_an_invoice"


def test_an_unknown_merchant_is_refused(shop: Shop) -> None:
    file = shop.saved("who is it")
    stranger = shop.payagent("pay", file, "--origin", "https://evil.example")
    assert (stranger.code, stranger.problem) == (6, "merchant_not_allowed")
    assert shop.payagent("pay", file, "--merchant", "nobody").code == 6
    assert pay(shop, file, "--origin", "https://evil.example").code == 2


def test_the_only_merchant_need_not_be_named(shop: Shop) -> None:
    file = shop.saved("from the only one")
    quote = shop.payagent("pay", file, "--dry-run")
    assert quote.json["origin"] == shop.devnet.merchant_url
    assert f"the only merchant, t ({shop.devnet.merchant_url})" in quote.err
    added = shop.payagent("merchants", "add", "other", "--origin", "https://api.example.com")
    assert added.code == 0, added.err
    assert shop.payagent("pay", file, "--dry-run").code == 2
    shop.payagent("merchants", "remove", "other")


def test_adding_the_t_backend_sets_its_split_mode(shop: Shop) -> None:
    t_backend = ("--origin", "https://api-v3.fluxpointstudios.com")
    added = shop.payagent("merchants", "add", "tb", *t_backend)
    assert added.code == 0, added.err
    assert 'split_mode = "additional"' in added.err
    assert "on top" in added.err
    with closing(sqlite3.connect(f"file:{shop.data_dir}/ledger.db?mode=ro", uri=True)) as conn:
        (row,) = all_merchants(conn)
    assert row.settings["split_mode"] == "additional"
    shop.payagent("merchants", "remove", "tb")
    chosen = shop.payagent("merchants", "add", "tb", *t_backend, "--split-mode", "inclusive")
    other = shop.payagent("merchants", "add", "other", "--origin", "https://api.example.com")
    assert "split_mode" not in chosen.err + other.err
    for name in ("tb", "other"):
        shop.payagent("merchants", "remove", name)


def test_an_origin_inside_the_402_file_is_not_trusted(shop: Shop) -> None:
    """A stranger's answer may look like an API request that names somebody else's merchant."""
    answer = shop.call("as an order")
    told = {"status": 402, "headers": dict(answer.headers), "body": answer.json()}
    order = {"origin": shop.devnet.merchant_url, "response": told}
    file = write_private(shop.folder / "order.json", json.dumps(order))
    assert pay(shop, file, "--dry-run").problem == "invoice_invalid/body"


@pytest.mark.parametrize("line_end", ["\r\n", "\n"])
def test_the_output_of_curl_with_headers_is_accepted(shop: Shop, line_end: str) -> None:
    shop.settings(dialect="flux")
    answer = shop.call("as curl -i shows it")
    head = [f"{name}: {value}" for name, value in answer.headers.items()]
    before = ["HTTP/1.1 200 Connection established", "", "HTTP/2 301", "location: /chat", ""]
    lines = [*before, "HTTP/1.1 100 Continue", "", "HTTP/2 402", *head, "", answer.text]
    file = write_private(shop.folder / "curl.txt", "")
    file.write_bytes(line_end.join(lines).encode())
    quote = pay(shop, file, "--dry-run")
    assert (quote.code, quote.json["dialect"]) == (10, "flux")
    file.write_bytes(line_end.join(lines).replace("x-amount: ", "x-amount: 1").encode())
    assert pay(shop, file, "--dry-run").problem == "invoice_invalid/contradiction"
    file.write_text("HTTP/1.1 200 OK\n")
    assert pay(shop, file).code == 3


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"detail": {"status": "pending"}}', "not_an_invoice"),
        ("<html>", "invoice_invalid/body"),
        (b"\xff\xfe{\x00", "invoice_invalid/json"),
        ('{"detail": {"payTo": "a", "payTo": "b"}}', "invoice_invalid/json"),
        ('{"status": 402, "body": {"a": 1, "a": 2}}', "invoice_invalid/json"),
    ],
)
def test_a_file_that_is_not_an_invoice_is_refused(shop: Shop, text: str | bytes, code: str) -> None:
    file = shop.folder / "odd.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    before = len(shop.payments())
    refused = pay(shop, file)
    assert (refused.code, refused.problem, refused.out) == (3, code, "")
    assert len(shop.payments()) == before


def test_a_402_saved_without_its_headers_is_not_blamed_on_the_merchant(shop: Shop) -> None:
    """x402 v2 has an empty object for a body, and curl saves the body alone."""
    file = write_private(shop.folder / "bare.json", "{}")
    for more in ((), ("--dry-run",)):
        refused = pay(shop, file, *more)
        assert (refused.code, refused.problem) == (3, "invoice_invalid/body")
        assert '{"status", "headers", "body"}' in refused.error["fix"]
        assert "payagent fetch" in refused.error["fix"]
    file.write_text('{"status": 402, "headers": {}, "body": {}}')
    assert "Tell the merchant" in pay(shop, file).error["fix"]


def test_not_enough_funds_exits_with_7(shop: Shop) -> None:
    shop.settings(price="900000000", splits=[])
    refused = pay(shop, shop.saved("more than there is"))
    assert (refused.code, refused.problem) == (7, "not_enough_funds")


def test_a_wrong_or_unreadable_token_is_refused(shop: Shop) -> None:
    wrong = write_private(shop.folder / "wrong.token", "pa_0123456789")
    refused = shop.payagent("wallet", "--token-file", wrong)
    assert (refused.code, refused.problem) == (5, "unauthorized")
    missing = shop.payagent("wallet", "--token-file", shop.folder / "none")
    assert (missing.code, missing.problem) == (2, "config_invalid")
    assert "how to get a new one" in missing.error["detail"]
    unseen = shop.payagent("wallet", "--token-file", shop.folder / ("x" * 300))
    assert (unseen.code, unseen.problem) == (2, "config_invalid"), unseen.err
    assert "cannot be read" in unseen.error["detail"]
    for name, text in (("two", "pa_0123456789\npa_abc"), ("spaced", "pa_0123456789 "), ("strange", "pä_0123")):
        held = write_private(shop.folder / f"{name}.token", text)
        refused = shop.payagent("wallet", "--token-file", held)
        assert (refused.code, refused.problem) == (2, "config_invalid"), refused.err
        assert "pa_" not in refused.err


def test_options_before_a_subcommand_apply_to_it(shop: Shop) -> None:
    wrong = write_private(shop.folder / "wrong.token", "pa_0123456789")
    assert invoke("wallet", "--config", shop.config, "show").code == 0
    assert invoke("wallet", "--config", shop.config, "--token-file", wrong, "show").code == 5


def test_an_interrupted_pay_does_not_stop_the_payment(shop: Shop) -> None:
    file = shop.saved("interrupted")
    count = len(shop.payments())
    shop.control("faults", on="submit", kind="drop")
    process = spawn(
        *("pay", file, "--merchant", "t", "--config", shop.config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until(lambda: len(shop.payments()) == count + 1, "no payment")
    # the wait begins when the answer is there; one more call of ours comes after it
    until(lambda: shop.payments()[0]["state"] == "in_flight", "not sent")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    shop.control("faults", clear=True)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in err
    until(lambda: shop.payments()[0]["state"] == "confirmed", "not confirmed")
    assert pay(shop, file).code == 0
    assert len(shop.payments()) == count + 1


def test_pay_with_max_reports_not_enough_funds_when_the_price_cannot_be_paid(shop: Shop) -> None:
    """It must not say that a limit is exceeded which nobody set."""
    shop.settings(price="990000000", splits=[])
    refused = pay(shop, shop.saved("dear"), "--max", "1000 ADA")
    assert (refused.code, refused.problem) == (7, "not_enough_funds")


def test_the_ledger_balances_and_shows_a_payment(shop: Shop) -> None:
    pay(shop, shop.saved("for the books"), "--key", "books")
    payment = shop.payments()[0]
    balance = shop.payagent("ledger").json
    assert set(balance["sums"].values()) <= {"0"}
    merchant = f"merchant:{shop.devnet.merchant_url}"
    assert merchant in {row["account"] for row in balance["balances"]}
    entries = shop.payagent("ledger", "entries", "--payment", payment["id"]).json["entries"]
    assert [entry["kind"] for entry in entries] == ["post", "reserve"]
    assert shop.payagent("ledger", "entries", "--limit", "1").json["cursor"]
    shown = shop.payagent("payments", "show", payment["id"], "--human").out
    for words in (
        "confirmed on the chain",
        "booked as paid",
        payment["tx_hash"],
        payment["outputs"][0]["address"],
    ):
        assert words in shown
    assert re.search(r"  Reserved 2\.\d+ ADA; .* of 100.000 ADA left today\n", shown)
    assert "None" not in shown
    paid = shop.payagent("payments", "resolve", payment["id"])
    assert (paid.code, paid.problem) == (2, "wrong_state"), "asking for it is not a bug"


def test_an_operator_takes_a_payments_utxos_back(shop: Shop) -> None:
    shop.control("faults", on="submit", kind="drop")
    assert pay(shop, shop.saved("to be resolved"), "--no-wait").code == 8
    payment = shop.payments()[0]
    resolved = shop.payagent("payments", "resolve", payment["id"])
    shop.control("faults", clear=True)
    assert (resolved.code, resolved.json["state"]) == (0, "cancelling"), resolved.err
    again = shop.payagent("payments", "resolve", payment["id"], "--human").out
    assert "being cancelled" in again
    assert "the operator cancelled it" in again
    assert shop.payagent("payments", "resolve", "pay_none").code == 2


def test_the_list_shows_an_apps_payments_and_those_of_a_period(shop: Shop) -> None:
    pay(shop, shop.saved("listed"))
    newest = shop.payments()[0]

    def listed(*options: str) -> list[str]:
        found = shop.payagent("payments", "list", "--limit", "1", *options)
        assert found.code == 0, found.err
        return [row["id"] for row in found.json["payments"]]

    (name,) = (row["name"] for row in shop.payagent("app").json["apps"] if row["id"] == newest["app"])
    assert listed("--app", name) == [newest["id"]]
    assert newest["app"] in shop.payagent("payments", "show", newest["id"], "--human").out
    assert listed("--since", newest["created_at"]) == [newest["id"]]
    assert listed("--since", "2126-11-01T00:00:00Z") == []
    assert listed("--until", "2126-11-01T00:00:00Z") == [newest["id"]]
    assert newest["id"] not in listed("--until", newest["created_at"])
    for option, value in (("--app", "nobody"), ("--since", "today"), ("--until", "today")):
        refused = shop.payagent("payments", "list", option, value)
        assert (refused.code, refused.problem) == (2, "bad_request")


def test_an_unknown_payment_is_not_found(shop: Shop) -> None:
    unknown = shop.payagent("payments", "show", "pay_none")
    assert (unknown.code, unknown.out, unknown.problem) == (2, "", "not_found")
    assert "pay_none" in unknown.error["detail"]
    assert shop.payagent("payments", "show", "../wallet").problem == "usage"


def test_the_wallet_can_be_split_and_sent_from(shop: Shop) -> None:
    split = shop.payagent("wallet", "split", "--count", "3", "--each", "4 ADA")
    assert split.code == 0, split.err
    assert [output["units"] for output in split.json["outputs"]] == ["4000000"] * 3
    to = role_address("creator").text
    sent = shop.payagent("wallet", "send", to, "--amount", "2.5 ADA", "--yes")
    assert sent.code == 0, sent.err
    until(lambda: shop.payments()[0]["state"] == "confirmed", "not confirmed")
    there = shop.http.get(f"{shop.devnet.chain_url}/txs/{sent.json['tx_hash']}/utxos").json()["outputs"]
    assert (to, "2500000") in [(out["address"], out["amount"][0]["quantity"]) for out in there]


def test_a_transfer_with_a_key_is_made_once(shop: Shop) -> None:
    order = ("wallet", "send", role_address("creator").text, "--amount", "2 ADA", "--key", "rent-of-may", "--yes")
    first, again = shop.payagent(*order), shop.payagent(*order)
    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert first.json["tx_hash"] == again.json["tx_hash"]
    strange = shop.payagent("pay", shop.saved("with a bad key"), "--merchant", "t", "--key", "bad key é")
    assert strange.code == 2


@pytest.mark.parametrize("amount", [("--amount", "5"), ("--amount", "0 ADA"), ("--amount", "1 ADA", "--all"), ()])
def test_a_transfer_with_an_ambiguous_amount_is_not_sent(shop: Shop, amount: tuple[str, ...]) -> None:
    before = len(shop.payments())
    assert shop.payagent("wallet", "send", role_address("creator").text, *amount, "--yes").code == 2
    assert len(shop.payments()) == before


@pytest.mark.parametrize("amount", [("--amount", "2 ADA"), ("--all",)])
def test_a_transfer_without_yes_is_not_sent(shop: Shop, amount: tuple[str, ...]) -> None:
    before = len(shop.payments())
    refused = shop.payagent("wallet", "send", role_address("creator").text, *amount)
    assert (refused.code, refused.problem) == (2, "usage")
    assert "--yes" in refused.error["detail"]
    assert len(shop.payments()) == before


@pytest.mark.parametrize(
    "order",
    [
        ("addr_test1xyz", "--amount", "5 ADA"),
        ("addr_test1xyz", "--all"),
        (OTHER, "--amount", "0.5 ADA"),
        (OTHER, "--amount", "46000000000 ADA"),
        (OTHER, "--asset", "USDM", "--amount", "5"),
        (OTHER, "--asset", TOKEN, "--amount", "5 ADA"),
        (OTHER, "--asset", TOKEN, "--amount", "0"),
    ],
    ids=" ".join,
)
def test_an_invalid_transfer_exits_with_2_and_does_not_blame_the_merchant(
    shop: Shop, order: tuple[str, ...]
) -> None:
    before = len(shop.payments())
    refused = shop.payagent("wallet", "send", *order, "--yes")
    assert refused.code == 2, refused.err
    assert "merchant" not in refused.err
    assert len(shop.payments()) == before


def test_limits_are_shown_per_asset_and_window(shop: Shop) -> None:
    rows = {(row["asset"], row["limit"]): row["most"] for row in shop.payagent("limits").json["limits"]}
    assert rows["lovelace", "per_payment"] == "1000000000"
    assert rows[TOKEN, "per_day"] == "5000"
    assert "1\u202f000 ADA" in shop.payagent("limits", "--human").out


def test_tables_do_not_shorten_ids_and_addresses(shop: Shop) -> None:
    assert shop.made["address"] in shop.payagent("wallet", "--human").out
    assert shop.payments()[0]["id"] in shop.payagent("payments", "--human").out


def test_no_secret_is_in_the_daemons_log(shop: Shop) -> None:
    log = (shop.folder / "daemon.log").read_text()
    assert "payagent serves devnet on http://127.0.0.1:" in log
    for secret in (shop.words, shop.made["token"], (shop.folder / "passphrase").read_text().strip()):
        assert secret not in log


def test_doctor_passes_and_then_fails_on_a_readable_keystore(shop: Shop) -> None:
    well = shop.payagent("doctor")
    assert (well.code, well.json["ok"]) == (0, True), well.out
    keystore = shop.data_dir / "keystore.json"
    keystore.chmod(0o644)
    try:
        ill = shop.payagent("doctor", "--human")
    finally:
        keystore.chmod(0o600)
    assert ill.code == 5
    (line,) = [line for line in ill.out.splitlines() if line.startswith("FAIL keystore")]
    assert "0600" in line
    assert f"  keystore, passphrase: Run: chmod 600 {keystore}\n" in ill.out
    assert stat.S_IMODE(keystore.stat().st_mode) == 0o600


def test_the_command_never_connects_to_the_port_when_the_daemon_is_down(shop: Shop) -> None:
    """The operator's token goes only to the socket: another program may hold the port."""
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        squatter.setblocking(False)
        port = squatter.getsockname()[1]
        text = shop.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}")
        other = shop.folder / "away.toml"
        other.write_text(text.replace(f"{shop.folder}/s", "/none/s"))
        assert invoke("wallet", "address", "--config", other).code == 4
        with pytest.raises(BlockingIOError):
            squatter.accept()


def test_doctor_finds_a_broken_ledger(shop: Shop, tmp_path: Path) -> None:
    """Copies without a trigger and without a row, and a file that is not a database."""
    import sqlite3

    for name in ("keystore.json", "operator.token"):
        write_private(tmp_path / name, (shop.data_dir / name).read_text())
    tmp_path.chmod(0o700)
    other = shop.config_of(tmp_path)
    source = sqlite3.connect(shop.data_dir / "ledger.db")
    ledger = tmp_path / "ledger.db"
    copy = sqlite3.connect(ledger)
    source.backup(copy)
    copy.execute("DROP TRIGGER postings_delete")
    copy.commit()
    ledger.chmod(0o600)
    assert "postings_delete" in _ledger_detail(other)
    copy.execute("DELETE FROM postings WHERE seq = 1")
    copy.commit()
    copy.close()
    source.close()
    write_private(ledger, "not a database, and long enough to be looked at" * 40)
    for extra in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / extra).unlink(missing_ok=True)
    assert "cannot be used" in _ledger_detail(other)


def _ledger_detail(config: Path) -> str:
    check = checks(config)["ledger"]
    assert not check["ok"]
    return str(check["detail"])
