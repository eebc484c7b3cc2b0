"""Writes a statement for plain-text accounting: beancount and hledger, each by its own syntax, with equal
accounts.

A token is named by the hash of its policy and name, never by its display name: anyone can mint an "ADA".
Never: writes a name that either program would read differently.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

from payagent.audit.statement import Balance, Statement, StatementEntry
from payagent.core.ledger import EXTERNAL, FEES, HELD, WALLET, general_account
from payagent.core.money import LOVELACE, format_units
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time

_ACCOUNTS = {
    WALLET: "Assets:Payagent:Wallet",
    HELD: "Assets:Payagent:Held",
    FEES: "Expenses:Fees",
    EXTERNAL: "Equity:External",
}
_ROOTS = {"merchant": "Expenses:Merchant", "prepaid": "Assets:Prepaid", "channel": "Assets:Channel"}
_LAST_DAY = date.max - timedelta(days=1)
_UNSAFE = re.compile(r"[^A-Za-z0-9]+", re.ASCII)


@lru_cache(maxsize=4096)
def account_name(account: str) -> str:
    """An account name that both programs accept. A merchant's includes a hash of its origin, to be unique."""
    if account in _ACCOUNTS:
        return _ACCOUNTS[account]
    if (general := general_account(account)) != account:
        return f"{_ACCOUNTS[general]}:{account.removeprefix(f'{general}/')}"
    kind, _, origin = account.partition(":")
    if kind not in _ROOTS:
        raise Refused("store_failed", f"{account!r} is not an account of the ledger")
    host = _UNSAFE.sub("-", origin.partition("://")[2]).strip("-") or "host"
    digest = hashlib.sha256(origin.encode()).hexdigest()[:8]
    return f"{_ROOTS[kind]}:{host[:1].upper()}{host[1:]}-{digest}"


@lru_cache(maxsize=4096)
def commodity_name(asset: str) -> str:
    """ADA, or T and 16 characters of the hash of the token's on-chain id."""
    return "ADA" if asset == LOVELACE else "T" + hashlib.sha256(asset.encode()).hexdigest()[:16].upper()


def _number(asset: str, units: int) -> str:
    return format_units(units, 6 if asset == LOVELACE else 0)


def _assets(balances: Iterable[Balance]) -> list[str]:
    return sorted({asset for _, asset, _ in balances})


def _accounts(balances: Iterable[Balance]) -> list[str]:
    return sorted({account for account, _, _ in balances})


def _title(statement: Statement) -> str:
    since, until = statement.only.since_ms, statement.only.until_ms
    period = "" if since is None else f", since {iso_time(since)}"
    return f"payagent on {statement.network}{period}" + ("" if until is None else f", until {iso_time(until)}")


def _day(ms: int, later: int = 0) -> str:
    """The UTC day, at most the last day but one: the day after it must exist for the closing balances."""
    day = min(datetime.fromtimestamp(ms // 1000, UTC).date(), _LAST_DAY)
    return (day + timedelta(days=later)).isoformat()


def beancount(statement: Statement) -> Iterator[str]:
    """Lines that `bean-check` accepts."""
    yield f'option "title" {json.dumps(_title(statement))}'
    if statement.first_ms is None or statement.last_ms is None:
        return
    first = _day(statement.first_ms)
    for asset in _assets(statement.closing):
        yield f"{first} commodity {commodity_name(asset)}"
        yield f"  asset: {json.dumps(asset)}"
    for account in _accounts(statement.closing):
        yield f"{first} open {account_name(account)}"
        yield f"  account: {json.dumps(account)}"
    if statement.opening:
        yield f'{first} * "opening balances"'
        yield from _lines(statement.opening, "  ", commodity_name)
    for entry in statement.entries:
        yield from _bean_entry(entry)
    after = _day(statement.last_ms, later=1)
    for account, asset, units in statement.closing:
        yield f"{after} balance {account_name(account)}  {_number(asset, units)} {commodity_name(asset)}"


def _bean_entry(entry: StatementEntry) -> Iterator[str]:
    row = entry.row
    narration = f"{row.kind} {row.payment_id}" if row.payment_id else row.kind
    payee = f"{json.dumps(entry.origin)} " if entry.origin else ""
    yield f"{_day(row.at_ms)} * {payee}{json.dumps(narration)}"
    for name, value in (("entry", str(row.id)), ("at", iso_time(row.at_ms)), ("ref", row.ref), ("app", entry.app)):
        if value is not None:
            yield f"  {name}: {json.dumps(value)}"
    yield from _lines(row.postings, "  ", commodity_name)


def _lines(lines: Iterable[Balance], indent: str, symbol: Callable[[str], str]) -> Iterator[str]:
    for account, asset, units in lines:
        yield f"{indent}{account_name(account)}  {_number(asset, units)} {symbol(asset)}"


def hledger(statement: Statement) -> Iterator[str]:
    """Lines that `hledger check --strict` accepts."""
    yield f"; {_title(statement)}"
    if statement.first_ms is None or statement.last_ms is None:
        return
    for asset in _assets(statement.closing):
        yield f"; {commodity_name(asset)} is {asset}"
        yield f"commodity {'1.000000' if asset == LOVELACE else '1.'} {_symbol(asset)}"
    for account in _accounts(statement.closing):
        yield f"; {account_name(account)} is {account}"
        yield f"account {account_name(account)}"
    if statement.opening:
        yield f"{_day(statement.first_ms)} * opening balances"
        yield from _lines(statement.opening, "    ", _symbol)
    for entry in statement.entries:
        yield from _hledger_entry(entry)
    yield f"{_day(statement.last_ms, later=1)} * closing balances"
    for account, asset, units in statement.closing:
        amount = f"{_number(asset, 0)} {_symbol(asset)} = {_number(asset, units)} {_symbol(asset)}"
        yield f"    {account_name(account)}  {amount}"


def _hledger_entry(entry: StatementEntry) -> Iterator[str]:
    row = entry.row
    description = f"{row.kind} {row.payment_id}" if row.payment_id else row.kind
    yield f"{_day(row.at_ms)} * ({row.id}) {description}"
    tags = (("at", iso_time(row.at_ms)), ("ref", row.ref), ("merchant", entry.origin), ("app", entry.app))
    for name, value in tags:
        if value is not None:
            yield f"    ; {name}:{value}"
    yield from _lines(row.postings, "    ", _symbol)


def _symbol(asset: str) -> str:
    name = commodity_name(asset)
    return name if name.isalpha() else f'"{name}"'
