"""Exports a statement as a stream of text, in the requested format.

Never: reads the ledger (the statement does); writes an inexact amount.
"""

import csv
import json
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Literal

from payagent.audit import plain_text_accounting
from payagent.audit.statement import Balance, Statement
from payagent.core.money import LOVELACE, format_units
from payagent.core.timestamps import iso_time

Format = Literal["csv", "jsonl", "beancount", "hledger"]
CHUNK_CHARS = 65_536

COLUMNS = (
    *("entry", "at", "kind", "payment", "merchant", "app"),
    *("ref", "account", "asset", "units", "ada", "app_name"),
)


def export(statement: Statement, form: Format) -> Iterator[str]:
    """The export, in pieces of text."""
    if form == "csv":
        return _csv(statement)
    write: Callable[[Statement], Iterator[str]] = {
        "jsonl": _jsonl,
        "beancount": plain_text_accounting.beancount,
        "hledger": plain_text_accounting.hledger,
    }[form]
    return _pieces(write(statement))


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    piece: list[str] = []
    chars = 0
    for line in lines:
        piece.append(line)
        chars += len(line)
        if chars >= CHUNK_CHARS:
            yield "\n".join([*piece, ""])
            piece, chars = [], 0
    if piece:
        yield "\n".join([*piece, ""])


def _ada(asset: str, units: int) -> str | None:
    return format_units(units, 6) if asset == LOVELACE else None


def _csv(statement: Statement) -> Iterator[str]:
    """One row per posting; rows for the opening balances before them, and for the closing balances after them."""
    piece = StringIO()
    writer = csv.writer(piece, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(_balance_rows("opening", statement.only.since_ms, statement.opening))
    for entry in statement.entries:
        row = entry.row
        head = (row.id, iso_time(row.at_ms), row.kind, row.payment_id, entry.origin, entry.app_id, row.ref)
        writer.writerows((*head, *line, _ada(*line[1:]), entry.app) for line in row.postings)
        if piece.tell() >= CHUNK_CHARS:
            yield piece.getvalue()
            piece.seek(0)
            piece.truncate()
    writer.writerows(_balance_rows("closing", statement.only.until_ms, statement.closing))
    yield piece.getvalue()


def _balance_rows(kind: str, at_ms: int | None, balances: tuple[Balance, ...]) -> Iterator[tuple[object, ...]]:
    at = None if at_ms is None else iso_time(at_ms)
    for account, asset, units in balances:
        yield (None, at, kind, None, None, None, None, account, asset, units, _ada(asset, units), None)


def _jsonl(statement: Statement) -> Iterator[str]:
    """One object per line: the opening balances, each entry with its postings, the closing balances."""
    yield _json(type="opening", at=_time(statement.only.since_ms), balances=_lines(statement.opening))
    for entry in statement.entries:
        row = entry.row
        yield _json(
            type="entry",
            id=row.id,
            at=iso_time(row.at_ms),
            kind=row.kind,
            payment=row.payment_id,
            merchant=entry.origin,
            app=entry.app_id,
            app_name=entry.app,
            ref=row.ref,
            postings=_lines(row.postings),
        )
    yield _json(type="closing", at=_time(statement.only.until_ms), balances=_lines(statement.closing))


def _json(**value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _time(ms: int | None) -> str | None:
    return None if ms is None else iso_time(ms)


def _lines(balances: tuple[Balance, ...]) -> list[dict[str, str]]:
    lines = []
    for account, asset, units in balances:
        line = {"account": account, "asset": asset, "units": str(units)}
        if (ada := _ada(asset, units)) is not None:
            line["ada"] = ada
        lines.append(line)
    return lines
