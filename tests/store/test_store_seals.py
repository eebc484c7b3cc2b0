"""Seals: each commit's new rows get one hash, computed as documented from the rows and the previous seal."""

import hashlib
import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from zlib import crc32

import pytest
from kit import holds

from payagent.audit.finding import AuditFinding
from payagent.audit.seals import check_seals
from payagent.core.changes import Book, EndIntent
from payagent.core.ledger import deposit
from payagent.core.problems import Refused
from payagent.store import executor
from payagent.store.audit import books
from payagent.store.db.committer import Committer, Job, SealingError
from payagent.store.db.opening import open_read_only
from payagent.store.db.readers import Readers
from payagent.store.db.seals import Sealer
from payagent.store.db.tables import GENESIS
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import prepaid
from payagent.store.rows import writes as records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def seals(path: Path) -> list[tuple[int, dict[str, list[int]], bytes, str]]:
    rows = Readers(path).conn.execute("SELECT seq, what, marks, hash FROM seals ORDER BY seq")
    return [(seq, json.loads(what), marks, own) for seq, what, marks, own in rows]


def add_rows(unit: Unit) -> None:
    records.put_meta(unit, "network", 'dev"net\n')
    unit.conn.execute("INSERT INTO apps VALUES ('app', 'ä', 'pay', NULL, NULL, 7)")
    records.put_meta(unit, "address", "addr")


def test_a_missing_table_raises_a_database_error(path: Path) -> None:
    """Reported as an unreadable ledger, not as a bug."""
    Writer(path).close()
    conn = sqlite3.connect(path)
    conn.execute("DROP TABLE alerts")
    with pytest.raises(sqlite3.DatabaseError):
        list(books.row_texts(conn, "alerts"))
    with pytest.raises(sqlite3.DatabaseError):
        Sealer(conn).last_rows()
    conn.close()


def test_a_seal_is_computed_as_documented(path: Path) -> None:
    writer = Writer(path)
    writer.submit("first", lambda unit: records.put_meta(unit, "first", "x")).result(60)
    writer.submit("more", add_rows).result(60)
    writer.close()
    before, (seq, what, marks, own) = seals(path)
    assert (before[0], before[1], seq, what) == (1, {"meta": [1, 1]}, 2, {"apps": [1, 1], "meta": [2, 3]})
    rows = [[1, "app", "ä", "pay", None, None, 7], [2, "network", 'dev"net\n'], [3, "address", "addr"]]
    texts = [json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode() for row in rows]
    assert marks == b"".join(crc32(text).to_bytes(4, "big") for text in texts)
    lines = [before[3], "2", '{"apps":[1,1],"meta":[2,3]}', marks.hex()]
    assert own == hashlib.sha256("\n".join(lines).encode() + b"\n" + b"\n".join(texts)).hexdigest()
    first = f'{GENESIS}\n1\n{{"meta":[1,1]}}\n{before[2].hex()}\n[1,"first","x"]'
    assert before[3] == hashlib.sha256(first.encode()).hexdigest()


def test_the_account_of_a_row_is_sealed_only_if_it_is_not_the_first(path: Path) -> None:
    """So that ledgers from before there were accounts keep their seals."""
    writer = Writer(path)
    for account in range(2):
        job = partial(
            prepaid.ensure_pool, origin="o", partner=f"p{account}", wallet="w", now_ms=5, account=account
        )
        writer.submit("pool", job).result(60)
    writer.close()
    with closing(open_read_only(path)) as conn:
        texts = [json.loads(text) for _, text in books.row_texts(conn, "prepaid_pools")]
        assert not [one for one in check_seals(conn, None) if isinstance(one, AuditFinding)]
    assert texts == [[1, 1, "o", "p0", "w", 5], [2, 2, "o", "p1", "w", 5, 1]]


def test_the_account_of_a_posting_is_sealed_where_it_always_stood(path: Path) -> None:
    writer = Writer(path)
    booked = Book(deposit({"lovelace": 5}), ref="aa#0")
    writer.submit("deposit", lambda unit: executor.write(unit, (booked,), 5)).result(60)
    writer.close()
    with closing(open_read_only(path)) as conn:
        texts = [json.loads(text) for _, text in books.row_texts(conn, "postings")]
    assert texts == [[1, 1, 1, "external", "lovelace", -5], [2, 2, 1, "wallet", "lovelace", 5]]


def test_rows_another_connection_adds_are_not_sealed(path: Path) -> None:
    """This is how `ledger verify` finds a row that somebody added to the file."""
    writer = Writer(path)
    for number in range(3):
        writer.submit("ours", lambda unit, n=number: records.put_meta(unit, f"ours {n}", "x")).result(60)
        with closing(sqlite3.connect(path)) as conn, conn:
            conn.execute("INSERT INTO meta(key, value) VALUES (?, 'forged')", (f"theirs {number}",))
    writer.close()
    assert [what for _, what, *_ in seals(path)] == [{"meta": [n, n]} for n in (1, 3, 5)]


def test_one_seal_covers_all_jobs_of_a_commit_except_undone_ones(path: Path) -> None:
    def refuse(unit: Unit) -> None:
        records.put_meta(unit, "undone", "x")
        raise Refused("not_found", "on purpose")

    committer = Committer(path)
    names = ("a", "b", "c", "d")
    jobs = [Job(name, partial(records.put_meta, key=name, value="x"), Unit(committer.conn)) for name in names]
    jobs.insert(2, Job("refused", refuse, Unit(committer.conn)))
    committer.commit(jobs[:4])
    committer.commit(jobs[4:])
    with closing(open_read_only(path)) as conn:
        assert not [one for one in check_seals(conn, None) if isinstance(one, AuditFinding)]
    committer.close()
    assert [what for _, what, *_ in seals(path)] == [{"meta": [1, 3]}, {"meta": [4, 4]}]


def test_a_bug_in_sealing_is_not_reported_as_a_disk_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_texts: object) -> bytes:
        raise TypeError("a bug")

    writer = Writer(path)
    monkeypatch.setattr("payagent.store.db.seals.marks_of", broken)
    with pytest.raises(SealingError, match="a bug"):
        writer.submit("first", lambda unit: records.put_meta(unit, "first", "x")).result(60)
    monkeypatch.undo()
    writer.submit("second", lambda unit: records.put_meta(unit, "second", "x")).result(60)
    writer.close()
    assert [what for _, what, *_ in seals(path)] == [{"meta": [1, 1]}]


def test_only_committed_rows_are_sealed(path: Path) -> None:
    def refuse(unit: Unit) -> None:
        add_rows(unit)
        raise Refused("not_found", "on purpose")

    def break_commit(unit: Unit) -> None:
        unit.conn.execute("INSERT INTO postings(entry_id, account, asset, units) VALUES (7, 'a', 'b', 1)")

    writer = Writer(path)
    for job in (refuse, break_commit):
        with pytest.raises(Refused):
            writer.submit("not", job).result(60)
    writer.submit("nothing", lambda unit: unit.conn.execute("SELECT 1")).result(60)
    writer.submit("more", add_rows).result(60)
    writer.close()
    assert [(seq, what) for seq, what, *_ in seals(path)] == [(1, {"apps": [1, 1], "meta": [1, 2]})]


def test_a_later_commit_does_not_seal_a_row_somebody_else_wrote(path: Path) -> None:
    writer = Writer(path)
    writer.submit("first", lambda unit: records.put_meta(unit, "first", "x")).result(60)
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.execute("INSERT INTO meta VALUES ('mine', 'x')")
    conn.close()
    writer.submit("third", lambda unit: records.put_meta(unit, "third", "x")).result(60)
    writer.close()
    assert [what for _, what, *_ in seals(path)] == [{"meta": [1, 1]}, {"meta": [3, 3]}]


def test_only_the_fixed_columns_of_a_row_are_sealed(path: Path) -> None:
    writer = Writer(path)
    writer.submit("app", add_rows).result(60)

    def open_intent(unit: Unit) -> None:
        executor.open_intent(
            unit, intent_id="int", app_id="app", idempotency_key="k", is_key_derived=True, fingerprint="f",
            origin="o", request=None, request_id="r", now_ms=5,
        )  # fmt: skip

    writer.submit("intent", open_intent).result(60)
    writer.submit("end", lambda unit: executor.write(unit, (EndIntent("int"),), 6, holds.NoFreeUtxos())).result(60)
    writer.close()
    assert [what for _, what, *_ in seals(path)][1:] == [{"intents": [1, 1]}]
    text = b'[1,"int","app","k",1,"f","o",null,"r",5]'
    assert seals(path)[1][2] == crc32(text).to_bytes(4, "big")
