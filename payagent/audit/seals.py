"""Checks the seals against the rows that they cover: each table of record once, in order, all tables in parallel.

The events' own hash chain is checked in the same pass.
Never: holds more than a few rows of a table in memory; enumerates a range that only a row claims.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import islice

from payagent.audit.finding import UNREADABLE, AuditFinding, Head, Progress, numbers
from payagent.store.audit import books
from payagent.store.db.seals import SEALED, marks_of, seal_hash
from payagent.store.db.tables import GENESIS
from payagent.store.db.unit import Connection

PROGRESS_EVERY = 5_000
_AHEAD = 100
_MARK = 4
_LINK = len(',"",""]') + 2 * len(GENESIS)
"""Length of the end of an event's text: the hash before and its own."""
_SEALED = frozenset(SEALED)
_read = json.JSONDecoder().raw_decode

Row = tuple[int, bytes]
Span = tuple[str, int, int]
"""(table, first row number, last row number)."""


class Rows:
    """The rows of a table that no seal has taken yet. `sealed`: the last row number of the last seal."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self.sealed = 0
        self._rows = rows
        self._ahead: list[Row] = []
        self._at = 0

    def take(self, first: int, last: int) -> tuple[list[Row], list[Row]]:
        """The rows before `first`, which no seal covers, and the rows from `first` to `last`."""
        if last > self.sealed:
            self.sealed = last
        at, end = self._at, self._at + last - first + 1
        taken = self._ahead[at:end]
        if taken and taken[0][0] == first and taken[-1][0] == last:
            self._at = at + len(taken)
            return [], taken
        while not self._ahead or self._ahead[-1][0] < last:
            more = list(islice(self._rows, _AHEAD))
            if not more:
                break
            self._ahead = self._ahead[self._at :] + more
            self._at = 0
        passed = [row for row in self._ahead[self._at :] if row[0] <= last]
        self._at += len(passed)
        before = sum(number < first for number, _ in passed)
        return passed[:before], passed[before:]

    def rest(self) -> Iterator[Row]:
        yield from self._ahead[self._at :]
        yield from self._rows


def _linked(events: Iterator[Row], broken: list[AuditFinding]) -> Iterator[Row]:
    """Yield the events unchanged, and append to `broken` those that do not follow from the event before.

    An event's hash covers its text with the previous hash in place of the row number.
    """
    last_seq, last_hash = 0, GENESIS.encode()
    for row in events:
        seq, text = row
        content = text[len(str(seq)) + 2 : -_LINK]
        event_hash = hashlib.sha256(b'["%b",%b]' % (last_hash, content)).hexdigest().encode()
        link = text[-_LINK:]
        if seq != last_seq + 1 or link != b',"%b","%b"]' % (last_hash, event_hash):
            broken.append(
                AuditFinding("events", str(seq), "its hash does not follow from it and the event before")
            )
        last_seq, last_hash = seq, link[-2 - len(event_hash) : -2]
        yield row


def check_seals(conn: Connection, noted: Head | None) -> Iterator[AuditFinding | Progress | Head]:
    """Check that each row is in one seal and unchanged, and that the seals form a chain that contains `noted`."""
    broken: list[AuditFinding] = []
    tables = {table: Rows(books.row_texts(conn, table)) for table in SEALED}
    tables["events"] = Rows(_linked(books.row_texts(conn, "events"), broken))
    last_seq, last_hash = 0, GENESIS
    not_found = None if noted is None or noted == Head(0, GENESIS) else (noted.seq, noted.hash)
    for seal in books.seals(conn):
        if seal.seq != last_seq + 1:
            yield AuditFinding(
                "seals", numbers(last_seq + 1, seal.seq - 1), "missing: seals are numbered without gaps"
            )
        yield from _check(seal, last_hash, tables)
        if broken:
            yield from broken
            broken.clear()
        last_seq, last_hash = seal.seq, seal.hash
        if (last_seq, last_hash) == not_found:
            not_found = None
        if last_seq % PROGRESS_EVERY == 0:
            yield Progress("seals", last_seq)
    for table, rows in tables.items():
        yield from (AuditFinding(table, str(number), "no seal covers it") for number, _ in rows.rest())
    yield from broken
    if not_found is not None:
        yield AuditFinding(
            "seals", str(not_found[0]), f"the chain of seals does not contain the given head {noted}"
        )
    yield Progress("seals", last_seq)
    yield Head(last_seq, last_hash)


def _check(seal: books.Seal, prev_hash: str, tables: dict[str, Rows]) -> Iterator[AuditFinding]:
    spans = _spans(seal.what, seal.marks)
    if spans is None:
        yield AuditFinding("seals", str(seal.seq), "it does not say which rows it covers")
        return
    covered: list[list[Row]] = []
    for table, first, last in spans:
        rows = tables[table]
        if first != rows.sealed + 1:
            yield AuditFinding(
                "seals", str(seal.seq), f"it begins at {table} {first}; {rows.sealed + 1} was expected"
            )
        unsealed, taken = rows.take(first, last)
        yield from (AuditFinding(table, str(number), "no seal covers it") for number, _ in unsealed)
        covered.append(taken)
    texts = [text for rows in covered for _, text in rows]
    if seal_hash(prev_hash, seal.seq, seal.what, seal.marks, texts) != seal.hash:
        yield from _explain(seal, prev_hash, spans, covered)


def _spans(what: str, marks: bytes) -> list[Span] | None:
    """The rows that a seal covers, as many as it has marks; None if `what` is not in the form that we write."""
    spans = []
    try:
        by_table, end = _read(what)
        marks_size = len(marks)
        if end != len(what):
            return None
        for table, (first, last) in by_table.items():
            if table not in _SEALED or type(first) is not int or type(last) is not int or not 0 < first <= last:
                return None
            spans.append((table, first, last))
            marks_size -= (last - first + 1) * _MARK
    except UNREADABLE:
        return None
    return None if marks_size else spans


def _explain(
    seal: books.Seal, prev_hash: str, spans: list[Span], covered: list[list[Row]]
) -> Iterator[AuditFinding]:
    """Find the rows that differ from the sealed ones, by their marks. If none does, report the seal itself."""
    texts = [text for rows in covered for _, text in rows]
    if len(texts) * _MARK == len(seal.marks):
        marks = marks_of(texts)
        is_marked = marks == seal.marks
        if is_marked or seal_hash(prev_hash, seal.seq, seal.what, marks, texts) == seal.hash:
            yield AuditFinding("seals", str(seal.seq), "it does not follow from its rows and the seal before")
            return
    place = 0
    for (table, first, last), rows in zip(spans, covered, strict=True):
        expected = first
        for number, text in rows:
            if number > expected:
                yield AuditFinding(table, numbers(expected, number - 1), "missing: it was sealed")
            expected = number + 1
            at = (place + number - first) * _MARK
            if marks_of((text,)) != seal.marks[at : at + _MARK]:
                yield AuditFinding(table, str(number), "it differs from what was sealed")
        if expected <= last:
            yield AuditFinding(table, numbers(expected, last), "missing: it was sealed")
        place += last - first + 1
