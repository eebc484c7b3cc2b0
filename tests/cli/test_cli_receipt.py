"""Receipts on the command line: taken from the daemon, and checked with nothing but the file."""

import json
import subprocess
from pathlib import Path

import httpx
import pytest
from kit.cli import Shop, invoke, running, spawn, until
from kit.http import NO_TLS

from payagent.devnet.server import DevnetThread


@pytest.fixture(scope="module")
def receipt(shop: Shop) -> str:
    assert shop.payagent("pay", shop.saved("receipt"), "--merchant", "t").code == 0
    until(lambda: shop.payments()[0]["state"] == "confirmed", "it is not confirmed")
    taken = shop.payagent("payments", "show", shop.payments()[0]["id"], "--receipt")
    assert (taken.code, taken.err) == (0, "")
    return taken.out


def test_a_receipt_is_checked_without_a_daemon_a_config_or_a_network(receipt: str, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(receipt)
    started = spawn(
        *("ledger", "verify", "--receipt", tmp_path / "receipt.json", "--human"),
        environ={"HOME": str(tmp_path)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (0, "")
    told = json.loads(receipt)
    assert out.startswith(f"clean: {told['payment']['id']}\n")
    assert told["payment"]["block"]["hash"] in out
    assert f"payagent ledger verify --head {told['ledger']['head']}" in out


def test_a_changed_receipt_is_reported_and_exits_1(receipt: str, tmp_path: Path) -> None:
    changed = json.loads(receipt)
    changed["invoice"]["outputs"][0]["units"] = "1"
    file = tmp_path / "receipt.json"
    file.write_text(json.dumps(changed))
    found = invoke("ledger", "verify", "--receipt", file)
    assert found.code == 1
    assert not found.json["clean"]
    assert "its terms hash does not match its terms" in [one["what"] for one in found.json["findings"]]
    human = invoke("ledger", "verify", "--receipt", file, "--human")
    assert (human.code, f"invoices {changed['invoice']['invoice_id']}: " in human.out) == (1, True)


def test_the_head_in_a_receipt_is_still_in_the_ledger(shop: Shop, receipt: str) -> None:
    head = json.loads(receipt)["ledger"]["head"]
    assert shop.payagent("ledger", "verify", "--head", head).code == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "payagent-receipt/1"}', "[" * 100_000])
def test_a_file_that_is_not_a_receipt_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "receipt.json"
    file.write_text(text)
    refused = invoke("ledger", "verify", "--receipt", file)
    assert (refused.code, refused.out, refused.problem) == (2, "", "file_invalid/receipt")


def test_a_missing_file_or_two_sources_are_usage_errors(tmp_path: Path) -> None:
    assert invoke("ledger", "verify", "--receipt", tmp_path / "none").problem == "usage"
    (tmp_path / "r").write_text("{}")
    both = invoke("ledger", "verify", "--receipt", tmp_path / "r", "--head", f"1:{'0' * 64}")
    assert (both.code, both.problem) == (2, "usage")


def test_the_daemon_stops_at_once_while_an_event_stream_is_open(tmp_path: Path) -> None:
    with DevnetThread(block_time_s=1) as devnet:
        shop = Shop(devnet, tmp_path)
        with shop.http:
            stop_while_streaming(shop)


def stop_while_streaming(shop: Shop) -> None:
    transport = httpx.HTTPTransport(uds=str(shop.folder / "s"), verify=NO_TLS)
    headers = {"Authorization": f"Bearer {shop.made['token']}"}
    with (
        running(shop) as daemon,
        httpx.Client(transport=transport, base_url="http://localhost", headers=headers, timeout=60) as http,
        http.stream("GET", "/v1/events") as stream,
    ):
        lines = stream.iter_lines()
        assert next(lines) == ": from here on"
        daemon.terminate()
        assert [line for line in lines if line] == [], "uvicorn cuts the stream off after a grace"
        assert daemon.wait(60) == 0
    assert "graceful shutdown exceeded" not in (shop.folder / "daemon.log").read_text()
