"""Receipts: an unchanged receipt passes the check, and any change to one is found."""

import copy
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.agent import ADA, DEVNET, Clock, World, with_terms, world_with_clock
from kit.audit import Past
from kit.effort import pick
from kit.payments import pass_time_of
from kit.upkeep import HOUR_S, burst, keep, kept, land, own_orders
from kit.x402 import ask as ask_x402
from kit.x402 import get as get_x402
from kit.x402 import show as show_x402

from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.api.models.receipt import receipt_of
from payagent.audit.finding import AuditFinding
from payagent.audit.receipt import check_receipt, untold
from payagent.audit.receipt_form import RECEIPT_MAX_BYTES, read_receipt
from payagent.audit.receipt_form import Receipt as PaymentReceipt
from payagent.audit.signed_bytes import Owner
from payagent.core.problems import Refused
from payagent.devnet.server import DevnetThread
from payagent.store.db.readers import Readers
from payagent.store.rows import events, payments

Receipt = dict[str, Any]
Place = tuple[str | int, ...]

# the parts of a receipt that no other part confirms, and why
UNTOLD = {
    r"payment\.app\.name": "the operator's name for the app",
    r"intent\.id": "the ledger's id, which only an x402 payment identifier repeats",
    r"intent\.key": "the client chose it freely",
    r"attempts\.\d+\.headers\.X-Partner": "from the request; the 402 need not repeat it",
    r"entries\.\d+\.id": "a position among entries that are not in the receipt",
    r"ledger\.last_event\.(seq|hash)": "the last of events that are not in the receipt",
    r"ledger\.head": "the last of seals that are not in the receipt",
}
# a prepaid balance may belong to another wallet
UNTOLD_PREPAID = {r"attempts\.\d+\.headers\.X-Wallet-Address": "from the request"}
# where nothing is posted
UNTOLD_UNPOSTED = {r"payment\.is_prepaid": "only the posting and the batch in the 402 show it"}
# a refused payment has no signed bytes that would name the wallet
UNTOLD_UNSIGNED = {
    r"wallet": "no bytes are signed with its key",
    r"intent\.request_id": "no headers carry it",
}
# an operator's transfer has no 402
UNTOLD_OWN = {
    r"network": "the bytes only say: a test network",
    r"intent\.request_id": "no headers carry it",
}


def terms_of(owner: Owner, origin: str) -> AgentConfig:
    """The config of the recorded history, as far as a receipt depends on it."""
    merchant = MerchantConfig("t", origin, "demo", None, "confirmed", 5)
    return AgentConfig(
        network=DEVNET,
        own=owner.address,
        merchants={origin: merchant},
        limits={},
        decimals={},
        confirm_depth=1,
        void_depth=3,
        settle_depth=3,
        min_window_s=120,
    )


def receipts(path: Path, terms: AgentConfig) -> list[Receipt]:
    """As the API gives them, oldest first."""
    with Readers(path).snapshot() as conn:
        rows = payments.payments_page(
            conn, app_id=None, state=None, origin=None, since_ms=None, before_seq=None, limit=100
        )
        return [json.loads(json.dumps(receipt_of(conn, row, terms).model_dump())) for row in reversed(rows)]


def parsed(receipt: Receipt) -> PaymentReceipt:
    return read_receipt(json.dumps(receipt).encode())


def judge(receipt: Receipt) -> list[AuditFinding]:
    return list(check_receipt(parsed(receipt)))


def leaves(value: object, at: Place = ()) -> Iterator[Place]:
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*at, key))
    if not isinstance(value, dict | list):
        yield at


def sampled(receipt: Receipt) -> list[Place]:
    """Every fourth place of a value; the long run takes all."""
    return list(leaves(receipt))[:: pick(4, 1)]


def others(value: object) -> list[object]:
    """Other values that could stand there."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 0] if value else [1]
    if isinstance(value, str) and value:
        swapped = "0" if value[-1] != "0" else "1"
        return [value[:-1] + swapped, ""]
    return ["x", 1, True]


def changed(receipt: Receipt, at: Place, value: object) -> Receipt:
    made = copy.deepcopy(receipt)
    place: Any = made
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value
    return made


def value_at(receipt: Receipt, at: Place) -> object:
    place: Any = receipt
    for key in at:
        place = place[key]
    return place


def is_seen(receipt: Receipt) -> bool:
    """Whether the check finds something or refuses the file; any other exception is a bug."""
    try:
        return bool(judge(receipt))
    except Refused as refused:
        return refused.name == "file_invalid/receipt"


def unseen(receipt: Receipt) -> list[str]:
    """The places where a change goes unnoticed."""
    found = []
    for at in sampled(receipt):
        for value in others(value_at(receipt, at)):
            if not is_seen(changed(receipt, at, value)):
                found.append(".".join(map(str, at)))
    return sorted(set(found))


def may_go_unseen(receipt: Receipt, place: str) -> bool:
    allowed = dict(UNTOLD)
    if receipt["payment"]["is_prepaid"]:
        allowed |= UNTOLD_PREPAID
    if not any(entry["kind"] == "post" for entry in receipt["entries"]):
        allowed |= UNTOLD_UNPOSTED
    if not receipt["attempts"]:
        allowed |= UNTOLD_UNSIGNED
    if receipt["invoice"] is None:
        allowed |= UNTOLD_OWN
    return any(re.fullmatch(pattern, place) for pattern in allowed)


@pytest.fixture(scope="module")
def all_receipts(lived: Past) -> list[Receipt]:
    return receipts(lived.path, terms_of(lived.owner, lived.origin))


def test_every_receipt_is_clean_and_shows_decisions_answers_and_proof_headers(all_receipts: list[Receipt]) -> None:
    assert [judge(receipt) for receipt in all_receipts] == [[]] * len(all_receipts)
    kinds = [(receipt["payment"]["kind"], receipt["payment"]["state"]) for receipt in all_receipts]
    assert {kind for kind, _ in kinds} >= {"invoice", "split", "send"}
    assert {state for _, state in kinds} >= {"settled", "rejected", "void", "in_flight"}
    first = all_receipts[0]
    assert first["decisions"][0]["detail"]["limits"][0]["limit"] == "per_payment"
    assert [answer["event"] for answer in first["answers"]] == ["delivery_accept"]
    assert first["attempts"][0]["headers"]["X-Payment"] == first["payment"]["tx_hash"]
    refused = next(receipt for receipt in all_receipts if receipt["payment"]["state"] == "rejected")
    assert (refused["attempts"], refused["payment"]["code"]) == ([], "limit_exceeded")
    assert "402" in refused["invoice"]["response_402"]


def test_every_change_to_a_receipt_is_found_unless_only_another_source_can_tell(
    all_receipts: list[Receipt],
) -> None:
    for receipt in all_receipts:
        assert [place for place in unseen(receipt) if not may_go_unseen(receipt, place)] == []


async def test_the_402_in_an_x402_receipt_is_parsed_again_and_checked(tmp_path: Path) -> None:
    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms) as devnet:
        world = World(devnet, tmp_path)
        world.clock = clock
        world.fund(50 * ADA)
        world.settings(x402={"confirmations": -1})
        answer = get_x402(world)
        received = {"status": 402, "headers": dict(answer.headers), "body": answer.text}
        async with world.run() as run:
            await run.run_pass()
            row, _ = await run.agent.pay(replace(ask_x402(world, answer), received=json.dumps(received)))
            await show_x402(world, run, row)
            await run.agent.deliveries.record_delivery(row.id, 200)
            await run.settle_down()
        world.http.close()
        (receipt,) = receipts(tmp_path / "ledger.db", world.terms)
    assert receipt["invoice"]["dialect"] == "x402-v2"
    assert judge(receipt) == []
    assert [place for place in unseen(receipt) if not may_go_unseen(receipt, place)] == []


async def test_a_receipt_is_clean_when_the_402_names_an_allowed_internal_origin(tmp_path: Path) -> None:
    """The receipt does not record the origins the operator allowed."""
    inside = "http://localhost:3000"
    with world_with_clock(tmp_path) as world:
        world.fund(50 * ADA)
        required = json.loads(b64decode(get_x402(world).headers["PAYMENT-REQUIRED"]))
        sold = required["resource"]["url"].removeprefix(world.origin)

        def headers(path: str) -> dict[str, str]:
            told = required | {"resource": required["resource"] | {"url": inside + path}}
            return {"PAYMENT-REQUIRED": b64encode(json.dumps(told).encode()).decode()}

        def received(path: str) -> str:
            return json.dumps({"status": 402, "headers": headers(path), "body": ""})

        (merchant,) = world.terms.merchants.values()
        known = {world.origin: replace(merchant, resource_origins=frozenset((inside,)))}
        async with world.run(terms=with_terms(merchants=known)) as run:
            await run.run_pass()
            asked = ask_x402(world, httpx.Response(402, headers=headers(sold)))
            await run.agent.pay(replace(asked, received=received(sold)))
        (receipt,) = receipts(tmp_path / "ledger.db", world.terms)
    assert judge(receipt) == []
    assert judge(changed(receipt, ("invoice", "response_402"), received("/another")))


async def test_upkeep_transfers_have_clean_receipts_too(tmp_path: Path) -> None:
    with world_with_clock(tmp_path) as world:
        world.settings(price="2000000", splits=[])
        world.fund(100 * ADA)
        async with world.run(terms=kept) as run:
            await run.run_pass()
            await burst(world, run, 20)
            await land(run)
            world.fund(*[1_200_000] * 55)
            await pass_time_of(world, run, HOUR_S + 60)
            await keep(run)
            await land(run)
            ordered = {row.id: row.kind for row in own_orders(run)}
    assert sorted(ordered.values()) == ["split", "sweep"]
    for receipt in receipts(tmp_path / "ledger.db", world.terms):
        if receipt["payment"]["id"] in ordered:
            assert judge(receipt) == []
            assert [place for place in unseen(receipt) if not may_go_unseen(receipt, place)] == []


def test_every_term_in_the_recorded_402_is_compared_with_the_receipt(
    all_receipts: list[Receipt],
) -> None:
    receipt = all_receipts[0]
    received = json.loads(receipt["invoice"]["response_402"])
    terms = json.loads(received["body"])
    unnoticed = []
    for at in leaves(terms):
        for value in others(value_at(terms, at)):
            other = received | {"body": json.dumps(changed(terms, at, value))}
            if not judge(changed(receipt, ("invoice", "response_402"), json.dumps(other))):
                unnoticed.append(".".join(map(str, at)))
    # texts for people, and the partner
    assert set(unnoticed) <= {"detail.extra.partner", *(f"detail.extra.split.outputs.{n}.role" for n in (0, 1))}
    assert judge(changed(receipt, ("invoice", "response_402"), json.dumps(received | {"status": 200})))


def test_a_row_left_out_of_a_receipt_is_found(all_receipts: list[Receipt]) -> None:
    receipt = all_receipts[0]
    for part in ("events", "entries", "holds", "attempts", "block_observations", "decisions", "answers"):
        for place in range(len(receipt[part])):
            rest = [item for number, item in enumerate(receipt[part]) if number != place]
            # nothing follows from a provider's answer: only the ledger shows that there was one
            is_idle = part == "events" and receipt[part][place]["event"].startswith("provider_")
            assert judge(receipt | {part: rest}) or is_idle, (part, place)


def rehashed(receipt: Receipt) -> Receipt:
    """A consistent forgery: its events have matching hashes, and later events follow them."""
    last = None
    for event in receipt["events"]:
        event["prev_hash"] = last["hash"] if last and last["seq"] + 1 == event["seq"] else event["prev_hash"]
        told = event["seq"], receipt["payment"]["id"], event["event"], event["state"], event["detail"]
        event["hash"] = events.event_hash(event["prev_hash"], *told, event["at_ms"])
        last = event
    receipt["ledger"]["last_event"]["seq"] += 1000
    return receipt


def test_a_receipt_proved_by_somebody_elses_transaction_is_found(all_receipts: list[Receipt]) -> None:
    """The receipt is consistent, but shows somebody else's transaction as the payment."""
    forged = copy.deepcopy(all_receipts[2])
    own, fee = forged["payment"]["tx_hash"], int(forged["attempts"][0]["fee"])
    for event in forged["events"]:
        if event["event"] == "seen_in_block":
            event["detail"] = event["detail"].replace(own, "f" * 64)
    for row in (*forged["block_observations"], forged["payment"]):
        row["tx_hash"] = "f" * 64
    (post,) = (entry for entry in forged["entries"] if entry["kind"] == "post")
    post["ref"] = "f" * 64
    post["postings"] = [line for line in post["postings"] if line["account"] != "fees"]
    for line in post["postings"]:
        if line["account"].startswith(("merchant", "prepaid")) and line["asset"] == "lovelace":
            line["units"] = str(int(line["units"]) + fee)
    assert any("not an attempt to pay" in found.what for found in judge(rehashed(forged)))


OF_ANOTHER = "f" * 64


def of_another(forged: Receipt, name: str) -> dict[str, Any]:
    """Make the payment's event of that name report somebody else's transaction in a block."""
    (event,) = (event for event in forged["events"] if event["event"] == name)
    told = json.loads(event["detail"]) | {"tx_id": OF_ANOTHER, "block_hash": OF_ANOTHER, "block_height": 7}
    event["detail"] = json.dumps(told | {"block_slot": 7, "code": "external_spend"})
    forged["payment"] |= {"tx_hash": OF_ANOTHER, "block": {"hash": OF_ANOTHER, "height": 7, "slot": 7}}
    return dict(event)


def test_a_block_event_with_somebody_elses_transaction_is_found(all_receipts: list[Receipt]) -> None:
    forged = copy.deepcopy(all_receipts[2])
    of_another(forged, "seen_in_block")
    forged["block_observations"] = []
    fee = int(forged["attempts"][0]["fee"])
    (post,) = (entry for entry in forged["entries"] if entry["kind"] == "post")
    post["ref"] = OF_ANOTHER
    post["postings"] = [line for line in post["postings"] if line["account"] != "fees"]
    for line in post["postings"]:
        if line["account"].startswith(("merchant", "prepaid")) and line["asset"] == "lovelace":
            line["units"] = str(int(line["units"]) + fee)
    assert any("none of its attempts" in found.what for found in judge(rehashed(forged)))


@pytest.mark.parametrize("name", ["submit", "confirm", "settle"])
def test_an_event_that_names_another_transaction_than_the_block_does_is_found(
    all_receipts: list[Receipt], name: str
) -> None:
    """The signed transaction is in no block; the one in the receipt is public and belongs to somebody else."""
    forged = copy.deepcopy(all_receipts[2])
    of_another(forged, name)
    if name == "submit":
        forged["payment"]["state"] = "in_flight"
        number = [event["event"] for event in forged["events"]].index("submit") + 1
        forged["events"] = forged["events"][:number]
        forged["block_observations"], forged["answers"] = [], []
        forged["entries"] = [entry for entry in forged["entries"] if entry["kind"] == "reserve"]
        forged["payment"] |= {"updated_at_ms": forged["events"][-1]["at_ms"], "delivery": "not_presented"}
    assert {found.table for found in judge(rehashed(forged))} == {"payments"}


@pytest.mark.parametrize("first", [None, 999])
def test_an_attempt_that_pays_none_of_the_shown_invoices_is_found(
    all_receipts: list[Receipt], first: int | None
) -> None:
    """A transaction to anybody does not pay the 402 that a forger puts beside it."""
    forged = copy.deepcopy(all_receipts[0])
    number = forged["payment"]["first_invoice_seq"]
    forged["payment"]["first_invoice_seq"] = first
    for attempt in forged["attempts"]:
        attempt["invoice_seq"] = first
        if first is None:
            attempt["headers"] = {}
    for event in forged["events"]:
        if event["event"] == "seen_in_block":
            event["detail"] = json.dumps(json.loads(event["detail"]) | {"invoice_seq": number})
    assert any(found.table == "attempts" and "invoice" in found.what for found in judge(rehashed(forged)))


def test_two_invoices_with_the_same_number_are_found(all_receipts: list[Receipt]) -> None:
    """People would read the forged invoice, while the checks would use the other one."""
    forged = copy.deepcopy(all_receipts[0])
    forged["other_invoices"].append(forged["invoice"])
    forged["invoice"] = forged["invoice"] | {
        "origin": "https://other.example",
        "outputs": [],
        "response_402": "{}",
    }
    assert any("its number" in found.what for found in judge(forged))


def test_an_invoice_that_no_attempt_was_signed_for_is_found(all_receipts: list[Receipt]) -> None:
    forged = copy.deepcopy(all_receipts[0])
    forged["other_invoices"].append(forged["invoice"] | {"number": 999})
    (found,) = judge(forged)
    assert (found.table, found.what) == ("invoices", "nothing was signed for it")
    (transfer,) = (one for one in all_receipts if one["payment"]["kind"] == "split")
    forged = copy.deepcopy(transfer)
    forged["other_invoices"] = [all_receipts[0]["invoice"]]
    assert "invoices" in {found.table for found in judge(forged)}


@pytest.mark.parametrize("part", ["attempts", "block_observations", "entries", "holds", "events"])
def test_a_duplicated_row_in_a_receipt_is_found(all_receipts: list[Receipt], part: str) -> None:
    """Otherwise one of the two could say anything."""
    forged = copy.deepcopy(all_receipts[0])
    forged[part].insert(0, forged[part][0])
    assert judge(forged)


def test_a_cancel_transaction_shown_as_the_payment_is_found(all_receipts: list[Receipt]) -> None:
    forged = copy.deepcopy(next(one for one in all_receipts if one["payment"]["state"] == "void"))
    void = forged["events"][-1]
    void |= {"event": "seen_in_block", "state": "in_block"}
    confirm = void | {"seq": void["seq"] + 1, "event": "confirm", "state": "confirmed", "detail": "{}"}
    forged["events"].append(confirm)
    forged["payment"]["state"] = "confirmed"
    fee = next(int(attempt["fee"]) for attempt in forged["attempts"] if attempt["kind"] == "cancel")
    (hold,) = forged["holds"]
    hold["released_at_ms"] = None
    units = int(hold["units"])
    lines = {"held": -units, "wallet": units - fee, "fees": fee}
    forged["entries"][-1]["kind"] = "post"
    forged["entries"][-1]["postings"] = [
        {"account": account, "asset": "lovelace", "units": str(n)} for account, n in lines.items()
    ]
    (found,) = judge(rehashed(forged))
    assert "not an attempt to pay" in found.what


def test_the_check_lists_what_only_the_chain_or_the_ledger_can_confirm(all_receipts: list[Receipt]) -> None:
    receipt = all_receipts[0]
    told = "\n".join(untold(parsed(receipt)))
    assert receipt["payment"]["block"]["hash"] in told
    assert f"has the transaction {receipt['payment']['tx_hash']}\n" in told
    assert receipt["wallet"] in told
    gone = copy.deepcopy(receipt)
    gone["payment"]["tx_hash"] = None
    assert f"({receipt['payment']['block']['hash']}) is there\n" in "\n".join(untold(parsed(gone)))
    assert f"--head {receipt['ledger']['head']}" in told


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'{"format": "payagent-receipt/2"}',
        b'{"format": "payagent-receipt/1"}',
        b'{"format": "payagent-receipt/1", "format": "payagent-receipt/1"}',
        b"[" * 100_000,
        b" " * (RECEIPT_MAX_BYTES + 1),
    ],
    ids=range(10),
)
def test_a_file_that_is_not_a_receipt_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as refused:
        read_receipt(raw)
    assert refused.value.name == "file_invalid/receipt"


def test_a_refused_receipt_names_the_place_and_what_is_wrong_with_it(all_receipts: list[Receipt]) -> None:
    for at, value, told in (
        (
            ("payment", "outputs", 0, "units"),
            "1.5",
            "payment.outputs.0.units: not an amount in digits",
        ),
        (("attempts", 0, "cbor"), "8G", "attempts.0.cbor: String should match pattern"),
        (("holds", 0, "at_ms"), True, "holds.0.at_ms: Input should be a valid integer"),
        (("payment", "app", "mail"), "x", "payment.app.mail: Extra inputs are not permitted"),
        (("network",), "main", "network is not one of mainnet"),
    ):
        with pytest.raises(Refused) as refused:
            parsed(changed(all_receipts[0], at, value))
        assert refused.value.detail.startswith(told)


def test_a_value_of_the_wrong_type_anywhere_in_a_receipt_is_refused_or_found(all_receipts: list[Receipt]) -> None:
    deep: object = "x"
    for _ in range(12):
        deep = [deep]
    hostile = [None, -1, 10**30, 1.5, "-0", "9" * 40, [], {"x": 1}, deep]
    receipt = all_receipts[0]
    for at in sampled(receipt):
        for value in hostile:
            is_same = value_at(receipt, at) == value
            assert (
                is_same or is_seen(changed(receipt, at, value)) or may_go_unseen(receipt, ".".join(map(str, at)))
            )
