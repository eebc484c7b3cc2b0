"""`payagent payments approve` and `deny`, on a real daemon that asks above 5 ADA."""

import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kit.cli import Result, Shop, clean_environ, running, spawn, until
from kit.pages import blocks


@pytest.fixture(scope="module")
def asking(closed_shop: Shop) -> Iterator[Shop]:
    with closed_shop.config.open("a") as config:
        config.write('\n[approvals]\nrequired_above = "5 ADA"\n')
    for _ in range(4):
        closed_shop.control("faucet", address=closed_shop.made["address"], lovelace="100000000")
    with running(closed_shop):
        until(lambda: len(closed_shop.payagent("wallet", "utxos").json["utxos"]) == 4, "no deposit")
        closed_shop.settings(price="6000000", splits=[])
        yield closed_shop


def test_a_payment_above_the_threshold_waits_is_shown_and_is_approved(asking: Shop) -> None:
    file = asking.saved("please")
    waits = asking.payagent("pay", file, "--merchant", "t")
    assert (waits.code, waits.out) == (8, "")
    assert "awaiting approval" in waits.err
    listed = asking.payagent("payments", "list", "--state", "awaiting_approval")
    (payment,) = listed.json["payments"]
    assert (waits.problem, waits.error["payment"]) == ("awaiting_approval", payment["id"])
    assert "payments approve" in asking.payagent("pay", file, "--merchant", "t", "--human").err
    assert "\n1 payment waits for approval: " in "\n" + asking.payagent("payments", "list", "--human").err
    shown = asking.payagent("payments", "show", payment["id"], "--human").out
    reason = "ADA, more than 5 ADA"
    for told in (reason, "costs at most", "calls bought", "pay_to", "6", "per payment", "operator"):
        assert told in shown, shown
    approved = asking.payagent("payments", "approve", payment["id"])
    assert approved.code == 0, approved.err
    headers = asking.payagent("pay", file, "--merchant", "t")
    assert headers.code == 0, headers.err
    assert asking.call("please", headers.json).status_code == 200
    again = asking.payagent("payments", "approve", payment["id"])
    assert (again.code, again.problem) == (2, "already_decided")


def test_a_dry_run_says_that_approval_would_be_needed(asking: Shop) -> None:
    dry = ("pay", asking.saved("only asking"), "--merchant", "t", "--dry-run")
    (reason,) = asking.payagent(*dry).json["approval"]
    assert reason["code"] == "approval_required"
    told = asking.payagent(*dry, "--human")
    assert told.code == 10
    assert "needs approval" in told.out
    assert "more than 5 ADA" in told.out
    asking.settings(batch=4)
    file = asking.folder / "batch.json"
    file.write_text('{"message": "a batch"}')
    topup = ("prepaid", "topup", "t", "--amount", "6 ADA", "--path", "/chat", "--data-file", file, "--dry-run")
    told = asking.payagent(*topup, "--human")
    asking.settings(batch=1)
    assert (told.code, "more than 5 ADA" in told.out) == (10, True), told.err


def test_a_denied_payment_ends_with_exit_code_3(asking: Shop) -> None:
    file = asking.saved("no thanks")
    assert asking.payagent("pay", file, "--merchant", "t").code == 8
    (payment,) = asking.payagent("payments", "list", "--state", "awaiting_approval").json["payments"]
    denied = asking.payagent("payments", "deny", payment["id"])
    assert (denied.code, denied.json["state"]) == (0, "denied")
    refused = asking.payagent("pay", file, "--merchant", "t")
    assert (refused.code, refused.problem) == (3, "approval_denied/person")


def test_the_documented_client_ends_when_its_payment_is_denied(asking: Shop) -> None:
    """Otherwise it would retry as fast as it can, forever."""
    (program,) = blocks("Pay through the API", "docs/how-to/pay-through-the-api.md", "python")
    log = (asking.folder / "daemon.log").read_text()
    (port,) = re.findall(r"serves devnet on http://127\.0\.0\.1(:[0-9]+)", log)
    run = [sys.executable, "-c", program.replace(":8402", port)]
    said = {"PAYAGENT_TOKEN": asking.made["token"], "MERCHANT": asking.devnet.merchant_url}
    waiting = ("payments", "list", "--state", "awaiting_approval")
    with subprocess.Popen(run, env=clean_environ() | said, stderr=subprocess.PIPE, text=True) as client:
        try:
            until(lambda: asking.payagent(*waiting).json["payments"], "no approval was requested")
            (payment,) = asking.payagent(*waiting).json["payments"]
            assert asking.payagent("payments", "deny", payment["id"]).code == 0
            _, told = client.communicate(timeout=60)
        finally:
            client.kill()
    assert (client.returncode, "'code': 'approval_denied', 'reason': 'person'" in told) == (1, True), told
    again = subprocess.run(run, env=clean_environ() | said, stderr=subprocess.PIPE, text=True, check=False)
    assert (again.returncode, "'code': 'approval_denied'" in again.stderr) == (1, True), again.stderr


def test_fetch_exits_pending_and_the_same_command_is_served_after_approval(asking: Shop) -> None:
    url = f"{asking.devnet.merchant_url}/chat"
    call = ("fetch", url, "-X", "POST", "-d", '{"message": "by fetch"}', "-H", "Content-Type: application/json")
    waits = asking.payagent(*call)
    assert (waits.code, waits.problem) == (8, "awaiting_approval")
    assert asking.payagent(*call).error["payment"] == waits.error["payment"]
    assert asking.payagent("payments", "approve", waits.error["payment"]).code == 0
    answer = asking.folder / "answer"
    served = asking.payagent(*call, "-o", answer)
    assert served.code == 0, served.err
    assert "was paid for" in answer.read_text()


def test_a_topup_that_awaits_approval_says_so_while_it_waits(asking: Shop) -> None:
    asking.settings(batch=10)
    (asking.folder / "call.json").write_text('{"message": "a batch, please"}')
    order = ("prepaid", "topup", "t", "--amount", "6 ADA", "--path", "/chat", "--data-file")
    command = spawn(
        *(*order, asking.folder / "call.json", "--config", asking.config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stderr is not None
    told = command.stderr.readline()
    (payment,) = asking.payagent("payments", "list", "--state", "awaiting_approval").json["payments"]
    said = f"{payment['id']} waits for approval: payagent payments approve {payment['id']}, or deny it.\n"
    assert told == said
    assert asking.payagent("payments", "deny", payment["id"]).code == 0
    shown = asking.payagent("payments", "show", payment["id"], "--human").out
    assert "retry" not in shown
    _, err = command.communicate(timeout=60)
    assert (command.returncode, Result(command.returncode, "", err).problem) == (3, "approval_denied/person")
    asking.settings(batch=1)
