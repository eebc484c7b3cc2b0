"""What `status`, `limits` and `payments list` look like at 80 and 120 columns, and what `log` tells.

`screens/` has each screen, with ids, times and addresses masked. To renew one, delete it and run its test twice.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from kit.canaries import plant
from kit.cli import Shop, running, spawn, until, write_private
from kit.terminal import at_terminal, shown

from payagent.devnet.merchant import role_address

SCREENS = Path(__file__).parent / "screens"
OTHER = role_address("creator").text
COMMANDS = {
    "status": ("status",),
    "limits": ("limits",),
    "payments": ("payments", "list"),
}
MASKS = (
    (r"pay_[0-9a-f]{24}", "pay_" + 24 * "0"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", "2026-01-01 00:00:00"),
    (r"addr_test1[0-9a-z]{90,}", "addr_test1" + 98 * "0"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:0"),
    (r"(newest block) +\d+", r"\1  0"),
)


@pytest.fixture(scope="module")
def busy(closed_shop: Shop) -> Iterator[Shop]:
    """A wallet with a paid call, a refused one, one that waits for approval, a split and a transfer."""
    shop = closed_shop
    with shop.config.open("a") as config:
        config.write('\n[approvals]\nrequired_above = "10 ADA"\n')
    for _ in range(5):
        shop.control("faucet", address=shop.made["address"], lovelace="100000000")
    with running(shop):
        until(lambda: len(shop.payagent("wallet", "utxos").json["utxos"]) == 5, "no deposit")
        url = f"{shop.devnet.merchant_url}/chat"
        bot = token_of(shop, "bot", "--scope", "pay", "--per-day", "5 ADA")
        token_of(shop, "auditor", "--scope", "read")
        for price, message, by, code in (
            ("2000000", "cheap", ("--token-file", bot), 0),
            ("4000000", "above the limit", ("--token-file", bot), 6),
            ("12000000", "dear", (), 8),
        ):
            shop.settings(price=price, splits=[])
            data = json.dumps({"message": message})
            fetched = shop.payagent("fetch", url, "-d", data, *by)
            assert fetched.code == code, fetched.err
        assert shop.payagent("wallet", "split", "--count", "3", "--each", "20 ADA").code == 0
        assert shop.payagent("wallet", "send", OTHER, "--amount", "3 ADA", "--yes").code == 0
        for change in (
            ("pause", "--reason", "a drill"),
            ("resume",),
            ("limits", "set", "--merchant", "t", "--total", "90 ADA"),
            ("limits", "set", "--merchant", "t", "--total", "config"),
            ("merchants", "add", "shop", "--origin", "https://shop.example"),
            ("merchants", "pin", "shop", OTHER, "--split"),
            ("merchants", "unpin", "shop", OTHER, "--split"),
            ("merchants", "remove", "shop"),
            ("app", "add", "brief"),
            ("app", "revoke", "brief"),
        ):
            assert shop.payagent(*change).code == 0
        ended = {"confirmed", "rejected", "awaiting_approval"}
        until(lambda: {row["state"] for row in shop.payments()} == ended, "not confirmed")
        yield shop


def token_of(shop: Shop, name: str, *options: str) -> Path:
    added = shop.payagent("app", "add", name, *options)
    assert added.code == 0, added.err
    return write_private(shop.folder / name, plant(f"the token of {name}", added.json["token"]))


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return text


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_screen_looks_as_committed(busy: Shop, monkeypatch: pytest.MonkeyPatch, name: str, columns: int) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    screen, file = masked(shown(*command_of(busy, name))), SCREENS / f"{name}-{columns}.txt"
    if not file.exists():
        file.write_text(screen)
        pytest.fail(f"{file} was missing and is written now: look at it")
    assert screen == file.read_text()


def test_a_real_terminal_shows_the_same(busy: Shop) -> None:
    with at_terminal(*command_of(busy, "status"), columns=80, NO_COLOR="1") as session:
        assert session.end() == 0
    assert masked(session.seen) == (SCREENS / "status-80.txt").read_text()


def command_of(shop: Shop, name: str) -> tuple[str | Path, ...]:
    return (*COMMANDS[name], "--config", shop.config, "--token-file", shop.folder / "auditor")


@pytest.mark.parametrize("name", COMMANDS)
def test_no_table_is_wider_than_the_terminal(name: str) -> None:
    for columns in (80, 120):
        lines = (SCREENS / f"{name}-{columns}.txt").read_text().splitlines()
        rules = [line for line in lines if line.startswith("──")]
        assert rules
        assert max(map(len, rules)) <= columns


def test_a_terminal_shows_states_in_colour_unless_told_not_to(busy: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("payments", "list", "--config", busy.config)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(*command)
    for code, state in ((32, "confirmed"), (33, "awaiting approval"), (31, "rejected")):
        assert f"\x1b[{code}m{state}" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in shown(*command)


def test_a_read_token_sees_who_changed_what_and_which_calls_were_refused(busy: Shop) -> None:
    told = busy.payagent("log", "--human", "--token-file", busy.folder / "auditor")
    assert told.code == 0, told.err
    lines = [re.sub(" +", " ", masked(line)) for line in told.out.splitlines()]
    refusal = f"bot was refused with limit_exceeded: t POST /chat pay_{24 * '0'}"
    assert [line.removeprefix("2026-01-01 00:00:00 ") for line in lines] == [
        "operator added the app operator (approve, operate, pay, read)",
        "operator issued a token for the app operator",
        "operator added the app bot (pay)",
        "operator issued a token for the app bot",
        "operator set bot's daily limit to 5 ADA",
        "operator added the app auditor (read)",
        "operator issued a token for the app auditor",
        refusal,
        "operator paused signing: a drill",
        "operator resumed signing",
        "operator set the total limit at t to 90 ADA",
        "operator set the total limit at t back to the config file",
        "operator added the merchant shop",
        f"operator pinned an address of https://shop.example: {OTHER}",
        f"operator unpinned an address of https://shop.example: {OTHER}",
        "operator removed the merchant shop",
        "operator added the app brief (pay)",
        "operator issued a token for the app brief",
        "operator revoked the app brief",
    ]
    newest = busy.payagent("log", "--limit", "1").json["log"][0]
    assert (newest["event"], newest["by"], newest["app"]) == ("app_revoked", "operator", "brief")
    assert busy.payagent("log", "--since", newest["at"]).json["log"] == [newest]


def test_the_log_is_filtered_by_kind(busy: Shop) -> None:
    told = busy.payagent("log", "--kind", "signing").json["log"]
    assert {one["event"] for one in told} == {"paused", "resumed"}


def test_the_log_says_how_to_see_older_entries(busy: Shop) -> None:
    newest = busy.payagent("log", "--limit", "1", "--human")
    assert newest.err.startswith("More: --cursor ")
    older = busy.payagent("log", "--limit", "1", "--cursor", newest.err.split()[-1]).json["log"]
    assert older == busy.payagent("log", "--limit", "2").json["log"][1:]


def test_the_log_is_followed_from_the_oldest_entry_since_a_time_until_its_reader_stops(busy: Shop) -> None:
    command = ("log", "--follow", "--since", "2020-01-01T00:00:00Z", "--limit", "1", "--json")
    following = spawn(*command, "--config", busy.config, stdout=PIPE, stderr=PIPE)
    lines = map(json.loads, iter(following.stdout.readline, ""))
    oldest = next(lines)
    assert (oldest["event"], oldest["detail"]["name"]) == ("app_added", "operator")
    assert any(one["event"] == "app_revoked" for one in lines), "the newest entry so far"
    assert busy.payagent("limits", "set", "--per-week", "70 ADA").code == 0
    told = next(lines)
    assert busy.payagent("limits", "set", "--per-week", "config").code == 0
    again = next(lines)
    following.terminate()
    following.communicate(timeout=60)
    assert [one["detail"]["most"] for one in (told, again)] == ["70000000", None]
    assert (told["by"], told["app"], told["detail"]["limit"]) == ("operator", None, "per_week")


def test_the_address_is_drawn_for_a_phone(busy: Shop) -> None:
    address, *drawn = busy.payagent("wallet", "address", "--qr", "--human").out.splitlines()
    assert address == busy.made["address"]
    assert len({len(line) for line in drawn}) == 1
    assert set("".join(drawn)) == set(" ▀▄█")


def test_status_is_one_json_object_for_programs(busy: Shop) -> None:
    told = busy.payagent("status").json
    assert (told["ready"], told["network"], told["address"]) == (True, "devnet", busy.made["address"])
    (waits,) = told["awaiting_approval"]
    assert (waits["app_name"], waits["merchant"], waits["request"]) == ("operator", "t", "POST /chat")
    assert [alert["kind"] for alert in told["alerts"]] == ["approval_needed"]
    assert [row["app"] for row in told["spend_by_app"]] == ["bot", "operator"]
    assert {"limits", "assets", "chain", "checks", "providers"} <= told.keys()


def test_status_says_that_a_pause_stops_payments(busy: Shop) -> None:
    assert busy.payagent("pause", "--reason", "a drill").code == 0
    shown = busy.payagent("status", "--human")
    assert busy.payagent("resume").code == 0
    assert shown.code == 0, shown.err
    assert shown.out.startswith("not ready: payagent does not pay on devnet now\n  pause: an operator has paused")
    assert "`payagent resume`" in shown.out
    assert "paused since " in shown.out
    assert "a drill" in shown.out


def test_a_read_command_imports_neither_pydantic_nor_httpx(busy: Shop) -> None:
    code = (
        "import sys; from payagent.cli import run; from payagent.cli.terminal import standard_terminal\n"
        "for command in sys.argv[2:]:\n"
        "    run([command, '--config', sys.argv[1]], standard_terminal())\n"
        "    loaded = [m for m in ('pydantic', 'httpx', 'fastapi', 'pycardano') if m in sys.modules]\n"
        "    print(command, loaded, file=sys.stderr)"
    )
    commands = ("payments", "limits", "wallet", "status", "log")
    process = subprocess.run(
        [sys.executable, "-c", code, busy.config, *commands], check=True, capture_output=True, text=True
    )
    assert process.stderr.splitlines() == [f"{command} []" for command in commands]
    assert [line[0] for line in process.stdout.splitlines()] == ["{"] * len(commands)
