"""Receipts of what a channel does: of a step that its bytes prove, and of a call that names its voucher."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kit.agent import Run
from kit.api import served
from kit.channel_agent import buy, channel_world, hear
from kit.channel_calls import PRICE, TAG, channel_shop
from kit.channel_rows import ADA
from nacl.bindings import crypto_sign_open

from payagent.agent.channels.moves import move
from payagent.audit.finding import AuditFinding
from payagent.audit.receipt import check_receipt
from payagent.audit.receipt_form import read_receipt
from payagent.audit.second_reader import second_findings
from payagent.core.channel import Moved, Position
from payagent.core.payment.machine import Delivery
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.store.rows import channels as rows


async def test_a_receipt_of_each_step_is_checked_as_a_step(tmp_path: Path) -> None:
    with channel_world(tmp_path) as at:
        at.world.fund(*[40 * ADA] * 6)
        async with at.world.run() as run:
            await run.run_pass()
            async with served(run) as api:
                hear(run, at)
                made = (await api.http.post("/v1/channels", json={"merchant": "t", "amount": str(6 * ADA)})).json()
                await settled(run)
                await buy(run, at, rows.channel(run.context.conn, made["id"]), 1)
                await api.http.post(f"/v1/channels/{made['id']}/add", json={"amount": str(4 * ADA)})
                await settled(run)
                await api.http.post(f"/v1/channels/{made['id']}/close")
                await settled(run)
                steps = (await api.http.get(f"/v1/channels/{made['id']}")).json()["steps"]
                assert [one["step"] for one in steps] == ["open", "add", "close"]
                for one in steps:
                    receipt = (await api.http.get(f"/v1/payments/{one['payment']}/receipt")).json()
                    assert judge(receipt) == []
                    for attempt in receipt["attempts"]:
                        assert list(second_findings(attempt["tx_hash"], bytes.fromhex(attempt["cbor"]))) == []
                    spent = receipt.pop("spent")
                    assert judge(receipt)
                    receipt["spent"] = {ref: {"lovelace": "1"} for ref in spent}
                    assert [one.table for one in judge(receipt)] == ["entries"]


def judge(receipt: dict[str, Any]) -> list[AuditFinding]:
    return list(check_receipt(read_receipt(json.dumps(receipt).encode())))


async def settled(run: Run) -> None:
    await run.agent.submitter.drain(60)
    await run.settle_down()


async def test_a_receipt_of_a_call_has_the_voucher_that_an_auditor_can_check(tmp_path: Path) -> None:
    with channel_shop(tmp_path) as shop:
        async with shop.run() as at, served(at.run) as api:
            _, first = await at.call("/channel/0")
            _, second = await at.call("/channel/1")
            for row, amount in ((first, PRICE), (second, 2 * PRICE)):
                answer = await api.http.get(f"/v1/payments/{row.id}/receipt")
                assert answer.status_code == 200, answer.text
                receipt = answer.json()
                assert judge(receipt) == []
                assert (receipt["merchant"], receipt["channel"]) == (shop.world.origin, TAG)
                assert (receipt["charged"], receipt["amount"]) == (str(PRICE), str(amount))
                message = bytes.fromhex(f"9f5820{TAG}19{2 * PRICE:04x}ff")
                key = bytes.fromhex(receipt["iou_key"])
                assert crypto_sign_open(bytes.fromhex(receipt["signature"]) + message, key) == message
            for bent in ({"voucher_amount": str(3 * PRICE)}, {"channel": "18" * 32}, {"charged": str(PRICE + 1)}):
                assert len(judge(receipt | bent)) == 1
            (tmp_path / "receipt.json").write_text(json.dumps(receipt))
        told = payagent("ledger", "verify", "--receipt", str(tmp_path / "receipt.json"), "--json")
        assert (told["payment"], told["clean"]) == (second.id, True)
        assert "covers this call" in told["not_told"][0]


def payagent(*arguments: str) -> dict[str, Any]:
    ran = subprocess.run(
        [sys.executable, "-m", "payagent", *arguments], capture_output=True, text=True, check=True
    )
    return dict(json.loads(ran.stdout))


async def test_a_call_that_was_charged_and_not_served_is_in_the_months_unserved(tmp_path: Path) -> None:
    with channel_shop(tmp_path) as shop:
        async with shop.run() as at, served(at.run) as api:
            await at.call("/channel/0")
            shop.mood("forget_replays")
            row = await at.pay("/channel/a")
            at.get("/channel/a", at.headers(row))
            _, lost, _ = await at.show("/channel/a", row)
            assert lost.delivery is Delivery.PAID_NOT_SERVED
            month = {"month": iso_time(at.run.context.ports.clock.now_ms())[:7]}
            told = (await api.http.get("/v1/ledger/report", params=month)).json()
            assert told["unserved"] == [{"asset": "lovelace", "payments": 1, "units": str(PRICE)}]


async def test_an_export_has_each_promise_once_and_its_sums_are_the_ledgers(tmp_path: Path) -> None:
    with channel_shop(tmp_path) as shop:
        async with shop.run() as at, served(at.run) as api:
            for number in range(3):
                await at.call(f"/channel/{number}")
            text = (await api.http.get("/v1/ledger/export", params={"format": "jsonl"})).text
            *lines, closing = (json.loads(line) for line in text.splitlines())
            uses = [one for one in lines if one["type"] == "entry" and one["ref"] == TAG]
            merchant = f"merchant:{shop.world.origin}"
            spent = [line["units"] for one in uses for line in one["postings"] if line["account"] == merchant]
            assert spent == [str(PRICE)] * 3
            sums = {(one["account"], one["asset"]): one["units"] for one in closing["balances"]}
            assert sums[merchant, "lovelace"] == str(3 * PRICE) == str(at.spent())
            for form in ("csv", "hledger", "beancount"):
                text = (await api.http.get("/v1/ledger/export", params={"format": form})).text
                assert text.count(TAG) >= 3


async def test_an_alert_says_that_a_merchant_claimed_more_than_was_signed(tmp_path: Path) -> None:
    with channel_shop(tmp_path) as shop:
        async with shop.run() as at, served(at.run) as api:
            await at.call("/channel/0")
            channel = at.channel
            claimed = Moved(Position(channel.ref or "", channel.capacity, PRICE + 1, None))
            await at.run.context.write_at("test", lambda unit, now_ms: move(unit, channel, claimed, now_ms))
            (alert,) = (await api.http.get("/v1/alerts")).json()["alerts"]
            assert (alert["kind"], alert["subject"]) == ("channel_disputed", f"channel:{TAG}")
            assert "claimed 0.001001 ADA" in alert["facts"]["detail"]


async def test_an_alert_says_that_payagent_closes_a_channel_that_does_not_serve(tmp_path: Path) -> None:
    with channel_shop(tmp_path) as shop:
        async with shop.run() as at, served(at.run) as api:
            await at.call("/channel/0")
            shop.mood("overcharge")
            await at.call("/channel/1")
            with pytest.raises(Refused, match="channel_disputed"):
                await at.call("/channel/2")
            (alert,) = (await api.http.get("/v1/alerts")).json()["alerts"]
            assert (alert["kind"], alert["subject"]) == ("channel_closing", f"channel:{TAG}")
