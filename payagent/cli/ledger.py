"""`payagent ledger`: shows, reports, verifies and exports the ledger.

Never: computes a balance (the daemon does).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import click

from payagent.cli.daemon_client import OperatorClient
from payagent.cli.options import (
    ASSET,
    Connect,
    amount,
    example,
    filter_options,
    group_of,
    page_options,
    show_amount,
    show_asset,
    show_time,
    show_units,
    talks_to_daemon,
)
from payagent.cli.terminal import Field, Json, Terminal, harmless
from payagent.core.bounds import LIST_LIMIT_MAX
from payagent.core.money import counted
from payagent.core.payment.machine import ON_CHAIN
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.audit.finding import AuditFinding

CHAIN_UNREAD = 4

_ROWS = {
    "entries": "entries without a payment",
    "prepaid_moves": "moves of prepaid balances",
    "payments": "payments with their entries",
    "second_reader": "transactions read again by pycardano",
}
"""What `verify` checked, where the table's name alone is unclear."""
_ONE_ROW = {
    "seals": "seal",
    "entries": "entry without a payment",
    "prepaid_moves": "move of prepaid balances",
    "utxos": "utxo",
    "payments": "payment with its entries",
    "second_reader": "transaction read again by pycardano",
}

_BY = ("merchant", "app", "path", "destination", "hour", "day", "week", "month", "asset")
_FORMATS = ("csv", "jsonl", "beancount", "hledger")


@group_of("payagent ledger", "payagent ledger entries --limit 5", alone="balance")
def ledger() -> None:
    """Show the double-entry ledger. Without a subcommand: balances."""


@ledger.command(epilog=example("payagent ledger entries --payment pay_0123456789abcdef01234567"))
@click.option("--payment", metavar="ID", help="Only the entries of this payment.")
@click.option("--account", metavar="NAME", help="Only entries that touch this account, such as fees.")
@filter_options()
@page_options
@talks_to_daemon
def entries(
    terminal: Terminal,
    connect: Connect,
    payment: str | None,
    account: str | None,
    limit: int,
    cursor: str | None,
    **filters: str | None,
) -> None:
    """List entries with their postings, newest first. Debits are positive."""
    answer = connect().get(
        "/v1/ledger/entries", payment=payment, account=account, limit=limit, cursor=cursor, **filters
    )
    terminal.give(answer, lambda: _show_entries(terminal, answer))


def _show_entries(terminal: Terminal, answer: dict[str, Any]) -> None:
    rows = [
        (entry if number == 0 else {}, posting)
        for entry in answer["entries"]
        for number, posting in enumerate(entry["postings"])
    ]
    fields = (
        Field("entry", lambda row: row[0].get("id"), is_right=True),
        Field("at (UTC)", lambda row: show_time(row[0].get("at", "")), is_whole=True, drop=1),
        Field("kind", lambda row: row[0].get("kind"), is_whole=True),
        Field("payment", lambda row: row[0].get("payment"), is_whole=True, drop=0),
        Field("account", lambda row: row[1]["account"]),
        Field("asset", lambda row: show_asset(row[1]["asset"])),
        Field("units", lambda row: show_units(row[1]["asset"], row[1]["units"]), is_right=True),
    )
    terminal.table(rows, fields)
    terminal.say_more(answer)


@ledger.command(epilog=example("payagent ledger balance --until 2026-11-01T00:00:00Z"))
@filter_options()
@talks_to_daemon
def balance(terminal: Terminal, connect: Connect, **filters: str | None) -> None:
    """Show the balance of every account. For each asset they sum to zero."""
    terminal.give_list(
        connect().get("/v1/ledger/balance", **filters), "balances", (Field("account"), ASSET, amount("units"))
    )


@ledger.command(epilog=example("payagent ledger spend --by merchant,day --since 2026-11-01T00:00:00Z"))
@click.option(
    "--by",
    metavar="LIST",
    default="merchant",
    show_default=True,
    help=f"Group by {', '.join(_BY)}: comma-separated. In UTC; a week is its Monday.",
)
@filter_options()
@talks_to_daemon
def spend(terminal: Terminal, connect: Connect, by: str, **filters: str | None) -> None:
    """Show what left the wallet, and where it went.

    `paid` went to merchants, including for prepaid balances. `sent` is what the operator sent. A payment counts
    once it is confirmed, and a cancelled one counts with its fee. What a rollback undid is subtracted. A path is
    without its query, and a destination is the address of a transfer.
    """
    if unknown := [name for name in by.split(",") if name not in _BY]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(_BY)}", param_hint="--by")
    answer = connect().get("/v1/ledger/spend", by=by, **filters)
    terminal.give(answer, lambda: _show_spend(terminal, answer, by))


def _show_spend(terminal: Terminal, answer: dict[str, Any], by: str) -> None:
    keys = [key for key in dict.fromkeys(by.split(",")) if key != "asset"]
    rows = [{**row, **{key: row[key] or "-" for key in keys}} for row in answer["spend"] if keys]
    rows += [{**row, **dict(zip_longest(keys, ["total"][: len(keys)]))} for row in answer["totals"]]
    amounts = (amount("paid"), amount("fees", drop=2), amount("sent", drop=1), amount("total"))
    terminal.table(rows, (*map(Field, keys), ASSET, *amounts, Field("payments", is_right=True, drop=0)))


@ledger.command(epilog=example("payagent ledger report --month 2026-11 -o november.html"))
@click.option("--month", required=True, metavar="MONTH", help="Month to report, such as 2026-11. In UTC.")
@click.option(
    "-o", "--output", "file", required=True, type=click.Path(path_type=Path), metavar="FILE", help="New HTML file."
)
@click.option(
    "--prices",
    type=click.File(encoding="utf-8-sig"),
    help="CSV file of prices of 1 ADA, with the columns date, price, currency.",
)
@talks_to_daemon
def report(terminal: Terminal, connect: Connect, month: str, file: Path, prices: TextIO | None) -> None:
    """Write the report of a month as one HTML file.

    It shows balances, spend, sends, refusals and top-ups. The file needs no network and has no script. Only its
    owner can read it, because it holds every merchant, app and destination. With --prices, ADA also has its value
    in the file's currency at the price of each day.
    """
    from payagent.audit.prices import PriceError, read_prices
    from payagent.dashboard.month import month_file
    from payagent.dashboard.render import Renderer

    try:
        by_day = None if prices is None else read_prices(prices.read())
        client = connect()
        page = month_file(
            Renderer(tokens=terminal.tokens()),
            client.get("/v1/ledger/report", month=month),
            client.get("/v1/merchants")["merchants"],
            by_day,
        ).encode()
    except PriceError as error:
        raise click.BadParameter(str(error), param_hint="--prices") from None
    with _new_file(file.absolute()) as opened:
        opened.write(page)
    _show_written(terminal, file.absolute(), len(page))


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """A new file that only its owner can read, under its name once it is complete.

    Refused: `already_exists/file`, `write_failed/backup`.
    """
    from payagent.backup.staging import put, workshop, writing

    if target.exists() or target.is_symlink():
        raise Refused("already_exists/file", f"{target} exists already")
    with writing(), workshop(target.with_name(f".{target.name}.partial")) as folder:
        path = folder / target.name
        path.touch(mode=0o600)
        with path.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put(path, target)


def _show_written(terminal: Terminal, target: Path, size_bytes: int) -> None:
    terminal.give(
        {"file": str(target), "bytes": size_bytes}, lambda: terminal.line(f"{target}: {size_bytes} bytes")
    )


@ledger.command(epilog=example("payagent ledger snapshot books.db"))
@click.argument("file", type=click.Path(path_type=Path))
@talks_to_daemon
def snapshot(terminal: Terminal, connect: Connect, file: Path) -> None:
    """Write a copy of the ledger to a new FILE.

    Use the copy with sqlite-utils, Datasette and other tools instead of opening ledger.db. It needs a token with
    the scope operate. FILE holds every purchase but no key and no token. Only its owner can read it.
    """
    client = connect()
    with _new_file(file.absolute()) as copy:
        for piece in client.stream_bytes("/v1/ledger/snapshot"):
            copy.write(piece)
        size_bytes = copy.tell()
    _show_written(terminal, file.absolute(), size_bytes)


@ledger.command(epilog=example("payagent ledger verify", "payagent ledger verify --receipt receipt.json"))
@click.option("--head", metavar="SEQ:HASH", help="Head of an earlier verify: check that no row up to it is gone.")
@click.option(
    "--receipt", type=click.File("rb"), help="Check this receipt instead. Needs no daemon and no config."
)
@click.option(
    "--second-reader",
    is_flag=True,
    help="Also read every transaction with pycardano. Takes a second for about 100 transactions.",
)
@talks_to_daemon
def verify(
    terminal: Terminal, connect: Connect, head: str | None, receipt: BinaryIO | None, second_reader: bool
) -> int:
    """Check that the ledger is complete and unchanged.

    It checks every row: seals, event hashes, entries and their sums, the bytes of every transaction against its
    payment, and UTxOs against balances. Each finding names a table and row. Exit code 0 only without findings. The
    head in the last line stands for all rows so far: save it, and pass it to --head the next time.
    """
    if receipt is not None:
        if head is not None:
            raise click.UsageError("use --head (whole ledger) or --receipt (one payment), not both")
        return _verify_receipt(terminal, receipt)
    client = connect()
    answer = client.get("/v1/ledger/verify", head=head)
    if second_reader:
        differing, count = _read_again(terminal, client)
        answer["findings"] += differing
        answer["found"] += len(differing)
        answer["clean"] = not answer["found"]
        answer["checked"]["second_reader"] = count

    def human() -> None:
        for finding in answer["findings"]:
            terminal.line(f"{finding['table']} {finding['row']}: {finding['what']}")
        if answer["findings"]:
            terminal.line(
                "Keep the file unchanged, and find out who changed it. "
                "docs/how-to/restore-and-recover.md says how to go on."
            )
        checked = ", ".join(
            f"{count} {(_ONE_ROW if count == 1 else _ROWS).get(table, table)}"
            for table, count in answer["checked"].items()
        )
        terminal.line(f"{'clean' if answer['clean'] else counted(answer['found'], 'finding')}: {checked}")
        terminal.line(f"head {answer['head']}")

    terminal.give(answer, human)
    return 0 if answer["clean"] else 1


def _read_again(terminal: Terminal, client: OperatorClient) -> tuple[list[Json], int]:
    """What pycardano reads differently in the ledger's transactions, and how many it read."""
    from payagent.audit.second_reader import second_findings

    found: list[AuditFinding] = []
    count, cursor = 0, None
    with terminal.waiting() as progress:
        while True:
            page = client.get("/v1/ledger/transactions", limit=LIST_LIMIT_MAX, cursor=cursor)
            for tx in page["transactions"]:
                found += second_findings(tx["tx_hash"], bytes.fromhex(tx["cbor"]))
                count += 1
                progress(f"{counted(count, 'transaction')} read again")
            cursor = page["cursor"]
            if cursor is None:
                return [asdict(one) for one in found], count


def _verify_receipt(terminal: Terminal, file: BinaryIO) -> int:
    from payagent.audit.receipt import check_receipt, checked, untold
    from payagent.audit.receipt_form import RECEIPT_MAX_BYTES, CallReceipt, read_receipt
    from payagent.audit.second_reader import second_findings

    receipt = read_receipt(file.read(RECEIPT_MAX_BYTES + 1))
    found = list(check_receipt(receipt))
    payment = None if isinstance(receipt, CallReceipt) else receipt.payment
    for attempt in () if isinstance(receipt, CallReceipt) else receipt.attempts:
        found += second_findings(attempt.tx_hash, bytes.fromhex(attempt.cbor))
    findings = [asdict(one) for one in found]
    answer: dict[str, Any] = {
        "payment": receipt.payment if isinstance(receipt, CallReceipt) else receipt.payment.id,
        "clean": not findings,
        "findings": findings,
        "checked": checked(receipt),
        "not_told": untold(receipt),
    }

    def human() -> None:
        for finding in findings:
            terminal.line(f"{finding['table']} {finding['row']}: {finding['what']}")
        terminal.line(f"{counted(len(findings), 'finding') if findings else 'clean'}: {answer['payment']}")
        if not findings and payment is not None and payment.block is not None and payment.state in ON_CHAIN:
            for paid in payment.outputs:
                landed = f"in block {payment.block.height}, transaction {payment.tx_hash}"
                terminal.line(f"paid {show_amount(paid.asset, paid.units)} to {paid.address}, {landed}")
        for heading, part in (("Checked:", "checked"), ("The file alone cannot show:", "not_told")):
            terminal.line("\n  ".join((heading, *answer[part])))

    terminal.give(answer, human)
    return 1 if findings else 0


@ledger.command(epilog=example("payagent ledger reconcile", "payagent ledger reconcile --since-slot 140000000"))
@click.option(
    "--since-slot",
    type=click.IntRange(0),
    metavar="SLOT",
    help="Only blocks from this slot on, and unconfirmed payments.",
)
@talks_to_daemon
def reconcile(terminal: Terminal, connect: Connect, since_slot: int | None) -> int:
    """Compare the ledger with the chain, to the unit.

    It reads every transaction of the wallet's address. `missing`: in the ledger but not on the chain. `foreign`:
    on the chain but not from the ledger. `differing`: other amounts. Payments in flight are listed apart. Exit
    code 0 if they agree, 1 if something was found, 4 if the chain was not read in full.
    """
    answer = connect().get("/v1/ledger/reconcile", since_slot=since_slot)
    terminal.give(answer, lambda: show_reconciled(terminal, answer))
    return 0 if answer["clean"] else 1 if answer["found"] else CHAIN_UNREAD


def show_reconciled(terminal: Terminal, answer: dict[str, Any]) -> None:
    """Show a reconciliation for people."""
    for finding in answer["findings"]:
        terminal.line(
            f"{finding['kind']}: {finding['table']} {finding['row']}, transaction {finding['tx_hash'] or '-'}: "
            f"{finding['what']}"
        )
    for reason in answer["could_not_tell"]:
        terminal.line(f"could not tell: {reason}")
    for tx in answer["in_flight"]:
        amounts = ", ".join(show_amount(asset, n) for asset, n in tx["units"].items())
        terminal.line(f"in flight: {tx['payment'] or 'deposit'}, transaction {tx['tx_hash']}: {amounts}")
    if answer["balances"]:
        fields = (ASSET, amount("books"), amount("chain"), amount("in flight", "in_flight"))
        terminal.table(answer["balances"], fields)
    for pool in answer["prepaid"]:
        terminal.line(_prepaid_line(pool))
    checked = [counted(count, name.removesuffix("s")) for name, count in answer["checked"].items()]
    if answer["tip"] is not None:
        checked += [f"as of block {answer['tip']['height']}", f"by {answer['provider']}"]
    summary = counted(answer["found"], "finding") if answer["found"] else "nothing found"
    terminal.line(f"{'clean' if answer['clean'] else summary}: {', '.join(checked) or 'nothing was compared'}")


def _prepaid_line(pool: dict[str, Any]) -> str:
    """A prepaid balance, as counted here and as reported by the merchant."""
    name, report = pool["merchant"] or pool["origin"], pool["merchant_says"]
    left = counted(pool["left"], "call") if pool["unit"] == CALLS else show_amount(pool["unit"], pool["left"])
    own_count = f"prepaid at {name}: {left} left"
    if pool["difference"] is None:
        why = "reported nothing" if report is None else "reported a balance that cannot be compared"
        return f"{own_count}; the merchant {why}"
    same = "the same" if pool["difference"] == "0" else report["remaining"]
    return f"{own_count}; the merchant reports {same}"


@ledger.command(
    epilog=example("payagent ledger export --format beancount --since 2026-11-01T00:00:00Z > november.beancount")
)
@click.option(
    "--format", "form", type=click.Choice(_FORMATS), default="csv", show_default=True, help="Output format."
)
@filter_options()
@talks_to_daemon
def export(terminal: Terminal, connect: Connect, form: str, **filters: str | None) -> None:
    """Export entries with opening and closing balances.

    They go to stdout, oldest first. In csv and jsonl, amounts are integers in the smallest unit (lovelace), with
    ADA as a decimal beside them. In beancount and hledger, ADA amounts are decimals, token amounts are integers,
    and a token is named by a hash.
    """
    for piece in connect().stream("/v1/ledger/export", format=form, **filters):
        terminal.write(harmless(piece) if terminal.stdout.isatty() else piece)
