"""Every devnet fault over real HTTP: the client's answer, the effect on the chain, and the count."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from kit.devnet import HandClock, Purse, ada, payer
from kit.http import NO_TLS

from payagent.devnet.faults import KINDS, READS, SUBMIT
from payagent.devnet.server import DevnetThread


@pytest.fixture
def purse() -> Iterator[Purse]:
    with DevnetThread(now_ms=HandClock()) as devnet:
        funded = Purse(payer("alice"), devnet)
        funded.fund(50_000_000)
        yield funded


Ask = Callable[[], httpx.Response]
Check = Callable[[Ask], None]


def drops(ask: Ask) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="disconnected without sending"):
        ask()


def hangs(ask: Ask) -> None:
    with pytest.raises(httpx.ReadTimeout):
        ask()


def says(status: int, error: str) -> Check:
    def check(ask: Ask) -> None:
        answer = ask()
        assert (answer.status_code, answer.json()["status_code"], answer.json()["error"]) == (
            status,
            status,
            error,
        )

    return check


def html(ask: Ask) -> None:
    answer = ask()
    assert (answer.status_code, answer.text[:6]) == (502, "<html>")
    assert answer.headers["content-type"].startswith("text/html")


def truncated(ask: Ask) -> None:
    answer = ask()
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def ok(ask: Ask) -> None:
    assert ask().status_code == 200


def patience_s(check: Check) -> float:
    """A hanging answer is given up soon; any other is waited for, however busy the machine is."""
    return 0.3 if check is hangs else 60


SUBMITS: dict[str, tuple[Check, bool]] = {
    "lost_reply": (drops, True),
    "late_accept": (says(504, "Gateway Timeout"), False),
    "full": (says(425, "Mempool Full"), False),
    "rate": (says(429, "Project Over Limit"), False),
    "quota": (says(402, "Project Over Limit"), False),
    "banned": (says(418, "Requested Banned"), False),
    "server": (says(500, "Internal Server Error"), False),
    "html": (html, False),
    "truncated": (truncated, True),
    "lying_ok": (ok, False),
    "drop": (ok, False),
    "hang": (hangs, False),
}
READ: dict[str, Check] = {
    "lost_reply": drops,
    "rate": says(429, "Project Over Limit"),
    "quota": says(402, "Project Over Limit"),
    "banned": says(418, "Requested Banned"),
    "server": says(500, "Internal Server Error"),
    "html": html,
    "truncated": truncated,
    "hang": hangs,
    "not_found": says(404, "Not Found"),
}


def test_every_fault_is_tested_here() -> None:
    apart, read_apart = {"oversized"}, {"oversized", "stale_index", "no_optional"}
    assert {kind for kind, row in KINDS.items() if SUBMIT in row.faces} == set(SUBMITS) | apart
    assert {kind for kind, row in KINDS.items() if READS in row.faces} == set(READ) | read_apart


@pytest.mark.parametrize("kind", SUBMITS)
def test_a_submit_fault_happens_once_with_its_effect_on_the_chain(purse: Purse, kind: str) -> None:
    check, accepted = SUBMITS[kind]
    tx_id, raw = purse.build([ada(payer("bob").address.raw, 2_000_000)])
    purse.control("faults", on="submit", kind=kind, count=1)

    check(lambda: purse.submit(raw, timeout_s=patience_s(check)))

    state = purse.state()
    assert state["mempool"] == ([tx_id] if accepted else [])
    assert state["faults"] == {"active": [], "triggered": {f"submit:{kind}": 1}}
    if not accepted and kind != "late_accept":
        assert purse.submit(raw).json() == tx_id


@pytest.mark.parametrize("kind", READ)
def test_a_read_fault_happens_as_often_as_set(purse: Purse, kind: str) -> None:
    check, url = READ[kind], purse.devnet.chain_url + "/blocks/latest"
    purse.control("faults", on="reads", kind=kind, count=2)
    for _ in range(2):
        check(lambda: httpx.get(url, timeout=patience_s(check), verify=NO_TLS))
    assert purse.get("/blocks/latest").status_code == 200
    assert purse.state()["faults"] == {"active": [], "triggered": {f"reads:{kind}": 2}}


@pytest.mark.parametrize("on", ["submit", "reads"])
def test_an_oversized_answer_exceeds_a_megabyte(purse: Purse, on: str) -> None:
    tx_id, raw = purse.build([])
    purse.control("faults", on=on, kind="oversized", count=1)
    url = purse.devnet.chain_url
    cbor = {"content-type": "application/cbor"}
    request = (
        httpx.Request("POST", url + "/tx/submit", content=raw, headers=cbor)
        if on == "submit"
        else httpx.Request("GET", url + "/blocks/latest")
    )
    with httpx.Client(verify=NO_TLS) as client:
        answer, got = client.send(request, stream=True), 0
        for chunk in answer.iter_raw():
            got += len(chunk)
            if got > 1024 * 1024:
                break
        answer.close()
    assert (answer.status_code, got > 1024 * 1024) == (200, True)
    assert purse.state()["mempool"] == ([tx_id] if on == "submit" else [])


def test_a_late_accept_enters_the_mempool_after_its_blocks(purse: Purse) -> None:
    tx_id, raw = purse.build([])
    purse.control("faults", on="submit", kind="late_accept", blocks=2, count=1)
    assert purse.submit(raw).status_code == 504
    assert purse.state()["held"] == 1
    purse.control("blocks", count=1)
    assert purse.state()["mempool"] == []
    purse.control("blocks", count=1)
    assert (purse.state()["mempool"], purse.state()["held"]) == ([tx_id], 0)
    purse.control("blocks", count=1)
    assert purse.get(f"/txs/{tx_id}").status_code == 200


def test_a_late_accept_whose_input_was_spent_meanwhile_is_dropped(purse: Purse) -> None:
    _, late = purse.build([ada(payer("bob").address.raw, 2_000_000)])
    purse.control("faults", on="submit", kind="late_accept", count=1)
    purse.submit(late)
    winner = purse.pay([])
    assert purse.state()["mempool"] == []
    assert purse.get(f"/txs/{winner}").status_code == 200


def test_a_lying_ok_returns_another_hash_and_a_drop_the_right_one(purse: Purse) -> None:
    tx_id, raw = purse.build([])
    purse.control("faults", on="submit", kind="lying_ok", count=1)
    lie = purse.submit(raw).json()
    assert (len(lie), lie != tx_id) == (64, True)
    purse.control("faults", on="submit", kind="drop", count=1)
    assert purse.submit(raw).json() == tx_id
    assert purse.state()["mempool"] == []


@pytest.mark.parametrize("kind", ["server", "hang", "lying_ok"])
def test_a_fault_can_accept_the_transaction_whatever_it_answers(purse: Purse, kind: str) -> None:
    tx_id, raw = purse.build([])
    purse.control("faults", on="submit", kind=kind, accept="now", count=1)
    check, _ = SUBMITS[kind]
    check(lambda: purse.submit(raw, timeout_s=patience_s(check)))
    assert purse.state()["mempool"] == [tx_id]


def test_a_stale_index_shows_the_utxos_of_some_blocks_ago(purse: Purse) -> None:
    before = purse.coins()
    tx_id = purse.pay([ada(payer("bob").address.raw, 2_000_000)])
    purse.control("faults", on="reads", kind="stale_index", blocks=1)
    assert purse.coins() == before
    assert purse.get(f"/addresses/{payer('bob').address.text}/utxos").status_code == 404
    assert purse.get(f"/txs/{tx_id}").status_code == 200
    purse.control("blocks", count=1)
    assert purse.coins() == [(tx_id, 1)]
    assert purse.state()["faults"]["triggered"] == {"reads:stale_index": 3}


def test_members_the_openapi_does_not_require_can_be_left_out(purse: Purse) -> None:
    tx_id = purse.pay([])
    paths = f"/txs/{tx_id}/utxos", "/epochs/latest/parameters"
    honest = [purse.get(path).json() for path in paths]
    purse.control("faults", on="reads", kind="no_optional")
    moved, parameters = (purse.get(path).json() for path in paths)
    for rows, optional in (("inputs", "reference"), ("outputs", "consumed_by_tx")):
        for row, whole in zip(moved[rows], honest[0][rows], strict=True):
            assert set(whole) - set(row) == {optional}
    assert set(honest[1]) - set(parameters) == {"cost_models_raw"}


def test_a_fault_on_a_path_prefix_affects_only_that_path_until_cleared(purse: Purse) -> None:
    purse.control("faults", on="/blocks", kind="server")
    for _ in range(3):
        assert purse.get("/blocks/latest").status_code == 500
        assert purse.get("/genesis").status_code == 200
    assert purse.control("faults", clear=True) == {"active": [], "triggered": {"reads:server": 3}}
    assert purse.get("/blocks/latest").status_code == 200


def test_faults_happen_in_the_order_they_were_set(purse: Purse) -> None:
    purse.control("faults", on="submit", kind="full", count=1)
    purse.control("faults", on="submit", kind="rate", count=1)
    _, raw = purse.build([])
    assert [purse.submit(raw).status_code for _ in range(3)] == [425, 429, 200]
