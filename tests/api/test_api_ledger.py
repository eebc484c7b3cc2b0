"""The ledger over HTTP: verify, entries, balance, export and reconcile."""

import asyncio
import csv
import gc
import io
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Never

import pytest
from kit.agent import World
from kit.api import Api, served

from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.api.routes import ledger as books
from payagent.api.routes import reconcile
from payagent.audit.finding import Progress
from payagent.store.db.readers import SCRATCH
from payagent.store.db.unit import Unit
from payagent.store.rows import writes as records


async def test_verify_is_clean_until_somebody_changes_the_ledger(api: Api) -> None:
    await api.pay()
    clean = (await api.as_("reader").get("/v1/ledger/verify")).json()
    assert (clean["clean"], clean["found"], clean["findings"]) == (True, 0, [])
    assert clean["checked"]["payments"] == 1
    with closing(sqlite3.connect(api.world.folder / "ledger.db", isolation_level=None)) as conn:
        for name in ("invoices_update", "invoices_insert"):
            conn.execute(f"DROP TRIGGER {name}")
        conn.execute("UPDATE invoices SET terms_hash = 'x'")
    told = (await api.as_("reader").get("/v1/ledger/verify")).json()
    named = {(finding["table"], finding["row"]) for finding in told["findings"]}
    assert named == {
        ("invoices", "1"),
        ("sqlite_master", "invoices_update"),
        ("sqlite_master", "invoices_insert"),
    }
    assert (told["clean"], told["found"]) == (False, 4)
    async with asyncio.timeout(60):
        while not (raised := (await api.as_("reader").get("/v1/alerts")).json()["alerts"]):
            await asyncio.sleep(0.01)
    assert [(one["kind"], one["facts"]["found"]) for one in raised] == [("books_wrong", "4")]


async def test_a_client_that_hangs_up_on_a_snapshot_leaves_no_copy_on_disk(api: Api, uncollected: None) -> None:
    """Nor an open read transaction, which would let the write-ahead log grow."""

    def note(unit: Unit) -> None:
        for _ in range(80):
            records.note(unit, None, "padding", None, 1, {"of": "x" * 100_000})

    await api.run.context.write("padding", note)
    reader, writer = await asyncio.open_unix_connection(api.unix_path, limit=1000)
    bearer = f"Authorization: Bearer {api.tokens['first']}"
    writer.write(f"GET /v1/ledger/snapshot HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n")
    assert len(copies()) == 1
    writer.transport.abort()
    async with asyncio.timeout(60):
        while copies():
            await asyncio.sleep(0.01)


async def test_a_client_that_hangs_up_during_verify_does_not_block_others(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ending the check waits for its worker processes, which may take seconds."""
    ending, answered = threading.Event(), threading.Event()
    was_answered = []

    def check(*_: object) -> Iterator[Progress]:
        try:
            while True:
                yield Progress("payments", 1)
        finally:
            ending.set()
            was_answered.append(answered.wait(60))

    monkeypatch.setattr(books, "verify", check)
    async with api.as_("reader").stream("GET", "/v1/ledger/verify") as answer:
        await anext(answer.aiter_raw())
    assert await asyncio.to_thread(ending.wait, 60)
    assert (await api.http.get("/healthz")).status_code == 200
    answered.set()
    async with asyncio.timeout(60):
        while not was_answered:
            await asyncio.sleep(0.01)
    assert was_answered == [True]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """A process without automatic garbage collection."""
    gc.disable()
    yield
    gc.enable()


def copies() -> list[Path]:
    """The copies of the ledger that this process has open."""
    found = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(handle.readlink())
    return [path for path in found if path.parent.name == SCRATCH]


async def test_verify_checks_that_a_head_noted_earlier_is_still_in_the_ledger(api: Api) -> None:
    http = api.as_("reader")
    await api.pay()
    head = (await http.get("/v1/ledger/verify")).json()["head"]
    await api.pay("another")
    later = (await http.get("/v1/ledger/verify", params={"head": head})).json()
    assert later["clean"]
    assert later["head"] != head
    seq, _, _ = head.partition(":")
    cut = (await http.get("/v1/ledger/verify", params={"head": f"{seq}:{'0' * 64}"})).json()
    assert [(finding["table"], finding["row"]) for finding in cut["findings"]] == [("seals", seq)]
    for broken in ("", "12", f"x:{'0' * 64}", f"1:{'0' * 63}", head.upper() + "A"):
        assert (await http.get("/v1/ledger/verify", params={"head": broken})).json()["code"] == "bad_request"
    assert (await http.get("/v1/alerts")).json()["alerts"] == [], "a head that a caller made up alarms nobody"


async def test_entries_balance_and_export_apply_the_same_filters(api: Api) -> None:
    await api.pay()
    await api.run.agent.submitter.drain(60)
    http = api.as_("reader")
    for chosen, kinds in [
        ({}, {"deposit", "reserve"}),
        ({"merchant": "t"}, {"reserve"}),
        ({"app": "first"}, {"reserve"}),
        ({"app": "app_first", "state": "in_flight"}, {"reserve"}),
        ({"app": "other"}, set()),
        ({"state": "void"}, set()),
        ({"kind": "deposit"}, {"deposit"}),
        ({"until": "2000-01-01T00:00:00Z"}, set()),
        ({"since": "2000-01-01T00:00:00Z", "asset": "ADA"}, {"deposit", "reserve"}),
        ({"asset": "5c" * 28}, set()),
    ]:
        entries = (await http.get("/v1/ledger/entries", params=chosen)).json()["entries"]
        assert {entry["kind"] for entry in entries} == kinds
        exported = await http.get("/v1/ledger/export", params=chosen)
        rows = list(csv.DictReader(io.StringIO(exported.text)))
        assert {row["entry"] for row in rows if row["entry"]} == {str(entry["id"]) for entry in entries}
        sums: dict[str, int] = {}
        for entry in entries:
            for posting in entry["postings"]:
                sums[posting["account"]] = sums.get(posting["account"], 0) + int(posting["units"])
        balances = (await http.get("/v1/ledger/balance", params=chosen)).json()["balances"]
        assert {row["account"]: int(row["units"]) for row in balances} == {a: n for a, n in sums.items() if n}


async def test_uses_of_a_prepaid_balance_are_listed_under_the_app_that_made_the_request(api: Api) -> None:
    api.world.settings(batch=4)
    row = await api.pay(app="payer", request={"method": "POST", "path": "/chat", "body_sha256": "ab" * 32})
    await api.run.agent.submitter.drain(60)
    await api.run.settle_down()
    await api.run.agent.deliveries.record_delivery(str(row["id"]), 200)
    buyer = Buyer("demo", api.world.address)
    for _ in range(2):
        await api.run.agent.prepaid_calls.record_call(
            ServedRequest("app_other", api.world.origin, buyer, "POST", "/chat", None)
        )
    http = api.as_("reader")
    for app, kinds in (("other", ["use", "use"]), ("payer", ["use", "post", "reserve"]), ("both", [])):
        entries = (await http.get("/v1/ledger/entries", params={"app": app})).json()["entries"]
        assert [entry["kind"] for entry in entries] == kinds
        exported = await http.get("/v1/ledger/export", params={"app": app})
        rows = [row for row in csv.DictReader(io.StringIO(exported.text)) if row["entry"]]
        assert {row["app"] for row in rows} == ({f"app_{app}"} if kinds else set())


async def test_entries_can_be_filtered_by_a_merchants_name_or_origin(api: Api) -> None:
    await api.pay()
    for merchant in ("t", api.world.origin):
        answer = await api.http.get("/v1/ledger/entries", params={"merchant": merchant})
        assert [entry["kind"] for entry in answer.json()["entries"]] == ["reserve"]


async def test_an_app_with_the_read_scope_may_compare_the_ledger_with_the_chain(api: Api) -> None:
    await api.pay()
    await api.run.agent.submitter.drain(60)
    answer = (await api.as_("reader").get("/v1/ledger/reconcile")).json()
    assert (answer["clean"], answer["complete"], answer["found"], answer["findings"]) == (True, True, 0, [])
    assert answer["checked"] == {"transactions": 5, "utxos": 5}
    lovelace = str(api.world.on_chain()["lovelace"])
    told = {"asset": "lovelace", "books": lovelace, "chain": lovelace, "in_flight": "0"}
    assert answer["balances"] == [told]
    assert answer["tip"]["height"] == api.run.context.chain.tip.height  # type: ignore[union-attr]
    assert (await api.as_("payer").get("/v1/ledger/reconcile")).json()["code"] == "forbidden"
    for wrong in ("-1", "x", "1.5", str(2**53)):
        refused = await api.http.get("/v1/ledger/reconcile", params={"since_slot": wrong})
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


async def test_reconcile_is_refused_until_the_chain_was_read(world: World) -> None:
    async with world.run() as run, served(run) as api:
        refused = await api.http.get("/v1/ledger/reconcile")
        assert (refused.status_code, refused.json()["code"]) == (503, "chain_not_ready")


async def test_a_client_that_hangs_up_during_reconcile_does_not_close_the_connection_in_use(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing SQLite while a thread reads from it crashes the process."""
    reading, gone, read = threading.Event(), threading.Event(), threading.Event()

    def compare(conn: sqlite3.Connection, *_: object, **__: object) -> Iterator[Never]:
        reading.set()
        gone.wait(60)
        conn.execute("SELECT COUNT(*) FROM entries").fetchone()
        read.set()
        yield from ()

    monkeypatch.setattr(reconcile, "reconcile", compare)
    async with api.as_("reader").stream("GET", "/v1/ledger/reconcile"):
        assert await asyncio.to_thread(reading.wait, 60)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "reconcile"]
    async with asyncio.timeout(60):
        while not task.cancelling():
            await asyncio.sleep(0.005)
    await asyncio.wait((task,), timeout=0.1)  # time enough to end before the thread, if it did
    gone.set()
    assert await asyncio.to_thread(read.wait, 60)
