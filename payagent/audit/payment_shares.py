"""Checks all payments in shares, in several processes: a payment is checked by its own rows alone.

Each process reads the file itself, a moment after the first. That is safe: it sees each payment and its rows in
one consistent state too.
Never: starts a process for a ledger that one process reads in a few seconds.
"""

import os
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path

from payagent.audit.finding import UNREADABLE, AuditFinding, Progress, to_the_end, unreadable
from payagent.audit.payments import check_payment
from payagent.audit.signed_bytes import Owner
from payagent.store.audit import books
from payagent.store.audit.payment_records import cases, payment_spans
from payagent.store.db.opening import DatabaseError
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection

SHARE = 2_000
SHARES_ALONE_MAX = 10
HELPERS_MAX = 3

_open = ExitStack()
"""Keeps a helper process's connection open until it ends."""

Span = tuple[int, int]
ShareResult = tuple[int, list[AuditFinding]]
"""(number of payments, findings)."""


@contextmanager
def shared_out(
    conn: Connection, owner: Owner, share: int = SHARE
) -> Generator[Iterator[AuditFinding | Progress], None, None]:
    """Findings and progress for all payments. Helpers start at once, and the caller's iteration joins in."""
    spans = list(payment_spans(conn, share))
    helpers = min(len(os.sched_getaffinity(0)) - 1, HELPERS_MAX)
    path = books.path_of(conn)
    if len(spans) <= SHARES_ALONE_MAX or helpers < 1 or path is None:
        yield _report(check_share(conn, owner, span) for span in spans)
        return
    with ProcessPoolExecutor(helpers, get_context("spawn"), _begin_to_help) as pool:
        try:
            futures = [pool.submit(_check_elsewhere, path, owner, span) for span in spans]
            yield _report(_join_in(conn, owner, dict(zip(spans, futures, strict=True))))
        finally:
            pool.shutdown(cancel_futures=True)


def check_share(conn: Connection, owner: Owner, span: Span) -> ShareResult:
    """Check a share of the payments in one read.

    If a row is unreadable, split the share in halves until one payment is left that has it.
    """
    first, last = span
    try:
        return _check(conn, owner, span)
    except (*UNREADABLE, DatabaseError) as error:
        finding = unreadable("payments", str(first), error)
    if first == last:
        return 1, [finding]
    middle = (first + last) // 2
    count, lower = check_share(conn, owner, (first, middle))
    more, upper = check_share(conn, owner, (middle + 1, last))
    return count + more, lower + upper


def _check(conn: Connection, owner: Owner, span: Span) -> ShareResult:
    findings: list[AuditFinding] = []
    count = 0
    for case in cases(conn, *span):
        findings.extend(to_the_end("payments", check_payment(case, owner), case.id))
        count += 1
    return count, findings


def _check_elsewhere(path: Path, owner: Owner, span: Span) -> ShareResult:
    return check_share(_read_from(path), owner, span)


@cache
def _read_from(path: Path) -> Connection:
    """One snapshot for all shares of a process, with one page cache."""
    return _open.enter_context(Readers(path).snapshot())


def _begin_to_help() -> None:
    """Ignore SIGINT, which only the first process handles, and end when the first process ends, for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_first, daemon=True).start()


def _end_with_the_first() -> None:
    # not PR_SET_PDEATHSIG: it fires when the thread that started the process ends
    if (first := parent_process()) is not None:
        first.join()
        os._exit(1)


def _join_in(conn: Connection, owner: Owner, shares: dict[Span, "Future[ShareResult]"]) -> Iterator[ShareResult]:
    """From the last share back, check those that no helper has begun; then yield the helpers' results."""
    begun: list[Span] = []
    for span in reversed(shares):
        if shares[span].cancel():
            yield check_share(conn, owner, span)
        else:
            begun.append(span)
    for span in begun:
        try:
            yield shares[span].result()
        except BrokenProcessPool:
            yield check_share(conn, owner, span)


def _report(shares: Iterator[ShareResult]) -> Iterator[AuditFinding | Progress]:
    total = 0
    for count, findings in shares:
        yield from findings
        total += count
        yield Progress("payments", total)
