"""The books over HTTP: whole or not, in part, and in the formats of accounting."""

import csv
import io
import sqlite3
from contextlib import closing

import pytest
from api_kit import Api


async def test_books_are_clean_until_somebody_changes_them(api: Api) -> None:
    await api.pay()
    clean = (await api.as_("reader").get("/v1/ledger/verify")).json()
    assert (clean["clean"], clean["found"], clean["findings"]) == (True, 0, [])
    assert clean["checked"]["payments"] == 1
    with closing(sqlite3.connect(api.world.folder / "ledger.db", isolation_level=None)) as conn:
        for name in ("invoices_no_update", "invoices_no_replace"):
            conn.execute(f"DROP TRIGGER {name}")
        conn.execute("UPDATE invoices SET terms_hash = 'x'")
    told = (await api.as_("reader").get("/v1/ledger/verify")).json()
    named = {(finding["table"], finding["row"]) for finding in told["findings"]}
    assert named == {
        ("invoices", "1"),
        ("sqlite_master", "invoices_no_update"),
        ("sqlite_master", "invoices_no_replace"),
    }
    assert (told["clean"], told["found"]) == (False, 3)


@pytest.mark.parametrize(
    ("chosen", "kinds"),
    [
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
    ],
)
async def test_entries_balance_and_export_show_the_same_part(
    api: Api, chosen: dict[str, str], kinds: set[str]
) -> None:
    await api.pay()
    await api.run.agent.drain(10)
    http = api.as_("reader")
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


async def test_an_origin_names_a_merchant_too(api: Api) -> None:
    await api.pay()
    for merchant in ("t", api.world.origin):
        answer = await api.http.get("/v1/ledger/entries", params={"merchant": merchant})
        assert [entry["kind"] for entry in answer.json()["entries"]] == ["reserve"]
