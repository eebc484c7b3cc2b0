"""`payagent app` and `payagent limits set` against the running daemon."""

import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit.canaries import plant
from kit.cli import TOKEN, Result, Shop, clean_environ, write_private


@pytest.fixture(autouse=True)
def _cheap_merchant(shop: Shop) -> None:
    shop.settings(asset="lovelace", price="2000000", splits=[], dialect="t-backend", batch=1, timeout=300)


def added(shop: Shop, name: str, *more: str) -> Path:
    """A file with the token of a new app."""
    result = shop.payagent("app", "add", name, *more)
    assert result.code == 0, result.err
    return kept(shop, name, result)


def kept(shop: Shop, name: str, result: Result) -> Path:
    return write_private(shop.folder / f"{name}.token", plant(f"the token of {name}", result.json["token"]))


def pay(shop: Shop, message: str, token: Path) -> Result:
    file = shop.saved(message, f"{message}.json")
    return shop.payagent("pay", file, "--merchant", "t", "--token-file", token)


def row_of(shop: Shop, name: str) -> dict[str, Any]:
    (row,) = [one for one in shop.payagent("app").json["apps"] if one["name"] == name]
    return dict(row)


def test_an_app_pays_within_its_limits_until_it_is_revoked(shop: Shop) -> None:
    token = added(shop, "bot", "--per-payment", "3 ADA", "--per-day", "4 ADA", "--merchant", "t")
    assert row_of(shop, "bot")["merchants"] == ["t"]
    assert pay(shop, "first", token).code == 0
    above = pay(shop, "second", token)
    assert (above.code, above.problem, above.error["limit"]) == (6, "limit_exceeded", "per_day")
    assert above.error["frees_at"]
    shown = shop.payagent("limits", "--token-file", token).json["limits"]
    assert [one["limit"] for one in shown if one["app"] == "bot"] == ["per_payment", "per_day"]
    assert shop.payagent("app", "revoke", "bot").json["active"] is False
    assert pay(shop, "third", token).code == 5
    assert "revoked" in shop.payagent("app", "list", "--human").out


def test_a_new_token_is_shown_once_and_never_again(shop: Shop) -> None:
    result = shop.payagent("app", "add", "shown", "--human")
    token = plant("the token that people see", result.out.split()[-1])
    assert token.startswith("pa_")
    assert "stores only its hash" in result.err
    assert token not in shop.payagent("app", "list").out
    again = shop.payagent("app", "add", "shown")
    assert (again.code, again.problem) == (2, "already_exists/app")


def test_wallet_with_a_pay_only_token_shows_the_address_and_no_balances(shop: Shop) -> None:
    token = added(shop, "onlooker")
    shown = shop.payagent("wallet", "--human", "--token-file", token)
    assert (shown.code, shop.made["address"] in shown.out) == (0, True), shown.err
    assert "available" not in shown.out
    assert "read or operate" in shown.err


def test_rotating_a_token_revokes_the_old_one(shop: Shop) -> None:
    before = added(shop, "renewed")
    result = shop.payagent("app", "rotate-token", "renewed", "--expires", "90d")
    assert shop.payagent("limits", "--token-file", before).code == 5
    after = kept(shop, "renewed-again", result)
    assert shop.payagent("limits", "--token-file", after).code == 0
    assert row_of(shop, "renewed")["expires_at"] is not None


def test_rotating_the_operators_token_replaces_its_token_file(shop: Shop) -> None:
    file = shop.data_dir / "operator.token"
    before = file.read_text().strip()
    result = shop.payagent("app", "rotate-token", "operator")
    assert result.code == 0, result.err
    assert (file.read_text().strip(), stat.S_IMODE(file.stat().st_mode)) == (result.json["token"], 0o600)
    assert result.json["token"] != before
    assert shop.payagent("limits").code == 0
    old = write_private(shop.folder / "old.token", before)
    assert shop.payagent("limits", "--token-file", old).code == 5
    assert not file.with_name("operator.token.new").exists()


def test_a_token_that_is_in_its_file_is_not_to_be_saved_by_hand(shop: Shop) -> None:
    result = shop.payagent("app", "rotate-token", "operator", "--human")
    assert f"written to {shop.data_dir / 'operator.token'}" in result.out
    assert "pa_" not in result.out
    assert "Save the token" not in result.err


RENEWAL_KILLED = """
import io, os, signal, sys
from payagent.cli import run
from payagent.cli.terminal import Terminal

config, left = sys.argv[1], 0

def step(frame, event, _):
    global left
    if frame.f_code.co_name not in ("renew_own_token", "_take_new_token", "make_secret_file", "put_in_place"):
        return None
    left -= event == "line"
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return step

def code(*command):
    told = io.StringIO()
    code = run([*command, "--config", config], Terminal(io.StringIO(), io.StringIO(), told))
    return code if code != 5 or "a renewal was interrupted" in told.getvalue() else -5

for count in range(1_000):
    child = os.fork()
    if child == 0:
        left = count
        sys.settrace(lambda frame, event, _: step(frame, event, _))
        code("app", "rotate-token", "operator")
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(ended, code("limits"), code("app", "rotate-token", "operator"), code("limits"), flush=True)
    if ended == 0:
        break
"""


def test_a_rotation_of_the_operators_token_killed_at_any_line_is_finished_by_the_next(shop: Shop) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", RENEWAL_KILLED, str(shop.config)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean_environ() | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    told = [tuple(map(int, line.split())) for line in ran.stdout.splitlines()]
    assert told, ran.stderr
    assert told.pop() == (0, 0, 0, 0)
    assert {one[0] for one in told} == {-signal.SIGKILL}
    assert {one[2:] for one in told} == {(0, 0)}, "the next rotation and every command after it must succeed"
    assert {one[1] for one in told} == {0, 5}, "after the commit the file's token is the old one"


def test_an_app_bound_to_a_native_token_has_its_limits_in_that_token(shop: Shop) -> None:
    added(shop, "tokens", "--asset", "COIN", "--per-payment", "5", "--total", "50 COIN", "--expires", "12h")
    limits = [one for one in shop.payagent("limits").json["limits"] if one["app"] == "tokens"]
    assert [(one["asset"], one["limit"], one["most"]) for one in limits] == [
        (TOKEN, "per_payment", "5"),
        (TOKEN, "total", "50"),
    ]
    told = shop.payagent("app", "add", "more-tokens", "--asset", TOKEN)
    plant("the token of more-tokens", told.json["token"])
    assert 'payagent limits set --app more-tokens --per-day "2 ADA"' in told.err


def test_a_limit_is_set_by_the_name_of_a_token(shop: Shop) -> None:
    for amount in (("--per-hour", "7 COIN"), ("--per-hour", f"7 {TOKEN}"), ("--asset", "COIN", "--per-hour", "7")):
        told = shop.payagent("limits", "set", *amount)
        assert ("per_hour", "7") in [
            (one["limit"], one["most"]) for one in told.json["limits"] if one["asset"] == TOKEN
        ]
        assert shop.payagent("limits", "set", "--asset", "COIN", "--per-hour", "config").code == 0


def test_setting_a_limit_above_the_signers_limit_warns(shop: Shop) -> None:
    told = shop.payagent("limits", "set", "--per-day", "200001 ADA", "--per-month", "900000 ADA")
    assert told.code == 0
    assert "per_day is above the signer's limit: limits.signed_per_day is 200\u202f000 ADA" in told.err
    assert "per_month" not in told.err
    told = shop.payagent("limits", "set", "--per-day", "200000 ADA", "--per-month", "config")
    assert (told.code, told.err) == (0, "")
    assert shop.payagent("limits", "set", "--per-day", "config").code == 0


def test_setting_a_limit_for_a_token_that_the_signer_never_signs_warns(shop: Shop) -> None:
    told = shop.payagent("limits", "set", "--asset", "ab" * 30, "--total", "500")
    assert told.code == 0
    assert "total is above the signer's limit: limits.per_transaction is 0 units" in told.err
    assert shop.payagent("limits", "set", "--asset", "ab" * 30, "--total", "config").err == ""


def test_limits_are_set_and_reverted_to_the_config(shop: Shop) -> None:
    assert shop.payagent("limits", "set", "--merchant", "t", "--per-hour", "1 ADA").code == 0
    above = shop.payagent("pay", shop.saved("too much", "too-much.json"), "--merchant", "t")
    assert (above.code, above.error["limit"]) == (6, "per_hour")
    assert int(above.error["left"]) <= 1_000_000  # what was spent there before the limit was set counts too
    back = shop.payagent("limits", "set", "--merchant", "t", "--per-hour", "config")
    assert [one for one in back.json["limits"] if one["merchant"]] == []
    assert shop.payagent("app", "add", "x", "--per-day", "config").problem == "amount_invalid"
    assert shop.payagent("pay", shop.folder / "too-much.json", "--merchant", "t").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("limits", "set"),
        ("limits", "set", "--per-day", "5"),
        ("limits", "set", "--per-day", "-5 ADA"),
        ("limits", "set", "--per-day", "5 ADA", "--merchant", "nobody"),
        ("limits", "set", "--per-day", "5", "--asset", "USDM"),
        ("limits", "set", "--per-day", "5 ADA", "--asset", TOKEN),
        ("limits", "set", "--per-day", "5 ADA", "--per-hour", "5 COIN"),
        ("limits", "set", "--per-day", "5 DJED"),
        ("app", "add", "x", "--asset", "USDM"),
        ("app", "add", "x", "--asset", TOKEN, "--per-day", "007"),
        ("prepaid", "topup", "t", "--amount", "5", "--asset", "USDM"),
        ("prepaid", "topup", "t", "--amount", "5 ADA", "--asset", TOKEN),
        ("fetch", "http://127.0.0.1:1/", "--max", "0 units"),
        ("app", "add", "x", "--per-day", "five"),
        ("app", "add", "x", "--expires", "soon"),
        ("app", "add", "x", "--expires", "2020-01-01"),
        ("app", "add", "x", "--scope", "all"),
        ("app", "revoke", "nobody"),
        ("app", "rotate-token", "nobody"),
    ],
    ids=" ".join,
)
def test_invalid_arguments_exit_with_2_and_do_not_blame_the_merchant(
    shop: Shop, arguments: tuple[str, ...]
) -> None:
    told = shop.payagent(*arguments)
    assert (told.code, told.out) == (2, ""), told.err
    assert "Tell the merchant" not in told.err
